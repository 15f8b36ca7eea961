from torch import Tensor

from adbench import Step

from .guided import Output, Regions, Slack


class SmaraAD(Regions, Slack):
    """Slack matching and attribution region alignment (Yin et al., CVPR 2024), Eq. 2-9.

    attack:  max  KL(S(x'), T(x')) + L_align(x'),   gradient through student and teacher
    loss:    c + (1 - alpha) (L_sm(x) + L_align(x)) + alpha (L_sm(x') + L_align(x')),   alpha = 1
    with     L_sm = -rho(rank T, rank S),   L_align = mean (CAM_T - CAM_S)^2
    The parts are in `methods/guided.py`.

    differs: the authors published no training code. What the paper leaves open (marked so below) is a
    hyperparameter whose default is the reading that trains; docs/smaraad.md has the measurements.
    """

    label = "SmaraAD"

    def guidance(self, step: Step, student: Output, teacher: Output) -> Tensor:
        slack = step.term("slack_matching", self.slack(student[0], teacher[0]))
        region = step.term("alignment", self.align(step, student, teacher))
        return self.c + slack + region
