"""The training loop: schedule, determinism, checkpoints, and what stops it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adbench.data import load
from adbench.errors import UserError
from adbench.experiment.config import Train
from adbench.models import Network, build
from adbench.registry import METHODS
from adbench.results.summary import finished
from adbench.seeding import derive
from adbench.training.configured import configured
from adbench.training.method import Method
from adbench.training.step import Ball, Need, Step, Teacher
from adbench.training.trainer import Trainer
from adbench.weights import checkpoint

CONFIG = {"epochs": 3, "batch_size": 32, "attack_steps": 1, "val_steps": 1}


class Watching(Method):
    """Natural training that remembers what it was shown."""

    label = "watching"
    seen: list[Any] = []  # noqa: RUF012 (pydantic copies it)

    def attack(self, step: Step) -> Tensor:
        self.seen.append((step.epoch, step.iteration, step.lr, step.x.clone(), step.y.clone()))
        return step.x

    def loss(self, step: Step, x_adv: Tensor) -> Tensor:
        step.log("half", 0.5)
        return step.student(x_adv).logsumexp(1) - step.student(x_adv).gather(1, step.y[:, None])[:, 0]

    def on_lr_change(self, factor: float) -> None:
        self.seen.append(("drop", factor))


def trainer(
    folder: Path, method: Method | None = None, seed: int = 0, device: str = "cpu", images: int = 70, **config: Any
) -> Trainer:
    torch.manual_seed(derive(seed, "init"))
    return Trainer(
        method=method or configured("pgd-at", {}),
        student=build("cnn-4", classes=10, channels=1),
        teachers={},
        dataset=load("digits", folder, train_images=images, val_images=20, test_images=10),
        attack=Ball(0.1, 0.03, 1),
        validation=Ball(0.1, 0.03, 1),
        config=Train(**(CONFIG | config)),
        seed=seed,
        folder=folder,
        device=torch.device(device),
    )


def run(it: Trainer) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    it.run(entries.append, lambda *_: None)
    return entries


def test_the_papers_schedule_drops_at_its_epochs_and_scales_with_shorter_runs() -> None:
    assert Train().drops() == [115, 160, 185]
    assert Train(epochs=400).drops() == [230, 320, 370]
    assert Train(epochs=20).drops() == [12, 16, 18]


def test_the_learning_rate_and_the_method_hear_of_every_drop(tmp_path: Path) -> None:
    method = Watching()
    entries = run(trainer(tmp_path, method, epochs=5, milestones=(0.4, 0.8)))
    assert [round(e["lr"], 6) for e in entries] == [0.1, 0.1, 0.01, 0.01, 0.001]
    assert [item for item in method.seen if item[0] == "drop"] == [("drop", 0.1), ("drop", 0.1)]
    assert entries[0]["half"] == 0.5


class Odd(Watching):
    """Logs what is not finite, and trains all the same."""

    def loss(self, step: Step, x_adv: Tensor) -> Tensor:
        step.log("ratio", float("nan") if step.epoch else 2)
        return super().loss(step, x_adv)


def test_a_logged_number_that_is_not_finite_is_null_in_the_log_and_noted(tmp_path: Path) -> None:
    run(trainer(tmp_path, Odd()))

    def refused(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    lines = (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line, parse_constant=refused)["ratio"] for line in lines] == [2, None, None]
    summary = finished(tmp_path)
    assert summary is not None
    (note,) = summary.notes
    assert "'ratio'" in note


def test_images_a_second_are_those_of_the_batches_in_log_and_summary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that goes on by a second a batch and a hundred a validation."""
    now = [0.0]

    def tick(seconds: float) -> None:
        now[0] += seconds

    it = trainer(tmp_path, epochs=2)
    it._validate = lambda: tick(100) or dict.fromkeys(("val_clean", "val_robust"), 0.5)  # type: ignore[method-assign, func-returns-value]
    monkeypatch.setattr("adbench.training.trainer.time.perf_counter", lambda: now[0])
    entries: list[dict[str, Any]] = []
    summary = it.run(entries.append, lambda *_: tick(1))
    assert [entry["images_per_second"] for entry in entries] == [70 / 3, 70 / 3]
    assert summary.images_per_second == 70 / 3
    assert summary.seconds == 2 * 103


def test_every_epoch_sees_every_image_once_in_an_order_of_its_own(tmp_path: Path) -> None:
    method = Watching()
    it = trainer(tmp_path, method)
    it.source.augmentation.pad = 0  # without augmentation the images can be told apart
    run(it)
    steps = [item for item in method.seen if item[0] != "drop"]
    assert [s[1] for s in steps] == list(range(1, 10)), "70 images are three batches of at most 32"
    epochs = [torch.cat([s[3] for s in steps if s[0] == e]).flatten(1) for e in range(3)]
    assert not torch.equal(epochs[0], epochs[1])
    for images in epochs:
        assert torch.equal(images.sort(dim=0).values, epochs[0].sort(dim=0).values)


def test_the_same_seed_ends_in_the_same_bits_and_another_seed_does_not(tmp_path: Path) -> None:
    hashes = []
    for number, seed in enumerate((0, 0, 1)):
        it = trainer(tmp_path / str(number), seed=seed)
        run(it)
        hashes.append(checkpoint.weights_sha256(it.student))
    assert hashes[0] == hashes[1] != hashes[2]


def test_best_is_the_epoch_of_the_highest_robust_accuracy_on_the_held_out_split(tmp_path: Path) -> None:
    it = trainer(tmp_path, epochs=4)
    scores = iter([(0.9, 0.2), (0.5, 0.6), (0.9, 0.6), (0.9, 0.1)])
    it._validate = lambda: dict(zip(("val_clean", "val_robust"), next(scores), strict=True))  # type: ignore[method-assign]
    after: list[str] = []
    it.run(lambda _: after.append(checkpoint.weights_sha256(it.student)), lambda *_: None)
    best = build("cnn-4", classes=10, channels=1)
    checkpoint.load(best, tmp_path / "best.safetensors")
    assert checkpoint.weights_sha256(best) == after[1]
    summary = finished(tmp_path)
    assert summary is not None
    assert (summary.best_epoch, summary.best_val_robust) == (2, 0.6)


def test_natural_training_chooses_its_best_epoch_by_clean_accuracy(tmp_path: Path) -> None:
    it = trainer(tmp_path, configured("natural", {}))
    scores = iter([(0.5, 0.6), (0.9, 0.1), (0.8, 0.7)])
    it._validate = lambda: dict(zip(("val_clean", "val_robust"), next(scores), strict=True))  # type: ignore[method-assign]
    run(it)
    summary = finished(tmp_path)
    assert summary is not None
    assert (summary.best_epoch, summary.best_val_robust) == (2, 0.1)


def test_validation_happens_at_its_interval_and_at_the_end(tmp_path: Path) -> None:
    entries = run(trainer(tmp_path, epochs=5, val_every=2))
    assert [e["val_robust"] is not None for e in entries] == [False, True, False, True, True]


class Broken(Method):
    label = "broken"
    how: str

    def attack(self, step: Step) -> Tensor:
        return step.x

    def loss(self, step: Step, x_adv: Tensor) -> Tensor:
        loss = step.student(x_adv).square().sum(1)
        if self.how == "one term" and step.iteration == 3:
            at_one = torch.tensor([float("nan")] + [0.0] * (len(loss) - 1))
            return step.term("ce", loss) + step.term("kl", at_one)
        if self.how == "gradient":  # the root's slope at zero
            return step.term("root", (loss - loss.detach()).sqrt())
        return {"infinite": loss / 0, "averaged": loss.mean()}.get(self.how, loss)


def test_a_loss_that_is_not_finite_stops_the_run_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="loss is inf in epoch 1, iteration 1"):
        run(trainer(tmp_path, Broken(how="infinite")))


def test_what_is_not_finite_is_named_and_the_batch_that_met_it_is_saved(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"iteration 3; not finite: terms: kl = nan; losses: 1 of 32"):
        run(trainer(tmp_path, Broken(how="one term"), images=96, batch_size=32))
    saved = torch.load(tmp_path / "failure.pt", weights_only=True)
    assert saved["iteration"] == 3
    assert saved["x"].shape == saved["x_adv"].shape == (32, 1, 8, 8)
    assert saved["terms"]["ce"] > 0
    network = build("cnn-4", classes=10, channels=1)
    network.load_state_dict(saved["student"])
    assert torch.isfinite(saved["loss"]).sum() == 31


def test_a_gradient_that_is_not_finite_stops_the_run_before_it_reaches_the_weights(tmp_path: Path) -> None:
    it = trainer(tmp_path, Broken(how="gradient"))
    with pytest.raises(UserError, match=r"the loss is [0-9.]+ in epoch 1, iteration 1; not finite: gradients: "):
        run(it)
    assert all(torch.isfinite(p).all() for p in it.student.parameters())


def test_a_loss_that_was_averaged_too_early_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="one value an example"):
        run(trainer(tmp_path, Broken(how="averaged")))


def test_gradients_are_clipped_to_the_asked_norm(tmp_path: Path) -> None:
    it = trainer(tmp_path, grad_clip=1e-6, weight_decay=0.0, epochs=1)
    before = [p.detach().clone() for p in it.student.parameters()]
    run(it)
    moved = (
        sum(float((p.detach() - q).norm() ** 2) for p, q in zip(it.student.parameters(), before, strict=True)) ** 0.5
    )
    assert 0 < moved < 1e-5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["pgd-at", "trades", "las-at"])
def test_a_run_on_a_gpu_learns(tmp_path: Path, name: str, precision: str) -> None:
    it = trainer(tmp_path, configured(name, {}), device="cuda", images=1000, epochs=10, precision=precision)
    entries = run(it)
    assert entries[-1]["val_clean"] > 0.4  # of ten classes


@pytest.mark.parametrize("name", METHODS.names())
def test_training_on_a_cpu_gives_the_same_bits_twice(tmp_path: Path, name: str) -> None:
    small: dict[str, dict[str, Any]] = {"las-at": {"policy": "cnn-4", "interval": 2}}
    hashes = []
    for number in range(2):
        method = configured(name, small.get(name, {}))
        it = trainer(tmp_path / str(number), method, images=96, epochs=2, attack_steps=3)
        it.teachers = {need: Teacher(teacher_for(need)) for need in method.needed()}
        run(it)
        hashes.append(checkpoint.weights_sha256(it.student))
    assert hashes[0] == hashes[1]


def teacher_for(need: Need) -> Network:
    torch.manual_seed(len(need.name))
    return build("cnn-8", classes=10, channels=1)
