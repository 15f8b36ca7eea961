"""Training logs, averaged over seeds."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

from adbench.errors import UserError
from adbench.results.record import Record

Log = dict[str, list[tuple[int, float]]]
"""Each logged quantity as (epoch, mean over seeds)."""

QUANTITIES = ("loss", "val_clean", "val_robust")


def averaged(records: Sequence[Record]) -> tuple[Log, list[str]]:
    """The logs of one run's records, {} when no seed has a log; and a sentence on each that is damaged and left out."""
    damaged = []
    seen: dict[str, dict[int, list[float]]] = {key: defaultdict(list) for key in QUANTITIES}
    for record in records:
        try:
            lines = record.log()
        except UserError as error:
            damaged.append(str(error))
            continue
        for line in lines:
            for key, by_epoch in seen.items():
                value = line.get(key)
                if value is not None and math.isfinite(value):
                    by_epoch[line["epoch"]].append(value)
    log = {key: [(e, math.fsum(v) / len(v)) for e, v in sorted(by_epoch.items())] for key, by_epoch in seen.items()}
    return (log if any(log.values()) else {}), damaged
