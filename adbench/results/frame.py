"""Records as a pandas data frame."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd

from adbench.results.record import Record, read_all
from adbench.results.setting import Setting, search


def frame(records: Iterable[Record]) -> pd.DataFrame:
    """Records as a table, one row each, ready for pandas.

    Columns: kind, status, dataset, method, label, teacher, student, seed, eps, step (of PGD and C&W), n (test images),
    id, train_seconds, evaluate_seconds, parameters, path, error; for every metric m the accuracy `m` (fraction in
    [0, 1]) and `m.n`; and for AutoAttack how it searched, `m.search`.
    """
    rows = []
    for record in records:
        setting = Setting.of(record).items
        row = {
            **{key: getattr(record, key) for key in ("kind", "status", "dataset", "method", "label")},
            **{key: getattr(record, key) for key in ("teacher", "student", "seed")},
            "eps": setting.get("eps"),
            "step": setting.get("step"),
            "n": max((metric.n for metric in record.metrics.values()), default=None),
            "id": record.id,
            "train_seconds": record.timing.get("train"),
            "evaluate_seconds": record.timing.get("evaluate"),
            "parameters": record.model.parameters if record.model else None,
            "error": record.error.message if record.error else None,
            "path": str(record.path),
        }
        for name, metric in record.metrics.items():
            row[name] = metric.value
            row[f"{name}.n"] = metric.n
            if "version" in metric.attack:
                row[f"{name}.search"] = search(metric.attack)
        rows.append(row)
    return pd.DataFrame(rows)


def load(results: Path | str = "results", left_out: Callable[[str], object] | None = None) -> pd.DataFrame:
    """All records below a results folder as a pandas DataFrame (see `frame`). left_out: as of `read_all`."""
    return frame(read_all(Path(results), left_out))
