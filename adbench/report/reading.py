"""Many records in little memory: equal parts of them are one object."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from adbench.errors import UserError
from adbench.results.record import Contradiction, Record, read_all
from adbench.results.teachers import named_apart


@contextmanager
def held(results: Path, left_out: Callable[[str], object] | None = None) -> Iterator[list[Record]]:
    """`records`, frozen for the garbage collector: it would visit a million objects, none of which can go."""
    gc.disable()
    try:
        everything = records(results, left_out)
        gc.freeze()
    finally:
        gc.enable()
    try:
        yield everything
    finally:
        gc.unfreeze()


def records(results: Path, left_out: Callable[[str], object] | None = None) -> list[Record]:
    """Every record below `results`, in path order. Raises UserError for a missing folder.

    left_out: hears of damaged records, and of damaged outcomes: a record without them keeps its figures and is tested
    against no other; one whose outcomes contradict it is left out. Without it, either is a UserError.

    Attack definitions and settings that are alike in many records are one object in all, and counts by class are arrays
    (classes, 2): not to be changed by anybody.
    """
    known: dict[str, Any] = {}
    result = []
    for record in read_all(results, left_out):
        try:
            record.check_outcomes()
        except UserError as error:
            if left_out is None:
                raise
            left_out(str(error))
            if isinstance(error, Contradiction):
                continue
        for metric in record.metrics.values():
            metric.attack = _once(metric.attack, known)
            if metric.per_class is not None:
                metric.per_class = np.array(metric.per_class, dtype=np.int32)  # type: ignore[assignment]
        record.provenance, record.teachers = _once(record.provenance, known), _once(record.teachers, known)
        record.data = _once(record.data, known)
        for settings in (record.config.training, record.config.evaluation):
            for key, value in settings.items():
                settings[key] = _once(value, known)
        record.config = _once(record.config, known)
        result.append(record)
    return named_apart(result)


def _once(value: Any, known: dict[str, Any]) -> Any:
    """The first object equal to `value` that was seen."""
    return known.setdefault(value if isinstance(value, str) else repr(value), value)
