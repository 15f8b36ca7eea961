from typing import Literal, Self

from pydantic import model_validator
from torch import Tensor

from adbench import ATTACK_BN, Method, Mode, Need, Passes, Start, Step, hyper
from adbench.losses import cross_entropy, kl, true_class_probability


class IAD(Method):
    """Introspective adversarial distillation (Zhu et al., ICLR 2022), in its two published variants.

    attack:  max  CE(S(x'), y)
    loss I:  alpha tau^2 KL_tau(S(x'), T(x)) + (1 - alpha) CE(S(x), y), and after the warm-up
             + alpha (1 - a) KL(S(x'), S(x))
    loss II: alpha_1 tau^2 KL_tau(S(x'), T(x')) + alpha_2 tau^2 KL_tau(S(x'), T_nat(x'))
             + (1 - alpha_1 - alpha_2) CE(S(x'), y); after the warm-up the first KL is weighted by a, and
             alpha_1 tau^2 (1 - a) KL(S(x'), S(x)) joins
    with     a = T(x')[y]^beta

    differs: the paper's form weights the teacher term of I by a as well (`teacher_weighting`); the code does not.
    The code crafts x' in batch-norm training mode (`attack_bn`), and that of I runs x' through the student twice, after
    the warm-up x, too (`extra_forwards`).
    """

    label = "IAD"
    needs = frozenset({Need.TEACHER})
    variant: Literal["I", "II"] = hyper("I", doc="I distils at T(x), II at T(x') (SmaraAD's Table 1: I)")
    alpha: float = hyper(1.0, ge=0, le=1, doc="I: weight of distillation (authors' code)")
    alpha1: float = hyper(0.5, ge=0, le=1, doc="II: weight of the robust teacher (authors' code)")
    alpha2: float = hyper(0.25, ge=0, le=1, doc="II: weight of the natural teacher (authors' code)")
    tau: float = hyper(1.0, gt=0, doc="temperature (authors' code)")
    beta: float = hyper(0.1, ge=0, doc="exponent of the teacher's reliability (authors' code)")
    begin_frac: float | None = hyper(
        None, ge=0, le=1, doc="warm-up, share of the epochs (authors' code: I 60/200, II 40/200)"
    )
    teacher_weighting: bool = hyper(False, doc="I: weight the teacher term by a (the paper's Table 1)")
    extra_forwards: Literal["none", "authors"] = hyper(
        "none", later=True, doc="I: passes for batch-norm alone (authors' code has them)"
    )
    start: Start = hyper(Start.UNIFORM_UNCLAMPED, doc="start of the inner ascent (authors' code)")
    attack_bn: Mode = ATTACK_BN

    @model_validator(mode="after")
    def _weights_leave_room(self) -> Self:
        if self.alpha1 + self.alpha2 > 1:
            raise ValueError("alpha1 + alpha2 must be at most 1; the rest is the weight of the cross-entropy")
        return self

    def needed(self) -> frozenset[Need]:
        return self.needs if self.variant == "I" else self.needs | {Need.NATURAL_TEACHER}

    def attack(self, step: Step) -> Tensor:
        return step.ascend(lambda x: cross_entropy(step.student(x), step.y), start=self.start, bn=self.attack_bn)

    def begin(self) -> float:
        """The warm-up's share of the epochs."""
        return self.begin_frac if self.begin_frac is not None else 0.3 if self.variant == "I" else 0.2

    def loss(self, step: Step, x_adv: Tensor) -> Tensor:
        introspective = step.epoch >= round(self.begin() * step.epochs)
        reliability = true_class_probability(step.teacher(x_adv), step.y) ** self.beta
        if introspective:
            step.log("teacher_reliability", reliability)
        form = self._loss_1 if self.variant == "I" else self._loss_2
        return form(step, x_adv, reliability, introspective)

    def _loss_1(self, step: Step, x_adv: Tensor, reliability: Tensor, introspective: bool) -> Tensor:
        as_authors = self.extra_forwards == "authors"
        adversarial = step.student(x_adv)
        if as_authors:
            step.student.observe(x_adv)
        clean = step.student(step.x)
        if as_authors and introspective:
            step.student.observe(step.x)
        guidance = self.tau**2 * step.term("kl", kl(adversarial, step.teacher(step.x), tau=self.tau))
        if introspective and self.teacher_weighting:
            guidance = reliability * guidance
        loss = self.alpha * guidance + (1 - self.alpha) * step.term("cross_entropy", cross_entropy(clean, step.y))
        if introspective:
            itself = step.term("kl_self", kl(adversarial, clean))  # S(x) not detached
            loss = loss + self.alpha * (1 - reliability) * itself
        return loss

    def _loss_2(self, step: Step, x_adv: Tensor, reliability: Tensor, introspective: bool) -> Tensor:
        adversarial = step.student(x_adv)
        robust = step.term("kl", kl(adversarial, step.teacher(x_adv), tau=self.tau))
        if introspective:
            clean = step.student(step.x)
            robust = reliability * robust + (1 - reliability) * step.term("kl_self", kl(adversarial, clean))
        natural = step.term("kl_natural", kl(adversarial, step.natural_teacher(x_adv), tau=self.tau))
        hard = step.term("cross_entropy", cross_entropy(adversarial, step.y))
        soft = self.alpha1 * robust + self.alpha2 * natural
        return (1 - self.alpha1 - self.alpha2) * hard + self.tau**2 * soft

    def passes(self, steps: int) -> Passes:
        first = self.variant == "I"
        extra = 1 + (1 - self.begin()) if first and self.extra_forwards == "authors" else 0.0
        return Passes(
            student=steps + 2,
            student_forward=extra,
            teacher_forward=2 if first else 1,
            natural_forward=0 if first else 1,
        )
