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

    def attack(self, step: Step) -> Tensor:
        return step.ascend(lambda x: kl(step.student(x), step.teacher(x)), start=self.start, bn=self.attack_bn)

    def loss(self, step: Step, x_adv: Tensor) -> Tensor:
        target = step.teacher(x_adv)
        reduction = reduction_for(self.kl_reduction, target, many=Classes.SUM)
        # The clean batch first: batch-norm's running statistics weigh the later pass more.
        if self.alpha == 1:
            step.student.observe(step.x)
            return step.term("kl_adversarial", kl(step.student(x_adv), target, reduction))
        clean = step.term("kl_clean", kl(step.student(step.x), step.teacher(step.x), reduction))
        robust = step.term("kl_adversarial", kl(step.student(x_adv), target, reduction))
        return self.alpha * robust + (1 - self.alpha) * clean

    def passes(self, steps: int) -> Passes:
        clean_loss = self.alpha < 1
        return Passes(
            student=steps + 1 + clean_loss,
            student_forward=1 - clean_loss,
            teacher=steps,
            teacher_forward=1 + clean_loss,
        )
