"""What a robust teacher says of the student's x': noted in every epoch's log, and without a trace in the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adbench.data import load
from adbench.experiment.config import Train
from adbench.models import Network, build
from adbench.results.summary import Summary
from adbench.training.method import Method
from adbench.training.step import Ball, Need, Start, Step
from adbench.training.trainer import Trainer


class Distilled(Method):
    """Towards the teacher at x (or at x', where it `asks`); keeps every x'."""

    label = "distilled"
    needs = frozenset({Need.TEACHER})
    soft_labels = True
    asks: bool = False
    seen: list[Any] = []  # noqa: RUF012 (pydantic copies it)

    def attack(self, step: Step) -> Tensor:
        return step.ascend(lambda x: -step.student(x).gather(1, step.y[:, None])[:, 0], start=Start.UNIFORM)

    def loss(self, step: Step, x_adv: Tensor) -> Tensor:
        self.seen.append((x_adv, step.y, step.soft))
        guide = step.teacher(x_adv if self.asks else step.x)
        return (step.student(x_adv) - guide).square().mean(1)


class Noise(torch.nn.Module):
    """A layer that draws random numbers in evaluation, too."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


def trained(
    folder: Path, method: Method, teacher: Network | None, noisy: bool = False, **config: Any
) -> tuple[list[dict[str, Any]], Summary]:
    torch.manual_seed(0)
    student = build("cnn-4", classes=10, channels=1)
    if noisy:
        student.body.append(Noise())
    it = Trainer(
        method=method,
        student=student,
        teachers={Need.TEACHER: teacher} if teacher else {},
        dataset=load("digits", folder, train_images=70, val_images=20, test_images=10),
        attack=Ball(0.1, 0.03, 1),
        validation=Ball(0.1, 0.03, 1),
        config=Train(epochs=2, batch_size=32, attack_steps=1, val_steps=1, precision="float32", **config),
        seed=0,
        folder=folder,
        device=torch.device("cpu"),
    )
    log: list[dict[str, Any]] = []
    return log, it.run(log.append, lambda *_: None)


@pytest.fixture
def teacher() -> Network:
    torch.manual_seed(1)
    network = build("cnn-4", classes=10, channels=1)
    network(torch.rand(64, 1, 8, 8))  # statistics of its own
    return network


@pytest.mark.parametrize(("asks", "augment"), [(False, ()), (True, ()), (True, ("mixup",))])
def test_an_epoch_notes_the_teachers_accuracy_and_entropy_at_x_adv(
    tmp_path: Path, teacher: Network, asks: bool, augment: tuple[str, ...]
) -> None:
    """Of every batch where the method asks there anyway, else of the last whole one."""
    method = Distilled(asks=asks)
    method.seen.clear()
    log, _ = trained(tmp_path, method, teacher, augment=augment)
    batches = [method.seen[:3], method.seen[3:]]
    for entry, of_epoch in zip(log, batches, strict=True):
        right, unsure = [], []
        for x_adv, y, soft in of_epoch if asks else of_epoch[1:2]:
            with torch.no_grad():
                p = teacher(x_adv).softmax(1).double()
            said = p.argmax(1)
            right.append((said == y).double().mean() if soft is None else soft[range(len(y)), said].double().mean())
            unsure.append(torch.distributions.Categorical(probs=p).entropy().mean())
        assert entry["teacher_accuracy_adv"] == pytest.approx(float(sum(right)) / len(right), abs=1e-6)
        assert entry["teacher_entropy_adv"] == pytest.approx(float(sum(unsure)) / len(unsure), rel=1e-5)


def test_what_is_noted_leaves_no_trace_in_the_training(
    tmp_path: Path, teacher: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even by a teacher that draws random numbers when it is asked, as its student does in the validation."""
    teacher.body.append(Noise())
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    log, noted = trained(tmp_path / "noted", Distilled(), teacher, noisy=True)
    monkeypatch.setattr(Trainer, "_guidance", lambda *_: {})
    plain_log, plain = trained(tmp_path / "plain", Distilled(), teacher, noisy=True)
    assert noted.weights == plain.weights
    for entry, without in zip(log, plain_log, strict=True):
        assert entry.keys() - without.keys() == {"teacher_accuracy_adv", "teacher_entropy_adv"}
        assert all(entry[name] == without[name] for name in ("loss", "val_clean", "val_robust"))
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_a_training_without_a_teacher_notes_nothing_of_one(tmp_path: Path) -> None:
    class Alone(Distilled):
        needs = frozenset()

        def loss(self, step: Step, x_adv: Tensor) -> Tensor:
            return step.student(x_adv).square().mean(1)

    log, _ = trained(tmp_path, Alone(), None)
    assert not [name for name in log[0] if name.startswith("teacher")]
