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
        for metric in record["metrics"].values():
            metric["attack"] = _once(metric["attack"], known)
            if "per_class" in metric:
                metric["per_class"] = np.array(metric["per_class"], dtype=np.int32)
        for part in ("config", "provenance", "data", "teachers"):
            record.data[part] = _once(record.data[part], known)
        for training in (record["config"].get("training"), record["config"].get("evaluation")):
            if isinstance(training, dict):
                for key, value in training.items():
                    training[key] = _once(value, known)
        result.append(record)
    return named_apart(result)


def _once(value: Any, known: dict[str, Any]) -> Any:
    """The first object equal to `value` that was seen, where that is a dictionary or a text."""
    if isinstance(value, dict):
        return known.setdefault(repr(value), value)
    return known.setdefault(value, value) if isinstance(value, str) else value
