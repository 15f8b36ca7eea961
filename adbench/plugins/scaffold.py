"""`adbench new-method`: a plugin file that works as it is."""

from __future__ import annotations

import keyword
import re
import sys
from pathlib import Path

from adbench.errors import UserError
from adbench.plugin_code import locate
from adbench.registry import GROUPS, METHODS
from adbench.system.files import write_text

TEMPLATE = '''\
"""{name}: a method for adbench.

    adbench validate {file}
    adbench run --methods {name},rslad --plugin {file}
"""

from torch import Tensor

from adbench import Method, Need, Passes, Start, Step, hyper
from adbench.losses import cross_entropy, kl


class {cls}(Method):
    """One line for `adbench list`: what is new here, and its paper.

    attack:  max  CE(S(x'), y)
    loss:    alpha KL(S(x'), T(x')) + (1 - alpha) CE(S(x), y)

    differs: where the paper and its published code differ, and what is done here.
    """

    label = "{name}"  # the name in tables
    needs = frozenset({{Need.TEACHER}})  # drop it for a method without a teacher
    alpha: float = hyper(0.9, ge=0, le=1, doc="weight of distillation; --set hyper.{name}.alpha=0.5 changes it")

    def attack(self, step: Step) -> Tensor:
        """x' in the ball around step.x: signed gradient ascent on anything, one value an example."""
        return step.ascend(lambda x: cross_entropy(step.student(x), step.y), start=Start.UNIFORM)

    def loss(self, step: Step, x_adv: Tensor) -> Tensor:
        """One value an example. step.teacher is frozen, and computed once a batch for the same input."""
        distilled = step.term("kl", kl(step.student(x_adv), step.teacher(x_adv)))
        natural = step.term("cross_entropy", cross_entropy(step.student(step.x), step.y))
        return self.alpha * distilled + (1 - self.alpha) * natural

    def passes(self, steps: int) -> Passes:
        """The cost of one iteration: for the plan, and for an equal budget (--preset fair)."""
        return Passes(student=steps + 2, teacher_forward=1)

    # A network of the method's own, which the loop trains with the student (`from torch import nn`):
    #
    # def parts(self, step: Step) -> dict[str, nn.Module]:
    #     channels, *_ = step.student.shape(step.x, -2)
    #     return {{"projection": nn.Conv2d(channels, 16, 1)}}
    #
    # and in `loss`: logits, maps = step.student.stages(x_adv, -2); step.parts["projection"](maps[-2]).
    # -2 is the last map of the resolution before the last; `adbench info ARCHITECTURE` lists all stages.
'''


def write_method(name: str, folder: Path) -> Path:
    """Write the starting point of a method called `name` into `folder`; returns the file.

    Raises UserError for a name that cannot be a method's, or a file that is there already.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) or keyword.iskeyword(name):
        raise UserError(f"'{name}' cannot be a method's name; use lower-case words joined by dashes, as in my-method")
    if name in GROUPS:
        raise UserError(f"'{name}' stands for several methods; choose another name")
    if name in METHODS:
        raise UserError(f"a method '{name}' is there already; choose another name (adbench list methods)")
    module = name.replace("-", "_")
    path = folder / f"{module}.py"
    if path.exists():
        raise UserError(f"'{path}' is there already; choose another name or --out")
    if module in sys.stdlib_module_names or locate(module):
        raise UserError(f"a Python module '{module}' is installed, which '{path}' could hide; choose another name")
    cls = "".join(word.capitalize() for word in name.split("-"))
    write_text(path, TEMPLATE.format(name=name, file=path, cls=cls))
    return path
