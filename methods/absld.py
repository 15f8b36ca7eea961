from typing import Any

import torch
from pydantic import PrivateAttr
from torch import Tensor

from adbench import ATTACK_BN, Method, Mode, Need, Passes, Start, Step, hyper
from adbench.losses import Classes, cross_entropy, kl, wide

FLOOR = 1e-5  # the authors' guard inside the teacher's logarithm
LOWEST, HIGHEST = 0.5, 5.0  # bounds of a temperature (authors' code)


class ABSLD(Method):
    """Anti-bias soft label distillation: RSLAD with a temperature for each class (Zhao et al., NeurIPS 2024).

    attack:  max  KL(S(x'), t_a)
    loss:    alpha KL(S(x'), t_a) + (1 - alpha) KL(S(x), t_n),   alpha = 5/6
    with     t_a = t_n = T(x) / (tau_a[y] tau_n[y]);   apart: t_a = T(x) / tau_a[y], t_n = T(x) / tau_n[y]
    After an epoch, for x' and for x: tau_k moves by -rate g_k / max |g|, g_k = E_k - mean E, within [0.5, 5]; E_k: the
    cross-entropies of class k, summed over the epoch. The rate drops with the learning rate.

    differs: the authors divide one tensor by both temperatures, in place (`shared_temperatures`); the paper has two.
    """

    label = "ABSLD"
    needs = frozenset({Need.TEACHER})
    rehearses = True
    alpha: float = hyper(5 / 6, ge=0, le=1, doc="weight of the adversarial term (authors' code)")
    temperature_lr: float = hyper(0.1, ge=0, doc="rate of the temperatures (authors' code)")
    shared_temperatures: bool = hyper(True, doc="both targets have both temperatures (authors' code)")
    kl_reduction: Classes = hyper(Classes.MEAN, doc="KL over classes (authors' code)")
    start: Start = hyper(Start.GAUSS, doc="start of the inner ascent (authors' code)")
    attack_bn: Mode = ATTACK_BN

    # Of x' and of x: (2, C) temperatures, and the (2, C) sums of the cross-entropies in the epoch `_epoch`.
    _tau: Tensor = PrivateAttr()
    _sums: Tensor = PrivateAttr()
    _epoch: int = PrivateAttr(0)
    _rate: float = PrivateAttr(0.1)

    def setup(self, step: Step) -> None:
        classes = len(step.student.weight)
        self._tau = wide(torch.ones(2, classes), step.x.device)
        self._sums, self._epoch, self._rate = torch.zeros_like(self._tau), 0, self.temperature_lr

    def attack(self, step: Step) -> Tensor:
        target, _ = self._targets(step)
        return step.ascend(lambda x: kl(step.student(x), target), start=self.start, bn=self.attack_bn)

    def loss(self, step: Step, x_adv: Tensor) -> Tensor:
        robust_target, clean_target = self._targets(step)
        adversarial, clean = step.student(x_adv), step.student(step.x)
        errors = torch.stack([cross_entropy(adversarial, step.y), cross_entropy(clean, step.y)]).detach()
        if not step.rehearsal:
            self._sums = self._sums + step.total(self._by_class(step, errors))
        robust = step.term("kl_adversarial", kl(adversarial, robust_target, self.kl_reduction, floor=FLOOR))
        natural = step.term("kl_clean", kl(clean, clean_target, self.kl_reduction, floor=FLOOR))
        return self.alpha * robust + (1 - self.alpha) * natural

    def _by_class(self, step: Step, errors: Tensor) -> Tensor:
        """The (2, C) sums over each class of errors (2, B)."""
        return torch.zeros_like(self._sums).index_add_(1, step.y, errors.to(self._sums))

    def _targets(self, step: Step) -> tuple[Tensor, Tensor]:
        """The teacher's tempered logits (B, C) for x' and for x; in a new epoch the temperatures have moved."""
        if step.epoch != self._epoch:
            self._move()
            self._epoch = step.epoch
        logits, tau = step.teacher(step.x), self._tau[:, step.y, None]
        if self.shared_temperatures:
            tau = tau.prod(dim=0).expand(2, -1, -1)
        adversarial, clean = tau.to(logits)
        return logits / adversarial, logits / clean

    def _move(self) -> None:
        """Move the temperatures by the sums of the epoch that is over: classes learnt worse get sharper targets."""
        gap = self._sums - self._sums.mean(dim=1, keepdim=True)
        largest = gap.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(gap.dtype).tiny)
        self._tau = (self._tau - self._rate * gap / largest).clamp(LOWEST, HIGHEST)
        self._sums = torch.zeros_like(self._sums)

    def passes(self, steps: int) -> Passes:
        return Passes(student=steps + 2, teacher_forward=1)

    def on_lr_change(self, factor: float) -> None:
        self._rate *= factor

    def state_dict(self) -> dict[str, Any]:
        (tau_adv, tau_nat), sums = self._tau.tolist(), self._sums.tolist()
        return {"tau_adv": tau_adv, "tau_nat": tau_nat, "sums": sums, "epoch": self._epoch, "rate": self._rate}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._tau = self._tau.new_tensor([state["tau_adv"], state["tau_nat"]])
        self._sums = self._sums.new_tensor(state["sums"])
        self._epoch, self._rate = state["epoch"], state["rate"]
