"""The cost of each method: time on the machine that ran it, and passes, which are the same on every machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

from adbench.report import captions
from adbench.report.families import arranged, families
from adbench.report.model import MISSING, Column, Row, Table, TableCell, about
from adbench.report.tables.robustness import mean
from adbench.report.view import View
from adbench.results.fields import Training
from adbench.results.record import Record
from adbench.results.runs import Run, slug

KINDS = {
    "student": "student, forward and backward",
    "student_forward": "student, forward",
    "teacher": "teacher, forward and backward",
    "teacher_forward": "teacher, forward",
    "natural_forward": "natural teacher, forward",
    "own": "network of its own, forward or backward",
}
"""Kinds of pass in a record, in words."""

HOUR = 3600


def on_gpu(records: Sequence[Record]) -> bool:
    """Whether all trained on a GPU."""
    return all(not record.provenance.device.upper().startswith("CPU") for record in records)


def passes(record: Record) -> float | None:
    """Forward and backward passes an image over the whole training, each counting one; None where none are recorded."""
    training = record.training
    return training.passes["total"] * training.epochs if training and training.passes else None


def tables(runs: Sequence[Run], view: View) -> list[Table]:
    """One table a data set: time, speed, passes, memory; means over seeds."""
    by_dataset = [list(members) for _, members in groupby(runs, key=lambda run: run.dataset)]
    trained = [[record for run in members for record in run.done if record.training] for members in by_dataset]
    return [_table(members, done, view) for members, done in zip(by_dataset, trained, strict=True) if done]


def _table(runs: Sequence[Run], done: Sequence[Record], view: View) -> Table:
    dataset = runs[0].dataset
    long = max(record.training.seconds for record in done if record.training) >= HOUR
    unit, scale = ("h", HOUR) if long else ("s", 1)
    training = ("GPU-hours" if unit == "h" else "GPU seconds") if on_gpu(done) else f"Time ({unit})"
    columns = (
        Column("Method", numeric=False),
        Column("Teacher", numeric=False),
        Column("Parameters (M)"),
        Column(training, "Training"),
        Column("Images/s", "Training"),
        Column("Peak memory (MiB)", "Training"),
        Column("An iteration", "Passes"),
        Column("An image, in all", "Passes"),
        Column("Evaluation (s)"),
    )

    def of_training(read: Callable[[Training], float]) -> Callable[[Record], float | None]:
        return lambda record: read(record.training) if record.training else None

    rows, told = [], families(runs)
    for run in runs:
        measured = (
            mean(run, lambda r: r.network.parameters / 1e6, ".3g"),
            mean(run, of_training(lambda t: t.seconds / scale), ".2f" if long else ".1f"),
            mean(run, of_training(lambda t: t.images_per_second), ".0f"),
            mean(run, of_training(lambda t: t.peak_memory_bytes / 2**20), ".0f"),
            _iteration(run),
            mean(run, passes, ".0f"),
            mean(run, lambda r: r.timing.get("evaluate"), ".1f"),
        )
        teacher = TableCell(run.teacher) if run.teacher else MISSING
        facets = about(student=run.student, teacher=run.teacher, method=run.label)
        cells = (TableCell(run.label, records=view.where([run])), teacher, *measured)
        rows.append(Row(cells, f"Student {run.student}", facets, told[id(run)]))
    devices = captions.listed(sorted({r.provenance.device for r in done}), "or")
    caption = (
        f"What training and evaluating each method on {dataset} cost on {devices}; means over seeds. Images/s counts "
        "training images, with the attack on each included. Passes: forward and backward passes of any network, each "
        "counting one, as the method declares them for the recipe's attack steps; they are the same on every machine. "
        f"{captions.checkpoints(done)} {captions.versions(done)}"
    )
    notes = ("Times compare methods only where nothing else ran on the machine.",)
    return Table(
        slug("costs", dataset),
        f"Costs, {dataset}",
        caption,
        columns,
        tuple(arranged(rows)),
        notes,
        about(dataset=dataset),
    )


def _iteration(run: Run) -> TableCell:
    """Passes of one iteration; which, on asking."""
    iteration = next((r.training.passes for r in run.done if r.training and r.training.passes), None)
    if iteration is None:
        return mean(run, passes, "")
    kinds = tuple((words, f"{iteration[kind]:g}") for kind, words in KINDS.items() if kind in iteration)
    return TableCell(f"{iteration['total']:g}", details=kinds)
