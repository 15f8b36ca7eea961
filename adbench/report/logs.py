"""Training logs, averaged over seeds."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

from adbench.record import Record

Log = dict[str, list[tuple[int, float]]]
"""Each logged quantity as (epoch, mean over seeds)."""

QUANTITIES = ("loss", "val_clean", "val_robust")


def averaged(records: Sequence[Record]) -> Log:
    """The logs of one run's records; {} when no seed has a log."""
    seen: dict[str, dict[int, list[float]]] = {key: defaultdict(list) for key in QUANTITIES}
    for record in records:
        for line in record.log():
            for key, by_epoch in seen.items():
                value = line.get(key)
                if value is not None and math.isfinite(value):
                    by_epoch[line["epoch"]].append(value)
    log = {key: [(e, math.fsum(v) / len(v)) for e, v in sorted(by_epoch.items())] for key, by_epoch in seen.items()}
    return log if any(log.values()) else {}
