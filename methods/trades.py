from typing import Literal

from torch import Tensor

from adbench import ATTACK_BN, Method, Mode, Passes, Start, Step, hyper
from adbench.losses import cross_entropy, kl


class TRADES(Method):
    """Trade-off between accuracy and robustness (Zhang et al., ICML 2019).

    attack:  max  KL(S(x'), S(x))
    loss:    CE(S(x), y) + beta KL(S(x'), S(x)),   gradient through both arguments

    differs: the authors' code has eps 0.031, step 0.007 and weight decay 2e-4 (`official`), and runs the clean batch
    through the student once more than needed, which moves batch-norm (`extra_forwards`).
    """

    label = "TRADES"
    soft_labels = True
    beta: float = hyper(6.0, ge=0, doc="weight of the consistency term (authors' code)")
    start: Start = hyper(Start.GAUSS, doc="start of the inner ascent (authors' code)")
    attack_bn: Mode = ATTACK_BN
    extra_forwards: Literal["none", "authors"] = hyper(
        "none", later=True, doc="a second clean pass for batch-norm alone (authors' code has it)"
    )
    label_smoothing: float = hyper(
        0.0, later=True, ge=0, le=1, doc="spread evenly over all classes (0.1: Wang et al., ICML 2023; none in TRADES)"
    )

    def attack(self, step: Step) -> Tensor:
        with step.still(self.attack_bn, exact=True):
            clean = step.student(step.x).detach()
        # S(x') is so close to S(x) at first that in half precision every sixth sign would be wrong.
        return step.ascend(lambda x: kl(step.student(x), clean), start=self.start, bn=self.attack_bn, exact_first=True)

    def loss(self, step: Step, x_adv: Tensor) -> Tensor:
        clean = step.student(step.x)
        # S(x) keeps its gradient in the KL term: TRADES pulls both sides together.
        consistency = step.term("kl", kl(step.student(x_adv), clean))
        if self.extra_forwards == "authors":
            step.student.observe(step.x)
        mass = 1 - self.label_smoothing + self.label_smoothing / clean.shape[1]
        return step.term("cross_entropy", cross_entropy(clean, step.target, mass)) + self.beta * consistency

    def passes(self, steps: int) -> Passes:
        return Passes(student=steps + 2, student_forward=1 + (self.extra_forwards == "authors"))
