from dataclasses import replace
from typing import Literal

from torch import Tensor

from adbench import Method, Need, Net, Passes, Step, hyper
from adbench.losses import kl

from .adaad import AdaAD
from .adaiad import AdaIAD
from .ard import ARD
from .around import Around
from .iad import IAD
from .pgd_at import PGDAT
from .rslad import RSLAD
from .trades import TRADES

BASES: dict[str, type[Method]] = {
    "adaad": AdaAD,
    "adaiad": AdaIAD,
    "ard": ARD,
    "iad": IAD,
    "pgd-at": PGDAT,
    "rslad": RSLAD,
    "trades": TRADES,
}


class IGDM(Around):
    """Indirect gradient distillation, a term that joins another method (Lee et al., ICLR 2025).

    attack:  the base method's
    loss:    the base method's + a KL(S(x + beta d) - S(x - gamma d), T(x + beta d) - T(x - gamma d)),   d = x' - x
    with     a = alpha epoch / epochs, epochs counted from 1; the differences of logits are logits; x - gamma d not
             clamped; beta = gamma = 1

    differs: the authors' code divides by 200 epochs, also in longer trainings, which is not kept, and runs x' through
    the student once more for the term (`extra_forwards`). The weight decay of their code is 2e-4, of their paper 5e-4.
    """

    needs = frozenset({Need.TEACHER})
    bases = BASES
    base: Literal["adaad", "adaiad", "ard", "iad", "pgd-at", "rslad", "trades"] = hyper(
        "adaad", doc="the method that the term joins (authors' code)"
    )
    alpha: float | None = hyper(None, ge=0, doc="weight at the end; none: 5, 15 over 10 classes (paper, for AdaAD)")
    beta: float = hyper(1.0, later=True, gt=0, doc="the term's distance towards x' (authors' scripts)")
    gamma: float = hyper(1.0, later=True, ge=0, doc="the term's distance away from x' (authors' scripts)")
    extra_forwards: Literal["none", "authors"] = hyper(
        "none", later=True, doc="x' once more, first, and x in any case, for batch-norm (authors' code has them)"
    )

    @property
    def label(self) -> str:  # type: ignore[override]
        return "IGDM" if self.base == "adaad" else f"IGDM-{self._base.label}"

    def loss(self, step: Step, x_adv: Tensor) -> Tensor:
        student = Remembered(step.student)
        points = self.points(step, x_adv)
        if self.extra_forwards == "authors":
            step.student.observe(points[0])
            student(step.x)
            student(points[1])
        loss = self._base.loss(replace(step, student=student), x_adv)
        alpha = self.alpha if self.alpha is not None else 5.0 if len(step.student.weight) <= 10 else 15.0
        term = step.term("kl_differences", self.difference(replace(step, student=student), *points))
        return loss + alpha * (step.epoch + 1) / step.epochs * term

    def points(self, step: Step, x_adv: Tensor) -> tuple[Tensor, Tensor]:
        """The images between which the term takes differences, (B, C, H, W), also outside [0, 1]."""
        near = x_adv if self.beta == 1 else step.x + self.beta * (x_adv - step.x)
        return near, 2 * step.x - x_adv if self.gamma == 1 else step.x - self.gamma * (x_adv - step.x)

    def difference(self, step: Step, near: Tensor, far: Tensor) -> Tensor:
        """The term by itself, of `points`: (B,)."""
        student = step.student(near) - step.student(far)
        return kl(student, step.teacher(near) - step.teacher(far))

    def passes(self, steps: int) -> Passes:
        own, more = self._base.passes(steps), self.beta != 1
        asked_at_x_adv = self.base in ("adaad", "adaiad", "iad")
        teacher_forward = own.teacher_forward + 2 - (asked_at_x_adv and not more)
        student_forward = own.student_forward
        if self.extra_forwards == "authors":
            student_forward += 1 + (self.base == "pgd-at")
        return replace(
            own, student=own.student + 1 + more, student_forward=student_forward, teacher_forward=teacher_forward
        )


class Remembered(Net):
    """A student that runs the same tensor once."""

    def __init__(self, net: Net) -> None:
        self.__dict__ |= net.__dict__
        self._outputs: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, x: Tensor) -> Tensor:
        if id(x) not in self._outputs:
            # x is kept with its logits: as long as it lives, its id belongs to no other tensor.
            self._outputs[id(x)] = (x, super().__call__(x))
        return self._outputs[id(x)][1]

    def observe(self, x: Tensor) -> None:
        if id(x) not in self._outputs:
            super().observe(x)
