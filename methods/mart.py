from torch import Tensor

from adbench import ATTACK_BN, Method, Mode, Passes, Start, Step, hyper
from adbench.losses import cross_entropy

FLOOR = 1e-12  # the authors' guard inside logarithms


class MART(Method):
    """Misclassification-aware adversarial training (Wang et al., ICLR 2020).

    attack:  max  CE(S(x'), y)
    loss:    CE(S(x'), y) - log(1 - max_{k != y} S(x')[k]) + beta (1 - S(x)[y]) KL(S(x'), S(x)),
             gradient through both arguments and the weight

    differs: the authors' code has eps 0.031 and step 0.007 (`official`), beta 6 in its function and 5 in its script,
    1.0001 and 1.0000001 for the two ones, and 1e-12 inside the logarithms (these kept).
    """

    label = "MART"
    beta: float = hyper(5.0, ge=0, doc="weight of the consistency term (authors' script)")
    start: Start = hyper(Start.GAUSS, doc="start of the inner ascent (authors' code)")
    attack_bn: Mode = ATTACK_BN

    def attack(self, step: Step) -> Tensor:
        return step.ascend(lambda x: cross_entropy(step.student(x), step.y), start=self.start, bn=self.attack_bn)

    def loss(self, step: Step, x_adv: Tensor) -> Tensor:
        clean, adversarial = step.student(step.x), step.student(x_adv)
        true = step.y[:, None]
        p, p_adv = clean.softmax(dim=1), adversarial.softmax(dim=1)
        strongest_other = p_adv.scatter(1, true, 0.0).amax(dim=1)
        boosted = cross_entropy(adversarial, step.y) - (1.0001 - strongest_other + FLOOR).log()
        divergence = (p * (clean.log_softmax(dim=1) - (p_adv + FLOOR).log())).sum(dim=1)
        weight = 1.0000001 - p.gather(1, true).squeeze(1)
        consistency = step.term("weighted_kl", weight * divergence)
        return step.term("boosted_cross_entropy", boosted) + self.beta * consistency

    def passes(self, steps: int) -> Passes:
        return Passes(student=steps + 2)
