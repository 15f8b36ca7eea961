from torch import Tensor

from adbench import ATTACK_BN, Method, Mode, Need, Passes, Start, Step, hyper
from adbench.losses import cross_entropy, kl


class HAT(Method):
    """Helper-based adversarial training (Rade & Moosavi-Dezfooli, ICLR 2022).

    attack:  max  KL(S(x'), S(x))
    loss:    CE(S(x), y) + beta KL(S(x'), S(x)) + gamma CE(S(x + h (x' - x)), argmax T_nat(x')),
             gradient through S(x)

    The helper examples x + h (x' - x) lie h times as far from x as x', in the loss alone, and are not clamped.

    differs: the authors' function has other defaults (h 3.5, eps 0.031) than the script that calls it, which is kept.
    """

    label = "HAT"
    soft_labels = True
    needs = frozenset({Need.NATURAL_TEACHER})
    beta: float = hyper(2.5, ge=0, doc="weight of the consistency term (authors' README)")
    gamma: float = hyper(0.5, ge=0, doc="weight of the helper examples (authors' README)")
    h: float = hyper(2.0, ge=0, doc="distance of the helper examples, in x' - x (authors' script)")
    start: Start = hyper(Start.GAUSS, doc="start of the inner ascent (authors' code)")
    attack_bn: Mode = ATTACK_BN

    def attack(self, step: Step) -> Tensor:
        with step.still(self.attack_bn, exact=True):
            clean = step.student(step.x).detach()
        return step.ascend(lambda x: kl(step.student(x), clean), start=self.start, bn=self.attack_bn, exact_first=True)

    def loss(self, step: Step, x_adv: Tensor) -> Tensor:
        clean, adversarial = step.student(step.x), step.student(x_adv)
        helped = step.student(step.x + self.h * (x_adv - step.x))
        helper = step.term("helper", cross_entropy(helped, step.natural_teacher(x_adv).argmax(dim=1)))
        consistency = step.term("kl", kl(adversarial, clean))
        return (
            step.term("cross_entropy", cross_entropy(clean, step.target))
            + self.beta * consistency
            + self.gamma * helper
        )

    def passes(self, steps: int) -> Passes:
        return Passes(student=steps + 3, student_forward=1, natural_forward=1)
