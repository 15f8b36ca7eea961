"""Accuracy class by class: an average over classes hides those that an attacker may choose."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from adbench.data.sources import CIFAR10_CLASSES, CIFAR100_CLASSES
from adbench.report import captions
from adbench.report.families import arranged, families
from adbench.report.figures import heat
from adbench.report.figures.chart import Axis, Chart, Panel, Point, Series
from adbench.report.figures.plot import NARROWEST, Plot, labels_of
from adbench.report.model import MISSING, Column, Row, Table, TableCell, about
from adbench.report.parts import Setup, by_place, by_setting
from adbench.results.runs import CI, Estimate, Run, attacks_of, heading, natural, slug, strongest
from adbench.results.stats import student_t_of, wilson

EVERY = 10
"""Up to so many classes, each has a column of its own."""

WIDEST = 2.5
"""Inches beside a heat map for the names of its rows."""

MOST_PICTURES = 12
"""Heat maps beyond these would say in pictures what the table says."""

NAMES = {"cifar10": CIFAR10_CLASSES, "cifar100": CIFAR100_CLASSES}


def contents(runs: Sequence[Run], spread: str = CI) -> tuple[tuple[Table, ...], tuple[Plot, ...]]:
    """Tables and figures, of the methods whose records tell."""
    return tuple(tables(runs, spread)), tuple(figures(runs))


@by_setting
def tables(runs: Sequence[Run], spread: str = CI) -> list[Table]:
    """One table a data set with its worst classes, of the methods whose records tell; none where none does."""
    counted = [run for run in runs if any(_has(run, metric) for metric in attacks_of([run]))]
    return [_table(counted, spread)] if counted else []


@by_setting
def figures(runs: Sequence[Run]) -> list[Plot]:
    """Accuracy of each class under the strongest attack, one figure a data set, student and teacher.

    A heat map of up to ten classes (not many of these: the table has all); of more a line a method, over its classes
    from the weakest to the strongest.
    """
    labels = labels_of(runs)
    plots: list[Plot] = []
    for members in by_place(runs):
        attack = strongest(members, _told(members))
        shown = [(run, values) for run in members if attack and any(values := _by_class(run, attack))]
        if not shown:
            continue
        place, names = Setup.of([run for run, _ in shown]), _names(members, max(len(values) for _, values in shown))
        label, title = place.label("classes"), f"Accuracy by class, {place}"
        spans = "; ".join(
            f"{run.label}: {min(means):.1f} to {max(means):.1f}"
            for run, values in shown
            if (means := [value.mean for value in values if value])
        )
        alt = f"{heading(attack)} accuracy of the weakest and the strongest class in percent. {spans}."
        caption = f"{heading(attack)} accuracy (%) of each class on {place}; means over seeds"
        if len(names) > EVERY:
            caption = f"{caption}, each method's classes in an order of their own."
            series = tuple(
                Series(run.label, labels.index(run.label), _sorted(values, names[: len(values)]))
                for run, values in shown
            )
            axes = Axis("Classes, the weakest first"), Axis(f"{heading(attack)} accuracy (%)")
            plots.append(Plot.of_chart(label, title, caption, alt, Chart((Panel(*axes, series),)), place.about))
        elif sum(plot.data is None for plot in plots) < MOST_PICTURES:
            draw, inches = _heat_map(shown, names)
            plots.append(Plot(label, title, f"{caption}. Dark: accurate.", alt, draw, inches, about=place.about))
    return plots


def _sorted(values: Sequence[Estimate | None], names: Sequence[str]) -> tuple[Point, ...]:
    ordered = sorted((value.mean, label) for label, value in enumerate(values) if value)
    return tuple(Point(rank, mean, note=names[label]) for rank, (mean, label) in enumerate(ordered, start=1))


def _heat_map(
    accuracies: Sequence[tuple[Run, Sequence[Estimate | None]]], names: Sequence[str]
) -> tuple[Callable[[Figure], None], tuple[float, float]]:
    """How to draw a row a run and a column a class, and how large."""
    # A class without test images is as pale as can be, and has no number.
    rows = [[value.mean if value else math.nan for value in values] for _, values in accuracies]
    numbers = np.array([row + [math.nan] * (len(names) - len(row)) for row in rows])
    labels = [heat.fitted(run.label, WIDEST) for run, _ in accuracies]
    left = max(map(heat.width, labels)) + 0.25
    height = 0.3 * len(accuracies) + 0.75
    scale = Normalize(float(np.nanmin(numbers)), max(float(np.nanmax(numbers)), float(np.nanmin(numbers)) + 1))

    def draw(figure: Figure) -> None:
        figure.set_layout_engine("none")
        wide = NARROWEST - left - 0.1
        axes = figure.add_axes((left / NARROWEST, 0.1 / height, wide / NARROWEST, (height - 0.75) / height))
        heat.cells(axes, numbers, scale)
        axes.xaxis.tick_top()
        axes.set_xticks(
            range(len(names)),
            [heat.fitted(name, 0.8) for name in names],
            rotation=30,
            ha="left",
            rotation_mode="anchor",
            fontsize=heat.FONT,
        )
        axes.set_yticks(range(len(accuracies)), labels, fontsize=heat.FONT)
        axes.tick_params(length=0, pad=4)

    return draw, (NARROWEST, height)


def _names(runs: Sequence[Run], classes: int) -> list[str]:
    """Of each label: the class's name in the records, or in the data set as published, or its number."""
    recorded = (r.data.class_names for run in runs for r in run.done if r.data)
    names = next(filter(None, recorded), NAMES.get(runs[0].dataset, ()))
    return [names[label] if label < len(names) else str(label) for label in range(classes)]


def _table(runs: Sequence[Run], spread: str) -> Table:
    dataset = runs[0].dataset
    hardest = strongest(runs, _told(runs))
    metrics = [m for m in dict.fromkeys(("clean", "pgd20", hardest)) if m and any(_has(run, m) for run in runs)]
    classes = max(len(_by_class(run, metric)) for run in runs for metric in attacks_of([run]))
    labels = _names(runs, classes)
    every = range(classes) if hardest and classes <= EVERY else range(0)
    columns = [Column("Method", numeric=False)]
    for metric in metrics:
        group = f"Worst class, {heading(metric)}"
        columns += [Column("Class", group, numeric=False), Column("Accuracy", group), Column("95%", group)]
    columns += [Column(labels[label], f"Each class, {heading(hardest)}") for label in every]
    rows, told = [], families(runs)
    students = list(dict.fromkeys(run.student for run in runs))
    for run in sorted(runs, key=lambda run: (students.index(run.student), natural(run.teacher or ""))):
        cells = [cell for metric in metrics for cell in _worst(run, metric, labels, spread)]
        values = _by_class(run, hardest) if every else []
        cells += [_printed(values[label] if label < len(values) else None, spread) for label in every]
        block = f"Student {captions.taught(run.student, run.teacher)}"
        facets = about(student=run.student, teacher=run.teacher, method=run.label)
        rows.append(Row((TableCell(run.label), *cells), block, facets, told[id(run)]))
    done = [record for run in runs for record in run.done]
    caption = (
        f"Accuracy by class on {dataset} (%): the class with the lowest"
        + (f", and each class under {heading(hardest)}" if every else "")
        + ". The 95% interval is Wilson's over that class's test images for a single seed, and Student's t over seeds "
        "for several (of two seeds, their range); it does not allow for the class having been chosen for its accuracy. "
        f"{captions.seeds(runs, spread)} {captions.images(done, metrics)} {captions.attacks(done, metrics)} "
        f"{captions.versions(done)}"
    )
    title = f"Accuracy by class, {dataset}"
    return Table(
        slug("classes", dataset), title, caption, tuple(columns), tuple(arranged(rows)), about=about(dataset=dataset)
    )


def _told(runs: Sequence[Run]) -> list[str]:
    """The attacks under which some run tells its classes apart."""
    return [metric for metric in attacks_of(runs) if any(_has(run, metric) for run in runs)]


def _has(run: Run, metric: str) -> bool:
    return any(judged.per_class is not None for judged in run.metrics(metric))


def _counts(run: Run, metric: str) -> list[NDArray[Any]]:
    """Of every seed that tells, correct and n by class: (classes, 2)."""
    return [np.asarray(judged.per_class) for judged in run.metrics(metric) if judged.per_class is not None]


def _by_class(run: Run, metric: str) -> list[Estimate | None]:
    """Each class's accuracy in percent over seeds; None where none of its images was attacked."""
    seeds = _counts(run, metric)
    classes = max(map(len, seeds), default=0)
    if not classes:
        return []
    padded = np.zeros((len(seeds), classes, 2))
    for row, counts in zip(padded, seeds, strict=True):
        row[: len(counts)] = counts
    correct, n = padded[..., 0], padded[..., 1]
    shares = np.divide(100 * correct, n, out=np.full_like(n, np.nan), where=n > 0)
    if np.isnan(shares).any():
        measured = ([share for share in column if not math.isnan(share)] for column in shares.T.tolist())
        return [Estimate.over(each) if each else None for each in measured]
    means, halves = student_t_of(shares)
    stds = shares.std(axis=0, ddof=1) if len(shares) > 1 else np.full_like(means, np.nan)
    of_classes = zip(means.tolist(), halves.tolist(), stds.tolist(), strict=True)
    return [Estimate(*each, len(shares)) for each in of_classes]


def _worst(run: Run, metric: str, labels: Sequence[str], spread: str) -> tuple[TableCell, TableCell, TableCell]:
    """The class of lowest mean accuracy, the first of equal ones: its name, its accuracy, its interval."""
    estimates = {label: value for label, value in enumerate(_by_class(run, metric)) if value}
    if not estimates:
        return MISSING, MISSING, MISSING
    label = min(estimates, key=lambda label: estimates[label].mean)
    estimate = estimates[label]
    if estimate.seeds == 1:
        correct, n = next(c[label] for c in _counts(run, metric) if label < len(c) and c[label][1])
        low, high = (100 * bound for bound in wilson(int(correct), int(n)))
    else:
        low, high = estimate.reach()
        low, high = max(0.0, low), min(100.0, high)
    return TableCell(labels[label]), _printed(estimate, spread), TableCell(f"{low:.1f} to {high:.1f}")


def _printed(estimate: Estimate | None, spread: str) -> TableCell:
    if estimate is None:
        return MISSING
    over_seeds = estimate.spread(spread)
    return TableCell(f"{estimate.mean:.1f}", f"{over_seeds.value:.1f}" if over_seeds.name else "", over_seeds.name)
