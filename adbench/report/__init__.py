"""`adbench report`: records in, the paper's tables and figures out. Needs no torch.

records --> runs.py --> tables.py, paper.py --> Table --> render.py --> HTML, LaTeX, Markdown, CSV
           (over seeds)           figures.py --> Plot --------------> SVG, PNG, PDF
what `adbench cross` and `adbench cam` left beside the records --> cross.py, attribution.py --> Table, Plot
"""

from __future__ import annotations

from pathlib import Path

from adbench.errors import UserError
from adbench.files import write_atomic, write_text
from adbench.record import Record, read_all
from adbench.report import attribution, classes, cross, figures, masking, page, paper, render, tables, teachers
from adbench.report.model import Table
from adbench.report.page import Section
from adbench.report.runs import collect

__all__ = ["write"]


def write(results: Path, out: Path) -> list[Path]:
    """Write the report on all records below `results` into `out`; returns the files written.

    index.html (self-contained), report.md, report.tex with tables/*.tex and figures/*.pdf, tables/*.csv,
    figures/*.png. The bytes depend on the records alone. Raises UserError when no record is finished.
    """
    records = list(read_all(results))
    if not any(record.done for record in records):
        raise UserError(_nothing_finished(records, results))
    head = page.overview(records, results)
    sections, cells = _contents(records, results)
    written = []

    def text(name: str, content: str) -> None:
        write_text(out / name, content)
        written.append(out / name)

    def binary(name: str, content: bytes) -> None:
        def fill(path: Path) -> None:
            path.write_bytes(content)

        write_atomic(out / name, fill)
        written.append(out / name)

    for table in (*(table for section in sections for table in section.tables), cells):
        text(f"tables/{table.label}.tex", render.latex(table))
        text(f"tables/{table.label}.csv", render.csv(table))
    for plot in (plot for section in sections for plot in section.plots):
        binary(f"figures/{plot.label}.png", plot.render("png"))
        binary(f"figures/{plot.label}.pdf", plot.render("pdf"))
    text("report.tex", page.latex(head, sections, cells))
    text("report.md", page.markdown(head, sections, cells))
    # Last, so that whoever sees a new page sees a whole report.
    text("index.html", page.html(head, sections, cells))
    return written


def _contents(records: list[Record], results: Path) -> tuple[list[Section], Table]:
    students, others = collect(records, "student"), collect(records, "checkpoint")
    networks = collect(teachers.shown(records), "teacher")
    used = {r.path for run in (*students, *networks, *others) for r in (*run.done, *run.failed)}
    sections = [
        Section("white-box", "White-box robustness", tuple(tables.white_box(students, records))),
        Section("black-box", "Black-box transfer", tuple(tables.transfer(students, records))),
        Section("cross-transfer", "Cross-transfer", *cross.contents(results, records)),
        Section(
            "teachers",
            "Teachers",
            tuple(tables.teachers(networks)),
            tuple(figures.teacher_student(students, records)),
        ),
        Section("masking", "Gradient masking", tuple(masking.table((*students, *networks, *others)))),
        Section("classes", "Accuracy by class", tuple(classes.tables(students))),
        Section("ablation", "Ablation", (), tuple(figures.ablation(students))),
        Section("attribution", "Attribution maps", *attribution.contents(results, records)),
        Section("checkpoints", "Other networks", tuple(tables.checkpoints(others))),
        Section("paper", "Against the paper", tuple(paper.comparison(students, networks))),
        Section("training", "Training", tuple(tables.costs(students)), tuple(figures.curves(students))),
    ]
    return [s for s in sections if s.tables or s.plots], tables.cells(records, results, used)


def _nothing_finished(records: list[Record], results: Path) -> str:
    if not records:
        return f"no record below '{results}'; `adbench run` writes them"
    first = (records[0]["error"] or {}).get("message", "no reason recorded")
    return f"all {len(records)} cells below '{results}' failed, the first with: {first}"
