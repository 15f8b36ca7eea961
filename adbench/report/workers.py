"""The cores of one machine for work that is many independent small things."""

from __future__ import annotations

import multiprocessing
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from adbench.system import machine

Item = TypeVar("Item")
Result = TypeVar("Result")

FEWEST = 6
"""Fewer things are not worth further processes."""

_job: tuple[Callable[[object], object], Sequence[object]] | None = None


@contextmanager
def mapped(
    function: Callable[[Item], Result], items: Sequence[Item]
) -> Generator[Callable[[], list[Result]], None, None]:
    """Begin with `function` of every item, in as many processes as there are cores; calling what it gives waits.

    The processes are forked, so that items and closures reach them without being pickled; results are. Where there is
    no fork (or one core, or little to do) this process does it, when it is asked for the results; so it does where it
    has threads, which a fork would leave behind with the locks that they hold, or has begun with something else.
    """
    global _job
    cores = machine.cores() if sys.platform == "linux" else 1  # elsewhere a fork is not safe, or there is none
    threads = threading.active_count() > 1 or "torch" in sys.modules
    if cores < 2 or len(items) < FEWEST or _job is not None or threads:
        yield lambda: [function(item) for item in items]
        return
    _job = function, items  # type: ignore[assignment]
    try:
        with multiprocessing.get_context("fork").Pool(min(cores, len(items))) as pool:
            begun = pool.map_async(_one, range(len(items)), chunksize=max(1, len(items) // (8 * cores)))

            def results() -> list[Result]:
                found: list[Result] = begun.get()  # type: ignore[assignment]
                # They end by themselves: leaving the pool would kill them, with whatever they have at their exit.
                pool.close()
                pool.join()
                return found

            yield results
    finally:
        _job = None


def _one(number: int) -> object:
    assert _job is not None
    function, items = _job
    return function(items[number])
