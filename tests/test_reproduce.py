"""One record, told in words and made again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from tiny import TEACHER, cli, run, shorten_autoattack

from adbench.results import document

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with a student of a trained teacher, judged by transfer from it too."""
    folder = tmp_path_factory.mktemp("reproduce")
    teacher = folder / "tiny.toml"
    teacher.write_text(TEACHER, encoding="utf-8")
    proxies = {"eval__proxies": f'["{teacher}"]', "eval__transfer_attacks": '["pgd20"]'}
    found = run("--methods", "ard", "--teacher", teacher, "--threads", "1", "--results", folder / "results", **proxies)
    assert found.exit_code == 0, found.output
    return folder / "results"


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "results")
    return tmp_path / "results"


def student(results: Path) -> Path:
    (path,) = results.glob("digits/ard/*/*/*/record.json")
    return path


def changed(path: Path, **fields: Any) -> None:
    """Fields of a record, "provenance__torch" for one inside another."""
    data = json.loads(path.read_text(encoding="utf-8"))
    for key, value in fields.items():
        *tables, last = key.split("__")
        inner = data
        for table in tables:
            inner = inner[table]
        inner[last] = value
    document.write(path, data)


def test_a_training_is_made_again_to_the_bit(copy: Path, tmp_path: Path) -> None:
    found = cli("reproduce", student(copy), "--out", tmp_path / "again")
    assert found.exit_code == 0, found.output
    assert "bit by bit" in found.output
    assert found.output.count("0 of 16 verdicts differ") == 4  # clean, FGSM, PGD-20 and its transfer


def test_an_attack_on_a_part_of_the_images_is_compared_on_these(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten_autoattack(monkeypatch)
    part = {"eval__attacks": '["fgsm","aa"]', "eval__aa_images": "4"}
    assert run("--methods", "pgd-at", "--threads", "1", "--results", tmp_path / "results", **part).exit_code == 0
    found = cli("reproduce", tmp_path / "results", "--out", tmp_path / "again")
    assert found.exit_code == 0, found.output
    assert "0 of 4 verdicts differ" in found.output


def test_weights_that_come_with_adbench_are_found(tmp_path: Path) -> None:
    """Of the teacher, and of the network that a transfer attack is made on."""
    transfer = {"eval__proxies": '["digits-natural"]', "eval__transfer_attacks": '["pgd20"]'}
    made = run("--methods", "ard", "--threads", "1", "--results", tmp_path / "results", **transfer)
    assert made.exit_code == 0, made.output
    found = cli("reproduce", student(tmp_path / "results"), "--out", tmp_path / "again")
    assert found.exit_code == 0, found.output
    assert "not repeated" not in found.output
    assert found.output.count("0 of 16 verdicts differ") == 4


def test_a_teacher_without_weights_is_trained_again_too(copy: Path, tmp_path: Path) -> None:
    (weights,) = copy.glob("digits/teachers/tiny-*/best.safetensors")
    weights.unlink()
    found = cli("reproduce", student(copy), "--out", tmp_path / "again")
    assert found.exit_code == 0, found.output
    assert "reproduced: the same bits" in found.output
    assert [*tmp_path.glob("again/digits/teachers/tiny-*/best.safetensors")]


def test_other_weights_and_other_verdicts_are_found(copy: Path, tmp_path: Path) -> None:
    """A record that states another seed's training, and one whose survivors are too many."""
    path = student(copy)
    changed(path, training__weights__best="0" * 64)
    found = cli("reproduce", path, "--out", tmp_path / "again")
    assert found.exit_code == 1, found.output
    assert [line.split()[:2] for line in found.output.splitlines() if "DIFFERS" in line] == [["DIFFERS", "weights,"]]


def test_without_the_bits_intervals_are_compared_and_it_is_said_why(copy: Path, tmp_path: Path) -> None:
    path = student(copy)
    changed(path, provenance__torch="1.0.0")
    found = cli("reproduce", path, "--out", tmp_path / "again")
    assert found.exit_code == 0, found.output
    assert "compared by intervals" in found.output
    assert "torch is" in found.output
    # All of 16 images and none of them are intervals that lie apart.
    correct = json.loads(path.read_text(encoding="utf-8"))["metrics"]["pgd20"]["correct"]
    changed(path, metrics__pgd20__correct=16 - 16 * (correct > 8), metrics__pgd20__value=1.0 - (correct > 8))
    again = cli("reproduce", path, "--out", tmp_path / "again")
    assert again.exit_code == 1, again.output
    assert "DIFFERS  PGD-20" in again.output


def test_what_cannot_be_made_again_is_one_sentence(copy: Path, tmp_path: Path) -> None:
    path = student(copy)
    assert "holds the record itself" in cli("reproduce", path, "--out", copy).output
    shutil.rmtree(copy / "digits" / "teachers")
    found = cli("reproduce", path, "--out", tmp_path / "again")
    assert found.exit_code == 2
    assert "the teacher of" in found.output
    assert cli("reproduce", tmp_path / "nothing").exit_code == 2


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_a_record_is_told_within_the_terminal(trained: Path, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    found = cli("show", student(trained))
    assert found.exit_code == 0, found.output
    assert max(map(cell_len, found.output.splitlines())) <= columns
    said = " ".join(found.output.split())
    data = json.loads(student(trained).read_text(encoding="utf-8"))
    told = ("taught by tiny", "alpha", "epochs 1", "28/255", "64 training images", data["model"]["weights_sha256"][:12])
    assert [word for word in told if word not in said] == []
    metric = data["metrics"]["pgd20"]
    assert f"{100 * metric['value']:.2f}" in said
    assert "AutoAttack was not run" in said.partition("not shown")[2]


def test_a_failed_cell_and_sparse_records_are_told_too(copy: Path) -> None:
    path = student(copy)
    changed(path, training=None, provenance__git_commit=None, provenance__git_dirty=None)
    assert cli("show", path).exit_code == 0
    error = {"phase": "train", "type": "UserError", "message": "loss is\x1b[31m nan"}
    changed(path, status="failed", error=error, model=None, data=None, metrics={}, outcomes=None)
    found = cli("show", path)
    assert found.exit_code == 0, found.output
    assert "failed in train" in found.output
    assert "\x1b" not in found.output
