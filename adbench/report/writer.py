"""The report as files: which sections there are, and what is written in which format."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from adbench.errors import Nothing, UserError
from adbench.report import attribution, classes, cross, flat, footprints, page, reading, render
from adbench.report.figures import comparisons, training
from adbench.report.figures.plot import Plot
from adbench.report.model import Table
from adbench.report.page import Chapter
from adbench.report.tables import compared, costs, masking, methods, paper, robustness, tuned
from adbench.report.view import FORMATS, View
from adbench.report.workers import mapped
from adbench.results import teachers
from adbench.results.record import Record
from adbench.results.runs import CI, beside_last, collect
from adbench.system.files import write_bytes, write_text


def write(
    results: Path,
    out: Path,
    *,
    formats: Sequence[str] = FORMATS,
    columns: Sequence[str] = (),
    group_by: str = "student",
    against: str | None = None,
    spread: str = CI,
    left_out: Callable[[str], object] | None = None,
) -> list[Path]:
    """Write the report on all records below `results` into `out`; returns the files written.

    formats: html is index.html (self-contained); latex report.tex with tables/*.tex and figures/*.pdf; markdown
    report.md with figures/*.png; csv tables/*.csv and data/*.csv; parquet data/*.parquet; figures figures/*.png, *.pdf
    and *.svg. columns, group_by, against, spread: see `View`. left_out: hears, in a sentence each, of damaged records,
    outcomes, logs and analyses; without it such a one is a UserError. The bytes depend on the records alone. Raises
    UserError when no record is finished, and for a column or method that none has.
    """
    damaged: list[str] = []

    def hear(sentence: str) -> None:
        damaged.append(sentence)
        assert left_out is not None
        left_out(sentence)

    heard = None if left_out is None else hear
    with reading.held(results, heard) as records:
        if not any(record.done for record in records):
            raise Nothing(_nothing_finished(records, results))
        view = View(results, records, tuple(columns), group_by, against, spread, heard)
        view.check()
        sections, cells = contents(view)
        writer, printed = _Writer(out), _on_paper(sections)
        # They take longest: begun first, they are drawn while the rest is written.
        with writer.figures(sections, printed, formats) as pictures:
            head = replace(page.overview(records, results), left_out=tuple(dict.fromkeys(damaged)))
            _write_texts(writer, view, formats, head, printed, cells)
            if "html" in formats:
                # Last, so that whoever sees a new page sees a whole report.
                writer.text("index.html", page.html(head, sections, cells, pictures))
            else:
                pictures()
        return writer.written


def _write_texts(
    writer: _Writer, view: View, formats: Sequence[str], head: page.Overview, printed: Sequence[Chapter], cells: Table
) -> None:
    """All files but the figures and the page."""
    everything = [*(table for section in printed for table in section.tables), cells]
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
    if "latex" in formats:
        writer.text("report.tex", page.latex(head, printed, cells))
    if "markdown" in formats:
        writer.text("report.md", page.markdown(head, printed, cells))


MOST_DRAWN, SAMPLES = 60, 3
"""A report prints so many figures, enough for all of the paper's tables; of more it prints samples of each kind."""


def _on_paper(sections: Sequence[Chapter]) -> list[Chapter]:
    """The sections as they are printed: with all their figures, or with the first ones of each kind and a note."""
    if sum(len(section.plots) for section in sections) <= MOST_DRAWN:
        return list(sections)
    printed = []
    for section in sections:
        kinds = [plot.label.partition("_")[0] for plot in section.plots]
        samples = tuple(plot for i, plot in enumerate(section.plots) if kinds[:i].count(kinds[i]) < SAMPLES)
        left = len(kinds) - len(samples)
        note = f"{left} further figures are in the page (index.html) alone." if left else ""
        printed.append(replace(section, plots=samples, note=note))
    return printed


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
        write_bytes(self.out / name, content)
        self.written.append(self.out / name)

    @contextmanager
    def figures(
        self, sections: Sequence[Chapter], printed: Sequence[Chapter], formats: Sequence[str]
    ) -> Generator[Callable[[], page.Pictures], None, None]:
        """Begin with the files of the figures that are printed; what it gives waits for them.

        And returns every figure's pictures for the page: light and dark, or light alone where the page draws the
        figure itself, and none where it does and the figure is not printed.
        """
        needed = {"latex": {"pdf"}, "markdown": {"png"}, "figures": {"pdf", "png", "svg"}}
        files = set().union(*(needed.get(form, set()) for form in formats))
        on_paper = {plot.label for section in printed for plot in section.plots}
        plots = [plot for section in sections for plot in section.plots]

        def draw(plot: Plot) -> tuple[list[str], list[bytes]]:
            printed_as = sorted(files) if plot.label in on_paper else []
            shown = "html" in formats and (plot.label in on_paper or not plot.data)
            forms = {*printed_as, *(["svg"] if shown else [])}
            pictures_by_form = plot.forms(sorted(forms)) if forms else {}
            names = [f"figures/{plot.label}.{form}" for form in printed_as]
            for name, form in zip(names, printed_as, strict=True):
                write_bytes(self.out / name, pictures_by_form[form])
            pictures = [pictures_by_form["svg"]] if shown else []
            if shown and not plot.data:
                pictures.append(plot.render("svg", dark=True))
            return names, pictures

        with mapped(draw, plots) as drawn:

            def pictures() -> page.Pictures:
                done = drawn()
                self.written += [self.out / name for names, _ in done for name in names]
                return {plot.label: shown for plot, (_, shown) in zip(plots, done, strict=True)}

            yield pictures


def contents(view: View) -> tuple[list[Chapter], Table]:
    """All sections that there is something for, and the list of records."""
    records = view.records
    apart: dict[int, Record] = {}
    if view.beside_last:
        records, apart = beside_last(records)
    students, others = collect(records, "student", apart), collect(records, "checkpoint")
    # There may be millions of lines: all cores read them meanwhile.
    with mapped(lambda run: training.averaged(run.done), students) as read_logs:
        networks = collect(teachers.shown(records), "teacher")
        judged = (*students, *networks, *others)
        used = {view.names[id(r)] for run in judged for r in (*run.done, *run.failed, *run.last.values())}
        by_class = classes.contents(students, view.spread)
        sections = [
            Chapter(
                "white-box",
                "White-box robustness",
                tuple(robustness.white_box(students, view)),
                tuple(comparisons.radii(students)),
            ),
            Chapter("black-box", "Black-box transfer", tuple(robustness.transfer(students, view))),
            Chapter("compared", f"Compared with {view.against}", tuple(compared.tables(students, view))),
            Chapter("cross-transfer", "Cross-transfer", *cross.contents(view)),
            Chapter(
                "teachers",
                "Teachers",
                tuple(robustness.teachers(networks, view)),
                tuple(comparisons.teacher_student(students, view)),
            ),
            Chapter("methods", "Methods", tuple(methods.tables(students))),
            Chapter("masking", "Gradient masking", tuple(masking.table(judged))),
            Chapter("classes", "Accuracy by class", *by_class),
            Chapter(
                "ablation",
                "Ablation",
                tuple(robustness.ablation(students, view)),
                tuple(comparisons.ablation(students)),
            ),
            Chapter("attribution", "Attribution maps", *attribution.contents(view)),
            Chapter("tuned", "Tuned", tuple(tuned.tables(students, view))),
            Chapter(
                "checkpoints",
                "Other networks",
                (*robustness.checkpoints(others, view), *robustness.transferred_to_checkpoints(others, view)),
            ),
            Chapter("paper", "Against the paper", tuple(paper.comparison(students, networks, view))),
            Chapter("costs", "Costs", tuple(costs.tables(students, view)), tuple(comparisons.costly(students))),
            Chapter("footprint", "Size and latency", *footprints.contents(students, view)),
        ]
        listed = robustness.cells(view, used)
        sections.append(
            Chapter("training", "Training", (), tuple(training.curves(students, _whole(read_logs(), view))))
        )
    return [s for s in sections if s.tables or s.plots], listed


def _whole(read: Sequence[tuple[training.Log, list[str]]], view: View) -> list[training.Log]:
    """The logs that are whole; of damaged ones `view.left_out` hears. Raises UserError where it is None."""
    for message in (sentence for _, damaged in read for sentence in damaged):
        if view.left_out is None:
            raise UserError(message)
        view.left_out(message)
    return [log for log, _ in read]


def _nothing_finished(records: list[Record], results: Path) -> str:
    if not records:
        return f"no record below '{results}'; `adbench run` writes them"
    return f"all {len(records)} cells below '{results}' failed, the first with: {records[0].failure.message}"
