"""A pool of forked processes for many small independent tasks."""

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
"""Fewer items are not worth further processes."""

_job: tuple[Callable[[object], object], Sequence[object]] | None = None


@contextmanager
def mapped(
    function: Callable[[Item], Result], items: Sequence[Item]
) -> Generator[Callable[[], list[Result]], None, None]:
    """Start `function` on every item, in a process a core; yields a function that waits for the results.

    The processes are forked, so that items and closures need no pickling; results do. This process computes the results
    itself, when they are asked for, where there is no fork, one core or little to do, where a pool is at work already,
    and where it has threads: a fork would copy the locks that they hold.
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
                values: list[Result] = begun.get()  # type: ignore[assignment]
                # They end by themselves: leaving the pool would kill them, with whatever they have at their exit.
                pool.close()
                pool.join()
                return values

            yield results
    finally:
        _job = None


def _one(number: int) -> object:
    assert _job is not None
    function, items = _job
    return function(items[number])
