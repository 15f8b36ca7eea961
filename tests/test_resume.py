"""What a cell goes through when its process dies: it ends in the bits of a run that nobody disturbed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import lasting

from adbench import data
from adbench.evaluation import evaluator
from adbench.execution.execute import execute
from adbench.execution.expand import expand
from adbench.execution.place import Place
from adbench.experiment.cell import Cell
from adbench.experiment.config import Train, experiment
from adbench.models import build
from adbench.results import document, layout
from adbench.results.layout import BEST, LAST, LOG, STATES, SUMMARY
from adbench.system import files
from adbench.training.configured import configured
from adbench.training.step import Ball, Need
from adbench.training.trainer import Trainer
from adbench.weights.networks import lookup

STATEFUL: dict[str, dict[str, Any]] = {
    "mtard": {},
    "las-at": {"policy": "cnn-4", "interval": 2},
    "ciard": {"teacher_lr": 0.05},
    "lbgat": {"natural": "cnn-4"},
    "peeraid": {},
    "adr": {},
    "absld": {},
    "fair": {"base": "mtard"},
}
RECIPES: dict[str, dict[str, Any]] = {
    "mtard": {"awp": 0.01, "average": "swa", "average_start": 0.3, "schedule": "cosine", "per": "iteration"}
}
KILLS = {"mtard": 6, "las-at": 6}
"""How often a training of that method is killed; others twice."""
TIMES = {"seconds", "images_per_second", "peak_memory_bytes", "digest"}


@pytest.fixture(autouse=True)
def _deterministic() -> None:
    torch.use_deterministic_algorithms(True)


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key not in TIMES}
    return value


def assert_same_training(one: Path, other: Path) -> None:
    """The same weights bit for bit, the same log and the same summary, but for the time it took."""
    for name in (LAST, BEST):
        a, b = load_file(one / name), load_file(other / name)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) and a[key].dtype == b[key].dtype for key in a)
    logs = [[json.loads(line) for line in (f / LOG).read_text(encoding="utf-8").splitlines()] for f in (one, other)]
    assert [without_times(entry) for entry in logs[0]] == [without_times(entry) for entry in logs[1]]
    assert [entry["epoch"] for entry in logs[0]] == list(range(1, len(logs[0]) + 1))
    summaries = [json.loads((f / SUMMARY).read_text(encoding="utf-8")) for f in (one, other)]
    assert without_times(summaries[0]) == without_times(summaries[1])
    assert not (one / STATES[0]).exists()


# Killed from outside


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some of the digits in a file that is read faster than the package that brings them is imported."""
    path = tmp_path_factory.mktemp("data") / "some.npz"
    digits = data.load("digits", Path(), train_images=320, val_images=16, test_images=16)
    x, y = digits.train.images.permute(0, 2, 3, 1).numpy(), digits.train.labels.numpy()
    np.savez(path, x_train=x, y_train=y, x_test=x[:16], y_test=y[:16])
    return path


def epochs_of(method: str) -> int:
    """More than all kills let pass."""
    return 16 if method in KILLS else 8


def train_cell(method: str, images: Path, folder: Path, marker: Path) -> None:
    """What the process does that is killed: train a small student, or go on with it."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(7)
    networks = [build("cnn-4", classes=10, channels=1) for _ in range(3)]
    trainer = Trainer(
        method=configured(method, STATEFUL[method]),
        student=networks[0],
        teachers={Need.TEACHER: networks[1], Need.NATURAL_TEACHER: networks[2]},
        dataset=data.load(str(images), Path(), train_images=128, val_images=32),
        attack=Ball(0.15, 0.05, 3),
        validation=Ball(0.15, 0.05, 3),
        config=Train(
            epochs=epochs_of(method),
            batch_size=32,
            attack_steps=3,
            val_steps=2,
            milestones=(0.3, 0.6),
            **RECIPES.get(method, {}),
        ),
        seed=3,
        folder=folder,
        device=torch.device("cpu"),
    )
    marker.touch()
    trainer.run(on_epoch=lambda _: None, on_batch=lambda *_: None)


def start(method: str, images: Path, folder: Path) -> BaseProcess:
    """A process that has begun to train. It is forked from a server that has imported everything."""
    marker = folder.with_suffix(".begun")
    marker.unlink(missing_ok=True)
    process: BaseProcess = forked.context().Process(target=train_cell, args=(method, images, folder, marker))
    process.start()
    patience = time.monotonic() + 60
    while not marker.exists():
        assert process.is_alive(), f"ended with {process.exitcode} before it began"
        assert time.monotonic() < patience
        time.sleep(0.002)
    return process


def epochs(folder: Path) -> int:
    """How many are finished."""
    log = folder / LOG
    return len(log.read_text(encoding="utf-8").splitlines()) if log.exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize("method", list(STATEFUL))
def test_a_run_killed_at_random_moments_ends_in_the_same_weights(method: str, images: Path, tmp_path: Path) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    process = start(method, images, undisturbed)
    begun = time.monotonic()
    process.join()
    assert process.exitcode == 0
    an_epoch = (time.monotonic() - begun) / epochs_of(method)

    moments = random.Random(0)
    for number in range(KILLS.get(method, 2)):
        reached = epochs(killed) + number % 2  # every other process ends an epoch; none of them more than two
        process = start(method, images, killed)
        while epochs(killed) < reached and process.is_alive():
            time.sleep(0.002)
        moment = time.monotonic() + moments.uniform(0, an_epoch)
        while time.monotonic() < moment and epochs(killed) <= reached:
            time.sleep(0.002)
        process.kill()
        process.join()
        assert process.exitcode == -9, "it had ended before it was killed"
    assert not (killed / SUMMARY).exists()
    assert (killed / STATES[0]).exists()
    process = start(method, images, killed)
    process.join()
    assert process.exitcode == 0
    assert_same_training(killed, undisturbed)


# Failing at every write


class Killed(BaseException):
    """The end of the process, as far as the code can tell."""


def killed_before(_: Callable[[], None]) -> None:
    raise Killed


def killed_after(write: Callable[[], None]) -> None:
    write()
    raise Killed


def disk_full(_: Callable[[], None]) -> None:
    raise files.UserError("cannot write: the disk is full")


FAULTS = [killed_before, killed_after, disk_full]


class Writes:
    """Counts what is written, and lets one write fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        self.fails_at, self.fault = -1, FAULTS[0]
        self._write = files.write_atomic
        monkeypatch.setattr(files, "write_atomic", self)

    def __call__(self, path: Path, write: Callable[[Path], None]) -> None:
        self.names.append(path.name)
        whole = partial(self._write, path, write)
        if len(self.names) - 1 == self.fails_at:
            self.fault(whole)
        else:
            whole()


def small_cell(**changed: Any) -> Cell:
    settings = {
        "methods": ["las-at"],
        "students": ["cnn-4"],
        "train": {"epochs": 3, "batch_size": 32, "attack_steps": 2, "val_steps": 2, "milestones": [0.4]},
        "data": {"train_images": 64, "val_images": 16},
        "eval": {"images": 16, "attacks": ["fgsm", "pgd5"]},
        "hyper": {"las-at": STATEFUL["las-at"] | {"steps_choices": [2, 3]}},
    }
    (cell,) = expand(experiment(settings | changed), lookup(Path())).students
    return cell


def finish(cell: Cell, results: Path) -> dict[str, Any]:
    return execute(cell, Place(results, results, "cpu"), lambda _: None)


def test_a_cell_that_fails_at_any_one_write_ends_in_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = small_cell()
    writes = Writes(monkeypatch)
    expected = finish(cell, tmp_path / "undisturbed")
    assert expected["status"] == "done"
    names = writes.names.copy()
    assert {LAST, BEST, LOG, SUMMARY, STATES[0], "outcomes.parquet", "record.json"} < set(names)
    for fault in FAULTS:
        for k in range(len(names)):
            results = tmp_path / f"{fault.__name__}-{k}"
            writes.names.clear()
            writes.fails_at, writes.fault = k, fault
            with suppress(Killed, files.UserError):
                assert finish(cell, results)["status"] == "failed"
            assert len(writes.names) > k, "the fault did not happen"
            writes.fails_at = -1
            found = finish(cell, results)
            assert_same_training(cell.folder(results), cell.folder(tmp_path / "undisturbed"))
            for key in ("status", "error", "id", "config", "data", "model", "teachers"):
                assert lasting(found[key]) == lasting(expected[key])
            assert without_times(found["metrics"]) == without_times(expected["metrics"])
            assert found["outcomes"] == expected["outcomes"]
            assert document.opened(layout.record_path(cell, results)) == found
            assert _files(results) == _files(tmp_path / "undisturbed")


def _files(results: Path) -> set[str]:
    return {str(path.relative_to(results)) for path in results.rglob("*")}


def test_what_a_process_killed_in_the_middle_of_a_write_leaves_behind_goes_with_the_next_run(tmp_path: Path) -> None:
    cell = small_cell()
    for leftover in (
        cell.folder(tmp_path) / f".{STATES[0]}.x1.tmp",
        layout.record_path(cell, tmp_path).parent / ".record.json.x2.tmp",
    ):
        leftover.parent.mkdir(parents=True, exist_ok=True)
        leftover.write_bytes(b"half a fi")
    assert finish(cell, tmp_path)["status"] == "done"
    assert not list(tmp_path.rglob("*.tmp"))


# Evaluation


def test_an_evaluation_killed_between_attacks_keeps_the_finished_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = small_cell(eval={"images": 16, "attacks": ["fgsm", "pgd3", "pgd5", "cw"]})
    run: list[str] = []
    under = evaluator.Evaluator.under

    def counted(self: evaluator.Evaluator, name: str, images: int) -> evaluator.Outcome:
        run.append(name)
        return under(self, name, images)

    monkeypatch.setattr(evaluator.Evaluator, "under", counted)
    expected = finish(cell, tmp_path / "undisturbed")
    assert run == ["fgsm", "pgd3", "pgd5", "cw"]
    run.clear()

    def kill(event: dict[str, Any]) -> None:
        if event["what"] == "attack" and event["name"] == "pgd3":
            raise Killed

    results = tmp_path / "killed"
    with pytest.raises(Killed):
        execute(cell, Place(results, results, "cpu"), kill)
    assert run == ["fgsm", "pgd3"]
    trained = (cell.folder(results) / BEST).stat().st_mtime_ns
    found = finish(cell, results)
    assert run == ["fgsm", "pgd3", "pgd5", "cw"]
    assert without_times(found["metrics"]) == without_times(expected["metrics"])
    assert found["outcomes"] == expected["outcomes"]
    assert (cell.folder(results) / BEST).stat().st_mtime_ns == trained
    assert not list(results.rglob("partial-*"))


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 not an archive", b"half"])
def test_damaged_partial_outcomes_are_computed_again(damage: bytes, tmp_path: Path) -> None:
    cell = small_cell()

    def kill(event: dict[str, Any]) -> None:
        if event["what"] == "attack":
            raise Killed

    with pytest.raises(Killed):
        execute(cell, Place(tmp_path, tmp_path, "cpu"), kill)
    (kept,) = tmp_path.rglob("partial-*.npz")
    kept.write_bytes(kept.read_bytes()[:200] if damage == b"half" else damage)
    found = finish(cell, tmp_path)
    assert found["status"] == "done"
    assert set(found["metrics"]) == {"clean", "fgsm", "pgd5"}


def test_partial_outcomes_of_other_weights_are_not_taken(tmp_path: Path) -> None:
    cell = small_cell()

    def kill(event: dict[str, Any]) -> None:
        if event["what"] == "attack":
            raise Killed

    with pytest.raises(Killed):
        execute(cell, Place(tmp_path, tmp_path, "cpu"), kill)
    (kept,) = tmp_path.rglob("partial-*.npz")
    with np.load(kept) as arrays:
        meta = json.loads(str(arrays["meta"])) | {"weights": "0" * 64}
        np.savez(kept, right=~arrays["right"], meta=np.array(json.dumps(meta)))
    found = finish(cell, tmp_path)
    expected = finish(cell, tmp_path / "undisturbed")
    assert without_times(found["metrics"]) == without_times(expected["metrics"])


@pytest.mark.slow
def test_an_interrupt_ends_a_run_of_several_jobs_at_once_and_the_next_run_goes_on(tmp_path: Path) -> None:
    """Eight cells of which two are under way: Ctrl-C waits for none of them."""
    tiny = ["--set", "train.epochs=400", "--set", "data.train_images=64", "--set", "data.val_images=16"]
    tiny += ["--set", 'eval.attacks=["fgsm"]', "--set", "eval.proxies=[]", "--set", "eval.images=16"]
    words = ["run", "--methods", "pgd-at,trades", "--student", "cnn-4", "--seeds", "4", "--jobs", "2", *tiny]
    process = subprocess.Popen(
        [sys.executable, "-m", "adbench", *words],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        # What runs in a shell's background ignores Ctrl-C, and so would this.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.rglob(STATES[0])):
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.1)
    begun = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - begun < 30
    assert process.returncode == 130
    assert "adbench: interrupted; the same command goes on" in said
    assert "Traceback" not in said
    assert list(tmp_path.rglob(STATES[0])), "the interrupted cells can go on"
    assert not list(tmp_path.rglob("record.json")), "and none of them was called finished or failed"
