from typing import Any

import torch
from pydantic import PrivateAttr
from torch import Tensor

from adbench import Step, hyper
from adbench.losses import wide

from .mtard import FLOOR, MTARD


class BMTARD(MTARD):
    """Balanced MTARD: temperatures that bring both teachers to the same entropy (Zhao et al., TPAMI 2024).

    attack:  max  CE(S(x'), y)
    loss:    w_a KL(S(x'), T(x') / t_a) + w_n KL(S(x), T_nat(x) / t_n),   w_a + w_n = 1
    Each iteration moves each t by `temperature_lr`, within [1, 10], up where its teacher has the lower entropy, for the
    next iteration; and w as in MTARD, neither below 0. Both rates drop with the learning rate.

    differs: the authors' code is for CIFAR-10; the factor 10 over more classes is MTARD's.
    """

    label = "B-MTARD"
    weight_lr: float = hyper(0.025, ge=0, doc="rho, rate of the weights (authors' code)")
    temperature_lr: float = hyper(0.001, ge=0, doc="step of the temperatures (authors' code)")

    # t_a and t_n, where the student is; their step
    _tau: Tensor = PrivateAttr()
    _tau_step: float = PrivateAttr(0.001)

    def setup(self, step: Step) -> None:
        super().setup(step)
        self._tau, self._tau_step = wide(torch.ones(2), step.x.device), self.temperature_lr

    def distances(
        self, step: Step, targets: tuple[Tensor, Tensor], outputs: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        robust, natural = (logits / tau.to(logits) for logits, tau in zip(targets, self._tau, strict=True))
        first, second = (step.mean(_minus_entropy(logits)) for logits in (robust, natural))
        signs = wide(torch.stack([first / second - 1, second / first - 1]).sign(), step.x.device)
        size = self.dropped(self.temperature_lr, self._tau_step, step)
        if not step.rehearsal:
            self._tau = (self._tau - size * signs).clamp(1, 10)
        return super().distances(step, (robust, natural), outputs)

    def rebalanced(self, losses: Tensor, first: Tensor, rate: float) -> Tensor:
        relative = (losses / first) ** self.balance
        weights = torch.stack([1 - self._w_n, self._w_n])
        weights = (weights - rate * (weights - relative / relative.sum())).clamp_min(0)
        return weights[1] / weights.sum()

    def on_lr_change(self, factor: float) -> None:
        super().on_lr_change(factor)
        self._tau_step *= factor

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"tau": self._tau.tolist(), "tau_step": self._tau_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._tau, self._tau_step = self._tau.new_tensor(state["tau"]).expand(2).clone(), state["tau_step"]


def _minus_entropy(logits: Tensor) -> Tensor:
    """The mean over classes of p log(p + 1e-5), p = softmax(logits): (B,)."""
    p = logits.softmax(dim=1)
    return (p * (p + FLOOR).log()).mean(dim=1)
