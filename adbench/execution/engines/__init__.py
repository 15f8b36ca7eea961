"""Engines: where cells run. In this process, in worker processes of this machine, or as Ray tasks on many machines.

An engine runs single cells. Order, retries and timeouts are decided in `runner.py`; what running a cell means, and that
it is done once, in `execute.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from adbench.experiment.cell import Cell

Emit = Callable[[str, dict[str, Any]], None]
"""Called with a cell's id and each event of its worker. The final event is one of:

{"what": "record", "record": ...}  the cell ended, now or before
{"what": "busy"}                   another process works on it
{"what": "died", "how": ...}       the worker process ended without a final event
{"what": "refused", "why": ...}    no cell can run there: the whole run ends
"""
FINAL_EVENTS = frozenset({"record", "busy", "died", "refused"})


class Engine(Protocol):
    """The interface between runner and engine."""

    def room(self) -> bool:
        """Whether another cell can be started."""

    def start(self, cell: Cell) -> None:
        """Start a cell whose teachers are done."""

    def wait(self, seconds: float) -> None:
        """Emit pending events; waits for the first at most this long."""

    def kill(self, cell: Cell) -> None:
        """Kill a cell's worker; no event of it follows."""

    def stop(self, *, gently: bool) -> None:
        """End all workers. gently: they are asked first, and may write their state."""
