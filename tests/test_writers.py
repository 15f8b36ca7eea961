"""Several runs on one results folder, and workers that die or hang."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import forked
import pytest
from tiny import TEACHER, record_of, records, run

from adbench.errors import UserError
from adbench.execution import runner
from adbench.execution.engines.processes import devices, ended
from adbench.execution.expand import expand
from adbench.execution.place import Place
from adbench.experiment.cell import Cell
from adbench.experiment.config import experiment
from adbench.results import layout, record
from adbench.results.summary import Summary
from adbench.system import locks
from adbench.training import trainer
from adbench.weights.networks import lookup

pytestmark = pytest.mark.usefixtures("one_thread")


# Locks


def _hold(folder: Path, marker: Path) -> None:
    with locks.locked(folder):
        marker.touch()
        time.sleep(60)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Callable[[Path], BaseProcess]]:
    """Lets another process hold a folder."""
    processes: list[BaseProcess] = []

    def hold(folder: Path) -> BaseProcess:
        marker = tmp_path / f"held-{len(processes)}"
        processes.append(multiprocessing.get_context("fork").Process(target=_hold, args=(folder, marker)))
        processes[-1].start()
        while not marker.exists():
            time.sleep(0.01)
        return processes[-1]

    yield hold
    for process in processes:
        process.kill()
        process.join()


def test_a_folder_is_held_by_one_process_and_free_when_that_is_killed(
    tmp_path: Path, elsewhere: Callable[[Path], BaseProcess]
) -> None:
    folder = tmp_path / "cell"
    assert locks.holder(folder) is None
    process = elsewhere(folder)
    with locks.attempt(folder) as held:
        assert not held
    found = locks.holder(folder)
    assert found is not None
    assert found.pid == process.pid
    process.kill()
    process.join()
    with locks.attempt(folder) as held:
        assert held
    assert locks.holder(folder) is None


def _note_of_another_machine(folder: Path) -> Path:
    folder.mkdir()
    note = {"host": "node7", "pid": 12, "machine": "another kernel"}
    (folder / locks.FILE).write_text(json.dumps(note), encoding="utf-8")
    return folder / locks.FILE


def test_a_lock_that_another_machine_holds_too_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a file system whose flock does not leave the machine: the other one still gives signs of life."""
    monkeypatch.setattr(locks, "BEAT", 0.2)
    note = _note_of_another_machine(tmp_path / "cell")
    sleep = time.sleep

    def while_the_other_works(seconds: float) -> None:
        sleep(seconds)
        os.utime(note)

    monkeypatch.setattr(locks.time, "sleep", while_the_other_works)
    with pytest.raises(UserError, match="in use by process 12 on node7, and its lock does not reach this machine"):
        locks.locked(tmp_path / "cell").__enter__()


def test_the_lock_of_a_machine_that_died_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "BEAT", 0.02)
    _note_of_another_machine(tmp_path / "cell")
    with locks.attempt(tmp_path / "cell") as held:
        assert held


def test_a_holder_gives_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "BEAT", 0.02)
    with locks.locked(tmp_path / "cell"):
        assert locks._alive(tmp_path / "cell" / locks.FILE)


# Several runs


def small(**changed: Any) -> tuple[Cell, ...]:
    """Two cells without a teacher."""
    settings = {
        "methods": ["pgd-at", "natural"],
        "students": ["cnn-4"],
        "train": {"epochs": 1, "batch_size": 32, "attack_steps": 2, "val_steps": 2},
        "data": {"train_images": 64, "val_images": 16},
        "eval": {"images": 16, "attacks": ["fgsm"]},
    }
    return expand(experiment(settings | changed), lookup(Path())).students


def test_a_run_does_other_cells_while_one_is_in_use_and_then_comes_back(
    tmp_path: Path, elsewhere: Callable[[Path], BaseProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "LOOK_AGAIN", 0.1)
    cells = small()
    place = Place(tmp_path, tmp_path, "cpu")
    process = elsewhere(cells[0].folder(tmp_path))
    order = []

    def hear(cell: Cell, event: dict[str, Any]) -> None:
        if event["what"] == "end":
            order.append(cell.method)
            process.kill()

    done = runner.run(
        runner.MatrixState(_Cells(cells), dict.fromkeys((c.id for c in cells), "new")), place, runner.Local(), hear
    )
    assert order == ["natural", "pgd-at"]
    assert {found["status"] for found in done.values()} == {"done"}


class _Cells:
    def __init__(self, cells: tuple[Cell, ...]) -> None:
        self.cells = cells


def test_what_another_run_found_of_a_cell_counts_also_where_it_failed(tmp_path: Path) -> None:
    """Ten runs on one folder would otherwise try a cell that cannot work ten times."""
    first, second = small()
    place, heard = Place(tmp_path, tmp_path, "cpu"), []

    def hear(cell: Cell, event: dict[str, Any]) -> None:
        heard.append((cell.method, event["what"]))
        if event["what"] == "end" and cell is first:
            failed = event["record"] | {"status": "failed", "id": second.id}
            failed["error"] = {"phase": "train", "type": "UserError", "message": "as it was there"}
            record.write(layout.record_path(second, tmp_path), failed)

    todo = runner.MatrixState(_Cells((first, second)), {first.id: "new", second.id: "new"})
    done = runner.run(todo, place, runner.Local(), hear)
    assert done[second.id]["error"]["message"] == "as it was there"
    assert ("natural", "start") not in heard


def _run_counted(words: list[str], folder: Path, barrier: Any, trainings: Path) -> None:
    """What each of several `adbench run` does, noting every training that it begins."""
    begin = trainer.Trainer.run

    def counted(self: trainer.Trainer, **hooks: Any) -> Summary:
        with trainings.open("a", encoding="utf-8") as file:
            file.write(f"{self.folder.name}\n")
        return begin(self, **hooks)

    trainer.Trainer.run = counted  # type: ignore[method-assign]
    os.chdir(folder)
    barrier.wait()
    result = run(*words, "--threads", "1")
    assert result.exit_code == 0, result.output


@pytest.mark.slow
def test_eight_runs_at_once_do_every_cell_exactly_once(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TEACHER, encoding="utf-8")
    context = forked.context()
    barrier, trainings = context.Barrier(8), tmp_path / "trainings"
    words = ["--methods", "pgd-at,trades,rslad,ard", "--teacher", "tiny.toml", "--seeds", "2"]
    processes = [context.Process(target=_run_counted, args=(words, tmp_path, barrier, trainings)) for _ in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 8
    found = records(tmp_path / "results")
    assert len(found) == 9
    assert {r["status"] for r in found.values()} == {"done"}
    assert not [path for path in found if record.damage(tmp_path / "results" / path)]
    begun = Counter(trainings.read_text(encoding="utf-8").split())
    assert len(begun) == 9
    assert set(begun.values()) == {1}
    assert not list((tmp_path / "results").rglob("*.tmp"))


# Workers that die or hang

PLUGIN = '''
import os, signal, time
from pathlib import Path

from adbench import Method
from adbench.losses import cross_entropy


class Broken(Method):
    """Does something terrible in its second epoch."""

    label = "Broken"

    def attack(self, step):
        if step.epoch == 1:
            {deed}
        return step.x

    def loss(self, step, x_adv):
        return cross_entropy(step.student(x_adv), step.y)
'''
CRASH = "os.kill(os.getpid(), signal.SIGSEGV)"
ONCE = "Path('crashed').exists() or (Path('crashed').touch(), os.kill(os.getpid(), signal.SIGKILL))"
HANG = "time.sleep(1000)"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_a_method_that_crashes_or_hangs_fails_alone_and_one_that_crashed_once_goes_on(here: Path) -> None:
    words = []
    for name, deed in (("crashing", CRASH), ("hanging", HANG), ("stumbling", ONCE)):
        (here / f"{name}.py").write_text(PLUGIN.format(deed=deed), encoding="utf-8")
        words += ["--plugin", f"{name}.py"]
    methods = "crashing,hanging,stumbling,pgd-at"
    result = run("--methods", methods, *words, "--jobs", "2", "--timeout", "3s", train__epochs="3")
    assert result.exit_code == 1, result.output
    results = Path("results")
    assert record_of(results, "pgd-at")["status"] == "done"

    crashed = record_of(results, "crashing")
    assert crashed["status"] == "failed"
    assert crashed["error"]["phase"] == "worker"
    assert "SIGSEGV" in crashed["error"]["message"]
    assert "2 times without finishing an epoch or an attack" in crashed["error"]["message"]
    hung = record_of(results, "hanging")
    assert hung["status"] == "failed"
    assert "no sign of life for 3 s, so its worker was ended (--timeout)" in hung["error"]["message"]

    stumbled = record_of(results, "stumbling")
    assert stumbled["status"] == "done"
    assert stumbled["training"]["epochs"] == 3
    assert "stumbling cnn-4 seed 0: its worker process ended by SIGKILL" in result.output
    assert "2 of 4 cells failed" in result.output

    # The next run goes on from the epoch before.
    (here / "hanging.py").write_text(PLUGIN.format(deed=HANG), encoding="utf-8")
    assert len(list(results.glob("digits/hanging/*/*/resume.pt"))) == 1


def test_how_a_process_ended_is_said() -> None:
    assert ended(3) == "with exit code 3"
    assert ended(-9) == "by SIGKILL, as when memory runs out"
    assert ended(-64) == "by SIGRTMAX"
    assert ended(-99) == "by 99"


def test_jobs_take_the_gpus_in_turn_unless_one_is_named() -> None:
    assert devices("cuda", 3, 2) == ["cuda:0", "cuda:1", "cuda:0"]
    assert devices("cuda", 2, 1) == ["cuda", "cuda"]
    assert devices("cuda:1", 2, 4) == ["cuda:1", "cuda:1"]
    assert devices("cpu", 2, 0) == ["cpu", "cpu"]


@pytest.mark.parametrize("time_", ["10", "m", "-1s", "infs", "5x"])
def test_a_time_is_a_number_and_a_unit(time_: str) -> None:
    result = run("--methods", "pgd-at", "--timeout", time_)
    assert result.exit_code == 2
    assert f"'{time_}' is not a time like 90s, 30m or 2h" in result.stderr
