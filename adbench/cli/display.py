"""What a person sees while cells run: live bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import csv
import io
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import fields, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

from adbench.system import terminal
from adbench.system.terminal import duration, percent

if TYPE_CHECKING:
    from adbench.execution.cost import Cost
    from adbench.execution.runner import MatrixState
    from adbench.experiment.cell import Cell
    from adbench.results.record import Record


FIGURES = 0.35
"""The share of a progress line that its figures have at least."""
ENOUGH = 0.05
"""The share of the work after which the time left is told by the time that it took."""


def console() -> Console:
    """Standard output; where it is no terminal (and COLUMNS is not set), lines may be 200 characters wide."""
    return Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 200)


class Display:
    """Hears what happens to cells and shows it; use as a context manager around a run.

    total: the cells; of several, a line stands above theirs. expected: seconds that each is thought to take, by its id.
    """

    def __init__(
        self, console: Console, total: int, expected: Mapping[str, float] | None = None, at_a_time: int = 1
    ) -> None:
        self.console = console
        self.total = total
        self.done = 0
        self._all = Overall(total, expected or {}, at_a_time)
        self._began: dict[str, float] = {}
        self._tasks: dict[str, TaskID] = {}
        self._accuracy: dict[str, list[str]] = {}
        self._bar = 20 if console.width >= 100 else 10
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=self._bar),
            TextColumn("{task.fields[figures]}", markup=False),
            console=console,
            transient=True,
        )
        self._line = self._progress.add_task(self._all.says, total=1, figures="") if total > 1 else None

    def __enter__(self) -> Display:
        if self.console.is_terminal:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console.is_terminal:
            self._progress.stop()

    def __call__(self, cell: Cell, event: dict[str, Any]) -> None:
        getattr(self, f"_on_{event['what']}")(cell, event)
        if self._line is not None:
            self._all.hear(cell, event)
            share = self._all.share
            figures = self._fitting([f"about {duration(self._all.left)} left"] if share else [""])
            self._progress.update(self._line, description=self._all.says, completed=share, figures=figures)

    def _on_start(self, cell: Cell, _: dict[str, Any]) -> None:
        self._began.setdefault(cell.id, time.monotonic())
        name = _cut(terminal.plain(str(cell)), round((1 - FIGURES) * self.console.width) - self._bar - 2)
        self._tasks[cell.id] = self._progress.add_task(name, total=cell.train.epochs, figures="preparing")

    def _on_batch(self, cell: Cell, event: dict[str, Any]) -> None:
        self._progress.update(self._tasks[cell.id], completed=event["epoch"] + event["batch"] / event["of"])

    def _on_epoch(self, cell: Cell, event: dict[str, Any]) -> None:
        if event["val_robust"] is not None:
            shown = [f"robust {percent(event['val_robust'])}", f"natural {percent(event['val_clean'])}"]
            self._accuracy[cell.id] = shown
        left = duration(event["seconds"] * (cell.train.epochs - event["epoch"]))
        rest = [f"loss {event['loss']:.3f}", f"{event['images_per_second']:.0f} images/s"]
        figures = self._fitting([f"{left} left", *self._accuracy.get(cell.id, []), *rest])
        self._progress.update(self._tasks[cell.id], completed=event["epoch"], figures=figures)

    def _on_attack(self, cell: Cell, event: dict[str, Any]) -> None:
        figures = self._fitting([f"{percent(event['value'])} {event['name']}"])
        self._progress.update(self._tasks[cell.id], completed=cell.train.epochs, figures=figures)

    def _fitting(self, figures: list[str]) -> str:
        """As many figures, the most telling first, as the line holds beside name and bar; the first in any case."""
        longest = max((cell_len(task.description) for task in self._progress.tasks), default=0)
        room = self.console.width - self._bar - longest - 2
        shown = _cut(figures[0], room)
        for figure in figures[1:]:
            if cell_len(f"{shown}  {figure}") > room:
                break
            shown += f"  {figure}"
        return shown

    def _on_again(self, cell: Cell, event: dict[str, Any]) -> None:
        if cell.id in self._tasks:
            self._progress.remove_task(self._tasks.pop(cell.id))
        message = f"{_escaped(str(cell))}: {_escaped(event['why'])}; it goes on in another"
        self.console.print(message, highlight=False, soft_wrap=True)

    def _on_note(self, cell: Cell, event: dict[str, Any]) -> None:
        self.console.print(f"{_escaped(str(cell))}: {_escaped(event['says'])}", highlight=False, soft_wrap=True)

    def _on_end(self, cell: Cell, event: dict[str, Any]) -> None:
        self.done += 1
        if cell.id in self._tasks:
            self._progress.remove_task(self._tasks.pop(cell.id))
        begun = self._began.get(cell.id)
        took = "by another run" if begun is None else duration(time.monotonic() - begun)
        record = event["record"]
        if record["status"] == "failed":
            reason = " ".join(record["error"]["message"].split())
            result = f"[red]failed[/] in {record['error']['phase']}: {_escaped(reason)}"
        else:
            result = "  ".join(
                f"{name} {percent(metric['value'])}"
                for name, metric in record["metrics"].items()
                if not name.startswith("transfer:")
            )
        line = f"[{self.done}/{self.total}] {_escaped(str(cell))}: {result}  ({took})"
        self.console.print(line, highlight=False, soft_wrap=True)


class Overall:
    """How far all cells are, and how long the rest will take: by what each is expected to take, and what they took."""

    def __init__(self, total: int, expected: Mapping[str, float], at_a_time: int) -> None:
        self.total, self.at_a_time = total, max(1, at_a_time)
        self.expected = {cell: max(seconds, 1e-3) for cell, seconds in expected.items()}
        self.done: set[str] = set()
        self.begun = time.monotonic()
        self._first: dict[str, float] = {}
        self._parts: dict[str, float] = {}

    def hear(self, cell: Cell, event: dict[str, Any]) -> None:
        """Take in an event of a cell."""
        if event["what"] == "end":
            self.done.add(cell.id)
            self._parts[cell.id] = 1.0
        elif event["what"] in ("batch", "epoch"):
            epochs = event["epoch"] + (event["batch"] / event["of"] if event["what"] == "batch" else 0)
            at = epochs / cell.train.epochs
            first = self._first.setdefault(cell.id, at)  # of a training that goes on, what is left of it counts
            self._parts[cell.id] = (at - first) / (1 - first) if first < 1 else 0.0

    @property
    def says(self) -> str:
        return f"all: {len(self.done)} of {self.total} cells"

    @property
    def share(self) -> float:
        """Of all that was to be done when it began, 0 to 1."""
        weights = self._weights()
        worked = sum(weights[cell] * part for cell, part in self._parts.items() if cell in weights)
        return min(worked / sum(weights.values()), 1.0)

    @property
    def left(self) -> float:
        """Seconds: in proportion to those that it took so far, and as expected until there is something to go by."""
        share = self.share
        if share < ENOUGH and self.expected:
            return (1 - share) * sum(self.expected.values()) / self.at_a_time
        return (time.monotonic() - self.begun) * (1 - share) / max(share, 1e-9)

    def _weights(self) -> dict[str, float]:
        """What each cell counts for; alike where nobody expected anything."""
        known = self.expected or dict.fromkeys(self._parts, 1.0)
        unheard = self.total - len(known)
        mean = sum(known.values()) / max(len(known), 1)
        return known | {f"unheard {i}": mean or 1.0 for i in range(unheard)}


def _cut(text: str, width: int) -> str:
    """A text of at most so many columns, in the middle of which the rest is left out."""
    if cell_len(text) <= width:
        return text
    head, tail = text, text
    while cell_len(head) > (width - 1) // 2:
        head = head[:-1]
    while cell_len(tail) > width - 1 - cell_len(head):
        tail = tail[1:]
    return f"{head}…{tail}"


def _escaped(text: str) -> str:
    """A text for rich: no markup of its own, and nothing that moves the cursor."""
    return terminal.plain(text).replace("[", r"\[")


def plan_table(plan: MatrixState, costs: Mapping[str, Cost], width: int = 200) -> Table:
    """The plan as a table: every cell, where it stands, what it costs and what is expected of it.

    Where `width` characters do not hold it, it goes without the counts, which `adbench cost` gives.
    """
    whole = _plan_table(plan, costs, counted=True)
    fits = Console(width=1000).measure(whole).maximum <= width
    return whole if fits else _plan_table(plan, costs, counted=False)


def _plan_table(plan: MatrixState, costs: Mapping[str, Cost], *, counted: bool) -> Table:
    # Recipes may give methods epochs of their own.
    uneven = len({cell.train.epochs for cell in plan.matrix.students}) > 1
    table = _table(
        ("dataset", "method", "student", "teacher", "seed", "state"),
        (*(("passes", "GMAC", "floor") if counted else ()), "expected", *(("epochs",) if uneven else ())),
    )
    for cell in plan.matrix.cells:
        state, cost = plan.states[cell.id], costs[cell.id]
        expected = "" if state == "done" else duration(cost.seconds)
        table.add_row(
            _escaped(cell.dataset),
            _role(cell),
            cell.architecture,
            _teacher(cell),
            str(cell.seed),
            state,
            *(_counts(cost) if counted else ()),
            expected,
            *([str(cell.train.epochs) if cell.method else "-"] if uneven else []),
        )
    return table


def _table(left: tuple[str, ...], right: tuple[str, ...]) -> Table:
    """An empty table of columns to the left and to the right; what a narrow terminal cannot hold is folded, not cut."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in left:
        table.add_column(heading, overflow="fold")
    for heading in right:
        table.add_column(heading, justify="right", overflow="fold")
    return table


def cost_table(plan: MatrixState, costs: Mapping[str, Cost]) -> Table:
    """What each network costs, its seeds in one row."""
    table = _table(
        ("dataset", "method", "student", "teacher"), ("seeds", "epochs", "passes", "GMAC", "floor", "each", "all seeds")
    )
    for cell, count in _over_seeds(plan):
        cost = costs[cell.id]
        table.add_row(
            _escaped(cell.dataset),
            _role(cell),
            cell.architecture,
            _teacher(cell),
            str(count),
            str(cell.train.epochs) if cell.method else "-",
            *_counts(cost),
            duration(cost.seconds),
            duration(count * cost.seconds),
        )
    return table


def cost_csv(plan: MatrixState, costs: Mapping[str, Cost]) -> str:
    """The same for machines: passes by kind, multiply-adds a training image and epoch, seconds."""
    from adbench.training.method import Passes  # comes with torch, which the rest of this module does without

    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    kinds = [field.name for field in fields(Passes)]
    head = ["dataset", "kind", "method", "student", "teacher", "seeds", "epochs", *kinds]
    writer.writerow([*head, "multiply_adds", "floor_seconds", "seconds"])
    for cell, count in _over_seeds(plan):
        cost = costs[cell.id]
        passes = [getattr(cost.passes, kind) for kind in kinds] if cost.passes else [0] * len(kinds)
        names = [cell.dataset, cell.kind, cell.shown, cell.architecture, cell.teacher.shown if cell.teacher else ""]
        epochs = cell.train.epochs if cell.method else 0
        writer.writerow([*names, count, epochs, *passes, cost.multiply_adds, cost.floor, cost.seconds])
    return out.getvalue()


def _over_seeds(plan: MatrixState) -> list[tuple[Cell, int]]:
    """Of cells that differ in their seed alone, the first one and how many there are."""
    alike: dict[str, list[Cell]] = {}
    for cell in plan.matrix.cells:
        alike.setdefault(replace(cell, seed=0).id if cell.kind == "student" else cell.id, []).append(cell)
    return [(cells[0], len(cells)) for cells in alike.values()]


def _role(cell: Cell) -> str:
    return f"(teacher) {cell.shown}" if cell.kind == "teacher" else f"{cell.name} {cell.told}".rstrip()


def _teacher(cell: Cell) -> str:
    return cell.teacher.shown if cell.teacher else "-"


def _counts(cost: Cost) -> tuple[str, str, str]:
    """Passes and multiply-adds (in thousand millions) of one image and epoch, and the floor of the training."""
    if cost.passes is None:
        return "-", "-", "-"
    return f"{cost.passes.total:.4g}", f"{cost.multiply_adds / 1e9:.3g}", duration(cost.floor)


def _seed(record: Record) -> str:
    return "-" if record.seed is None else str(record.seed)


def summary_table(records: list[Record]) -> Table:
    """What a run ended with: a row a cell, a column an attack, in percent."""
    names = list(dict.fromkeys(n for r in records for n in r.metrics if not n.startswith("transfer:")))
    table = _table(("dataset", "network", "student", "teacher", "seed"), tuple(names))
    for r in records:
        who = (_escaped(r.dataset), _escaped(r.label), r.student, r.teacher or "-", _seed(r))
        if not r.done:
            figures = ["[red]failed[/]"] + [""] * (len(names) - 1)
        else:
            figures = [percent(r.metrics[n].value) if n in r.metrics else "-" for n in names]
        table.add_row(*who, *figures)
    return table
