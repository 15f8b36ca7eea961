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
    loss:    the base method's + a KL(S(x') - S(x - d), T(x') - T(x - d)),   d = x' - x
    with     a = alpha epoch / epochs, epochs counted from 1; the differences of logits are logits; x - d not clamped

    differs: the authors' code divides by 200 epochs, also in longer trainings, and runs x' through the student once
    more for the term; neither is kept. The weight decay of their code is 2e-4, of their paper 5e-4.
    """

    needs = frozenset({Need.TEACHER})
    bases = BASES
    base: Literal["adaad", "adaiad", "ard", "iad", "pgd-at", "rslad", "trades"] = hyper(
        "adaad", doc="the method that the term joins (authors' code)"
    )
    alpha: float | None = hyper(None, ge=0, doc="weight at the end; none: 5, 15 over 10 classes (paper, for AdaAD)")

    @property
    def label(self) -> str:  # type: ignore[override]
        return "IGDM" if self.base == "adaad" else f"IGDM-{self._base.label}"

    def loss(self, step: Step, x_adv: Tensor) -> Tensor:
        student = Remembered(step.student)
        loss = self._base.loss(replace(step, student=student), x_adv)
        alpha = self.alpha if self.alpha is not None else 5.0 if len(step.student.weight) <= 10 else 15.0
        term = step.term("kl_differences", self.difference(replace(step, student=student), x_adv))
        return loss + alpha * (step.epoch + 1) / step.epochs * term

    def difference(self, step: Step, x_adv: Tensor) -> Tensor:
        """The term by itself: (B,)."""
        mirrored = 2 * step.x - x_adv
        student = step.student(x_adv) - step.student(mirrored)
        return kl(student, step.teacher(x_adv) - step.teacher(mirrored))

    def passes(self, steps: int) -> Passes:
        own = self._base.passes(steps)
        asked_at_x_adv = self.base in ("adaad", "adaiad", "iad")
        forward = own.teacher_forward + 2 - asked_at_x_adv
        return replace(own, student=own.student + 1, teacher_forward=forward)


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
