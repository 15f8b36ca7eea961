from pydantic import field_validator
from torch import Tensor, nn

from adbench import ATTACK_BN, Method, Mode, Net, Passes, Start, Step, hyper
from adbench.losses import cross_entropy, kl
from adbench.models import build, canonical


class LBGAT(Method):
    """Learnable boundary guided adversarial training (Cui et al., ICCV 2021).

    attack:  max  KL(S(x'), S(x))
    loss:    MSE(S(x'), N(x)) + CE(N(x), y) + beta KL(S(x'), S(x)),   of logits, the mean over classes in MSE
    with     N a natural network that learns along from scratch; gradient through both arguments of MSE and KL

    differs: the authors' code has eps 0.031 and step 0.007 (`official`); it is for CIFAR-100. The first epoch at a rate
    of 0.02, without which N and S drive each other apart, is in every recipe for large networks. beta = 0 is their
    LBGAT0.
    """

    label = "LBGAT"
    soft_labels = True
    beta: float = hyper(6.0, ge=0, doc="weight of the consistency term (authors' code: 0 or 6)")
    natural: str = hyper("rn18", doc="architecture of the natural network (authors' code)")
    start: Start = hyper(Start.GAUSS, doc="start of the inner ascent (authors' code)")
    attack_bn: Mode = ATTACK_BN

    @field_validator("natural")
    @classmethod
    def _canonical(cls, name: str) -> str:
        return canonical(name)

    def parts(self, step: Step) -> dict[str, nn.Module]:
        return {"natural": build(self.natural, classes=len(step.student.weight), channels=step.x.shape[1])}

    def attack(self, step: Step) -> Tensor:
        with step.still(self.attack_bn, exact=True):
            clean = step.student(step.x).detach()
        return step.ascend(lambda x: kl(step.student(x), clean), start=self.start, bn=self.attack_bn, exact_first=True)

    def loss(self, step: Step, x_adv: Tensor) -> Tensor:
        adversarial, clean = step.student(x_adv), step.student(step.x)
        natural = Net(step.parts["natural"], step.student.precision)(step.x)  # type: ignore[arg-type]
        boundary = step.term("mse", (adversarial - natural).square().mean(dim=1))
        guide = step.term("cross_entropy_natural", cross_entropy(natural, step.target))
        return boundary + guide + self.beta * step.term("kl", kl(adversarial, clean))

    def passes(self, steps: int) -> Passes:
        return Passes(student=steps + 2, student_forward=1, own=2)
