"""The contract between the training loop and a method of adversarial training or distillation.

A method is a class with typed hyperparameters and two functions: how the student is attacked during training,
and what it minimises. All that it sees of the training is a `Step`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from adbench.training.parts import Part
from adbench.training.step import Mode, Need, Step


def hyper(default: Any, *, doc: str, later: bool = False, **bounds: Any) -> Any:
    """A hyperparameter of a `Method`: its default, and one line on what it is and where the default comes from.

    bounds: pydantic's `ge`, `gt`, `le`, `lt`. A value outside them, or of another type, is refused with a sentence.
    later: it came after cells were trained without it; at its default it makes no other cell of them.

    Example: `beta: float = hyper(6.0, ge=0, doc="weight of the robust term (paper)")`; users set it by
    `--set hyper.NAME.beta=5`.
    """
    return Field(default, description=doc, json_schema_extra={"later": True} if later else None, **bounds)


ATTACK_BN = hyper(Mode.EVAL, doc="batch-norm mode of the student under attack (recipe: eval for all)")


@dataclass(frozen=True)
class Passes:
    """The cost of one training iteration, in passes of a network over the batch.

    student, teacher: forward and backward passes; student_forward, teacher_forward, natural_forward: forward passes
    without a backward one. `adbench validate` counts them.

    Example: PGD-AT's, `Passes(student=steps + 1)`.
    """

    student: float = 0
    student_forward: float = 0
    teacher: float = 0
    teacher_forward: float = 0
    natural_forward: float = 0
    own: float = 0
    """Passes of the method's own networks, forward and backward ones together."""

    @property
    def total(self) -> float:
        """Forward and backward passes of all networks, each counting one."""
        both = 2 * (self.student + self.teacher)
        return both + self.student_forward + self.teacher_forward + self.natural_forward + self.own


class Method(BaseModel):
    """The base class of every method: how the student is attacked during training, and what it minimises.

    A subclass has a `label` for tables, declares its teachers in `needs` and its hyperparameters by `hyper` (each has a
    default), and implements `attack` and `loss`. Unknown or out-of-range hyperparameters are refused.

    A method around another one may follow what that one declares, by a property of the same name in place of `label`,
    `needs`, `selects`, `separable`, `divisible`, `shares` or `rehearses`: the configured method is asked, not its
    class.

    Example:

        class Mine(Method):
            label = "Mine"
            needs = frozenset({Need.TEACHER})
            alpha: float = hyper(0.9, ge=0, le=1, doc="weight of distillation")

            def attack(self, step: Step) -> Tensor:
                return step.ascend(lambda x: cross_entropy(step.student(x), step.y), start=Start.UNIFORM)

            def loss(self, step: Step, x_adv: Tensor) -> Tensor:
                distilled = kl(step.student(x_adv), step.teacher(x_adv))
                return self.alpha * distilled + (1 - self.alpha) * cross_entropy(step.student(step.x), step.y)
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    label: ClassVar[str]
    needs: ClassVar[frozenset[Need]] = frozenset()
    selects: ClassVar[Literal["val_robust", "val_clean", "val_mean", "val_robust_worst"]] = "val_robust"
    """Which accuracy on the held-out split chooses the best epoch, see `step.SELECTIONS`."""
    separable: ClassVar[bool] = True
    """Whether an example's loss depends on that example alone, batch-norm aside."""
    divisible: ClassVar[bool] = True
    """Whether a batch may go through in parts, each attacked and differentiated by itself."""
    shares: ClassVar[bool] = False
    """Whether several devices may share a batch although it is not divisible, since `Step.mean` and `Step.backward` are
    over the whole batch. Experimental, as all sharing of a training is."""

    soft_labels: ClassVar[bool] = False
    """Whether it does with mixed images: it uses no labels, or `Step.target` wherever it uses any."""

    rehearses: ClassVar[bool | None] = None
    """Whether `loss`, where `step.rehearsal` says so, leaves the method's state as it was and gives the loss that it
    would give without. Adversarial weight perturbation needs that. None: if it has no state, which is to have no
    `state_dict`."""

    def needed(self) -> frozenset[Need]:
        """The teachers that this configuration needs: `needs`, unless a hyperparameter decides."""
        return self.needs

    def attack(self, step: Step) -> Tensor:
        """Adversarial examples x' (B, C, H, W) in [0, 1], detached. Called once a step, before `loss`."""
        raise NotImplementedError

    def loss(self, step: Step, x_adv: Tensor) -> Tensor:
        """One loss an example, (B,), differentiable with respect to the student's parameters. x_adv: `attack`'s."""
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """The hyperparameters as a cell is known by them, JSON-able: all but those that came later and are unset."""
        values = self.model_dump(mode="json")
        came_later = {name: field.default for name, field in type(self).model_fields.items() if field.json_schema_extra}
        unset = {name for name, default in came_later.items() if getattr(self, name) == default}
        return {name: value for name, value in values.items() if name not in unset}

    @property
    def shareable(self) -> bool:
        """Whether several devices may share a batch, each with a part."""
        return self.divisible or self.shares

    @property
    def rehearsable(self) -> bool:
        """Whether `loss` may be called once more an iteration, with `step.rehearsal`."""
        return type(self).state_dict is Method.state_dict if self.rehearses is None else self.rehearses

    def reach(self) -> float:
        """The largest distance of x' from x, in eps; above 1 leaves the threat model."""
        return 1.0

    def passes(self, steps: int) -> Passes:
        """The cost of one iteration with `steps` attack steps, for estimates and for an equal budget.

        The default: `steps` forward and backward passes of the student for the attack, one at x' and one at x, and a
        forward pass of each teacher at both.
        """
        return Passes(
            student=steps + 2,
            teacher_forward=2 * (Need.TEACHER in self.needed()),
            natural_forward=2 * (Need.NATURAL_TEACHER in self.needed()),
        )

    def outer(self, steps: int) -> Passes:
        """What of `passes` is in `loss`, of the student and of the method's own networks: the cost of a rehearsal.

        The default is what does not grow with the number of attack steps. Teachers' outputs are kept.
        """
        here, more = self.passes(steps), self.passes(steps + 1)
        return Passes(
            student=here.student - steps * (more.student - here.student), own=here.own - steps * (more.own - here.own)
        )

    def setup(self, step: Step) -> None:
        """Called before training starts or is resumed, with a step of two training images.

        For methods with state of their own, and networks that they train themselves; on resumption `load_state_dict`
        is called next.
        """

    def parts(self, step: Step) -> Mapping[str, nn.Module | Part]:
        """Networks of the method's own, by name, which the loop trains with the student by the loss: `step.parts`.

        Called after `setup`, with the same step. The loop moves them to the device, puts them in training mode, steps
        them with the student, adds up their gradients over devices, saves and resumes them. A module is trained by the
        student's optimiser; `Part(module, optimiser)` by its own, which does not follow the schedule. Where several
        devices share a training, their batch-norm uses all devices' images, as the student's does. Weight averaging
        leaves them out: they are no part of the network that is judged.

        Example: `return {"projection": nn.Conv2d(8, 16, 1)}`.
        """
        return {}

    def on_lr_change(self, factor: float) -> None:
        """Called when the schedule multiplies the learning rate by `factor`."""

    def state_dict(self) -> dict[str, Any]:
        """The state that a resumed training needs: tensors, numbers, strings, and lists and dictionaries of them."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; `setup` was called before."""


def form_error(loss: Any, y: Tensor) -> str | None:
    """What is wrong with the form of a loss for labels y (B,): it has to be one value an example. None if nothing."""
    if isinstance(loss, Tensor) and loss.shape == y.shape:
        return None
    has = f"has shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"is a {type(loss).__name__}"
    return f"loss {has}, expected one value an example, {tuple(y.shape)}; reduce over everything but the batch"
