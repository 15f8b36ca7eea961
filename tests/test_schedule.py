"""Learning rate, momentum and decay, iteration by iteration, and the weights that a training begins with."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from test_train import Watching, trainer
from tiny import cli, records
from tiny import run as adbench_run

from adbench.errors import UserError
from adbench.execution.expand import recipe
from adbench.experiment import spelling
from adbench.experiment.config import ThreatModel, Train, experiment, validated
from adbench.models import build
from adbench.training.configured import configured
from adbench.training.schedule import rate
from adbench.training.step import Ball, Net, Step
from adbench.weights import checkpoint

BATCHES = 3
"""Of 70 images in batches of 32."""


def rates(folder: Path, **config: Any) -> tuple[list[float], list[float], Watching]:
    """Learning rate and momentum that the optimiser had in each iteration of a training, and its method."""
    method = Watching()
    it = trainer(folder, method, **config)
    seen: list[tuple[float, float]] = []

    def note(*_: int) -> None:
        group = it.optimiser.param_groups[0]
        seen.append((group["lr"], group["betas"][0] if "betas" in group else group["momentum"]))

    entries: list[dict[str, Any]] = []
    it.run(entries.append, note)
    lr, momentum = map(list, zip(*seen, strict=True))
    assert [entry["lr"] for entry in entries] == lr[BATCHES - 1 :: BATCHES]
    assert [item[2] for item in method.seen if item[0] != "drop"] == lr
    return lr, momentum, method


def half_cosine(begin: float, end: float, share: float) -> float:
    return end + (begin - end) * (1 + math.cos(math.pi * share)) / 2


def test_a_cosine_falls_every_epoch_or_every_iteration_and_the_method_hears_of_no_drop(tmp_path: Path) -> None:
    lr, momentum, method = rates(tmp_path / "a", epochs=4, schedule="cosine", lr=0.2, warmup=0.25, warmup_lr=0.04)
    assert lr[::3] == lr[1::3] == lr[2::3]
    assert lr[::3] == pytest.approx([0.04, *(half_cosine(0.2, 0, e / 4) for e in (1, 2, 3))], rel=1e-12)
    assert set(momentum) == {0.9}
    assert not [item for item in method.seen if item[0] == "drop"]
    lr, *_ = rates(
        tmp_path / "b", epochs=4, schedule="cosine", lr=0.2, per="iteration", schedule_start=0.5, lr_min=0.01
    )
    # At the end of the iteration, of which there are six before the cosine begins and six in it.
    assert lr == pytest.approx([0.2] * 6 + [max(half_cosine(0.2, 0, i / 6), 0.01) for i in range(1, 7)], rel=1e-12)


def test_one_cycle_is_torchs_with_momentum_the_other_way_round(tmp_path: Path) -> None:
    for optimiser in ("sgd", "adamw"):
        own = torch.optim.SGD([torch.zeros(1)], lr=0.1, momentum=0.9)
        torchs = torch.optim.lr_scheduler.OneCycleLR(own, 0.02, pct_start=0.25, total_steps=12, cycle_momentum=True)
        expected = []
        for _ in range(12):
            expected.append((own.param_groups[0]["lr"], own.param_groups[0]["momentum"]))
            own.step()
            torchs.step()
        found = rates(
            tmp_path / optimiser,
            epochs=4,
            lr=0.02,
            schedule="onecycle",
            warmup=0.25,
            per="iteration",
            cycle_momentum=True,
            optimiser=optimiser,
        )
        assert list(zip(*found[:2], strict=True)) == [pytest.approx(pair, rel=1e-12) for pair in expected]


def test_straight_lines_go_through_their_points_and_jump_where_two_are_at_one_place(tmp_path: Path) -> None:
    triangle = {"schedule": "linear", "lr": 0.2, "points": [[0, 0.25], [0.5, 1], [1, 0]]}
    lr, _, method = rates(tmp_path / "a", epochs=4, **triangle)
    assert lr[::3] == pytest.approx([0.05, 0.125, 0.2, 0.1], rel=1e-12)
    assert not [item for item in method.seen if item[0] == "drop"]
    lr, *_ = rates(tmp_path / "b", epochs=2, per="iteration", schedule_shift=-1, **triangle)
    assert lr == pytest.approx([0.05, 0.1, 0.15, 0.2, 0.4 / 3, 0.2 / 3], rel=1e-12)
    lr, *_ = rates(tmp_path / "c", epochs=4, schedule="linear", lr=0.2, points=[[0.25, 1], [0.5, 0.8], [0.5, 0.1]])
    assert lr[::3] == pytest.approx([0.2, 0.2, 0.02, 0.02], rel=1e-12)


def test_a_cosine_that_ends_sooner_stays_at_its_end(tmp_path: Path) -> None:
    lr, *_ = rates(tmp_path, epochs=4, schedule="cosine", lr=0.2, schedule_end=0.5, lr_min=0.01, cosine_damping=2)
    assert lr[::3] == pytest.approx([0.2, 0.1 * math.exp(-0.5), 0.01, 0.01], rel=1e-12)


def test_steps_per_iteration_come_one_iteration_sooner(tmp_path: Path) -> None:
    lr, _, method = rates(tmp_path, epochs=2, milestones=(0.5,), per="iteration")
    assert lr == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.01, 0.01])
    assert [item for item in method.seen if item[0] == "drop"] == [("drop", 0.1)]


def test_batch_norm_does_not_decay_where_that_is_asked_for(tmp_path: Path) -> None:
    """By updates without a gradient, which leave what does not decay as it was."""
    for setting, still in (({}, ()), ({"decay_norm": False}, ("1.weight", "1.bias", "4.weight", "4.bias"))):
        it = trainer(tmp_path, weight_decay=0.5, **setting)
        before = {name: p.detach().clone().fill_(1) for name, p in it.student.named_parameters()}
        for p in it.student.parameters():
            p.data.fill_(1)
            p.grad = torch.zeros_like(p)
        it.optimiser.step()
        kept = {name for name, p in it.student.named_parameters() if torch.equal(p, before[name])}
        norms = {
            f"{name}.{part}"
            for name, module in it.student.named_modules()
            if isinstance(module, torch.nn.BatchNorm2d)
            for part in ("weight", "bias")
        }
        assert norms
        assert kept == (norms if still else set())


def test_nesterov_and_adamw_are_the_optimisers_of_that_name(tmp_path: Path) -> None:
    assert trainer(tmp_path, nesterov=True).optimiser.param_groups[0]["nesterov"] is True
    it = trainer(tmp_path, optimiser="adamw", momentum=0.8)
    assert isinstance(it.optimiser, torch.optim.AdamW)
    assert it.optimiser.param_groups[0]["betas"] == (0.8, 0.999)


def test_batch_norms_momentum_is_one_at_first(tmp_path: Path) -> None:
    it = trainer(tmp_path, Watching(), epochs=1, bn_momentum=0.25)
    norm = next(m for m in it.student.modules() if isinstance(m, torch.nn.BatchNorm2d))
    seen: list[float | None] = []
    it.run(lambda _: None, lambda *_: seen.append(norm.momentum))
    assert seen == [1.0, 0.25, 0.25]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"nesterov": True, "momentum": 0.0}, "nesterov"),
        ({"cycle_momentum": True}, "onecycle"),
        ({"schedule": "onecycle"}, "warmup"),
        ({"schedule": "cosine", "lr_min": 1.0}, "lr_min"),
        ({"schedule": "poly"}, "cosine"),
        ({"schedule": "linear"}, "points"),
        ({"schedule": "linear", "points": [[0, 0], [1, 0]]}, "points"),
        ({"schedule": "linear", "points": [[1, 0], [0, 1]]}, "order"),
        ({"schedule": "linear", "points": [[0, 0], [1, 1]], "warmup": 0.1}, "no warmup"),
        ({"schedule_start": 0.5, "schedule_end": 0.5}, "schedule_end"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_by_name(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        validated(Train, settings, "train")


def test_what_one_method_has_of_its_own_agrees_with_the_recipe_it_is_a_part_of() -> None:
    own = {"methods": ["trades"], "train": {"cycle_momentum": True}}
    onecycle = {"train": {"schedule": "onecycle", "warmup": 0.25}, "override": [own]}
    _, train = recipe(experiment(onecycle), "trades", "digits")
    assert (train.schedule, train.cycle_momentum) == ("onecycle", True)
    with pytest.raises(UserError, match=r"override for trades.*onecycle"):
        recipe(experiment({"override": [own]}), "trades", "digits")


def spelt(**settings: Any) -> dict[str, Any]:
    return spelling.recipe(Train(**settings), ThreatModel(eps="8/255", step="2/255"))


def test_what_has_no_effect_makes_no_other_cell() -> None:
    ends = ({"schedule_end": 1.1}, {"schedule_shift": 1}, {"cosine_damping": 0.1}, {"points": [[0, 1]]})
    for idle in ({"schedule_start": 0.5}, {"lr_min": 0.01}, {"warmup_lr": 0.01}, *ends):
        assert spelt(**idle) == spelt()
    cosine = {"schedule": "cosine"}
    assert spelt(**cosine) == spelt(**cosine, milestones=(0.1,), lr_factor=0.5)
    assert spelt(decay="kernels", decay_norm=False) == spelt(decay="kernels")
    effective = (cosine, {"warmup": 0.1}, {"per": "iteration"}, {"nesterov": True}, {"bn_momentum": 0.1})
    ways = [{}, *effective, {"decay_norm": False}, {"optimiser": "adamw"}, cosine | {"lr_min": 0.01}]
    assert len({json.dumps(spelt(**way)) for way in ways}) == len(ways)


def test_mtards_rate_falls_at_epochs_of_its_own_where_the_schedule_has_no_drops() -> None:
    plain, own = (configured("mtard", hyper) for hyper in ({}, {"rate_drops": (0.5, 0.75)}))
    assert "rate_drops" not in plain.settings()
    assert own.settings()["rate_drops"] == [0.5, 0.75]
    found = []
    for epoch in (0, 4, 5, 7, 8):
        step = Step(
            torch.zeros(2, 1, 8, 8),
            torch.zeros(2),
            Net(build("cnn-4", classes=10, channels=1)),
            epoch,
            10,
            1,
            0.1,
            Ball(0.1, 0.03, 1),
            torch.Generator(),
        )
        for method in (plain, own):
            method.setup(step)
            method.on_lr_change(0.1)
        found.append((plain.rate(step), own.rate(step)))  # type: ignore[attr-defined]
    assert [rate for rate, _ in found] == pytest.approx([0.0025] * 5)
    assert [rate for _, rate in found] == pytest.approx([0.025, 0.025, 0.0025, 0.0025, 0.00025])


def test_a_smooth_cell_is_recorded_and_verified(tmp_path: Path) -> None:
    """Also one whose weights begin with a file's, which make the cell whatever the file is called."""
    first = build("cnn-4", classes=10, channels=1)
    weights, elsewhere = tmp_path / "first.safetensors", tmp_path / "same.safetensors"
    for path in (weights, elsewhere):
        save_file(first.state_dict(), path)
    settings = {
        "train__epochs": "2",
        "train__schedule": "onecycle",
        "train__warmup": "0.25",
        "train__per": "iteration",
        "train__cycle_momentum": "true",
        "train__nesterov": "true",
        "train__decay_norm": "false",
        "train__bn_momentum": "0.01",
    }
    wanted = ("--methods", "pgd-at", "--results", tmp_path / "results")
    for path in (weights, elsewhere):
        result = adbench_run(*wanted, **settings, train__init=str(path))
        assert result.exit_code == 0, result.output
    (found,) = records(tmp_path / "results").values()
    assert "init" not in found["config"]["training"]["train"]
    result = cli("verify", tmp_path / "results")
    assert result.exit_code == 0, result.output
    assert "does not follow" not in result.output
    # Another file is another cell; one that does not fit, or is not there, is refused before anything is trained.
    save_file(build("cnn-8", classes=10, channels=1).state_dict(), weights)
    for init, said in ((weights, "first.safetensors"), (tmp_path / "none.pt", "none.pt")):
        result = adbench_run(*wanted, **settings, train__init=str(init))
        assert result.exit_code == 2, result.output
        assert said in result.output
    assert len(records(tmp_path / "results")) == 1


def test_a_training_begins_with_the_weights_it_is_given(tmp_path: Path) -> None:
    first = build("cnn-4", classes=10, channels=1)
    save_file(first.state_dict(), tmp_path / "first.safetensors")
    # At a rate so small that they stay.
    settings = {"train__init": str(tmp_path / "first.safetensors"), "train__lr": "1e-30"}
    result = adbench_run("--methods", "natural", "--results", tmp_path / "results", **settings)
    assert result.exit_code == 0, result.output
    (last,) = (tmp_path / "results").rglob("last.safetensors")
    trained = build("cnn-4", classes=10, channels=1)
    checkpoint.load(trained, last)
    for (name, p), expected in zip(trained.named_parameters(), first.parameters(), strict=True):
        assert torch.allclose(p, expected, atol=1e-12), name


def test_a_drop_at_the_end_of_a_training_is_none_by_iteration_either() -> None:
    def rates(*milestones: float) -> list[float]:
        train = Train(epochs=10, per="iteration", milestones=milestones)
        return [rate(train, epoch, batch, 4) for epoch in range(10) for batch in range(4)]

    assert rates(0.5, 0.96) == rates(0.5)
