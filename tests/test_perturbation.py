"""Adversarial weight perturbation: what a step is with it, and that nothing but the step ever meets other weights."""

from __future__ import annotations

import copy
import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_faults import trainer_of
from test_resume import assert_same_training
from test_train import Watching, trainer
from tiny import PLUGIN, cli, options, records
from tiny import run as adbench_run
from torch import Tensor, nn

from adbench.data import load
from adbench.errors import UserError
from adbench.execution.expand import recipe
from adbench.experiment.config import Experiment, Train
from adbench.losses import cross_entropy
from adbench.registry import METHODS
from adbench.results.layout import FAILURE
from adbench.system import signals
from adbench.training.configured import configured, training_passes
from adbench.training.step import Step
from adbench.training.trainer import Trainer

GAMMA, LR, DECAY = 0.05, 0.1, 5e-4
EVERYTHING: dict[str, Any] = {
    "awp": 0.01,
    "awp_start": 0.2,
    "average": "swa",
    "average_start": 0.4,
    "epochs": 5,
    "schedule": "cosine",
    "per": "iteration",
    "nesterov": True,
    "decay_norm": False,
    "bn_momentum": 0.1,
}


class Noting(Watching):
    """Remembers the weights and statistics that each of its losses met."""

    met: list[Any] = []  # noqa: RUF012 (pydantic copies it)

    def loss(self, step: Step, x_adv: Tensor) -> Tensor:
        self.met.append((step.rehearsal, copy.deepcopy(step.student.module.state_dict())))
        step.log("one", 1.0)
        return cross_entropy(step.student(x_adv), step.y)


def test_a_step_in_parts_is_that_of_a_loop_of_its_own(tmp_path: Path) -> None:
    """One gradient of the whole batch at w, batch-norm's statistics put back; then w + v, SGD from there, and back."""
    it = trainer(tmp_path, Noting(), images=16, batch_size=16, micro_batch=6, awp=GAMMA, weight_decay=DECAY)
    it.student.double()
    it.set_up()
    twin = copy.deepcopy(it.student)
    momentum = {name: torch.zeros_like(p) for name, p in twin.named_parameters()}
    for _ in range(2):
        index, drawn = it.batches()[0]
        x, y, _soft = it.source.examples(index, drawn, torch.float64)
        parts = list(zip(x.tensor_split(3), y.tensor_split(3), strict=True))
        kept = {name: buffer.clone() for name, buffer in twin.named_buffers()}
        for images, labels in parts:
            (F.cross_entropy(twin(images), labels, reduction="sum") / 16).backward()
        added = {}
        for name, p in twin.named_parameters():
            assert p.grad is not None
            if p.ndim > 1:
                added[name] = GAMMA * p.data.norm() / p.grad.norm() * p.grad
                p.data += added[name]
            p.grad = None
        for name, buffer in twin.named_buffers():
            buffer.copy_(kept[name])
        for images, labels in parts:
            (F.cross_entropy(twin(images), labels, reduction="sum") / 16).backward()
        for name, p in twin.named_parameters():
            assert p.grad is not None
            momentum[name] = 0.9 * momentum[name] + p.grad + DECAY * p.data
            p.data -= LR * momentum[name] + added.get(name, 0)
            p.grad = None
        it.train_step(index, drawn, torch.Generator())
        for (name, mine), expected in zip(it.student.state_dict().items(), twin.state_dict().values(), strict=True):
            assert (mine - expected).abs().max() <= 1e-12, name


def test_it_begins_where_it_is_to_and_logs_once(tmp_path: Path) -> None:
    method = Noting()
    log: list[dict[str, Any]] = []
    trainer(tmp_path, method, images=32, epochs=4, awp=GAMMA, awp_start=0.5).run(log.append, lambda *_: None)
    assert [rehearsal for rehearsal, _ in method.met] == [False, False, True, False, True, False]
    assert [entry["one"] for entry in log] == [1.0] * 4
    weight = next(name for name, p in method.met[2][1].items() if p.ndim > 1)
    first, second = (state[weight] for _, state in method.met[2:4])
    assert (second - first).norm().item() == pytest.approx(GAMMA * first.norm().item(), rel=1e-4)
    # The statistics that the second pass meets are those before the first.
    assert all(
        torch.equal(method.met[2][1][name], method.met[3][1][name]) for name in method.met[2][1] if "run" in name
    )


class Failing(Noting):
    """Fails in the second pass of an iteration, at w + v."""

    how: str = "nan"
    at: int = 2
    times: list[int] = []  # noqa: RUF012 (pydantic copies it)

    def loss(self, step: Step, x_adv: Tensor) -> Tensor:
        values = super().loss(step, x_adv)
        if step.rehearsal or step.iteration != self.at or self.times:
            return values
        self.times.append(step.iteration)
        if self.how == "memory":
            raise torch.OutOfMemoryError
        if self.how == "error":
            raise ValueError("no such luck")
        return values * float("nan")


def weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in network.named_parameters()}


@pytest.mark.parametrize("form", ["original", "restore-first"])
@pytest.mark.parametrize("how", ["nan", "error", "memory"])
def test_whatever_fails_in_between_the_weights_are_those_before(how: str, form: str, tmp_path: Path) -> None:
    it = trainer(tmp_path, method := Failing(how=how), images=64, epochs=1, awp=GAMMA, awp_form=form)
    momenta = [m.momentum for m in it.student.modules() if isinstance(m, nn.BatchNorm2d)]
    before: dict[str, Tensor] = {}

    def keep(*_: int) -> None:
        before.update(before or weights(it.student))

    if how == "memory":
        it.run(lambda _: None, keep)
        assert it.micro_batch == 16
        retried = method.met[4]  # after two passes of the first batch and of the second, which is taken again
        assert retried[0] is True
        assert all(torch.equal(retried[1][name], value) for name, value in before.items())
    else:
        with pytest.raises((UserError, ValueError)):
            it.run(lambda _: None, keep)
        assert all(torch.equal(value, before[name]) for name, value in weights(it.student).items())
        assert any(not torch.equal(method.met[-1][1][name], value) for name, value in before.items())
    if how == "nan":
        dumped = torch.load(tmp_path / FAILURE.format(""), weights_only=True)["student"]
        assert all(torch.equal(dumped[name], value) for name, value in before.items())
    assert [m.momentum for m in it.student.modules() if isinstance(m, nn.BatchNorm2d)] == momenta


def test_a_flagged_failure_leaves_the_weights_where_the_host_looks_late(tmp_path: Path) -> None:
    """As on a GPU: the optimiser changes nothing from then on, and neither does what was added to the weights."""
    it = trainer(tmp_path, Failing(), images=64, epochs=1, awp=GAMMA)
    it.set_up()
    it.watch.every = 100
    index, drawn = it.batches()[0]
    for it.iteration in (1, 2, 3):
        before = weights(it.student)
        if it.iteration > 1:
            it.optimiser.step = lambda: None  # type: ignore[method-assign, misc, assignment]
        it.train_step(index, drawn, torch.Generator())
    assert all(torch.equal(value, before[name]) for name, value in weights(it.student).items())


@pytest.mark.parametrize("name", ["mtard", "las-at"])
def test_a_training_with_everything_is_stopped_at_random_moments_and_ends_in_the_same_bits(
    name: str, tmp_path: Path
) -> None:
    def begun(folder: Path) -> Trainer:
        it = trainer_of(name, folder)
        fresh = {key: getattr(it, key) for key in ("method", "attack", "validation", "seed", "folder", "device")}
        teachers = {need: teacher.module for need, teacher in it.teachers.items()}
        config = Train(**EVERYTHING, batch_size=16, attack_steps=2, val_steps=2)
        return Trainer(**fresh, student=it.student, teachers=teachers, dataset=dataset, config=config)

    dataset = load("digits", tmp_path, train_images=48, val_images=16, test_images=16)
    begun(tmp_path / "undisturbed").run(lambda _: None, lambda *_: None)
    draw = random.Random(0)
    moments = sorted(draw.sample([(epoch, batch) for epoch in range(5) for batch in (1, 2, 3)][:-1], 6))
    for moment in moments:

        def stop(epoch: int, batch: int, _: int, at: tuple[int, int] = moment) -> None:
            if (epoch, batch) == at:
                os.kill(os.getpid(), signal.SIGTERM)

        with signals.handled(), pytest.raises(signals.Stopped):
            begun(tmp_path / "stopped").run(lambda _: None, stop)
    begun(tmp_path / "stopped").run(lambda _: None, lambda *_: None)
    assert_same_training(tmp_path / "undisturbed", tmp_path / "stopped")


def test_a_cell_with_everything_is_recorded_and_verified(tmp_path: Path) -> None:
    settings = {f"train__{key}": str(value).lower() for key, value in EVERYTHING.items()}
    result = adbench_run("--methods", "trades", "--results", tmp_path, **settings)
    assert result.exit_code == 0, result.output
    (found,) = records(tmp_path).values()
    # Two passes of the loss more in all epochs but the first of five.
    assert found["training"]["passes"]["student"] == pytest.approx(2 + 2 + 0.8 * 2)
    result = cli("verify", tmp_path)
    assert result.exit_code == 0, result.output
    assert "does not follow" not in result.output


def test_an_equal_budget_counts_the_second_pass() -> None:
    plain, twice = Train(attack_steps=10), Train(attack_steps=10, awp=0.01)
    cost = {
        name: [training_passes(configured(name, {}), name, train).total for train in (plain, twice)]
        for name in ("pgd-at", "trades", "las-at")
    }
    assert {name: after - before for name, (before, after) in cost.items()} == pytest.approx(
        {"pgd-at": 2, "trades": 4, "las-at": 2}
    )
    asked = Experiment(train=twice, budget=cost["pgd-at"][1] * 7)
    assert recipe(asked, "pgd-at", "digits")[1].epochs == 7


def test_a_method_whose_state_may_move_twice_is_refused_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(METHODS, "_files", {})
    monkeypatch.setattr(METHODS, "_loaded", {})
    plugin = tmp_path / "mine.py"
    plugin.write_text(PLUGIN + "\n    def state_dict(self):\n        return {'n': 1}\n", encoding="utf-8")
    words = [*options(train__awp="0.01"), "--methods", "mine", "--plugin", plugin, "--results", tmp_path / "results"]
    result = cli("run", *words)
    assert result.exit_code == 2, result.output
    assert "train.awp: 'mine'" in result.output
    assert "rehearses" in result.output
    assert not list(tmp_path.rglob("*.safetensors"))
