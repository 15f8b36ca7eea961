"""Weights are held to their training: a file of another network in a cell's folder is refused wherever it is read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tiny import TEACHER, cli, record_of, run

from adbench.errors import UserError
from adbench.results import document, layout
from adbench.results.summary import Summary, finished
from adbench.training import resume
from adbench.weights import checkpoint
from adbench.weights.networks import check_weights

RECIPE = {"train__epochs": "2", "data__train_images": "200"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with two students of the same architecture."""
    results = tmp_path_factory.mktemp("trained") / "results"
    found = run("--methods", "natural,pgd-at", "--results", results, **RECIPE)
    assert found.exit_code == 0, found.output
    return results


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "results")
    return tmp_path / "results"


def folder(results: Path, method: str) -> Path:
    (found,) = (results / "digits" / method).glob("*/s0-*")
    return found


def json_of(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def without_hashes(cell: Path) -> None:
    """The cell's training as an older adbench left it."""
    data = json_of(cell / "training.json")
    del data["weights"], data["digest"]
    document.write(cell / "training.json", data)


def headed(path: Path, epoch: int) -> None:
    """The same weights, said to be of another epoch."""
    checkpoint.save_state(path, safetensors.torch.load_file(path), {"epoch": str(epoch)})


def test_a_training_says_which_weights_it_ended_with(trained: Path) -> None:
    cell = folder(trained, "pgd-at")
    said = json_of(cell / "training.json")["weights"]
    for which in ("best", "last"):
        assert said[which] == checkpoint.state_sha256(safetensors.torch.load_file(cell / f"{which}.safetensors"))
    assert record_of(trained, "pgd-at")["training"]["weights"] == said


def failure(cell: Path) -> str:
    """Why the one evaluation that failed did."""
    (found,) = (found for path in cell.rglob(layout.RECORD) if (found := json_of(path))["status"] == "failed")
    return found["error"]["message"]


@pytest.mark.parametrize("hashes", [True, False], ids=["hashes", "none"])
def test_another_networks_file_is_not_judged_nor_exported(copy: Path, tmp_path: Path, hashes: bool) -> None:
    cell, other = folder(copy, "pgd-at"), folder(copy, "natural")
    shutil.copy(other / "last.safetensors", cell / "best.safetensors")
    # Where there are no hashes, the epoch in its header is what gives the file away.
    headed(cell / "best.safetensors", 3)
    if not hashes:
        without_hashes(cell)
    assert run("--methods", "pgd-at", "--results", copy, eval__attacks='["fgsm"]', **RECIPE).exit_code == 1
    assert f"'{cell / 'best.safetensors'}' are not those of the training" in failure(cell)
    assert f"delete the folder '{cell}'" in failure(cell)
    (path,) = (path for path in cell.rglob(layout.RECORD) if json_of(path)["status"] == "done")
    shown = cli("export", path, "--out", tmp_path / "out")
    assert shown.exit_code == 2
    assert f"delete the folder '{cell}'" in shown.stderr
    assert cli("verify", path).exit_code == 1


def test_best_and_last_are_not_taken_for_each_other(tmp_path: Path) -> None:
    states = {which: {"weight": torch.full((2,), value)} for which, value in (("best", 1.0), ("last", 2.0))}
    hashes = {which: checkpoint.state_sha256(weights) for which, weights in states.items()}
    summary = Summary(2, 2, 0.5, 1.0, 1.0, 1, weights=hashes)  # both of the same epoch, as far as headers go
    document.write(tmp_path / "training.json", summary.__dict__)
    for which in ("best", "last"):
        check_weights(tmp_path / f"{which}.safetensors", hashes[which])
        with pytest.raises(UserError, match="not those of the training"):
            check_weights(tmp_path / f"{which}.safetensors", hashes["last" if which == "best" else "best"])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", "2"),
        ("epochs", 2.5),
        ("epochs", True),
        ("best_epoch", 0),
        ("best_val_robust", 7),
        ("seconds", None),
        ("weights", {}),
        ("weights", {"best": "x", "last": "y"}),
        ("weights", ["best"]),
        ("notes", "none"),
        ("odd", 1),
        ("precision", "half"),
        ("devices", 0),
    ],
)
def test_a_summary_of_odd_content_is_named_with_its_field(field: str, value: Any, tmp_path: Path) -> None:
    summary = Summary(2, 2, 0.5, 1.0, 1.0, 1, weights={"best": "a" * 64, "last": "b" * 64})
    document.write(tmp_path / "training.json", summary.__dict__)
    assert finished(tmp_path) == summary
    document.write(tmp_path / "training.json", {**summary.__dict__, field: value})
    with pytest.raises(UserError, match=rf"training\.json' is damaged \({field}"):
        finished(tmp_path)


def test_older_trainings_without_hashes_are_judged_as_before(copy: Path) -> None:
    without_hashes(folder(copy, "pgd-at"))
    again = run("--methods", "pgd-at", "--results", copy, eval__attacks='["fgsm"]', **RECIPE)
    assert again.exit_code == 0, again.output


def test_a_trained_teacher_is_held_to_its_training_too(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TEACHER, encoding="utf-8")
    settings = ("--methods", "ard", "--teacher", tmp_path / "tiny.toml", "--results", copy)
    assert run(*settings).exit_code == 0
    (taught,) = (copy / "digits" / "teachers").iterdir()
    shutil.copy(folder(copy, "natural") / "best.safetensors", taught / "best.safetensors")
    again = run(*settings, train__lr="0.05")
    assert again.exit_code == 1
    # As a file it is the same network of somebody else.
    teacher = f"cnn-4@{taught / 'best.safetensors'}"
    refused = run("--methods", "ard", "--teacher", teacher, "--results", copy)
    assert refused.exit_code == 2
    assert "not those of the training" in refused.output


def test_a_state_of_another_training_is_not_gone_on_from(copy: Path) -> None:
    cell = folder(copy, "pgd-at")
    for left in (cell / "training.json", *cell.glob("eval-*/*")):
        left.unlink()
    kept = {"identity": "0123456789abcdef"}
    resume.Store(cell).save(kept, 1)
    again = run("--methods", "pgd-at", "--results", copy, **RECIPE)
    assert again.exit_code == 1
    assert "another training's" in failure(cell)
