"""SmaraAD with one part exchanged or left out: the variants of the paper's Figure 4 that are not methods yet."""

from torch import Tensor

from adbench import Step
from adbench.losses import kl

from .guided import Guided, Output, Regions, Slack


class KD(Guided):
    """SmaraAD's ablation: the KL divergence for slack matching, no alignment (Figure 4, "KD").

    attack:  max  KL(S(x'), T(x')),   gradient through student and teacher
    loss:    (1 - alpha) KL(S(x), T(x)) + alpha KL(S(x'), T(x')),   alpha = 1

    differs: no code was published. This is AdaAD with the KL summed over classes.
    """

    label = "KD"

    def guidance(self, step: Step, student: Output, teacher: Output) -> Tensor:
        return step.term("kl", kl(student[0], teacher[0]))


class KDAlign(Regions):
    """SmaraAD's ablation: the KL divergence for slack matching (Figure 4, "KD + L_align").

    attack:  max  KL(S(x'), T(x')) + L_align(x'),   gradient through student and teacher
    loss:    (1 - alpha) (KL(S(x), T(x)) + L_align(x)) + alpha (KL(S(x'), T(x')) + L_align(x')),   alpha = 1

    differs: no code was published; the paper names no weight between the two terms, so both have 1.
    """

    label = "KD + L_align"

    def guidance(self, step: Step, student: Output, teacher: Output) -> Tensor:
        region = step.term("alignment", self.align(step, student, teacher))
        return step.term("kl", kl(student[0], teacher[0])) + region


class SlackMatching(Slack):
    """SmaraAD's ablation: slack matching without alignment (Figure 4, "L_sm").

    attack:  max  KL(S(x'), T(x')),   gradient through student and teacher
    loss:    c + (1 - alpha) L_sm(x) + alpha L_sm(x'),   alpha = 1

    differs: no code was published; L_align is left out of the attack as well.
    """

    label = "L_sm"

    def guidance(self, step: Step, student: Output, teacher: Output) -> Tensor:
        return self.c + step.term("slack_matching", self.slack(student[0], teacher[0]))
