import copy
import math
from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import PrivateAttr
from torch import Tensor

from adbench import Mode, Net, Part, Passes, Step, hyper
from adbench.losses import Classes, cross_entropy, kl, reduction_for, wide

from .b_mtard import BMTARD
from .mtard import FLOOR


class CIARD(BMTARD):
    """Cyclic iterative adversarial robustness distillation (Lu et al., ICCV 2025).

    attack:  max  CE(S(x'), y)
    loss:    v_a KL(S(x'), R(x') / t_a) + v_n KL(S(x), T_nat(x) / t_n) - c P
    with     R a copy of the robust teacher that learns along, by CE(R(x'), y), once `begin_frac` of the epochs are over
             P = KL(S(x') / 5, T_nat(x')), a mean over the images that T_nat misclassifies at x'
             c the power of ten that brings P to the smaller of the two distances
    v and t move as B-MTARD's. R is in training mode, at x as well. The loss may be negative.

    differs: the authors' code lowers the rates of v and t in every batch of three epochs, which stops both; here they
    fall once an epoch. The student's rate is half a damped cosine there (`official`). It is for CIFAR-10; the factor 10
    over more classes is MTARD's. The authors' older code has v = 1 (`unweighted`).
    """

    label = "CIARD"
    soft_labels = False
    unweighted: bool = hyper(False, doc="both distances count fully, v = 1 (authors' older code)")
    push_tau: float = hyper(5.0, gt=0, doc="temperature of the student in P (authors' code)")
    begin_frac: float = hyper(1 / 6, ge=0, le=1, doc="share of the epochs before the teacher learns (authors: 50/300)")
    teacher_lr: float = hyper(1e-4, ge=0, doc="the teacher's rate when it begins to learn (authors' code)")
    teacher_momentum: float = hyper(0.1, ge=0, lt=1, doc="of the teacher's optimiser (authors' code)")
    teacher_weight_decay: float = hyper(2e-4, ge=0, doc="of the teacher (authors' code)")
    extra_forwards: Literal["none", "authors"] = hyper(
        "none", doc="the attack sees the statistics that x has moved (authors' code runs x before it)"
    )

    _optimiser: torch.optim.Optimizer = PrivateAttr()

    def parts(self, step: Step) -> Mapping[str, Part]:
        teacher = copy.deepcopy(step.teacher.module).requires_grad_(True)
        self._optimiser = torch.optim.SGD(
            teacher.parameters(),
            self.teacher_lr,
            self.teacher_momentum,
            weight_decay=self.teacher_weight_decay,
            fused=step.x.device.type == "cuda" or None,
        )
        return {"teacher": Part(teacher, self._optimiser)}

    def attack(self, step: Step) -> Tensor:
        if not self._observes:
            return super().attack(step)
        statistics = [(buffer, buffer.clone()) for buffer in step.student.module.buffers()]
        step.student.observe(step.x)
        x_adv = super().attack(step)
        for buffer, before in statistics:
            buffer.copy_(before)
        return x_adv

    @property
    def _observes(self) -> bool:
        """Whether x runs through the student before the attack, which sees the statistics then."""
        return self.extra_forwards == "authors" and self.attack_bn is Mode.EVAL

    def loss(self, step: Step, x_adv: Tensor) -> Tensor:
        teacher = Net(step.parts["teacher"], step.teacher.precision)  # type: ignore[arg-type]
        teacher.observe(step.x)  # the authors' code has no use for its output there, but for batch-norm's statistics
        clean, adversarial = step.student(step.x), step.student(x_adv)
        learns = step.epoch >= self._begin(step.epochs)
        self._optimiser.param_groups[0]["lr"] = self.teacher_rate(step.epoch, step.epochs)
        with torch.set_grad_enabled(learns):
            robust_target = teacher(x_adv)
        targets = robust_target.detach(), step.natural_teacher(step.x)
        robust, natural, w_n = self.distances(step, targets, (adversarial, clean))
        v_a, v_n = (torch.ones_like(w_n),) * 2 if self.unweighted else (1 - w_n, w_n)
        student = (
            v_a.to(robust) * robust + v_n.to(natural) * natural - self._push(step, x_adv, adversarial, robust, natural)
        )
        own = step.term("cross_entropy_teacher", cross_entropy(robust_target, step.y))
        step.log("loss_student", student)
        return student + own if learns else student

    def _push(self, step: Step, x_adv: Tensor, adversarial: Tensor, robust: Tensor, natural: Tensor) -> Tensor:
        """c P as one value an example, (B,), whose mean over the batch it is."""
        target = step.natural_teacher(x_adv)
        reduction = reduction_for(self.kl_reduction, target, many=Classes.MEAN_X10)
        wrong = (target.argmax(dim=1) != step.y).to(target)
        values = wrong * kl(adversarial / self.push_tau, target, reduction, floor=FLOOR)
        share = step.mean(wrong)
        values = values / torch.where(share > 0, share, 1)
        sizes = wide(torch.stack([step.mean(each) for each in (robust, natural, values)]), step.x.device)
        powers = torch.where(sizes == 0, 1e-7, sizes).log10().floor()
        factor = 10 ** (powers[:2].amin() - powers[2]) * (share > 0)  # without misclassified images there is no push
        step.log("push", values)
        step.log("push_factor", factor)
        return factor.to(values) * values

    def _begin(self, epochs: int) -> int:
        return round(self.begin_frac * epochs)

    def teacher_rate(self, epoch: int, epochs: int) -> float:
        """The teacher's learning rate in an epoch, from 0: half a damped cosine over those in which it learns."""
        begin = self._begin(epochs)
        done = (epoch + 1 - begin) / max(epochs - begin, 1)
        rate = self.teacher_lr * 0.5 * (1 + math.cos(math.pi * done)) * math.exp(-0.01 * done**2)
        return rate if done >= 0 else 0.0

    def passes(self, steps: int) -> Passes:
        return Passes(student=steps + 2, student_forward=self._observes, natural_forward=2, own=3)
