from typing import Literal

from torch import Tensor

from adbench import Passes, Step, hyper
from adbench.losses import cross_entropy, entropy_weight, spearman, true_class_probability

from .smaraad import SmaraAD


class SmaraADPlusPlus(SmaraAD):
    """SmaraAD that trusts its teacher only as far as the teacher is right (Yin et al., CVPR 2024), Eq. 10.

    attack:  max  KL(S(x'), T(x')) + L_align(x'),   gradient through student and teacher
    loss:    g w (SmaraAD's loss) + (1 - g) (-rho(S(x), S(x')) + CE(S(x), y))
    with     g = T(x')[y]^lambda,   w = 1 - H(T(x')) / log C,   both without gradient

    differs: no training code was published. The printed formula has +rho, which would push the rankings of the
    clean and the adversarial example apart, against the text; `self_rho_sign = 1` is that literal reading.
    """

    label = "SmaraAD++"
    reliability_exponent: float = hyper(0.1, ge=0, doc="lambda of g (paper, Sec. 4.2)")
    w_source: Literal["teacher_adv", "teacher_clean", "student_adv", "student_clean"] = hyper(
        "teacher_adv", doc="whose entropy weighs the guidance (open; g is the teacher's at x')"
    )
    detach_weights: bool = hyper(True, doc="no gradient through w (open)")
    self_rho_sign: Literal[-1, 1] = hyper(-1, doc="sign of rho in self-learning (the text's; printed: +1)")
    self_detach_clean: bool = hyper(False, doc="detach S(x) in the rho of self-learning (IAD's code: no)")
    begin_frac: float = hyper(0.0, ge=0, le=1, doc="share of the epochs with Eq. 9 before Eq. 10 (open: none)")

    def loss(self, step: Step, x_adv: Tensor) -> Tensor:
        if step.epoch < round(self.begin_frac * step.epochs):
            return super().loss(step, x_adv)
        adversarial, clean = step.student.features(x_adv), step.student.features(step.x)
        guidance = self.guidance(step, adversarial, step.teacher.features(x_adv))
        if self.alpha < 1:
            at_clean = self.guidance(step, clean, step.teacher.features(step.x))
            guidance = self.alpha * guidance + (1 - self.alpha) * at_clean

        trust = true_class_probability(step.teacher(x_adv), step.y) ** self.reliability_exponent
        sources = {
            "teacher_adv": lambda: step.teacher(x_adv),
            "teacher_clean": lambda: step.teacher(step.x),
            "student_adv": lambda: adversarial[0],
            "student_clean": lambda: clean[0],
        }
        certainty = entropy_weight(sources[self.w_source]())
        if self.detach_weights:
            certainty = certainty.detach()
        step.log("trust", trust)
        step.log("certainty", certainty)

        anchor = clean[0].detach() if self.self_detach_clean else clean[0]
        rho = step.term("self_rho", spearman(self.ranks(anchor), self.ranks(adversarial[0])))
        self_learning = self.self_rho_sign * rho + step.term("cross_entropy", cross_entropy(clean[0], step.y))
        return trust * certainty * guidance + (1 - trust) * self_learning

    def passes(self, steps: int) -> Passes:
        at_clean = self.alpha < 1 or self.w_source == "teacher_clean"
        return Passes(student=steps + 2, teacher=steps, teacher_forward=1 + at_clean)
