import torch
from torch import Tensor

from adbench import ATTACK_BN, Method, Mode, Need, Passes, Start, Step, hyper
from adbench.losses import kl, true_class_first


class DGAD(Method):
    """Dynamic guidance adversarial distillation (Park & Min, ECCV 2024).

    attack:  max  KL(S(x'), T(x')),   gradient through student and teacher
    loss:    m KL(S(x), T~(x)) + (1 - m) KL(S(x'), T~(x')) + beta |S(x') - S(x)|^2 / C
    with     m = 1 where T misclassifies x, else 0;   S in the last term: probabilities
             T~: T with the logits of y and of its prediction exchanged where it is wrong

    differs: the authors' code divides both sums by the nominal batch size, also in a shorter last batch, fails where T
    misclassifies a whole batch, and multiplies the two terms for MobileNet-V2; none of this is kept.
    """

    label = "DGAD"
    needs = frozenset({Need.TEACHER})
    beta: float = hyper(1.0, ge=0, doc="weight of the consistency of S(x') and S(x) (authors' code)")
    start: Start = hyper(Start.GAUSS, doc="start of the inner ascent (authors' code)")
    attack_bn: Mode = ATTACK_BN

    def attack(self, step: Step) -> Tensor:
        return step.ascend(lambda x: kl(step.student(x), step.teacher(x)), start=self.start, bn=self.attack_bn)

    def loss(self, step: Step, x_adv: Tensor) -> Tensor:
        clean, adversarial = step.student(step.x), step.student(x_adv)
        natural = step.term("kl_clean", kl(clean, true_class_first(step.teacher(step.x), step.y)))
        robust = step.term("kl_adversarial", kl(adversarial, true_class_first(step.teacher(x_adv), step.y)))
        mistaken = step.teacher(step.x).argmax(dim=1) != step.y
        step.log("teacher_mistaken", mistaken.to(clean))
        gap = step.term("consistency", (adversarial.softmax(dim=1) - clean.softmax(dim=1)).square().mean(dim=1))
        return torch.where(mistaken, natural, robust) + self.beta * gap

    def passes(self, steps: int) -> Passes:
        return Passes(student=steps + 2, teacher=steps, teacher_forward=2)
