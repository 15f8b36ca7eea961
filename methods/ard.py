from torch import Tensor

from adbench import ATTACK_BN, Method, Mode, Need, Passes, Start, Step, hyper
from adbench.losses import Classes, cross_entropy, kl


class ARD(Method):
    """Adversarially robust distillation (Goldblum et al., AAAI 2020).

    attack:  max  CE(S(x'), y)
    loss:    alpha tau^2 KL_tau(S(x'), T(x)) + (1 - alpha) CE(S(x), y)

    differs: SmaraAD's Table 1 puts tau on the CE term too; the authors' code does not. The code averages the KL
    over classes and runs the clean batch through the student even at alpha = 1 (batch-norm statistics); both are
    kept. It crafts x' in batch-norm training mode (`attack_bn`), and its second learning-rate drop has no effect.
    """

    label = "ARD"
    soft_labels = True
    needs = frozenset({Need.TEACHER})
    alpha: float = hyper(1.0, ge=0, le=1, doc="weight of the distillation term (authors' code)")
    tau: float = hyper(30.0, gt=0, doc="temperature (authors' code; the field reports 5 for CIFAR-100)")
    kl_reduction: Classes = hyper(Classes.MEAN, doc="KL over classes (authors' code; IAD's rewrite sums)")
    start: Start = hyper(Start.UNIFORM_UNCLAMPED, doc="start of the inner ascent (authors' code)")
    attack_bn: Mode = ATTACK_BN

    def attack(self, step: Step) -> Tensor:
        return step.ascend(lambda x: cross_entropy(step.student(x), step.target), start=self.start, bn=self.attack_bn)

    def loss(self, step: Step, x_adv: Tensor) -> Tensor:
        distance = kl(step.student(x_adv), step.teacher(step.x), self.kl_reduction, self.tau)
        distilled = self.alpha * self.tau**2 * step.term("kl", distance)
        if self.alpha == 1:
            step.student.observe(step.x)
            return distilled
        hard = step.term("cross_entropy", cross_entropy(step.student(step.x), step.target))
        return distilled + (1 - self.alpha) * hard

    def passes(self, steps: int) -> Passes:
        clean_loss = self.alpha < 1
        return Passes(student=steps + 1 + clean_loss, student_forward=1 - clean_loss, teacher_forward=1)
