"""Cells in this process, one at a time."""

from __future__ import annotations

import time

from adbench.execution.engines import Emit
from adbench.execution.engines.worker import prepare_torch, work
from adbench.execution.place import Place
from adbench.experiment.cell import Cell


class Here:
    """The engine of `--jobs 1`: nothing is started, and nothing is isolated."""

    def __init__(self, place: Place, threads: int, emit: Emit) -> None:
        self.place, self.emit = place, emit
        self.worked = False
        prepare_torch(place, threads)

    def room(self) -> bool:
        return True

    def start(self, cell: Cell) -> None:
        """Carries the cell out; exceptions from outside (Ctrl-C) come through."""
        self.worked = True
        work(cell, self.place, lambda event: self.emit(cell.id, event), every=0)

    def wait(self, seconds: float) -> None:
        """Everything has been said already; sleeps where there was nothing to do."""
        if not self.worked:
            time.sleep(seconds)
        self.worked = False

    def kill(self, cell: Cell) -> None:
        raise AssertionError("a process cannot kill a cell that it runs itself")

    def stop(self, *, gently: bool) -> None:
        """Nothing runs when somebody can ask this."""
