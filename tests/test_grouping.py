"""Which records are one experiment's, and which are not."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from synthetic import add
from tiny import cli, records, run

from adbench.registry import METHODS
from adbench.report.tables import paper
from adbench.report.view import View
from adbench.results import document, record
from adbench.results.diff import edited
from adbench.results.runs import collect
from adbench.results.teachers import named_apart
from adbench.system.files import content_id
from adbench.verification.consistency import CONTRADICTS
from adbench.verification.verify import verify

RECORDED = Path(__file__).resolve().parents[1] / "results" / "smaraad"
SCORES = {"clean": 0.8, "pgd20": 0.5}


def test_records_judged_with_other_noise_are_another_row_and_none_is_dropped(tmp_path: Path) -> None:
    for seed in (0, 7):
        add(tmp_path, metrics=SCORES, evaluation={"seed": seed})
    add(tmp_path, metrics=SCORES, seed=1, evaluation={"seed": 7})
    runs = {run.label: [r.seed for r in run.done] for run in collect(record.read_all(tmp_path), "student")}
    assert runs == {"RSLAD (eval.seed 0)": [0], "RSLAD (eval.seed 7)": [0, 1]}


@pytest.mark.parametrize("name", ["seed", "teacher", "architecture", "normalisation", "keep_adversarial"])
def test_a_hyperparameter_counts_whatever_it_is_called(name: str, tmp_path: Path) -> None:
    for value in (1, 2):
        add(tmp_path, metrics=SCORES, settings={"hyper": {name: value}})
    assert len(collect(record.read_all(tmp_path), "student")) == 2


def test_seeds_teachers_and_stored_examples_make_no_other_settings(tmp_path: Path) -> None:
    for seed in (0, 1):
        add(tmp_path, metrics=SCORES, seed=seed, evaluation={"keep_adversarial": bool(seed)})
    (found,) = collect(record.read_all(tmp_path), "student")
    assert len(found.done) == 2


def test_what_was_trained_with_perturbed_weights_has_a_row_under_a_name_of_its_own(tmp_path: Path) -> None:
    """Also alone, and beside others of its recipe; records keep their label, which `verify` compares."""
    for number, awp in enumerate((0.0, 0.005, 0.01)):
        train = {"epochs": 6, "awp": awp} if awp else {"epochs": 6}
        add(tmp_path, method="trades", metrics=SCORES, settings={"train": train}, weights=str(number))
    runs = [run.label for run in collect(named_apart(list(record.read_all(tmp_path))), "student")]
    assert runs == ["TRADES", "TRADES-AWP (awp 0.005)", "TRADES-AWP (awp 0.01)"]
    assert {one.label for one in record.read_all(tmp_path)} == {"TRADES"}
    shutil.rmtree(tmp_path / "digits")
    theirs: dict[str, Any] = {"dataset": "cifar10", "student": "rn18", "method": "trades", "metrics": SCORES}
    for awp in (0.0, 0.005):
        add(tmp_path, **theirs, settings={"train": {"epochs": 6, "awp": awp}}, weights=str(awp))
    assert "TRADES-AWP" in cli("results", "--results", tmp_path).output
    plain, perturbed = collect(named_apart(list(record.read_all(tmp_path))), "student")
    assert (plain.label, perturbed.label) == ("TRADES", "TRADES-AWP")
    # The paper has no such row.
    values = [paper.value(run, "clean", View(tmp_path, [])) for run in (plain, perturbed)]
    assert values[0] is not None
    assert values[1] is None


# One's own data


@pytest.mark.usefixtures("one_thread")
def test_one_dataset_at_two_paths_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 255, (200, 8, 8), dtype=np.uint8), np.arange(200) % 4
    np.savez("d.npz", x_train=images, y_train=labels, x_test=images[::-1], y_test=labels[::-1])
    os.link("d.npz", "copy.npz")
    for path, method in (("./d.npz", "natural"), (tmp_path / "d.npz", "pgd-at"), ("copy.npz", "trades")):
        result = run("--dataset", path, "--methods", method, data__val_images="20")
        assert result.exit_code == 0, result.output
    assert (
        "0 of 1 cells" in run("--dataset", "./d.npz", "--methods", "pgd-at", "--dry-run", data__val_images="20").output
    )
    assert {r.dataset for r in record.read_all(Path("results"))} == {"./d.npz"}
    assert len({r["config"]["training"]["data"]["content"] for r in records(Path("results")).values()}) == 1
    result = cli("compare", "natural", "pgd-at")
    assert result.exit_code == 0, result.output
    assert cli("report", "--format", "markdown", "--out", "page").exit_code == 0
    assert Path("page/report.md").read_text(encoding="utf-8").count("### White") == 1


@pytest.mark.usefixtures("one_thread")
def test_data_are_found_from_elsewhere_and_where_a_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 255, (200, 8, 8), dtype=np.uint8), np.arange(200) % 4
    np.savez("d.npz", x_train=images, y_train=labels, x_test=images[::-1], y_test=labels[::-1])
    result = run("--dataset", "./d.npz", "--methods", "natural", data__val_images="20", eval__keep_adversarial="true")
    assert result.exit_code == 0, result.output
    (path,) = (home / "results").rglob("record.json")
    monkeypatch.chdir(tmp_path)
    assert cli("verify", path).exit_code == 0
    (tmp_path / "moved").mkdir()
    Path("home/d.npz").rename("moved/d.npz")
    result = cli("verify", path, "--strict")
    assert result.exit_code != 0
    assert "--data-dir" in result.output
    assert cli("verify", path, "--data-dir", "moved").exit_code == 0
    np.savez("moved/d.npz", x_train=images[::-1], y_train=labels, x_test=images, y_test=labels)
    assert cli("verify", path, "--strict", "--data-dir", "moved").exit_code != 0, "other data of that name"


# Records of revision 1


def old(method: str = "kd") -> record.Record:
    found = record.read(sorted((RECORDED / "digits" / method).rglob("record.json"))[0])
    assert found.config.training["revision"] == 1
    return found


def test_a_record_from_before_is_read_reported_merged_and_held_to_its_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = old()
    cell = found.path.parents[1].relative_to(RECORDED)
    shutil.copytree(RECORDED / cell, tmp_path / "results" / cell)
    assert "KD" in cli("results").output
    assert cli("report").exit_code == 0
    assert "1 taken" in cli("merge", "results", "--into", "merged").output
    (copied,) = Path("merged").rglob("record.json")
    assert document.opened(copied) == document.opened(found.path)
    judged = verify(copied, data_dir=Path("data"), device=torch.device("cpu"))
    findings = {finding.what: finding for finding in judged}
    assert CONTRADICTS not in {findings[what].answer for what in ("configuration", "training log")}


def test_merge_says_that_the_code_was_edited_since(tmp_path: Path) -> None:
    found = old()
    cell = found.path.parents[1].relative_to(RECORDED)
    shutil.copytree(RECORDED / cell, tmp_path / "results" / cell)
    path = tmp_path / "results" / found.path.relative_to(RECORDED)
    for sha256, times in ((METHODS.source_hash("kd"), 0), ("0" * 64, 1)):
        data = document.opened(found.path)
        record.write(path, {**data, "provenance": {**data["provenance"], "method_source_sha256": sha256}})
        said = cli("merge", tmp_path / "results", "--into", tmp_path / f"merged-{times}").output
        assert said.count("1 made with other code") == times


def test_code_is_compared_in_the_way_of_the_record() -> None:
    training = old().config.training
    assert edited(training, METHODS.source_hash("kd")) == []
    assert edited(training, "0" * 64) == ["method 'kd'"]
    today = {**training, "revision": 2, "source": METHODS.code("kd").sha256}
    assert edited(today, "0" * 64) == []  # a word in the file
    assert edited({**today, "source": content_id("other")}) == ["method 'kd'"]
    assert edited({**today, "method": "somebody's"}) == []
