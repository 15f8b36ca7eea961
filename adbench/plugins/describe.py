"""`adbench info`: a method on a page, read from its class; a network with its stages."""

from __future__ import annotations

import enum
import inspect
import textwrap
from typing import Any, Literal, get_args, get_origin

import torch
from pydantic.fields import FieldInfo

from adbench.models import build, canonical, count_parameters
from adbench.models.stages import Shape, levels, stages
from adbench.registry import METHODS
from adbench.training.configured import configured, declared, passes
from adbench.training.method import Passes
from adbench.training.step import Need

WIDTH = 110


def card(name: str, steps: int = 10) -> str:
    """The method `name` on a page: formulas, needs, cost with `steps` attack steps, hyperparameters, differences.

    Raises UserError for an unknown method or one that cannot be imported.
    """
    method = configured(name, {})
    cls = type(method)
    needed = declared(name, "needed", method.needed)
    lines = [f"{name}: {method.label}", "", inspect.getdoc(cls) or "(no docstring)", ""]
    lines += [f"needs   {', '.join(need.value for need in Need if need in needed) or 'no teacher'}"]
    lines += _wrapped("cost    ", _cost(passes(method, name, steps), steps))
    reach = declared(name, "reach", method.reach)
    if reach > 1:
        lines += [f"reach   up to {reach:g} eps: it trains outside the threat model"]
    if not method.rehearsable:
        lines += [
            "awp     no train.awp: it does not declare that its state stays in a rehearsal of the loss (`rehearses`)"
        ]
    if not METHODS.built_in(name):
        lines += [f"source  {METHODS.source(name)}"]
    if cls.model_fields:
        lines += ["", f"hyperparameters (--set hyper.{name}.NAME=VALUE)"]
        width = max(map(len, cls.model_fields))
        for key, field in cls.model_fields.items():
            text = f"{_value(field.default)}: {field.description or '(no description)'}{_allowed(field)}"
            lines += _wrapped(f"  {key:{width}}  ", text)
    return "\n".join(lines)


def network_card(name: str, image_shape: Shape = (3, 32, 32)) -> str:
    """An architecture on a page: its size, and its stages with their maps of an image of that shape.

    Raises UserError for an unknown architecture.
    """
    network = build(name, classes=10, channels=image_shape[0]).eval()
    known = stages(network, torch.zeros(1, *image_shape))
    summary = (inspect.getdoc(type(network)) or "").partition("\n")[0]
    size = " x ".join(map(str, image_shape))
    lines = [f"{canonical(name)}: {summary}", "", f"{count_parameters(network):,} parameters with 10 classes"]
    lines += [
        "",
        f"stages, for step.student.stages(x, STAGE): the name, or the level, and K x H x W of an image of {size}",
    ]
    of_level = {name: level for level, name in enumerate(levels(known))}
    shown = [name for name in known if name.count(".") < 2 or name in of_level]
    width = max(map(len, shown))
    for stage in shown:
        level = f"level {of_level[stage]}, {of_level[stage] - len(of_level)}" if stage in of_level else ""
        lines.append(f"  {stage:{width}}  {' x '.join(map(str, known[stage])):14}  {level}".rstrip())
    return "\n".join(lines)


def _wrapped(head: str, text: str) -> list[str]:
    """`text` after `head`, with a hanging indent."""
    indent = " " * len(head)
    return textwrap.wrap(text, WIDTH, initial_indent=head, subsequent_indent=indent, break_on_hyphens=False)


def _cost(cost: Passes, steps: int) -> str:
    """The cost of an iteration in words."""
    parts = {
        "student forward and backward": cost.student,
        "student forward": cost.student_forward,
        "teacher forward and backward": cost.teacher,
        "teacher forward": cost.teacher_forward,
        "natural teacher forward": cost.natural_forward,
        "forward or backward of its own network": cost.own,
    }
    terms = ", ".join(f"{number:g} x {what}" for what, number in parts.items() if number)
    return f"{cost.total:g} passes an iteration with {steps} attack steps: {terms}"


def _value(default: Any) -> str:
    """A default value, spelled as in a configuration."""
    if isinstance(default, enum.Enum):
        return str(default.value)
    if isinstance(default, tuple):
        return f"[{', '.join(map(str, default))}]"
    if isinstance(default, bool):
        return str(default).lower()
    return f"{default:g}" if isinstance(default, float) else "unset" if default is None else str(default)


def _allowed(field: FieldInfo) -> str:
    """The choices or the range of a hyperparameter, in brackets; empty where it has neither."""
    choices = list(_choices(field.annotation))
    if choices:
        return f" [{' | '.join(choices)}]"
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    bounds = [f"{sign} {getattr(m, key):g}" for key, sign in signs.items() for m in field.metadata if hasattr(m, key)]
    return f" [{', '.join(bounds)}]" if bounds else ""


def _choices(annotation: Any) -> list[str]:
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return [str(member.value) for member in annotation]
    if get_origin(annotation) is Literal:
        return [str(choice) for choice in get_args(annotation)]
    return [choice for part in get_args(annotation) for choice in _choices(part)]
