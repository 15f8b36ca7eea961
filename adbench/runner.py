"""Cells onto processors: what is already there, what it will cost, and carrying it out.

Cells run one after another in this process, or `jobs` at a time in processes of their own. Teachers come first,
since students need them. A cell that fails is recorded and the others go on.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from typing import TYPE_CHECKING, Any

from adbench import record, train
from adbench.cell import Place, execute
from adbench.errors import UserError
from adbench.matrix import Cell, Matrix
from adbench.registry import METHODS

if TYPE_CHECKING:
    from multiprocessing.managers import SyncManager

OnEvent = Callable[[Cell, dict[str, Any]], None]


def status(cell: Cell, results: Path) -> str:
    """What a run would do with the cell: "done", "evaluate" (weights are there), "continue", "retry" or "new"."""
    path = cell.record_path(results)
    if path.is_file() and record.read(path).done:
        return "done"
    folder = cell.folder(results)
    if cell.method is None or (folder / train.SUMMARY).is_file():
        return "evaluate"
    if (folder / train.RESUME).is_file():
        return "continue"
    return "retry" if path.is_file() else "new"


@dataclass(frozen=True)
class Plan:
    """The cells of a matrix and where each of them stands."""

    matrix: Matrix
    states: dict[str, str]

    @property
    def open(self) -> list[Cell]:
        """The cells that are still to be done, teachers first."""
        return [cell for cell in self.matrix.cells if self.states[cell.id] != "done"]


def plan(matrix: Matrix, results: Path) -> Plan:
    """Look up every cell of the matrix in the results folder."""
    return Plan(matrix, {cell.id: status(cell, results) for cell in matrix.cells})


def run(todo: Plan, place: Place, jobs: int, on_event: OnEvent) -> dict[str, dict[str, Any]]:
    """Carry out a plan; returns the records of the cells that were run, by cell id.

    jobs: cells at a time. Each job has its share of the processor's cores, so figures can differ in the last bits
    between job counts. on_event hears of {"what": "start"}, "batch", "epoch", "attack" and "end".
    """
    place.results.mkdir(parents=True, exist_ok=True)
    carry_out = _in_process if min(jobs, len(todo.open)) <= 1 else _in_processes
    return carry_out(todo.open, place, jobs, on_event)


def _in_process(cells: Sequence[Cell], place: Place, jobs: int, on_event: OnEvent) -> dict[str, dict[str, Any]]:
    prepare_torch(place, threads_per_job(jobs))
    finished = {}
    for cell in cells:
        on_event(cell, {"what": "start"})
        finished[cell.id] = execute(cell, place, lambda event, cell=cell: on_event(cell, event))  # type: ignore[misc]
        on_event(cell, {"what": "end", "record": finished[cell.id]})
    return finished


def _in_processes(cells: Sequence[Cell], place: Place, jobs: int, on_event: OnEvent) -> dict[str, dict[str, Any]]:
    context = multiprocessing.get_context("spawn")
    waiting = {cell.id: cell for cell in cells}
    with context.Manager() as manager:
        events = _queue(manager)
        listener = threading.Thread(target=_listen, args=(events, dict(waiting), on_event))
        listener.start()
        others = set(multiprocessing.active_children())
        pool = ProcessPoolExecutor(
            min(jobs, len(cells)),
            mp_context=context,
            initializer=_begin_worker,
            initargs=(os.getpid(), place, threads_per_job(jobs), METHODS.files()),
        )
        try:
            return _all(waiting, lambda cell: pool.submit(_work, cell, place, events), events)
        except BrokenProcessPool as error:
            raise UserError(
                "a worker process died (out of memory, or a crash in a library); finished cells are kept, "
                "and the same command goes on from there, more gently with --jobs 1"
            ) from error
        except BaseException:
            # Whoever interrupts a run does not want to wait for the cells that are under way.
            for worker in set(multiprocessing.active_children()) - others:
                worker.terminate()
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            events.put(None)
            listener.join()


def _all(
    waiting: dict[str, Cell], submit: Callable[[Cell], Future[dict[str, Any]]], events: Queue[Any]
) -> dict[str, dict[str, Any]]:
    """Submit every cell as soon as those it needs have ended; the records by cell id."""
    finished: dict[str, dict[str, Any]] = {}
    running: dict[Future[dict[str, Any]], Cell] = {}
    while waiting or running:
        unfinished = {*waiting, *(cell.id for cell in running.values())}
        for cell in list(waiting.values()):
            if not any(needed.id in unfinished for needed in cell.required()):
                running[submit(cell)] = waiting.pop(cell.id)
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            cell = running.pop(future)
            finished[cell.id] = future.result()
            events.put((cell.id, {"what": "end", "record": finished[cell.id]}))
    return finished


def _queue(manager: SyncManager) -> Queue[Any]:
    return manager.Queue()


def _listen(events: Queue[Any], cells: dict[str, Cell], on_event: OnEvent) -> None:
    while (item := events.get()) is not None:
        on_event(cells[item[0]], item[1])


def _begin_worker(parent: int, place: Place, threads: int, plugins: list[Path]) -> None:
    prepare_torch(place, threads)
    for path in plugins:
        METHODS.add_file(path)

    def end_with_parent() -> None:
        # A killed parent must not leave workers behind that write where its successor writes.
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _work(cell: Cell, place: Place, events: Queue[Any]) -> dict[str, Any]:
    events.put((cell.id, {"what": "start"}))
    last = 0.0

    def report(event: dict[str, Any]) -> None:
        nonlocal last
        # Batches may come by the thousand a second; the display needs a few.
        if event["what"] != "batch" or time.monotonic() - last > 0.2:
            last = time.monotonic()
            events.put((cell.id, event))

    return execute(cell, place, report)


def prepare_torch(place: Place, threads: int) -> None:
    """What a process does before it runs cells: its share of the cores, float32 that is float32, determinism."""
    import torch

    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    torch.use_deterministic_algorithms(place.torch_device.type == "cpu")


def threads_per_job(jobs: int) -> int:
    """Processor cores divided among jobs, at least one each."""
    return max(1, len(os.sched_getaffinity(0)) // max(1, jobs))
