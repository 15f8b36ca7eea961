"""What the plan and `adbench cost` count: passes, multiply-adds, the floor."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
import torch
from tiny import cli, options
from torch import nn

from adbench.models import build, flops

pytestmark = pytest.mark.usefixtures("one_thread")


def counted_by_hand(network: nn.Module, shape: tuple[int, int, int]) -> int:
    """Output values times the inputs that each of them is a sum over, layer by layer."""
    total = 0

    def add(layer: nn.Module, _: object, out: torch.Tensor) -> None:
        nonlocal total
        if isinstance(layer, nn.Conv2d):
            total += out.numel() * layer.weight[0].numel()
        elif isinstance(layer, nn.Linear):
            total += out.numel() * layer.in_features

    for layer in network.modules():
        layer.register_forward_hook(add)
    with torch.no_grad():
        network(torch.rand(1, *shape))
    return total


@pytest.mark.parametrize("name", ["cnn-4", "wrn-10-2", "mn-v2", "rn18"])
def test_multiply_adds_are_those_of_the_layers(name: str) -> None:
    shape = (3, 32, 32)
    assert flops.multiply_adds_of(name, 10, shape) == counted_by_hand(build(name, classes=10).eval(), shape)


def test_resnet18_has_the_fields_number() -> None:
    assert flops.multiply_adds_of("rn18", 10, (3, 32, 32)) == pytest.approx(0.556e9, rel=0.01)


def test_a_matrix_rate_is_one_that_the_device_was_seen_to_reach() -> None:
    assert 1e9 < flops.matrix_rate(torch.device("cpu"), torch.float32) < 1e15


def test_cost_counts_passes_and_multiply_adds_of_every_network_once(tmp_path: Path) -> None:
    asked = ("--methods", "pgd-at,rslad,adaad", "--seeds", "3", "--device", "cpu", "--results", tmp_path / "results")
    found = cli("cost", *options(), *asked, "--format", "csv")
    assert found.exit_code == 0, found.output
    rows = {row["method"]: row for row in csv.DictReader(io.StringIO(found.output))}
    student, teacher = (flops.multiply_adds_of(name, 10, (1, 8, 8)) for name in ("cnn-4", "cnn-48"))
    # Two attack steps, forward and back to the input; the updates of an adversarial and a clean batch once more, to
    # the weights; AdaAD's attack goes through the teacher too, and its clean batch through the student alone.
    due = {
        "pgd-at": (2 * 2 + 3) * student,
        "rslad": (2 * 2 + 2 * 3) * student + teacher,
        "adaad": (2 * 2 + 3 + 1) * student + (2 * 2 + 1) * teacher,
    }
    assert {name: float(rows[name]["multiply_adds"]) for name in due} == due
    assert [rows[name]["seeds"] for name in (*due, "digits-robust")] == ["3", "3", "3", "1"]
    assert all(0 < float(rows[name]["floor_seconds"]) < float(rows[name]["seconds"]) for name in due)
    judged = rows["digits-robust"]
    assert float(judged["multiply_adds"]) == 0 < float(judged["seconds"]), "its weights come with adbench"
    assert not (tmp_path / "results").exists(), "it only looks"


def test_the_table_and_the_plan_show_the_same_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    asked = ("--methods", "pgd-at", "--seeds", "2", "--device", "cpu", "--results", tmp_path / "results")
    table, plan = cli("cost", *options(), *asked).output, cli("run", *options(), *asked, "--dry-run").output
    assert "GMAC" in table
    assert "GMAC" in plan
    counts = ["6", f"{7 * flops.multiply_adds_of('cnn-4', 10, (1, 8, 8)) / 1e9:.3g}"]
    for shown in (table, plan):
        (row, *_) = (line.split() for line in shown.splitlines() if "pgd-at" in line and "teacher" not in line)
        assert [word for word in row if word in counts] == counts
