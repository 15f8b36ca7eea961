"""Training curves, and the teacher at the student's x': logs, averaged over seeds."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

from adbench.errors import UserError
from adbench.report.figures.chart import Axis, Chart, Panel, Point, Series
from adbench.report.figures.plot import Plot, labels_of
from adbench.report.parts import Setup, by_place
from adbench.results.record import Record
from adbench.results.runs import Run

Log = dict[str, list[tuple[int, float]]]
"""Each logged quantity as (epoch, mean over seeds)."""

CURVES = {"loss": "Training loss", "val_clean": "Held-out natural (%)", "val_robust": "Held-out robust (%)"}
GUIDANCE = {"teacher_accuracy_adv": "Teacher's accuracy at x' (%)", "teacher_entropy_adv": "Its entropy there (nats)"}
"""What a figure shows of the logs, a panel each, with its title."""

AS_LOGGED = ("loss", "teacher_entropy_adv")
"""Quantities that are no shares."""


def averaged(records: Sequence[Record]) -> tuple[Log, list[str]]:
    """The logs of one run's records, {} when no seed has a log; and a sentence on each that is damaged and left out."""
    damaged = []
    seen: dict[str, dict[int, list[float]]] = {key: defaultdict(list) for key in (*CURVES, *GUIDANCE)}
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
    """By epoch, one figure a data set, student and teacher: loss and held-out accuracy, and what the teacher says of
    the student's x'; logs: of each run."""
    labels = labels_of(runs)
    of_run = {id(run): log for run, log in zip(runs, logs, strict=True)}
    plots = []
    for members in by_place(runs):
        shown = {run.label: log for run in members if (log := of_run[id(run)])}
        guided = {label: log for label, log in shown.items() if any(log[key] for key in GUIDANCE)}
        place = Setup.of(members)
        if shown:
            caption = (
                f"Training on {place}: loss (log scale; each method's is a quantity of its own), and "
                "accuracy on the held-out split, natural and under attack. Means over seeds."
            )
            last = "; ".join(
                f"{label} ends at loss {log['loss'][-1][1]:.3g}" for label, log in shown.items() if log["loss"]
            )
            alt = f"Panels by epoch: loss, held-out natural accuracy, held-out robust accuracy. {last}."
            title = f"Training, {place}"
            plots.append(_plot(place.label("curves"), title, caption, alt, CURVES, shown, labels, place))
        if guided:
            caption = (
                f"The robust teacher at the training images x' that each student is attacked with, on {place}: how "
                "often it is right there, and the mean entropy of its probabilities. Over all batches of an epoch for "
                "a method that asks its teacher at x', over the last whole batch for others. Means over seeds."
            )
            last = "; ".join(
                f"{label} ends at {100 * log['teacher_accuracy_adv'][-1][1]:.1f}%"
                for label, log in guided.items()
                if log["teacher_accuracy_adv"]
            )
            alt = f"Panels by epoch: the teacher's accuracy and its entropy at x'. {last}."
            title = f"The teacher at x', {place}"
            plots.append(_plot(place.label("guidance"), title, caption, alt, GUIDANCE, guided, labels, place))
    return plots


def _plot(
    label: str,
    title: str,
    caption: str,
    alt: str,
    quantities: Mapping[str, str],
    logs: Mapping[str, Log],
    labels: Sequence[str],
    place: Setup,
) -> Plot:
    """A figure with a panel for each of the quantities. logs: by a run's label; labels: of all runs, in order."""
    panels = []
    for key, heading in quantities.items():
        scale = 1 if key in AS_LOGGED else 100
        series = [
            Series(name, labels.index(name), tuple(Point(epoch, scale * value) for epoch, value in log[key]))
            for name, log in logs.items()
            if log[key]
        ]
        log_scale = key == "loss" and bool(series) and all(p.y > 0 for each in series for p in each.points)
        panels.append(Panel(Axis("Epoch"), Axis("", log=log_scale), tuple(series), heading))
    inches = (7.2, 3.3 + 0.18 * math.ceil(len(logs) / 5))
    return Plot.of_chart(label, title, caption, alt, Chart(tuple(panels)), place.about, inches, "below")
