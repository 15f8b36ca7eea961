from typing import Self

from pydantic import model_validator
from torch import Tensor

from adbench import ATTACK_BN, Method, Mode, Need, Passes, Start, Step, hyper
from adbench.losses import cross_entropy, soft_cross_entropy


class KDSWA(Method):
    """Distillation of a natural and a robust teacher at x', against robust overfitting (Chen et al., ICLR 2021).

    attack:  max  CE(S(x'), y)
    loss:    (1 - lambda_nat - lambda_rob) CE(S(x'), y) + lambda_nat tau^2 CE_tau(S(x'), T_nat(x'))
             + lambda_rob tau^2 CE_tau(S(x'), T(x')),   CE_tau: of the labels softmax(T / tau)

    differs: the student's weights are averaged where `train.average = "swa"` says so, as the `official` preset does.
    The authors' teachers have the student's architecture and were trained before it; here they are those of the run.
    The authors attack in batch-norm training mode (`attack_bn`).
    """

    label = "KD+SWA"
    soft_labels = True
    needs = frozenset({Need.TEACHER, Need.NATURAL_TEACHER})
    lambda_nat: float = hyper(0.1, ge=0, le=1, doc="weight of the natural teacher (authors' code)")
    lambda_rob: float = hyper(0.6, ge=0, le=1, doc="weight of the robust teacher (authors' code)")
    tau: float = hyper(2.0, gt=0, doc="temperature (authors' code)")
    start: Start = hyper(Start.UNIFORM, doc="start of the inner ascent (authors' code)")
    attack_bn: Mode = ATTACK_BN

    @model_validator(mode="after")
    def _weights_leave_room(self) -> Self:
        if self.lambda_nat + self.lambda_rob > 1:
            raise ValueError("lambda_nat + lambda_rob must be at most 1; the rest is the weight of the cross-entropy")
        return self

    def attack(self, step: Step) -> Tensor:
        return step.ascend(lambda x: cross_entropy(step.student(x), step.target), start=self.start, bn=self.attack_bn)

    def loss(self, step: Step, x_adv: Tensor) -> Tensor:
        adversarial = step.student(x_adv)
        hard = step.term("cross_entropy", cross_entropy(adversarial, step.target))
        natural = self.tau**2 * soft_cross_entropy(adversarial, step.natural_teacher(x_adv), self.tau)
        robust = self.tau**2 * soft_cross_entropy(adversarial, step.teacher(x_adv), self.tau)
        soft = self.lambda_nat * step.term("natural", natural) + self.lambda_rob * step.term("robust", robust)
        return (1 - self.lambda_nat - self.lambda_rob) * hard + soft

    def passes(self, steps: int) -> Passes:
        return Passes(student=steps + 1, teacher_forward=1, natural_forward=1)
