from typing import Annotated, Any

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor

from adbench import ATTACK_BN, Method, Mode, Need, Passes, Start, Step, hyper
from adbench.losses import Classes, Reduction, cross_entropy, kl, reduction_for, wide

Shares = tuple[Annotated[float, Field(gt=0, lt=1)], ...]

FLOOR = 1e-5  # the authors' guard inside the teacher's logarithm


class MTARD(Method):
    """Multi-teacher adversarial robustness distillation (Zhao et al., ECCV 2022).

    attack:  max  CE(S(x'), y)
    loss:    w_a L_a + w_n L_n,   L_a = KL(S(x'), T(x')),   L_n = KL(S(x), T_nat(x)),   w_a = 1 - w_n
    Each iteration moves w_n towards r_n / (r_a + r_n), r = (L / L at the first iteration)^b, by the rate rho,
    which drops with the learning rate (under a smooth schedule: at `rate_drops`).

    differs: SmaraAD's Table 1 writes static weights (`dynamic = false`). The code averages the KL over classes
    (times 10 on CIFAR-100; kept) and has no temperature: that is `b-mtard`. The authors' natural teacher differs from
    script to script; here it has the robust teacher's architecture.
    """

    label = "MTARD"
    soft_labels = True
    needs = frozenset({Need.TEACHER, Need.NATURAL_TEACHER})
    separable = False  # w_n follows the batch's mean losses
    divisible = False
    shares = True
    rehearses = True
    dynamic: bool = hyper(True, doc="adapt the weights as training goes (authors' code)")
    weight_natural: float = hyper(0.5, ge=0, le=1, doc="w_n, at the start if dynamic (authors' code)")
    weight_lr: float = hyper(0.025, ge=0, le=1, doc="rho, rate of the weights (authors' code)")
    rate_drops: Shares | None = hyper(
        None, later=True, doc="shares of the epochs after which rho is divided by 10; none: when the rate drops (own)"
    )
    balance: float = hyper(1.0, gt=0, doc="exponent b of the relative losses (authors' code)")
    kl_reduction: Reduction = hyper("auto", doc="KL over classes; auto: mean, mean_x10 over 10 classes (authors)")
    start: Start = hyper(Start.GAUSS, doc="start of the inner ascent (authors' code)")
    attack_bn: Mode = ATTACK_BN

    # w_n and the two losses of the first iteration (L_a, L_n), where the student is; rho
    _w_n: Tensor = PrivateAttr()
    _first: Tensor | None = PrivateAttr(None)
    _rho: float = PrivateAttr(0.025)

    def setup(self, step: Step) -> None:
        self._w_n = wide(self.weight_natural, step.x.device)
        self._rho, self._first = self.weight_lr, None

    def attack(self, step: Step) -> Tensor:
        return step.ascend(lambda x: cross_entropy(step.student(x), step.target), start=self.start, bn=self.attack_bn)

    def loss(self, step: Step, x_adv: Tensor) -> Tensor:
        targets = step.teacher(x_adv), step.natural_teacher(step.x)
        robust, natural, w_n = self.distances(step, targets, (step.student(x_adv), step.student(step.x)))
        return (1 - w_n).to(robust) * robust + w_n.to(natural) * natural

    def distances(
        self, step: Step, targets: tuple[Tensor, Tensor], outputs: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """L_a and L_n, (B,), of the teachers' and the student's logits (B, C) at x' and x, and w_n after them."""
        (robust_target, natural_target), (adversarial, clean) = targets, outputs
        reduction = reduction_for(self.kl_reduction, robust_target, many=Classes.MEAN_X10)
        robust = step.term("kl_adversarial", kl(adversarial, robust_target, reduction, floor=FLOOR))
        natural = step.term("kl_natural", kl(clean, natural_target, reduction, floor=FLOOR))
        robust, natural = self.weighted(step, robust), self.weighted(step, natural)
        w_n = self._w_n
        if self.dynamic:
            losses = wide(torch.stack([step.mean(robust), step.mean(natural)]), step.x.device)
            first = losses if self._first is None else self._first
            w_n = self.rebalanced(losses, first, self.rate(step))
            if not step.rehearsal:
                self._w_n, self._first = w_n, first
        step.log("weight_natural", w_n)
        return robust, natural, w_n

    def weighted(self, step: Step, values: Tensor) -> Tensor:
        """One of the two losses, (B,), as it counts; methods around this one may weight it by example."""
        return values

    def rate(self, step: Step) -> float:
        """rho."""
        return self.dropped(self.weight_lr, self._rho, step)

    def dropped(self, first: float, now: float, step: Step) -> float:
        """A rate that began at `first`: after `rate_drops`, or where there are none as the learning rate left it."""
        if self.rate_drops is None:
            return now
        return first * 0.1 ** sum(round(share * step.epochs) <= step.epoch for share in self.rate_drops)

    def rebalanced(self, losses: Tensor, first: Tensor, rate: float) -> Tensor:
        """w_n after a batch with these losses (L_a, L_n), at the rate rho. first: those of the first iteration."""
        r_robust, r_natural = (losses / first) ** self.balance
        w_n: Tensor = self._w_n - rate * (self._w_n - r_natural / (r_robust + r_natural))
        return w_n

    def passes(self, steps: int) -> Passes:
        return Passes(student=steps + 2, teacher_forward=1, natural_forward=1)

    def on_lr_change(self, factor: float) -> None:
        self._rho *= factor

    def state_dict(self) -> dict[str, Any]:
        first = None if self._first is None else self._first.tolist()
        return {"w_n": self._w_n.item(), "rho": self._rho, "first": first}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._w_n, self._rho = torch.full_like(self._w_n, state["w_n"]), state["rho"]
        self._first = self._w_n.new_tensor(state["first"]) if state["first"] else None
