"""Whole training steps of the real trainer against loops written here from the formulas, in float64.

Weights, batch-norm statistics and momentum after every step: what order the passes come in, in which mode the student
is attacked and what decays show in these, and in no single loss.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_train import trainer
from torch import Tensor, nn

from adbench.attacks import linf
from adbench.models import build, precision
from adbench.training.configured import configured
from adbench.training.step import Ball, Need, Net, Step, Teacher

EPS, STEP, STEPS, DECAY, LR = 8 / 255, 2 / 255, 10, 5e-4, 0.1


class Loop:
    """Plain SGD with momentum 0.9 on one method's loss, batch by batch."""

    def __init__(self, student: Any, teacher: Any, noise: list[Tensor], *, kernels: bool = False) -> None:
        self.student, self.teacher, self.noise, self.kernels = student, teacher, noise, kernels
        self.momentum: dict[str, Tensor] = {}

    def adaad(self, x: Tensor, y: Tensor, step: int) -> Tensor:
        """KL at x' by an ascent through both networks in evaluation mode; the clean batch is run before x'."""

        def divergence(z: Tensor) -> Tensor:
            p = self.teacher(z).softmax(1)
            return p * (p.log() - self.student(z).log_softmax(1))

        self.student.eval()
        x_adv = self.ascent(x, x + 0.001 * self.noise[step][: len(x)], lambda z: divergence(z).sum())
        self.student.train()
        self.student(x)
        return divergence(x_adv).mean()

    def pgd_at(self, x: Tensor, y: Tensor, step: int) -> Tensor:
        """Cross-entropy at x' by an ascent in training mode, so that every one of its passes moves the statistics."""
        self.student.train()
        begun = (x + EPS * self.noise[step][: len(x)]).clamp(0, 1)
        x_adv = self.ascent(x, begun, lambda z: F.cross_entropy(self.student(z), y, reduction="sum"))
        return F.cross_entropy(self.student(x_adv), y)

    def ascent(self, x: Tensor, x_adv: Tensor, objective: Any) -> Tensor:
        for _ in range(STEPS):
            z = x_adv.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(objective(z), z)
            x_adv = torch.minimum(torch.maximum(z.detach() + STEP * gradient.sign(), x - EPS), x + EPS).clamp(0, 1)
        return x_adv

    def update(self, loss: Tensor, lr: float) -> None:
        parameters = dict(self.student.named_parameters())
        for (name, p), gradient in zip(
            parameters.items(), torch.autograd.grad(loss, list(parameters.values())), strict=True
        ):
            decays = not self.kernels or p.ndim > 1
            d = gradient + DECAY * p.detach() if decays else gradient
            self.momentum[name] = 0.9 * self.momentum[name] + d if name in self.momentum else d
            p.data -= lr * self.momentum[name]


@pytest.mark.parametrize("lean", [False, True])
@pytest.mark.parametrize(
    ("name", "hyper", "decay"),
    [("adaad", {}, "all"), ("pgd-at", {"attack_bn": "train"}, "kernels"), ("pgd-at", {"attack_bn": "train"}, "all")],
)
def test_four_steps_of_the_trainer_are_those_of_a_loop_of_its_own(
    name: str, hyper: dict[str, Any], decay: str, lean: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "LEAST_WORK", 0 if lean else precision.LEAST_WORK)
    it = trainer(
        tmp_path,
        configured(name, hyper),
        images=14,
        epochs=2,
        batch_size=8,
        milestones=(0.5,),
        decay=decay,
        weight_decay=DECAY,
        lr=LR,
    )
    assert it.precision.lean is lean
    it.source.augmentation.pad, it.source.augmentation.flip, it.attack = 0, False, Ball(EPS, STEP, STEPS)
    torch.manual_seed(5)
    teacher = build("cnn-8", classes=10, channels=1).double()
    teacher(torch.rand(32, 1, 8, 8, dtype=torch.float64))  # statistics of its own
    teacher.eval().requires_grad_(False)
    it.student.double()
    it.teachers = {Need.TEACHER: Teacher(copy.deepcopy(teacher), it.precision)}
    pool = [torch.randn(8, 1, 8, 8, dtype=torch.float64).clamp(-1, 1) for _ in range(4)]
    drawn = iter(pool)
    for kind in ("gauss_noise", "unit_noise"):
        monkeypatch.setattr(linf, kind, lambda x, _: next(drawn)[: len(x)])
    it._validate = lambda: {"val_clean": 0.5, "val_robust": 0.5}  # type: ignore[method-assign]

    loop = Loop(copy.deepcopy(it.student), teacher, pool, kernels=decay == "kernels")
    images, labels = it.source.images.double() / 255, it.source.labels
    steps: list[int] = []

    def compare(epoch: int, batch: int, _: int) -> None:
        it.epoch = epoch
        index = it.batches()[batch - 1][0]
        loss = getattr(loop, name.replace("-", "_"))(images[index], labels[index], len(steps))
        loop.update(loss, LR if epoch == 0 else LR / 10)
        steps.append(len(index))
        for (key, mine), expected in zip(
            it.student.state_dict().items(), loop.student.state_dict().values(), strict=True
        ):
            assert (mine - expected).abs().max() <= 1e-12, f"{key} after step {len(steps)}"
        for key, p in it.student.named_parameters():
            apart = it.optimiser.state[p]["momentum_buffer"] - loop.momentum[key]
            assert apart.abs().max() <= 1e-12, f"momentum of {key} after step {len(steps)}"

    it.run(lambda _: None, compare)
    assert steps == [8, 6, 8, 6]


def test_las_ats_attack_on_its_copy_ends_when_the_whole_batch_is_wrong() -> None:
    """Further passes would move nothing but the copy's statistics, with which its accuracy is then taken."""
    method: Any = configured("las-at", {})
    torch.manual_seed(0)
    x, y = torch.rand(6, 1, 8, 8), torch.zeros(6, dtype=torch.long)
    passes = []
    for right in (True, False):
        network = build("cnn-4", classes=10, channels=1)
        nn.init.constant_(network.classifier.bias[:1], 1e3 if right else -1e3)
        noise = torch.Generator().manual_seed(0)
        net = Net(network)
        step = Step(x, y, net, 0, 1, 1, 0.1, Ball(0.1, 0.03, 5), noise)
        method._strongest(step, net)
        passes.append(int(network.state_dict()["body.1.num_batches_tracked"]))
    # Two restarts: every step and the closing pass, or the first pass and the closing one.
    assert passes == [2 * (5 + 1), 2 * (1 + 1)]
