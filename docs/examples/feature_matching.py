"""A method with a feature map inside student and teacher, and a network of its own that learns with the student.

    adbench validate feature_matching.py
    adbench run --methods feature-matching,rslad --plugin feature_matching.py \
        --set train.average=ema --set train.schedule=cosine --set data.extra=more.npz
    adbench compare feature-matching rslad
    adbench report --format markdown
"""

import torch.nn.functional as F
from torch import Tensor, nn

from adbench import Method, Need, Passes, Start, Step, hyper
from adbench.losses import kl


class FeatureMatching(Method):
    """RSLAD's robust term, and a map inside the student that is drawn to the teacher's (FitNets, ICLR 2015).

    attack:  max  KL(S(x'), T(x))
    loss:    KL(S(x'), T(x)) + beta mean (P(F_S(x')) - F_T(x))^2
    with     F the map of a stage, P a 1x1 convolution that learns with the student
    """

    label = "Feature matching"
    needs = frozenset({Need.TEACHER})
    beta: float = hyper(1.0, ge=0, doc="weight of the maps' distance")
    stage: int | str = hyper(-2, doc="of the student: a name of `adbench info ARCHITECTURE`, or a level")
    teacher_stage: int | str = hyper(-2, doc="of the teacher")

    def parts(self, step: Step) -> dict[str, nn.Module]:
        mine, *_ = step.student.shape(step.x, self.stage)
        theirs, *_ = step.teacher.shape(step.x, self.teacher_stage)
        return {"projection": nn.Conv2d(mine, theirs, 1)}

    def attack(self, step: Step) -> Tensor:
        return step.ascend(lambda x: kl(step.student(x), step.teacher(step.x)), start=Start.GAUSS)

    def loss(self, step: Step, x_adv: Tensor) -> Tensor:
        logits, maps = step.student.stages(x_adv, self.stage)
        target, targets = step.teacher.stages(step.x, self.teacher_stage)
        mine, theirs = step.parts["projection"](maps[self.stage]), targets[self.teacher_stage]
        theirs = F.adaptive_avg_pool2d(theirs, mine.shape[2:])  # where the teacher's map is larger
        matched = step.term("matching", (mine - theirs).square().mean(dim=(1, 2, 3)))
        return step.term("kl", kl(logits, target)) + self.beta * matched

    def passes(self, steps: int) -> Passes:
        return Passes(student=steps + 1, teacher_forward=2, own=2)
