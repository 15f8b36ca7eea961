import copy
import math
from typing import Any, Literal

import torch
from pydantic import PrivateAttr
from torch import Tensor, nn

from adbench import ATTACK_BN, Method, Mode, Net, Passes, Start, Step, hyper
from adbench.attacks.linf import unit_noise
from adbench.losses import cross_entropy, kl


class ADR(Method):
    """Annealing self-distillation rectification (Wu et al., ICLR 2024).

    attack:  max  CE(S(x'), r),        trades: max  KL(S(x'), S(x))
    loss:    CE(S(x'), r),             trades: CE(S(x), r) + beta KL(S(x'), S(x)), gradient through both arguments
    with     r = l p + (1 - l) onehot(y),   p = softmax(M(x) / tau),   l = clip(lambda - (max p - p[y]), 0, 1)
    M is an exponential average of the student, statistics included. Over the iterations tau falls and lambda rises, by
    half a cosine each.

    differs: the authors attack in training mode, start the trades form at x + 0.001 U(0, 1) (`start`) and run x and x'
    as one batch in it (`joint_forward`). M is judged there; here it is with `train.average` (`official`).
    """

    label = "ADR"
    rehearses = True
    form: Literal["pgd", "trades"] = hyper("pgd", doc="of attack and loss (authors' code has both)")
    beta: float = hyper(6.0, ge=0, doc="weight of the consistency term of the trades form (authors' code)")
    tau_high: float | None = hyper(None, gt=0, doc="tau at first; none: 2.5, 1.5 over 10 classes (authors' scripts)")
    tau_low: float | None = hyper(None, gt=0, doc="tau at last; none: 2.0, 1.0 over 10 classes (authors' scripts)")
    lambda_low: float = hyper(0.7, ge=0, le=1, doc="lambda at first (authors' scripts)")
    lambda_high: float = hyper(0.95, ge=0, le=1, doc="lambda at last (authors' scripts)")
    decay: float = hyper(0.995, ge=0, le=1, doc="of the average M (authors' scripts)")
    joint_forward: bool = hyper(False, doc="trades: x and x' are one batch for batch-norm (authors' code has it)")
    start: Literal["auto", "uniform", "gauss", "rand"] = hyper(
        "auto", doc="of the inner ascent; auto: uniform, gauss in the trades form (own; there authors: rand)"
    )
    attack_bn: Mode = ATTACK_BN

    _average: nn.Module = PrivateAttr()
    # The last iteration that attacked, whose update M has not followed yet; and labels (B, C) of its images by id.
    _iteration: int | None = PrivateAttr(None)
    _labels: dict[int, tuple[Tensor, Tensor]] = PrivateAttr(default_factory=dict)

    def setup(self, step: Step) -> None:
        self._average = copy.deepcopy(step.student.module).requires_grad_(False).eval()
        self._iteration, self._labels = None, {}

    def attack(self, step: Step) -> Tensor:
        if step.iteration != self._iteration:
            if self._iteration is not None:
                self._average.load_state_dict(self.followed(step.student.module))
            self._iteration, self._labels = step.iteration, {}
        start = self._start(step)
        if self.form == "pgd":
            labels = self.labels(step)
            return step.ascend(lambda x: cross_entropy(step.student(x), labels), start=start, bn=self.attack_bn)
        with step.still(self.attack_bn, exact=True):
            clean = step.student(step.x).detach()
        return step.ascend(lambda x: kl(step.student(x), clean), start=start, bn=self.attack_bn, exact_first=True)

    def loss(self, step: Step, x_adv: Tensor) -> Tensor:
        labels = self.labels(step)
        if self.form == "pgd":
            return cross_entropy(step.student(x_adv), labels)
        if self.joint_forward:
            clean, adversarial = step.student(torch.cat([step.x, x_adv])).chunk(2)
        else:
            clean, adversarial = step.student(step.x), step.student(x_adv)
        consistency = step.term("kl", kl(adversarial, clean))
        return step.term("cross_entropy", cross_entropy(clean, labels)) + self.beta * consistency

    def followed(self, student: nn.Module) -> dict[str, Tensor]:
        """M's state once it has followed an update of the student; of counts whole numbers are kept."""
        live = student.state_dict()
        moved = {
            name: self.decay * own + (1 - self.decay) * live[name] for name, own in self._average.state_dict().items()
        }
        return {name: value if live[name].is_floating_point() else value.trunc() for name, value in moved.items()}

    def labels(self, step: Step) -> Tensor:
        """The rectified labels r of the batch: (B, C)."""
        if id(step.x) not in self._labels:
            average = Net(self._average, step.student.precision)  # type: ignore[arg-type]
            with torch.no_grad(), average.still():
                logits = average(step.x)
            self._labels[id(step.x)] = (step.x, self._rectified(step, logits))
        return self._labels[id(step.x)][1]

    def _rectified(self, step: Step, logits: Tensor) -> Tensor:
        few = logits.shape[1] <= 10
        high = self.tau_high if self.tau_high is not None else 2.5 if few else 1.5
        low = self.tau_low if self.tau_low is not None else 2.0 if few else 1.0
        left = 0.5 * (1 + math.cos(math.pi * (step.iteration - 1) / step.iterations))
        p = (logits / (low + (high - low) * left)).softmax(dim=1)
        weight = self.lambda_high + (self.lambda_low - self.lambda_high) * left
        true = step.y[:, None]
        share = (weight - (p.amax(dim=1, keepdim=True) - p.gather(1, true))).clamp(0, 1)
        step.log("trust", share)
        return (share * p).scatter_add(1, true, 1 - share)

    def _start(self, step: Step) -> Start | Tensor:
        if self.start == "rand":
            return step.x + 0.001 * (unit_noise(step.x, step.generator) + 1) / 2
        return Start("uniform" if self.start == "auto" and self.form == "pgd" else self.start.replace("auto", "gauss"))

    def passes(self, steps: int) -> Passes:
        return Passes(student=steps + 1 + (self.form == "trades"), student_forward=self.form == "trades", own=1)

    def outer(self, steps: int) -> Passes:
        return Passes(student=1 + (self.form == "trades"))

    def state_dict(self) -> dict[str, Any]:
        return {"average": self._average.state_dict(), "iteration": self._iteration}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._average.load_state_dict(state["average"])
        self._iteration = state["iteration"]
