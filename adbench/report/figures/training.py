"""Training curves: logs, averaged over seeds."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

from adbench.errors import UserError
from adbench.report.figures.chart import Axis, Chart, Panel, Point, Series
from adbench.report.figures.plot import Plot, labels_of
from adbench.report.parts import Place, by_place
from adbench.results.record import Record
from adbench.results.runs import Run

Log = dict[str, list[tuple[int, float]]]
"""Each logged quantity as (epoch, mean over seeds)."""

QUANTITIES = {"loss": "Training loss", "val_clean": "Held-out natural (%)", "val_robust": "Held-out robust (%)"}


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


def curves(runs: Sequence[Run], logs: Sequence[Log]) -> list[Plot]:
    """Loss and held-out accuracy by epoch, one figure a data set, student and teacher; logs: of each run."""
    labels = labels_of(runs)
    of_run = {id(run): log for run, log in zip(runs, logs, strict=True)}
    plots = []
    for members in by_place(runs):
        shown = {run.label: log for run in members if (log := of_run[id(run)])}
        if not shown:
            continue
        place = Place.of(members)
        panels = []
        for key, title in QUANTITIES.items():
            scale = 1 if key == "loss" else 100
            series = [
                Series(label, labels.index(label), tuple(Point(epoch, scale * value) for epoch, value in log[key]))
                for label, log in shown.items()
                if log[key]
            ]
            log_scale = key == "loss" and bool(series) and all(p.y > 0 for each in series for p in each.points)
            panels.append(Panel(Axis("Epoch"), Axis("", log=log_scale), tuple(series), title))
        caption = (
            f"Training on {place}: loss (log scale; each method's is a quantity of its own), and "
            "accuracy on the held-out split, natural and under attack. Means over seeds."
        )
        last = "; ".join(
            f"{label} ends at loss {log['loss'][-1][1]:.3g}" for label, log in shown.items() if log["loss"]
        )
        plots.append(
            Plot.of_chart(
                place.label("curves"),
                f"Training, {place}",
                caption,
                f"Panels by epoch: loss, held-out natural accuracy, held-out robust accuracy. {last}.",
                Chart(tuple(panels)),
                place.about,
                (7.2, 3.3 + 0.18 * math.ceil(len(shown) / 5)),
                "below",
            )
        )
    return plots
