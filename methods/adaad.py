from typing import Literal

from torch import Tensor

from adbench import ATTACK_BN, Method, Mode, Need, Passes, Start, Step, hyper
from adbench.losses import Classes, Reduction, kl, reduction_for


class AdaAD(Method):
    """Adaptive adversarial distillation (Huang et al., CVPR 2023).

    attack:  max  KL(S(x'), T(x')),   gradient through student and teacher
    loss:    alpha KL(S(x'), T(x')) + (1 - alpha) KL(S(x), T(x)),   alpha = 1

    differs: the authors' code averages the KL over classes on CIFAR-10 but sums it on CIFAR-100 (both kept), runs
    the clean batch through the student before x', at alpha = 1 too (kept: batch-norm statistics), and its script's
    default eps is 16/255, step 4/255 (its README's main command has 8/255, 2/255).
    """

    label = "AdaAD"
    soft_labels = True
    needs = frozenset({Need.TEACHER})
    alpha: float = hyper(1.0, ge=0, le=1, doc="weight of the adversarial term (authors' code)")
    kl_reduction: Reduction = hyper("auto", doc="KL over classes; auto: mean, sum over 10 classes (authors)")
    start: Start = hyper(Start.GAUSS, doc="start of the inner ascent (authors' code)")
    attack_bn: Mode = ATTACK_BN
    clean_pass: Literal["first", "last"] = hyper(
        "first", later=True, doc="x before x' in the loss, or after it (authors' code: before; IGDM's around it: after)"
    )

    def attack(self, step: Step) -> Tensor:
        return step.ascend(lambda x: kl(step.student(x), step.teacher(x)), start=self.start, bn=self.attack_bn)

    def loss(self, step: Step, x_adv: Tensor) -> Tensor:
        target = step.teacher(x_adv)
        reduction = reduction_for(self.kl_reduction, target, many=Classes.SUM)
        # Batch-norm's running statistics weigh the later pass more.
        if self.clean_pass == "first":
            clean = self._clean(step, reduction)
        robust = step.term("kl_adversarial", kl(step.student(x_adv), target, reduction))
        if self.clean_pass == "last":
            clean = self._clean(step, reduction)
        return robust if clean is None else self.alpha * robust + (1 - self.alpha) * clean

    def _clean(self, step: Step, reduction: Classes) -> Tensor | None:
        """The clean term; none at alpha = 1, where x moves batch-norm alone."""
        if self.alpha == 1:
            step.student.observe(step.x)
            return None
        return step.term("kl_clean", kl(step.student(step.x), step.teacher(step.x), reduction))

    def passes(self, steps: int) -> Passes:
        clean_loss = self.alpha < 1
        return Passes(
            student=steps + 1 + clean_loss,
            student_forward=1 - clean_loss,
            teacher=steps,
            teacher_forward=1 + clean_loss,
        )
