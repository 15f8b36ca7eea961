from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import PrivateAttr
from torch import Tensor

from adbench import Method, Net, Passes, Step, hyper
from adbench.losses import wide

from .ard import ARD
from .around import Around
from .iad import IAD
from .mtard import MTARD
from .rslad import RSLAD

OFFSET = 1e-5  # the authors' guard for a class that no attack leaves right; their Fair-RSLAD lacks it, and divides by 0
LOWEST, HIGHEST = 5 / 6, 5 / 2  # bounds of a class's weight (authors' code)


class FairMTARD(MTARD):
    """MTARD whose two losses are weighted by class before its own weights follow them."""

    _weights: Tensor | None = PrivateAttr(None)

    def weighted(self, step: Step, values: Tensor) -> Tensor:
        return values if self._weights is None else self._weights[step.y].to(values) * values


BASES: dict[str, type[Method]] = {"ard": ARD, "iad": IAD, "mtard": FairMTARD, "rslad": RSLAD}


class Fair(Around):
    """Fair distillation: another method with a weight for each class (Yue et al., NeurIPS 2023).

    attack:  the base method's
    loss:    w[y] times the base's
    with     w_k = (kappa_k + 1e-5)^-beta, scaled to a mean of 1, then within [5/6, 5/2]
    kappa_k: how many of the iterates that an attack goes through, its start included, the student has right, a mean
    over the images of class k in the last epoch. In the first epoch all weights are 1.

    differs: the authors' Fair-RSLAD lacks the 1e-5, their Fair-MTARD distils the robust teacher at x in place of the
    natural one, their Fair-IAD has its cross-entropy at x'; here each follows its base. They train with Nesterov's
    momentum (`official`), and attack in batch-norm training mode for ARD and IAD (`base_hyper`).
    """

    bases = BASES
    base: Literal["ard", "iad", "mtard", "rslad"] = hyper("rslad", doc="the method that is weighted (paper)")
    beta: float = hyper(2.0, ge=0, doc="how much harder classes count (authors' code)")

    # Of each class, (C,): the weights; right iterates and images of the epoch `_epoch`.
    _weights: Tensor = PrivateAttr()
    _right: Tensor = PrivateAttr()
    _seen: Tensor = PrivateAttr()
    _epoch: int = PrivateAttr(0)

    @property
    def label(self) -> str:  # type: ignore[override]
        return f"Fair-{self._base.label}"

    def setup(self, step: Step) -> None:
        super().setup(step)
        self._weights = wide(torch.ones(len(step.student.weight)), step.x.device)
        self._right, self._seen, self._epoch = torch.zeros_like(self._weights), torch.zeros_like(self._weights), 0

    def attack(self, step: Step) -> Tensor:
        if step.epoch != self._epoch:
            self._weights, self._epoch = self.weights(self._right / self._seen.clamp_min(1)), step.epoch
            self._right, self._seen = torch.zeros_like(self._right), torch.zeros_like(self._seen)
        student = Counted(step.student, step.y)
        x_adv = self._base.attack(replace(step, student=student))
        kappa = student.right.to(self._right)
        step.log("kappa", kappa)
        self._right = self._right + step.total(torch.zeros_like(self._right).index_add_(0, step.y, kappa))
        self._seen = self._seen + step.total(torch.zeros_like(self._seen).index_add_(0, step.y, torch.ones_like(kappa)))
        return x_adv

    def weights(self, kappa: Tensor) -> Tensor:
        """The weight of each class, from kappa (C,) >= 0: (C,)."""
        raw = (kappa + OFFSET) ** -self.beta
        return (raw * (len(raw) / raw.sum())).clamp(LOWEST, HIGHEST)

    def loss(self, step: Step, x_adv: Tensor) -> Tensor:
        if isinstance(self._base, FairMTARD):
            self._base._weights = self._weights
            return self._base.loss(step, x_adv)
        loss = self._base.loss(step, x_adv)
        return self._weights[step.y].to(loss) * loss

    def passes(self, steps: int) -> Passes:
        return self._base.passes(steps)

    def state_dict(self) -> dict[str, Any]:
        own = {"weights": self._weights, "right": self._right, "seen": self._seen}
        return {name: values.tolist() for name, values in own.items()} | {
            "epoch": self._epoch,
            "base": self._base.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._weights, self._right, self._seen = (
            self._weights.new_tensor(state[name]) for name in ("weights", "right", "seen")
        )
        self._epoch = state["epoch"]
        self._base.load_state_dict(state["base"])


class Counted(Net):
    """A student under attack that counts how often it is right about each image."""

    def __init__(self, net: Net, y: Tensor) -> None:
        self.__dict__ |= net.__dict__
        self.y = y
        self.right = torch.zeros_like(y)

    def __call__(self, x: Tensor) -> Tensor:
        logits = super().__call__(x)
        self.right = self.right + (logits.detach().argmax(dim=1) == self.y)
        return logits
