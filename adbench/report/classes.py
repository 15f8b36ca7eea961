"""Accuracy class by class: an average over classes hides those that an attacker may choose."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from adbench.data.sources import CIFAR10_CLASSES, CIFAR100_CLASSES
from adbench.report import captions
from adbench.report.model import MISSING, Cell, Column, Row, Table
from adbench.report.runs import Estimate, Run, attacks_of, heading, slug
from adbench.stats import student_t, wilson

EVERY = 10
"""Up to so many classes, each has a column of its own."""

NAMES = {"cifar10": CIFAR10_CLASSES, "cifar100": CIFAR100_CLASSES}


def tables(runs: Sequence[Run]) -> list[Table]:
    """One table a data set with its worst classes, of the methods whose records tell; none where none does."""
    found = []
    for dataset, members in groupby(runs, key=lambda run: run.dataset):
        counted = [run for run in members if any(_has(run, metric) for metric in attacks_of([run]))]
        if counted:
            found.append(_table(dataset, counted))
    return found


def _table(dataset: str, runs: Sequence[Run]) -> Table:
    strongest = _strongest(runs)
    metrics = [m for m in dict.fromkeys(("clean", "pgd20", strongest)) if m and any(_has(run, m) for run in runs)]
    classes = max(len(counts) for run in runs for m in attacks_of([run]) for counts in _counts(run, m))
    names = NAMES.get(dataset, ())
    labels = [names[label] if label < len(names) else str(label) for label in range(classes)]
    every = range(classes) if strongest and classes <= EVERY else range(0)
    columns = [Column("Method", numeric=False)]
    for metric in metrics:
        group = f"Worst class, {heading(metric)}"
        columns += [Column("Class", group, numeric=False), Column("Accuracy", group), Column("95%", group)]
    columns += [Column(labels[label], f"Each class, {heading(strongest)}") for label in every]
    rows = []
    for run in runs:
        cells = [cell for metric in metrics for cell in _worst(run, metric, labels)]
        cells += [_printed(_estimate(run, strongest, label)) for label in every]
        block = f"Student {run.student}" + (f" taught by {run.teacher}" if run.teacher else "")
        rows.append(Row((Cell(run.label), *cells), block))
    done = [record for run in runs for record in run.done]
    caption = (
        f"Accuracy by class on {dataset} (%): the class with the lowest"
        + (f", and each class under {heading(strongest)}" if every else "")
        + ". The 95% interval is Wilson's over that class's test images for a single seed, and Student's t over seeds "
        "for several; it does not allow for the class having been chosen for its accuracy. "
        f"{captions.seeds(runs)} {captions.attacks(done, metrics)} {captions.versions(done)}"
    )
    return Table(slug("classes", dataset), f"Accuracy by class, {dataset}", caption, tuple(columns), tuple(rows))


def _strongest(runs: Sequence[Run]) -> str:
    """AutoAttack where a run has it, else the attack with the lowest accuracy over the runs; "" without attacks."""
    attacks = [m for m in attacks_of(runs) if m != "clean" and any(_has(run, m) for run in runs)]
    if "aa" in attacks:
        return "aa"

    def accuracy(metric: str) -> float:
        return math.fsum(m["value"] for run in runs for m in run.metrics(metric)) / sum(
            len(run.metrics(metric)) for run in runs
        )

    return min(attacks, key=accuracy, default="")


def _has(run: Run, metric: str) -> bool:
    return bool(_counts(run, metric))


def _counts(run: Run, metric: str) -> list[list[tuple[int, int]]]:
    """Of every seed that tells, correct and n by class."""
    told: list[dict[str, Any]] = [found for found in run.metrics(metric) if found.get("per_class")]
    return [[(correct, n) for correct, n in found["per_class"]] for found in told]


def _shares(run: Run, metric: str, label: int) -> list[float]:
    found = [counts[label] for counts in _counts(run, metric) if label < len(counts)]
    return [100 * correct / n for correct, n in found if n]


def _estimate(run: Run, metric: str, label: int) -> Estimate | None:
    """A class's accuracy in percent over seeds; None where none of its images was attacked."""
    shares = _shares(run, metric, label)
    return Estimate(*student_t(shares)) if shares else None


def _worst(run: Run, metric: str, labels: Sequence[str]) -> tuple[Cell, Cell, Cell]:
    """The class of lowest mean accuracy, the first of equal ones: its name, its accuracy, its interval."""
    estimates = {label: e for label in range(len(labels)) if (e := _estimate(run, metric, label))}
    if not estimates:
        return MISSING, MISSING, MISSING
    label = min(estimates, key=lambda label: estimates[label].mean)
    found = estimates[label]
    if math.isnan(found.half):
        correct, n = next(c[label] for c in _counts(run, metric) if label < len(c) and c[label][1])
        low, high = (100 * bound for bound in wilson(correct, n))
    else:
        low, high = max(0.0, found.mean - found.half), min(100.0, found.mean + found.half)
    return Cell(labels[label]), _printed(found), Cell(f"{low:.1f} to {high:.1f}")


def _printed(estimate: Estimate | None) -> Cell:
    if estimate is None:
        return MISSING
    return Cell(f"{estimate.mean:.1f}", "" if math.isnan(estimate.half) else f"{estimate.half:.1f}")
