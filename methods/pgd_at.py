from torch import Tensor

from adbench import ATTACK_BN, Method, Mode, Passes, Start, Step, hyper
from adbench.losses import cross_entropy


class PGDAT(Method):
    """Adversarial training with projected gradient descent (Madry et al., ICLR 2018).

    attack:  max  CE(S(x'), y)
    loss:    CE(S(x'), y)

    differs: the authors' TensorFlow code crafts x' in batch-norm training mode with weight decay 2e-4 of kernels alone;
    Pang et al. (ICLR 2021) recommend evaluation mode and 5e-4, as the common recipe here does. Their code and that of
    Rice et al. (ICML 2020) also run the clean batch in training mode, for printed figures; that is not repeated.
    """

    label = "PGD-AT"
    soft_labels = True
    start: Start = hyper(Start.UNIFORM, doc="start of the inner ascent (authors' code)")
    attack_bn: Mode = ATTACK_BN

    def attack(self, step: Step) -> Tensor:
        return step.ascend(lambda x: cross_entropy(step.student(x), step.target), start=self.start, bn=self.attack_bn)

    def loss(self, step: Step, x_adv: Tensor) -> Tensor:
        return step.term("cross_entropy", cross_entropy(step.student(x_adv), step.target))

    def passes(self, steps: int) -> Passes:
        return Passes(student=steps + 1)
