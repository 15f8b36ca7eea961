from typing import Literal

from torch import Tensor

from adbench import ATTACK_BN, Method, Mode, Need, Passes, Start, Step, hyper
from adbench.losses import cross_entropy, kl, true_class_probability


class AdaIAD(Method):
    """AdaAD with introspection: the student trusts itself where the teacher is unsure (Huang et al., CVPR 2023).

    attack:  max  KL(S(x'), T(x')),   gradient through student and teacher
    loss:    alpha tau^2 KL_tau(S(x'), T(x')) + (1 - alpha) CE(S(x), y), and after the warm-up
             + alpha (1 - a) KL(S(x'), S(x))
    with     a = T(x')[y]^beta

    differs: the paper weights the teacher term by a as well (`teacher_weighting`); the code does not. The code sums the
    KL over classes on every data set, unlike its AdaAD, and runs the clean batch through the student twice, three
    times after the warm-up (`extra_forwards`).
    """

    label = "AdaIAD"
    needs = frozenset({Need.TEACHER})
    alpha: float = hyper(1.0, ge=0, le=1, doc="weight of distillation (authors' code)")
    tau: float = hyper(30.0, gt=0, doc="temperature (authors' code)")
    beta: float = hyper(0.1, ge=0, doc="exponent of the teacher's reliability (authors' code)")
    begin_frac: float = hyper(0.3, ge=0, le=1, doc="warm-up, share of the epochs (authors' code: 60 of 200)")
    teacher_weighting: bool = hyper(False, doc="weight the teacher term by a (paper)")
    extra_forwards: Literal["none", "authors"] = hyper(
        "none", doc="clean passes for batch-norm alone (authors' code has them)"
    )
    start: Start = hyper(Start.GAUSS, doc="start of the inner ascent (authors' code)")
    attack_bn: Mode = ATTACK_BN

    def attack(self, step: Step) -> Tensor:
        return step.ascend(lambda x: kl(step.student(x), step.teacher(x)), start=self.start, bn=self.attack_bn)

    def loss(self, step: Step, x_adv: Tensor) -> Tensor:
        introspective = step.epoch >= round(self.begin_frac * step.epochs)
        as_authors = self.extra_forwards == "authors"
        if as_authors:
            step.student.observe(step.x)
        adversarial, clean = step.student(x_adv), step.student(step.x)
        if as_authors and introspective:
            step.student.observe(step.x)
        guidance = self.tau**2 * step.term("kl", kl(adversarial, step.teacher(x_adv), tau=self.tau))
        hard = step.term("cross_entropy", cross_entropy(clean, step.y))
        if not introspective:
            return self.alpha * guidance + (1 - self.alpha) * hard
        reliability = true_class_probability(step.teacher(x_adv), step.y) ** self.beta
        step.log("teacher_reliability", reliability)
        itself = step.term("kl_self", kl(adversarial, clean))  # S(x) not detached
        if self.teacher_weighting:
            guidance = reliability * guidance
        return self.alpha * (guidance + (1 - reliability) * itself) + (1 - self.alpha) * hard

    def passes(self, steps: int) -> Passes:
        extra = 0.0 if self.extra_forwards == "none" else 1 + (1 - self.begin_frac)
        return Passes(student=steps + 2, student_forward=extra, teacher=steps, teacher_forward=1)
