from torch import Tensor

from adbench import Method, Passes, Step
from adbench.losses import cross_entropy


class Natural(Method):
    """Natural training: no attack. The teacher that MTARD needs, and an undefended reference.

    attack:  none
    loss:    CE(S(x), y)
    """

    label = "natural"
    soft_labels = True
    selects = "val_clean"

    def attack(self, step: Step) -> Tensor:
        return step.x

    def loss(self, step: Step, x_adv: Tensor) -> Tensor:
        return step.term("cross_entropy", cross_entropy(step.student(x_adv), step.target))

    def passes(self, steps: int) -> Passes:
        return Passes(student=1)
