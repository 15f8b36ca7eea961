"""What students take where they are used, and how robust they are for it: a table, and accuracy against each size."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from adbench.report import captions
from adbench.report.figures.chart import Axis, Chart, Panel, Series
from adbench.report.figures.comparisons import bars_are, point
from adbench.report.figures.plot import Plot, labels_of
from adbench.report.model import MISSING, Column, Row, Table, TableCell, about
from adbench.report.parts import by_setting
from adbench.report.tables.ranking import accuracy
from adbench.report.view import View
from adbench.results.fields import Footprint
from adbench.results.record import Record
from adbench.results.runs import Run, attacks_of, heading, slug, strongest


@dataclass(frozen=True)
class Size:
    """One of the sizes of a network: how it is headed, with its unit, and what a record has of it in that unit."""

    title: str
    of: Callable[[Record, Footprint], float | None]


SIZES = (
    Size("Parameters (M)", lambda record, _: record.network.parameters / 1e6),
    Size("Multiply-adds (M)", lambda _, footprint: footprint.multiply_adds and footprint.multiply_adds / 1e6),
    Size("Size (MiB)", lambda _, footprint: footprint.bytes / 2**20),
    Size("Latency (ms)", lambda _, footprint: 1000 * footprint.latency),
)


def contents(runs: Sequence[Run], view: View) -> tuple[tuple[Table, ...], tuple[Plot, ...]]:
    """A table, and, where students differ in size, a figure of each data set and setting; older records tell none."""
    measured = [run for run in runs if _measured(run)]
    return tuple(table(measured, view)), tuple(plots(measured))


@by_setting
def table(runs: Sequence[Run], view: View) -> list[Table]:
    """One row a student and machine: its sizes, and the most robust network of it."""
    dataset, attack = runs[0].dataset, strongest(runs, attacks_of(runs))
    machines = list(_by_machine(runs))
    several = len(machines) > 1
    rows = []
    for student in dict.fromkeys(run.student for run in runs):
        of_student = [run for run in runs if run.student == student]
        ranked = [(found.mean, run) for run in of_student if (found := run.estimate(attack))]
        best = max(ranked, key=lambda each: each[0])[1] if ranked else None
        robust = (TableCell(best.label), accuracy(best, attack, view)) if best else (MISSING, MISSING)
        for machine, records in _by_machine(of_student).items():
            sizes = (_median(records, size) for size in SIZES)
            cells = (TableCell(student), *([TableCell(machine)] if several else []), *sizes, *robust)
            rows.append(Row(cells, about=about(student=student)))
    columns = (
        Column("Student", numeric=False),
        *([Column("On", numeric=False)] if several else []),
        *(Column(size.title) for size in SIZES),
        Column("Most robust", numeric=False),
        *([Column(heading(attack))] if attack else [Column("Accuracy")]),
    )
    done = [record for run in runs for record in run.done]
    where = "" if several else f", on {machines[0]}"
    caption = (
        f"What students take where they are used, on {dataset}. Multiply-adds: of one image's forward pass, in "
        "convolutions and matrix products. Size: of float32 weights and buffers. Latency: of one image, in evaluation "
        f"mode, as the network is trained here{where}; the median over networks of each one's median. Most "
        f"robust: the method with the highest accuracy (%) under {heading(attack)}. {captions.versions(done)}"
    )
    notes = ("Latencies compare only where nothing else ran on the machine.",)
    return [Table(slug("footprint", dataset), f"Size and latency, {dataset}", caption, columns, tuple(rows), notes)]


@by_setting
def plots(runs: Sequence[Run]) -> list[Plot]:
    """Robust accuracy against each size; one figure, where students of several sizes were run."""
    dataset, attack = runs[0].dataset, strongest(runs, attacks_of(runs))
    judged = [run for run in runs if run.estimate(attack)]
    if len({run.student for run in judged}) < 2:
        return []
    labels = labels_of(runs)
    lines: dict[tuple[str, str | None], list[Run]] = defaultdict(list)
    for run in judged:
        lines[run.label, run.teacher].append(run)
    panels = [
        Panel(
            Axis(size.title, log=True),
            Axis(f"{heading(attack)} accuracy (%)" if size is SIZES[0] else ""),
            tuple(_series(members, attack, size, labels) for members in lines.values()),
        )
        for size in SIZES
    ]
    words = "; ".join(
        f"{captions.name(run)} on {run.student}: {found.mean:.1f}" for run in judged if (found := run.estimate(attack))
    )
    return [
        Plot.of_chart(
            slug("footprint", dataset),
            f"Robustness against size and latency, {dataset}",
            f"{heading(attack)} accuracy on {dataset} against what students take where they are used (log scales). "
            f"{bars_are(judged)}. Latency: of one image, on the machine that judged it.",
            f"Accuracy in percent. {words}.",
            Chart(tuple(panels)),
            about(dataset=dataset),
            inches=(9.0, 4.2),
            legend="below",
        )
    ]


def _series(members: Sequence[Run], attack: str, size: Size, labels: Sequence[str]) -> Series:
    """One method and teacher over its students, the smallest first."""
    label = members[0].label
    known = [(statistics.median(values), run) for run in members if (values := _values(_measured(run), size))]
    points = [point(x, run, attack, run.student) for x, run in sorted(known, key=lambda each: each[0])]
    return Series(label, labels.index(label), tuple(points))


def _measured(run: Run) -> list[tuple[Record, Footprint]]:
    return [(record, footprint) for record in run.done if (footprint := record.network.footprint)]


def _by_machine(runs: Sequence[Run]) -> dict[str, list[tuple[Record, Footprint]]]:
    """What was measured, by device and threads."""
    machines: dict[str, list[tuple[Record, Footprint]]] = defaultdict(list)
    for run in runs:
        for record, footprint in _measured(run):
            made = record.provenance
            machines[f"{made.device}, {made.processor}" if made.processor else made.device].append((record, footprint))
    return machines


def _values(measured: Sequence[tuple[Record, Footprint]], size: Size) -> list[float]:
    return [value for each in measured if (value := size.of(*each))]


def _median(measured: Sequence[tuple[Record, Footprint]], size: Size) -> TableCell:
    if not (values := _values(measured, size)):
        return MISSING
    apart = (("least", f"{min(values):.3g}"), ("most", f"{max(values):.3g}")) if min(values) < max(values) else ()
    return TableCell(f"{statistics.median(values):.3g}", details=(("networks", str(len(values))), *apart))
