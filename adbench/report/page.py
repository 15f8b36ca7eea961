"""The whole report in three bindings: one web page, one Markdown file, one LaTeX document."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

import adbench
from adbench.report import render
from adbench.report.captions import listed, reason, taught, whole
from adbench.report.figures.plot import Plot
from adbench.report.findings import findings
from adbench.report.model import FACETS, Table, TableCell
from adbench.results.record import Record
from adbench.results.runs import natural


@dataclass(frozen=True)
class Chapter:
    """A heading and what stands under it. note: of what is left out on paper."""

    anchor: str
    title: str
    tables: tuple[Table, ...] = ()
    plots: tuple[Plot, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class FailureReason:
    """One reason for which cells did not finish, and those cells: name and path of the record."""

    reason: str
    cells: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Overview:
    """What was run, before any result.

    alone: labels of the methods without a teacher. left_out: what is damaged, a sentence each.
    """

    datasets: tuple[str, ...]
    summary: str
    facts: tuple[tuple[str, str], ...]
    failures: tuple[FailureReason, ...]
    alone: frozenset[str] = frozenset()
    left_out: tuple[str, ...] = ()
    version: str = adbench.__version__


def overview(records: Sequence[Record], results: Path) -> Overview:
    """Count the cells and read off what they share."""
    failed = [r for r in records if not r.done]
    done = len(records) - len(failed)
    datasets = sorted({r.dataset for r in records}, key=natural)
    seeds = sorted({r.seed for r in records if r.seed is not None})
    kinds = [
        f"{whole(n)} {kind}{'s' if n != 1 else ''}"
        for kind in ("student", "teacher", "checkpoint")
        if (n := sum(r.kind == kind for r in records))
    ]
    summary = f"{whole(len(records))} cells ({listed(kinds)}): {whole(done)} done, {whole(len(failed))} failed."
    provenance = [r.provenance for r in records]
    commits = {p.git_commit[:10] + (" with local changes" if p.git_dirty else "") for p in provenance if p.git_commit}
    facts = (
        ("Data sets", listed(datasets)),
        ("Seeds", listed(seeds) or "none"),
        ("adbench", listed(sorted({p.adbench for p in provenance}))),
        ("torch", listed(sorted({p.torch for p in provenance}))),
        ("pyautoattack", listed(sorted({p.pyautoattack for p in provenance}))),
        ("Python", listed(sorted({p.python for p in provenance}))),
        ("Commit", listed(sorted(commits)) or "unknown"),
        ("Ran on", listed(sorted({f"{p.device} ({p.platform})" for p in provenance}))),
    )
    alone = frozenset(r.label for r in records if r.kind == "student" and not r.teacher)
    return Overview(tuple(datasets), summary, facts, _failures(failed, results), alone)


Pictures = Mapping[str, Sequence[bytes]]
"""Of a figure by its label, as svg: light and dark, light alone, or none."""


def html(head: Overview, sections: Sequence[Chapter], cells: Table, pictures: Callable[[], Pictures]) -> str:
    """One self-contained page: pictures, styles and scripts embedded, nothing fetched, no script run but its own.

    pictures: waits for them. Where there is none, a figure's words have to do without scripts.
    """
    style, script = manners()
    tables = [table for section in sections for table in section.tables]
    evidence = CellEvidence()
    # Markup, since these escape for themselves.
    fragments = {table.label: Markup(render.html(table, evidence.of)) for table in (*tables, cells)}
    template = render.environment().get_template("page.html.j2")
    return template.render(
        overview=head,
        sections=sections,
        cells=cells,
        findings=findings((t for s in sections if s.anchor == "white-box" for t in s.tables), head.alone),
        choices=choices((*tables, cells)),
        pictures={label: tuple(map(_address, of_figure)) for label, of_figure in pictures().items()},
        policy=policy(style, script),
        fragments=fragments,
        style=Markup(style),
        script=Markup(script),
        evidence=evidence.plain,
    )


def manners() -> tuple[str, str]:
    """Styles and scripts of a page."""
    return _source("page.css"), _source("page.js") + _source("chart.js")


def policy(style: str, script: str) -> str:
    """What a browser may load and run: pictures that the page holds, and exactly these texts as style and script."""
    css, js = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script))
    own = f"style-src 'sha256-{css}'; script-src 'sha256-{js}'"
    return f"default-src 'none'; img-src data:; {own}; base-uri 'none'; form-action 'none'"


class CellEvidence:
    """What stands behind the cells, each text once: a page may have ten thousand cells of the same few attacks."""

    def __init__(self) -> None:
        self._texts: dict[str, int] = {}
        self._cells: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}

    def of(self, cell: TableCell) -> int | None:
        """Where to look up what stands behind `cell`; None where nothing does."""
        if not cell.details and not cell.records:
            return None
        details = tuple(self._text(text) for pair in cell.details for text in pair)
        behind = details, tuple(map(self._text, cell.records))
        return self._cells.setdefault(behind, len(self._cells))

    def plain(self) -> dict[str, list[Any]]:
        return {"texts": list(self._texts), "cells": list(self._cells)}

    def _text(self, text: str) -> int:
        return self._texts.setdefault(text, len(self._texts))


def choices(tables: Iterable[Table]) -> list[tuple[str, str, list[str]]]:
    """Facets to filter by, where there is something to choose: facet, its name, and its values in order."""
    known: dict[str, dict[str, None]] = {facet: {} for facet in FACETS}
    for table in tables:
        for facet, value in chain(table.about, *(c.about for c in table.columns), *(r.about for r in table.rows)):
            known[facet][value] = None
    names = dict(zip(FACETS, ("Data set", "Attacked with", "Student", "Teacher", "Method"), strict=True))
    return [
        (facet, names[facet], list(values) if facet == "method" else sorted(values, key=natural))
        for facet, values in known.items()
        if len(values) > 1
    ]


def _source(name: str) -> str:
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")


def markdown(head: Overview, sections: Sequence[Chapter], cells: Table) -> str:
    """The report for a code host; figures are linked beside it."""
    template = render.environment().get_template("report.md.j2")
    return template.render(overview=head, sections=sections, cells=cells, markdown=render.markdown)


def latex(head: Overview, sections: Sequence[Chapter], cells: Table) -> str:
    """A document that inputs every table fragment and figure; compile it where it lies."""
    return render.environment().get_template("document.tex.j2").render(overview=head, sections=sections, cells=cells)


def _failures(records: Sequence[Record], results: Path) -> tuple[FailureReason, ...]:
    cells: dict[str, list[tuple[str, str]]] = {}
    for record in records:
        seed = "" if record.seed is None else f", seed {record.seed}"
        name = f"{record.dataset}, {record.label} on {taught(record.student, record.teacher)}{seed}"
        cells.setdefault(render.one_line(reason(record)), []).append(
            (name, record.path.relative_to(results).as_posix())
        )
    return tuple(FailureReason(why, tuple(sorted(members))) for why, members in cells.items())


def _address(picture: bytes) -> Markup:
    """A picture as an address that holds it all. In double quotes it is safe: ", <, > and & are written as numbers."""
    return Markup("data:image/svg+xml," + quote(picture, safe=" /:=;,.()!*+-_~?@$[]{}|^`'"))
