"""Results that an earlier version wrote are read, checked and continued."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tiny import cli

from adbench.registry import METHODS

BEFORE = Path(__file__).parent / "before"
SETTINGS = [
    # What the preset digits set when they were written.
    *("--preset", "paper", "--set", "train.val_every=4", "--set", "hyper.las-at.policy=cnn-16"),
    *("--set", "hyper.smaraad.gamma=10", "--set", "hyper.smaraad-pp.gamma=10"),
    *("--student", "cnn-4", "--teacher", "tiny.toml", "--threads", "1", "--set", "train.epochs=6"),
    *("--set", "train.batch_size=32", "--set", "train.attack_steps=2", "--set", "train.val_steps=2"),
    *("--set", "data.train_images=448", "--set", "data.val_images=64", "--set", "eval.images=24"),
    *("--set", 'eval.attacks=["fgsm","pgd20"]', "--set", "eval.proxies=[]", "--set", "eval.masking=0"),
]


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(BEFORE, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "results"


def test_rewritten_methods_keep_the_identity_of_their_cells() -> None:
    then = json.loads((BEFORE / "methods.json").read_text(encoding="utf-8"))
    changed = [name for name, sha256 in then.items() if METHODS.code(name).sha256 != sha256]
    assert not changed, "if no number of theirs changed: python tests/before/rewritten.py"


def test_finished_cells_are_not_run_again(results: Path) -> None:
    written = {path: path.read_bytes() for path in results.rglob("record.json")}
    assert len(written) == 4
    result = cli("run", "--methods", "pgd-at,ard,smaraad-pp", "--keep-adversarial", *SETTINGS)
    assert result.exit_code == 0, result.output
    assert {path: path.read_bytes() for path in results.rglob("record.json")} == written


def test_an_interrupted_training_goes_on_where_it_was(results: Path) -> None:
    (log,) = results.glob("digits/las-at/*/*/log.jsonl")
    first, _ = log.read_text(encoding="utf-8").splitlines()  # it was killed before the second epoch's state was written
    result = cli("run", "--methods", "las-at", *SETTINGS)
    assert result.exit_code == 0, result.output
    epochs = log.read_text(encoding="utf-8").splitlines()
    assert len(epochs) == 6
    assert epochs[0] == first
    assert len(list(log.parent.glob("eval-*/record.json"))) == 1


COMMANDS = ["verify results", "report", "results", "status", "merge results --into merged", "compare ard smaraad-pp"]


@pytest.mark.usefixtures("results")
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_reads_them(command: str) -> None:
    result = cli(*command.split())
    assert result.exit_code == 0, result.output
    assert "left out" not in result.output


@pytest.mark.parametrize("command", ["cross", "cam"])
def test_analyses_are_not_computed_again(command: str, results: Path) -> None:
    (file,) = results.glob(f"digits/{command}/*/{command}.json")
    written = file.read_bytes()
    result = cli(command, "--images", "8")
    assert result.exit_code == 0, result.output
    assert file.read_bytes() == written
    assert len(list(results.rglob(f"{command}.json"))) == 1
