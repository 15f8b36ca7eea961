"""Averages of weights: what they are, and that they stand in the student's place to the end."""

from __future__ import annotations

import copy
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_resume import assert_same_training
from test_train import trainer
from tiny import TEACHER, cli, record_of
from tiny import run as adbench_run
from torch import Tensor

from adbench.experiment import spelling
from adbench.experiment.config import ThreatModel, Train
from adbench.results.layout import BEST, LAST
from adbench.system import signals
from adbench.training.trainer import Trainer

SWA = {"average": "swa", "average_start": 0.5, "epochs": 4}
EMA = {"average": "ema", "average_decay": 0.9, "epochs": 3}
BATCHES = 3
"""Of 70 images in batches of 32."""


def followed(it: Trainer) -> tuple[list[dict[str, Tensor]], list[dict[str, Any]]]:
    """The student's state after every update, and the log."""
    states: list[dict[str, Tensor]] = []
    log: list[dict[str, Any]] = []
    it.run(log.append, lambda *_: states.append(copy.deepcopy(it.student.state_dict())))
    return states, log


def parameters(it: Trainer) -> list[str]:
    return [name for name, _ in it.student.named_parameters()]


def test_a_plain_average_is_the_mean_over_epochs_with_statistics_of_its_own(tmp_path: Path) -> None:
    it = trainer(tmp_path, **SWA, images=64)
    states, log = followed(it)
    last = load_file(tmp_path / LAST)
    ends = states[1::2]
    for name in parameters(it):
        mean = torch.stack([state[name] for state in ends[1:]]).mean(0)
        assert torch.allclose(last[name], mean, atol=1e-6), name
    # Over equal batches torch's own estimate is the same: a cumulative average.
    twin = copy.deepcopy(it.student)
    twin.load_state_dict(last)
    it.epoch = 4
    x = [it.source.examples(index, drawn, torch.float32)[0] for index, drawn in it.batches("average")]
    torch.optim.swa_utils.update_bn(x, twin)
    for name, value in twin.state_dict().items():
        if "running" in name:
            assert torch.allclose(last[name], value, atol=1e-6), name
    plain = torch.cat([it.batches()[0][0], it.batches("average")[0][0]]).view(2, -1)
    assert not torch.equal(plain[0], plain[1]), "the estimate has a stream of its own"
    assert it.best[2] >= 2
    assert [entry["val_robust"] is not None for entry in log] == [True] * 4


def test_no_epoch_before_the_first_sample_is_chosen(tmp_path: Path) -> None:
    it = trainer(tmp_path, **SWA | {"average_start": 0.75}, images=64)
    it._validate = lambda: dict.fromkeys(("val_clean", "val_robust"), 1.0 - it.epoch / 10)  # type: ignore[method-assign]
    it.run(lambda _: None, lambda *_: None)
    assert it.best[2] == 3
    assert it.average is not None
    assert it.average.samples == 2
    best, last = load_file(tmp_path / BEST), load_file(tmp_path / LAST)
    assert any(not torch.equal(best[name], last[name]) for name in parameters(it))


@pytest.mark.parametrize("buffers", ["live", "averaged", "re-estimated", "re-estimated-by-batch"])
def test_an_exponential_average_follows_every_update(buffers: str, tmp_path: Path) -> None:
    it = trainer(tmp_path, **EMA, average_buffers=buffers)
    average = copy.deepcopy(it.student.state_dict())
    states, _ = followed(it)
    for state in states:
        average = {name: 0.9 * value + 0.1 * state[name] for name, value in average.items()}
    last = load_file(tmp_path / LAST)
    for name in parameters(it):
        assert torch.allclose(last[name], average[name], atol=1e-6), name
    for name in (name for name in last if "running" in name):
        assert torch.equal(last[name], states[-1][name]) == (buffers == "live")
        assert torch.allclose(last[name], average[name], atol=1e-6) == (buffers == "averaged")


def test_an_exponential_average_is_the_student_until_its_warm_up_ends(tmp_path: Path) -> None:
    it = trainer(tmp_path, **EMA | {"epochs": 4}, average_start=0.25, average_warmup=0.25)
    assert it.average is not None
    decays = [it.average.decay_at(n) for n in range(1, 4 * BATCHES + 1)]
    assert decays[:5] == [0.0] * 5
    assert decays[5:] == pytest.approx([min(0.9, (1 + d) / (10 + d)) for d in range(7)])
    assert trainer(tmp_path, **EMA).average.decay_at(1) == 0.9  # type: ignore[union-attr]
    late = trainer(tmp_path, **EMA, average_start=0.34).average
    assert late is not None
    assert [late.decay_at(n) for n in (3, 4)] == [0.0, 0.9]


@pytest.mark.parametrize("settings", [SWA, EMA], ids=["swa", "ema"])
@pytest.mark.parametrize("batch", [(1, 2), (3, 1)], ids=str)
def test_a_training_stopped_in_mid_epoch_ends_with_the_same_average(
    settings: dict[str, Any], batch: tuple[int, int], tmp_path: Path
) -> None:
    if batch[0] >= settings["epochs"]:
        batch = (2, 2)

    def stop(epoch: int, done: int, _: int) -> None:
        if (epoch, done) == batch:
            os.kill(os.getpid(), signal.SIGTERM)

    undisturbed, stopped = tmp_path / "undisturbed", tmp_path / "stopped"
    trainer(undisturbed, **settings).run(lambda _: None, lambda *_: None)
    with signals.handled(), pytest.raises(signals.Stopped):
        trainer(stopped, **settings).run(lambda _: None, stop)
    trainer(stopped, **settings).run(lambda _: None, lambda *_: None)
    assert_same_training(undisturbed, stopped)


def test_without_an_average_there_is_none_and_the_cell_is_the_same() -> None:
    def spelt(**settings: Any) -> dict[str, Any]:
        return spelling.recipe(Train(**settings), ThreatModel(eps="8/255", step="2/255"))

    idle = {"average_start": 0.5, "average_decay": 0.5, "average_warmup": 0.5, "average_buffers": "live"}
    for key, value in idle.items():
        assert spelt(**{key: value}) == spelt()
    assert spelt(average="swa", average_buffers="re-estimated") == spelt(average="swa", average_decay=0.1)
    assert spelt(average="swa", average_buffers="live") != spelt(average="swa")
    assert len({str(spelt(average="ema", **{key: value})) for key, value in idle.items()}) == 4


def test_the_average_is_what_teaches_is_judged_and_verified(tmp_path: Path) -> None:
    teacher = tmp_path / "mean.toml"
    recipe = 'average = "swa"\naverage_start = 0.5\n'
    teacher.write_text(TEACHER.replace("epochs = 1\n", "epochs = 2\n") + recipe, encoding="utf-8")
    settings = {"train__epochs": "2", "train__average": "ema", "train__average_decay": "0.9"}
    results = tmp_path / "results"
    result = adbench_run("--methods", "rslad", "--teacher", teacher, "--results", results, **settings)
    assert result.exit_code == 0, result.output
    student = record_of(results, "rslad")
    (taught,) = results.rglob("teachers/mean-*/best.safetensors")
    (other,) = results.rglob("rslad/**/best.safetensors")
    assert student["training"]["weights"]["best"] == student["model"]["weights_sha256"]
    assert student["teachers"]["robust"]["name"] == "mean"
    assert all(torch.isfinite(value.double()).all() for path in (taught, other) for value in load_file(path).values())
    result = cli("verify", results)
    assert result.exit_code == 0, result.output
    assert "does not follow" not in result.output
