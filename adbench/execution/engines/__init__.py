"""Where cells run: in this process, in processes of this machine, or as Ray tasks on many machines.

An engine only knows how to get one cell done. Which cell is next, what to do when a worker dies, and when one is
taken to hang, is the runner's; what a cell does, and that it is done once, is the cell's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from adbench.experiment.cell import Cell

Emit = Callable[[str, dict[str, Any]], None]
"""Hears, with a cell's id, of what its worker reports, and of one of these in the end:

{"what": "record", "record": ...}  carried out, or found done
{"what": "busy"}                   another process works on it
{"what": "died", "how": ...}       the worker ended without a word
{"what": "refused", "why": ...}    nothing can run there: the whole run has to end
"""
LAST_WORDS = frozenset({"record", "busy", "died", "refused"})


class Engine(Protocol):
    """What the runner asks of an engine."""

    def room(self) -> bool:
        """Whether another cell can be started."""

    def start(self, cell: Cell) -> None:
        """Begin a cell whose teachers are done."""

    def wait(self, seconds: float) -> None:
        """Emit what has been reported, waiting at most so long for something."""

    def kill(self, cell: Cell) -> None:
        """End a cell's worker at once; nothing more is heard of it."""

    def stop(self, *, gently: bool) -> None:
        """End everything. gently: workers are asked first, and may finish what they are at."""
