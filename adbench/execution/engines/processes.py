"""Worker processes on this machine, one a cell.

They are forked from a server that has imported everything and computed nothing, so they start in milliseconds and get
a clean CUDA context. A worker that crashes, hangs or is killed for its memory ends no other cell.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from adbench.execution.engines import FINAL_EVENTS, Emit
from adbench.execution.engines.worker import Plugins, plugins_in_use, run_cell, safe_path, set_up_worker
from adbench.execution.place import Place
from adbench.experiment.cell import Cell
from adbench.system import signals

# The second is what torch.optim imports when it is first used, the third what the digits are read with.
PRELOADED = ["adbench.execution.engines.processes", "torch._dynamo", "sklearn.datasets"]
GRACE = 60.0
"""Seconds that a worker has to finish its epoch or attack when the run is asked to end."""


class Processes:
    """`jobs` cells at a time; on several GPUs each job has its own, in turn."""

    def __init__(self, place: Place, jobs: int, threads: int, emit: Emit) -> None:
        self.emit, self.threads = emit, threads
        self.places = [replace(place, device=device) for device in devices(place.device, jobs, _gpus(place))]
        self.free = list(range(jobs))
        self.running: dict[str, _Worker] = {}
        self.context = _context()

    def room(self) -> bool:
        return bool(self.free)

    def start(self, cell: Cell) -> None:
        slot = self.free.pop(0)
        ours, theirs = self.context.Pipe()
        process = self.context.Process(
            target=_cell, args=(theirs, cell, self.places[slot], self.threads, plugins_in_use()), daemon=True
        )
        with safe_path():
            process.start()
        theirs.close()
        self.running[cell.id] = _Worker(cell, process, ours, slot)

    def wait(self, seconds: float) -> None:
        speaking: dict[Any, _Worker] = {worker.pipe: worker for worker in self.running.values()}
        if not speaking:
            time.sleep(seconds)
            return
        for pipe in wait(list(speaking), seconds):
            self._receive(speaking[pipe])

    def _receive(self, worker: _Worker) -> None:
        try:
            event: dict[str, Any] = worker.pipe.recv()
        except (EOFError, OSError):
            worker.process.join(GRACE)
            event = {"what": "died", "how": ended(worker.process.exitcode)}
        if event["what"] in FINAL_EVENTS:
            self._release(worker)
        self.emit(worker.cell.id, event)

    def _release(self, worker: _Worker) -> None:
        del self.running[worker.cell.id]
        self.free.append(worker.slot)
        self.free.sort()
        worker.pipe.close()

    def kill(self, cell: Cell) -> None:
        worker = self.running[cell.id]
        worker.process.kill()
        worker.process.join()
        self._release(worker)

    def stop(self, *, gently: bool) -> None:
        for worker in self.running.values():
            (worker.process.terminate if gently else worker.process.kill)()
        deadline = time.monotonic() + GRACE
        for worker in list(self.running.values()):
            # A full pipe would block the worker, so it is drained.
            while worker.process.is_alive() and time.monotonic() < deadline:
                if worker.pipe.poll(0.05):
                    try:
                        worker.pipe.recv()
                    except (EOFError, OSError):
                        worker.process.join(deadline - time.monotonic())
            self.kill(worker.cell)


def _context() -> Any:
    """The start method: the fork server, or spawn where there is none (Windows), which takes seconds a process."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


class _Worker:
    def __init__(self, cell: Cell, process: BaseProcess, pipe: Connection, slot: int) -> None:
        self.cell, self.process, self.pipe, self.slot = cell, process, pipe, slot


def devices(device: str, jobs: int, gpus: int) -> list[str]:
    """The device of each job: the one that is named, or, where "cuda" leaves it open, the GPUs in turn."""
    return [f"cuda:{job % gpus}" if device == "cuda" and gpus > 1 else device for job in range(jobs)]


def _gpus(place: Place) -> int:
    if place.torch_device.type != "cuda":
        return 0
    return torch.cuda.device_count()


def ended(code: int | None) -> str:
    """How a process ended, in words."""
    if code is None or code >= 0:
        return f"with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = str(-code)
    hints = {"SIGKILL": ", as when memory runs out", "SIGSEGV": ", a crash in compiled code"}
    return f"by {name}{hints.get(name, '')}"


def _cell(pipe: Connection, cell: Cell, place: Place, threads: int, plugins: Plugins) -> None:
    """The main function of a worker."""
    # Ctrl-C reaches every process of a terminal; the run decides what becomes of its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, args=(pipe,), daemon=True).start()
    try:
        with signals.handled():
            set_up_worker(place, threads, plugins)
            run_cell(cell, place, pipe.send)
    except signals.Stopped:
        sys.exit(signals.EXIT_CODE)


def _exit_with_parent(pipe: Connection) -> None:
    """Exit when the run is killed: its workers must not write where its successor writes."""
    try:
        pipe.recv()  # nothing is ever sent: this returns when the other end is closed
    except (EOFError, OSError):
        os._exit(1)
