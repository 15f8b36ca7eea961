"""The engine of `--jobs 1`: cells in this process, one at a time."""

from __future__ import annotations

import time

from adbench.execution.engines import Emit
from adbench.execution.engines.worker import run_cell, set_up_torch
from adbench.execution.place import Place
from adbench.experiment.cell import Cell


class Inline:
    """Runs each cell when it is started; nothing is isolated."""

    def __init__(self, place: Place, threads: int, emit: Emit) -> None:
        self.place, self.emit = place, emit
        self.worked = False
        set_up_torch(place, threads)

    def room(self) -> bool:
        return True

    def start(self, cell: Cell) -> None:
        """Run the cell. KeyboardInterrupt and the like are not caught."""
        self.worked = True
        run_cell(cell, self.place, lambda event: self.emit(cell.id, event), every=0)

    def wait(self, seconds: float) -> None:
        """Sleep if nothing ran since the last call; events were emitted as they came."""
        if not self.worked:
            time.sleep(seconds)
        self.worked = False

    def kill(self, cell: Cell) -> None:
        raise AssertionError("a process cannot kill a cell that it runs itself")

    def stop(self, *, gently: bool) -> None:
        """Nothing runs between two calls."""
