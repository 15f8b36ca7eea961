"""The cores of one machine for work that is many independent small things."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

FEWEST = 6
"""Fewer things are not worth further processes."""

_job: tuple[Callable[[object], object], Sequence[object]] | None = None


def mapped(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """`function` of every item, in order, in as many processes as there are cores.

    The processes are forked, so that items and closures reach them without being pickled; results are. Where there is
    no fork (or one core, or little to do) this process does it.
    """
    global _job
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1
    if cores < 2 or len(items) < FEWEST or _job is not None:
        return [function(item) for item in items]
    _job = function, items  # type: ignore[assignment]
    try:
        with multiprocessing.get_context("fork").Pool(min(cores, len(items))) as pool:
            return pool.map(_one, range(len(items)), chunksize=max(1, len(items) // (8 * cores)))  # type: ignore[arg-type]
    finally:
        _job = None


def _one(number: int) -> object:
    assert _job is not None
    function, items = _job
    return function(items[number])
