"""`adbench report --watch`: the report is written again whenever records change."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from adbench.errors import UserError
from adbench.results import layout
from adbench.system.files import below

SECONDS = 5.0
"""Between two looks at the folder."""

State = dict[Path, tuple[int, int]]


def lines(results: Path, write: Callable[[], str], pause: Callable[[float], None] = time.sleep) -> Iterator[str]:
    """Call `write` now and after every change below `results`; yields what it says, and why it could not write.

    Ends only when it is interrupted. A results folder that is not there yet, or has no finished record, is waited for;
    `pause` waits between two looks.
    """
    yield f"watching {results}; Ctrl-C ends it"
    seen: State | None = None
    while True:
        state = _state(results)
        if state != seen:
            seen = state
            try:
                yield f"{time.strftime('%H:%M:%S')}  {write()}"
            except UserError as error:
                yield f"{time.strftime('%H:%M:%S')}  nothing written yet: {error}"
        pause(SECONDS)


def _state(results: Path) -> State:
    """The files that the report is made of, with their times and sizes, which change with their content."""
    state = {}
    for name in (layout.RECORD, *(f"{kind}.json" for kind in layout.ANALYSES)):
        for path in below(results, name):
            try:
                stat = path.stat()
            except FileNotFoundError:  # replaced at this moment
                continue
            state[path] = stat.st_mtime_ns, stat.st_size
    return state
