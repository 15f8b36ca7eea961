"""`adbench report`: records in, the paper's tables and figures out. Needs no torch.

records --> runs.py --> tables.py, paper.py --> Table --> render.py --> HTML, LaTeX, Markdown, CSV, Parquet
           (over seeds)           figures.py --> Plot --------------> SVG, PNG, PDF
what `adbench cross` and `adbench cam` left beside the records --> cross.py, attribution.py --> Table, Plot
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from adbench.errors import UserError
from adbench.files import write_atomic, write_text
from adbench.record import Record
from adbench.report import (
    attribution,
    classes,
    costs,
    cross,
    figures,
    flat,
    logs,
    masking,
    objectives,
    page,
    paper,
    reading,
    render,
    tables,
    teachers,
    versus,
)
from adbench.report.model import Table
from adbench.report.page import Section
from adbench.report.plot import Plot
from adbench.report.runs import Run, collect
from adbench.report.view import View
from adbench.report.workers import mapped

__all__ = ["FORMATS", "write"]

FORMATS = ("html", "latex", "markdown", "csv", "parquet", "figures")


def write(
    results: Path, out: Path, *, formats: Sequence[str] = FORMATS, columns: Sequence[str] = (),
    group_by: str = "student", against: str | None = None,
) -> list[Path]:  # fmt: skip
    """Write the report on all records below `results` into `out`; returns the files written.

    formats: html is index.html (self-contained); latex report.tex with tables/*.tex and figures/*.pdf; markdown
    report.md with figures/*.png; csv tables/*.csv and data/*.csv; parquet data/*.parquet; figures figures/*.png, *.pdf
    and *.svg. columns, group_by, against: see `View`. The bytes depend on the records alone. Raises UserError when no
    record is finished, and for a column or method that none has.
    """
    records = reading.records(results)
    if not any(record.done for record in records):
        raise UserError(_nothing_finished(records, results))
    view = View(results, records, tuple(columns), group_by, against)
    view.check()
    sections, cells = contents(view)
    writer = _Writer(out)
    everything = [*(table for section in sections for table in section.tables), cells]
    if "latex" in formats:
        writer.texts((f"tables/{table.label}.tex", render.latex(table)) for table in everything)
    if "csv" in formats:
        writer.texts((f"tables/{table.label}.csv", render.csv(table)) for table in everything)
    if "csv" in formats or "parquet" in formats:
        for name, frame in flat.frames(view, everything).items():
            if "csv" in formats:
                shown = frame.map(lambda value: render.plain(value) if isinstance(value, str) else value)
                writer.text(f"data/{name}.csv", shown.to_csv(index=False, lineterminator="\n"))
            if "parquet" in formats:
                writer.binary(f"data/{name}.parquet", flat.parquet(frame))
    printed = list(map(_on_paper, sections))
    writer.figures([plot for section in printed for plot in section.plots], _figure_forms(formats))
    if {"latex", "markdown", "html"} & set(formats):
        head = page.overview(records, results)
        if "latex" in formats:
            writer.text("report.tex", page.latex(head, printed, cells))
        if "markdown" in formats:
            writer.text("report.md", page.markdown(head, printed, cells))
        if "html" in formats:
            # Last, so that whoever sees a new page sees a whole report.
            writer.text("index.html", page.html(head, sections, cells))
    return writer.written


MOST_DRAWN = 12
"""So many figures of one kind are drawn: one for each data set, student and teacher of the paper's Tables 3 and 4."""


def _on_paper(section: Section) -> Section:
    """The section as it is printed: of each kind of figure the first ones, and how many are left out."""
    kinds = [plot.label.partition("_")[0] for plot in section.plots]
    kept = [plot for i, plot in enumerate(section.plots) if kinds[:i].count(kinds[i]) < MOST_DRAWN]
    left = len(kinds) - len(kept)
    note = f"{left} further figures are in the page (index.html) alone." if left else ""
    return replace(section, plots=tuple(kept), note=note)


def _figure_forms(formats: Sequence[str]) -> tuple[str, ...]:
    """Which files of a figure the formats need."""
    needed = {"latex": {"pdf"}, "markdown": {"png"}, "figures": {"pdf", "png", "svg"}}
    wanted = set().union(*(needed.get(form, set()) for form in formats))
    return tuple(form for form in ("png", "svg", "pdf") if form in wanted)


class _Writer:
    """Files below one folder, each whole or absent."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.written: list[Path] = []

    def text(self, name: str, content: str) -> None:
        write_text(self.out / name, content)
        self.written.append(self.out / name)

    def texts(self, files: Iterable[tuple[str, str]]) -> None:
        for name, content in files:
            self.text(name, content)

    def binary(self, name: str, content: bytes) -> None:
        write_atomic(self.out / name, partial(_fill, content))
        self.written.append(self.out / name)

    def figures(self, plots: Sequence[Plot], forms: tuple[str, ...]) -> None:
        if not forms:
            return

        def draw(plot: Plot) -> list[str]:
            names = []
            for form, content in plot.forms(forms).items():
                names.append(f"figures/{plot.label}.{form}")
                write_atomic(self.out / names[-1], partial(_fill, content))
            return names

        self.written += [self.out / name for names in mapped(draw, plots) for name in names]


def _fill(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def contents(view: View) -> tuple[list[Section], Table]:
    """All sections that there is something for, and the list of records."""
    records, results = view.records, view.results
    students, others = collect(records, "student"), collect(records, "checkpoint")
    networks = collect(teachers.shown(records), "teacher")
    judged = (*students, *networks, *others)
    used = {view.names[id(r)] for run in judged for r in (*run.done, *run.failed)}
    by_class = classes.contents(students)
    sections = [
        Section(
            "white-box", "White-box robustness", tuple(tables.white_box(students, view)), tuple(figures.radii(students))
        ),
        Section("black-box", "Black-box transfer", tuple(tables.transfer(students, view))),
        Section("compared", f"Compared with {view.against}", tuple(versus.tables(students, view))),
        Section("cross-transfer", "Cross-transfer", *cross.contents(results, records)),
        Section(
            "teachers",
            "Teachers",
            tuple(tables.teachers(networks, view)),
            tuple(figures.teacher_student(students, view)),
        ),
        Section("methods", "Methods", tuple(objectives.tables(students))),
        Section("masking", "Gradient masking", tuple(masking.table(judged))),
        Section("classes", "Accuracy by class", *by_class),
        Section("ablation", "Ablation", tuple(tables.ablation(students, view)), tuple(figures.ablation(students))),
        Section("attribution", "Attribution maps", *attribution.contents(results, records)),
        Section("checkpoints", "Other networks", tuple(tables.checkpoints(others, view))),
        Section("paper", "Against the paper", tuple(paper.comparison(students, networks, view))),
        Section("costs", "Costs", tuple(costs.tables(students, view)), tuple(figures.costly(students))),
        Section("training", "Training", (), tuple(figures.curves(students, _logs(students)))),
    ]
    return [s for s in sections if s.tables or s.plots], tables.cells(view, used)


def _logs(students: Sequence[Run]) -> list[logs.Log]:
    """Each run's log, read by all cores: there may be hundreds of thousands of lines."""
    return mapped(lambda run: logs.averaged(run.done), students)


def _nothing_finished(records: list[Record], results: Path) -> str:
    if not records:
        return f"no record below '{results}'; `adbench run` writes them"
    first = (records[0]["error"] or {}).get("message", "no reason recorded")
    return f"all {len(records)} cells below '{results}' failed, the first with: {first}"
