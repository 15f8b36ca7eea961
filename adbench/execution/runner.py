"""The scheduler: which cells are still to be done, and in which order workers get them.

A cell starts when no other process works on it and its teachers are done; one whose weights lie in a file may still be
judged meanwhile. Several runs may share a results folder. A cell that fails is recorded and the others go on, also
where the failure ends its worker process.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adbench.errors import UserError
from adbench.execution.engines import Emit, Engine
from adbench.execution.engines.inline import Inline
from adbench.execution.engines.processes import Processes
from adbench.execution.engines.ray import RayCluster
from adbench.execution.execute import record_failure
from adbench.execution.place import Place
from adbench.experiment.cell import Cell, Matrix
from adbench.experiment.teacher import LocalFile
from adbench.registry import METHODS
from adbench.results import document, layout, record
from adbench.system import locks, signals
from adbench.system.machine import cores
from adbench.training.distributed import local_size

OnEvent = Callable[[Cell, dict[str, Any]], None]

DEATHS = 2
"""A cell fails when its worker dies this many times in a row without finishing an epoch or an attack."""
LOOK_AGAIN = 1.0
"""Seconds before a cell that another process works on is tried again."""


def status(cell: Cell, results: Path) -> str:
    """What a run would do with the cell: "done", "evaluate" (weights are there), "continue", "retry" or "new"."""
    path = layout.record_path(cell, results)
    if record.finished(path):
        return "done"
    folder = cell.folder(results)
    if cell.method is None or (folder / layout.SUMMARY).is_file():
        return "evaluate"
    if any((folder / name).is_file() for name in layout.STATES):
        return "continue"
    return "retry" if path.is_file() else "new"


@dataclass(frozen=True)
class MatrixState:
    """The cells of a matrix and where each of them stands."""

    matrix: Matrix
    states: dict[str, str]

    @property
    def open(self) -> list[Cell]:
        """The cells that are still to be done, teachers first."""
        return [cell for cell in self.matrix.cells if self.states[cell.id] != "done"]


def plan(matrix: Matrix, results: Path) -> MatrixState:
    """Look up every cell of the matrix in the results folder."""
    return MatrixState(matrix, {cell.id: status(cell, results) for cell in matrix.cells})


@dataclass(frozen=True)
class Local:
    """Cells on this machine.

    jobs: cells at a time. threads: processor threads of each; None for an equal share of the cores. A cell's figures
    can differ in the last bits between numbers of threads, and between nothing else that is set here.
    """

    jobs: int = 1
    threads: int | None = None

    def engine(self, cells: list[Cell], place: Place, isolated: bool, emit: Emit) -> Engine:
        """The engine: this process for the ranks of torchrun, and for a single job that needs no isolation."""
        jobs = min(self.jobs, len(cells))
        foreign = any(cell.method and not METHODS.built_in(cell.method) for cell in cells)
        if place.ranks.size > 1 or (jobs <= 1 and not isolated and not foreign):
            return Inline(place, self.share, emit)
        return Processes(place, jobs, self.share, emit)

    @property
    def share(self) -> int:
        """The threads of one cell."""
        return self.threads or threads_per_job(self.jobs)


def run(
    todo: MatrixState, place: Place, where: Local | RayCluster, on_event: OnEvent, timeout: float | None = None
) -> dict[str, dict[str, Any]]:
    """Carry out a plan; returns the records of the cells that were open, by cell id.

    on_event hears of {"what": "start"}, "batch", "epoch", "attack", "again" (after a worker died) and "end".
    timeout: seconds without a sign of life (a batch, a finished attack) after which a cell's worker is ended and the
    cell fails.
    """
    place.results.mkdir(parents=True, exist_ok=True)
    if not todo.open:
        return {}
    schedule = _Schedule(todo.open, place, on_event, timeout)
    engine = where.engine(todo.open, place, timeout is not None, schedule.on_worker_event)
    try:
        return schedule.run_all(engine)
    except KeyboardInterrupt:
        # Whoever interrupts a run does not want to wait for the cells that are under way.
        engine.stop(gently=False)
        raise
    finally:
        engine.stop(gently=True)


@dataclass
class _Attempt:
    """A cell with a worker."""

    cell: Cell
    started: bool = False
    last_heartbeat: float = field(default_factory=time.monotonic)


class _Schedule:
    """The cells of one run: waiting, running and ended."""

    def __init__(self, cells: list[Cell], place: Place, on_event: OnEvent, timeout: float | None) -> None:
        self.place, self.on_event, self.timeout = place, on_event, timeout
        self.cells = {cell.id: cell for cell in cells}
        self.waiting = dict(self.cells)
        self.running: dict[str, _Attempt] = {}
        self.ended: dict[str, dict[str, Any]] = {}
        self.deaths = dict.fromkeys(self.cells, 0)
        self.retry_at: dict[str, float] = {}  # cells that another process has, and when to look again
        self.before = {cell.id: _written(layout.record_path(cell, place.results)) for cell in cells}

    def run_all(self, engine: Engine) -> dict[str, dict[str, Any]]:
        """Run every cell to its end; returns their records."""
        while self.waiting or self.running:
            signals.stop_if_requested()  # where the cell that was under way has ended before it could
            for cell in list(self.waiting.values()):
                if not engine.room():
                    break
                if self._ready(cell):
                    del self.waiting[cell.id]
                    self.running[cell.id] = _Attempt(cell)
                    engine.start(cell)
            if self.waiting or self.running:
                engine.wait(LOOK_AGAIN / 4)
            self._end_hung_workers(engine)
        return self.ended

    def _ready(self, cell: Cell) -> bool:
        """Whether a worker should have the cell now. Ends the cell where another run has done so."""
        under_way = self.waiting.keys() | self.running.keys()
        if any(needed.id in under_way and not _in_a_file(needed) for needed in cell.required()):
            return False
        if self.retry_at.get(cell.id, 0) > time.monotonic():
            return False
        if locks.holder(cell.folder(self.place.results)):
            self.retry_at[cell.id] = time.monotonic() + LOOK_AGAIN
            return False
        path = layout.record_path(cell, self.place.results)
        if _written(path) != self.before[cell.id] and not record.damage(path):
            # Failures of another run count as well: each of ten runs would fail in the same way.
            self._end(cell, document.opened(path))
            return False
        return True

    def on_worker_event(self, cell_id: str, event: dict[str, Any]) -> None:
        """Handle an event that an engine emits."""
        attempt = self.running[cell_id]
        attempt.last_heartbeat = time.monotonic()
        match event["what"]:
            case "record":
                self._end(attempt.cell, event["record"])
            case "busy":
                self._requeue(attempt.cell)
            case "died":
                self._on_worker_death(attempt.cell, f"its worker process ended {event['how']}")
            case "refused":
                raise UserError(event["why"])
            case "start" if attempt.started:
                pass
            case what:
                attempt.started = True
                if what in ("epoch", "attack"):
                    self.deaths[cell_id] = 0
                self.on_event(attempt.cell, event)

    def _end(self, cell: Cell, record: dict[str, Any]) -> None:
        self.waiting.pop(cell.id, None)
        self.running.pop(cell.id, None)
        self.ended[cell.id] = record
        self.on_event(cell, {"what": "end", "record": record})

    def _requeue(self, cell: Cell) -> None:
        del self.running[cell.id]
        self.waiting[cell.id] = cell
        self.retry_at[cell.id] = time.monotonic() + LOOK_AGAIN

    def _on_worker_death(self, cell: Cell, how: str) -> None:
        self.deaths[cell.id] += 1
        if self.deaths[cell.id] >= DEATHS:
            self._fail(cell, f"{how}, {DEATHS} times without finishing an epoch or an attack")
        else:
            self.on_event(cell, {"what": "again", "why": how})
            self._requeue(cell)

    def _fail(self, cell: Cell, why: str) -> None:
        failed = record_failure(cell, self.place, why)
        if failed is None:  # another process has the cell by now
            self._requeue(cell)
        else:
            self._end(cell, failed)

    def _end_hung_workers(self, engine: Engine) -> None:
        if self.timeout is None:
            return
        for attempt in list(self.running.values()):
            silent = time.monotonic() - attempt.last_heartbeat
            if attempt.started and silent > self.timeout:
                engine.kill(attempt.cell)
                self._fail(attempt.cell, f"no sign of life for {silent:.0f} s, so its worker was ended (--timeout)")


def _in_a_file(cell: Cell) -> bool:
    """Whether the cell's weights are a file here, so that others can use them before they are judged."""
    return cell.spec is not None and all(isinstance(one.source, LocalFile) for one in cell.spec.members or (cell.spec,))


def _written(path: Path) -> int | None:
    """When a record was written, if it is there."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def threads_per_job(jobs: int) -> int:
    """Processor cores divided among jobs, of all processes that torchrun started on this machine, at least one each."""
    return max(1, cores() // max(1, jobs * local_size()))
