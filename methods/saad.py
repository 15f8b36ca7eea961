import math
from typing import Literal

import torch
from torch import Tensor

from adbench import ATTACK_BN, Method, Mode, Need, Passes, Start, Step, hyper
from adbench.losses import kl, renyi_entropy


class SAAD(Method):
    """Sample-wise adaptive adversarial distillation (Lee et al., TMLR 2026); SAAD-C where beta > 0.

    attack:  max  KL(S(x'), q(x')),   q(x') = T(x) + beta_in <grad_x T(x)[y], x' - x> at y,   gradient through both
    loss:    w (KL(S(x'), T(x')) + a KL(S(x') - S(x - d), T(x') - T(x - d))) + beta (1 - v) KL(S(x), T(x))
    with     d = x' - x,   a = alpha epoch / epochs, epochs counted from 1
             w = 5 (h - min h),   v = (w - min w) / (max w - min w) over the batch,   h: entropy of T(x')

    differs: the paper has w = h, v = h / log C and x in place of x - d (`weighting`, `clean_weight`, `difference`);
    what the authors ran is their code, as far as can be told. There the image of least entropy has weight 0 in every
    batch.
    """

    needs = frozenset({Need.TEACHER})
    separable = False  # w and v are relative to the batch
    divisible = False
    beta_in: float = hyper(1.0, ge=0, doc="weight of the teacher's linear change in the attack (authors' code)")
    alpha: float | None = hyper(
        None, ge=0, doc="weight of the differences at the end; none: 1, 20 over 10 classes (paper)"
    )
    beta: float = hyper(0.0, ge=0, doc="weight of the clean term; SAAD-C: 0.2, 0.5 over 10 classes (paper)")
    gamma: float = hyper(1.0, gt=0, doc="order of the entropy; 1: Shannon's (authors' script)")
    entropy_scale: float = hyper(5.0, gt=0, doc="factor of w (a literal of the authors' code)")
    weighting: Literal["batch", "entropy"] = hyper("batch", doc="w: relative to the batch (code), or h itself (paper)")
    clean_weight: Literal["minmax", "log_classes"] = hyper(
        "minmax", doc="v: relative to the batch, or h / log C (paper)"
    )
    difference: Literal["symmetric", "one_sided"] = hyper("symmetric", doc="to x - d (code), or to x (paper, Eq. 11)")
    start: Start = hyper(Start.GAUSS, doc="start of the inner ascent (authors' code)")
    attack_bn: Mode = ATTACK_BN

    @property
    def label(self) -> str:  # type: ignore[override]
        return "SAAD-C" if self.beta else "SAAD"

    def attack(self, step: Step) -> Tensor:
        x = step.x.detach().requires_grad_(True)
        with torch.enable_grad():
            logits = step.teacher(x)
            true = logits.gather(1, step.y[:, None])
            (slope,) = torch.autograd.grad(true.sum(), x)
        logits = logits.detach()

        def objective(z: Tensor) -> Tensor:
            change = self.beta_in * (slope * (z - step.x)).sum(dim=(1, 2, 3))
            return kl(step.student(z), logits.scatter_add(1, step.y[:, None], change[:, None]))

        return step.ascend(objective, start=self.start, bn=self.attack_bn)

    def loss(self, step: Step, x_adv: Tensor) -> Tensor:
        symmetric = self.difference == "symmetric"
        adversarial = step.student(x_adv)
        mirrored = 2 * step.x - x_adv  # not clamped
        other = step.student(mirrored) if symmetric else None
        clean = step.student(step.x)
        robust_target, clean_target = step.teacher(x_adv), step.teacher(step.x)
        other, other_target = (other, step.teacher(mirrored)) if other is not None else (clean, clean_target)
        alpha = self.alpha if self.alpha is not None else 1.0 if clean.shape[1] <= 10 else 20.0
        gap = step.term("kl_differences", kl(adversarial - other, robust_target - other_target))
        robust = step.term("kl_adversarial", kl(adversarial, robust_target))
        entropy = renyi_entropy(robust_target, self.gamma).detach()
        w = entropy if self.weighting == "entropy" else self.entropy_scale * (entropy - entropy.min())
        step.log("weight", w)
        if self.clean_weight == "minmax":
            v = (w - w.min()) / (w.max() - w.min() + 1e-8)
        else:
            v = entropy / math.log(clean.shape[1])
        natural = step.term("kl_clean", kl(clean, clean_target))
        return w * (robust + alpha * (step.epoch + 1) / step.epochs * gap) + self.beta * (1 - v) * natural

    def passes(self, steps: int) -> Passes:
        mirrored = self.difference == "symmetric"
        return Passes(student=steps + 2 + mirrored, teacher=1, teacher_forward=2 + mirrored)
