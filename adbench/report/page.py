"""The whole report in three bindings: one web page, one Markdown file, one LaTeX document."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

import adbench
from adbench.record import Record
from adbench.report import render
from adbench.report.captions import listed, whole
from adbench.report.model import Table
from adbench.report.plot import Plot
from adbench.report.runs import natural


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    anchor: str
    title: str
    tables: tuple[Table, ...] = ()
    plots: tuple[Plot, ...] = ()


@dataclass(frozen=True)
class Failure:
    """One reason for which cells did not finish, and those cells: name and path of the record."""

    reason: str
    cells: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Overview:
    """What was run, before any result."""

    datasets: tuple[str, ...]
    summary: str
    facts: tuple[tuple[str, str], ...]
    failures: tuple[Failure, ...]
    version: str = adbench.__version__


def overview(records: Sequence[Record], results: Path) -> Overview:
    """Count the cells and read off what they share."""
    failed = [r for r in records if not r.done]
    done = len(records) - len(failed)
    datasets = sorted({r["dataset"] for r in records}, key=natural)
    seeds = sorted({r["seed"] for r in records if r["seed"] is not None})
    kinds = [
        f"{whole(n)} {kind}{'s' if n != 1 else ''}"
        for kind in ("student", "teacher", "checkpoint")
        if (n := sum(r["kind"] == kind for r in records))
    ]
    summary = f"{whole(len(records))} cells ({listed(kinds)}): {whole(done)} done, {whole(len(failed))} failed."
    provenance = [r["provenance"] for r in records]
    commits = {
        p["git_commit"][:10] + (" with local changes" if p["git_dirty"] else "") for p in provenance if p["git_commit"]
    }
    facts = (
        ("Data sets", listed(datasets)),
        ("Seeds", listed(seeds) or "none"),
        *((name, listed(sorted({p[name] for p in provenance}))) for name in ("adbench", "torch", "pyautoattack")),
        ("Python", listed(sorted({p["python"] for p in provenance}))),
        ("Commit", listed(sorted(commits)) or "unknown"),
        ("Ran on", listed(sorted({f"{p['device']} ({p['platform']})" for p in provenance}))),
    )
    return Overview(tuple(datasets), summary, facts, _failures(failed, results))


def html(head: Overview, sections: Sequence[Section], cells: Table) -> str:
    """One self-contained page: figures embedded, no script, nothing fetched."""
    template = render.environment().get_template("page.html.j2")
    # render.html escapes for itself; Markup tells the page not to escape its tags again.
    return template.render(
        overview=head,
        sections=sections,
        cells=cells,
        embed=_data_uri,
        html=lambda table: Markup(render.html(table)),
    )


def markdown(head: Overview, sections: Sequence[Section], cells: Table) -> str:
    """The report for a code host; figures are linked beside it."""
    template = render.environment().get_template("report.md.j2")
    return template.render(overview=head, sections=sections, cells=cells, markdown=render.markdown)


def latex(head: Overview, sections: Sequence[Section], cells: Table) -> str:
    """A document that inputs every table fragment and figure; compile it where it lies."""
    return render.environment().get_template("document.tex.j2").render(overview=head, sections=sections, cells=cells)


def _failures(records: Sequence[Record], results: Path) -> tuple[Failure, ...]:
    cells: dict[str, list[tuple[str, str]]] = {}
    for record in records:
        error = record["error"] or {"phase": "unknown phase", "type": "unknown error", "message": ""}
        reason = f"{error['type']} in {error['phase']}: {render.one_line(error['message'])}"
        taught = f" taught by {record['teacher']}" if record["teacher"] else ""
        seed = "" if record["seed"] is None else f", seed {record['seed']}"
        name = f"{record['dataset']}, {record['label']} on {record['student']}{taught}{seed}"
        cells.setdefault(reason, []).append((name, record.path.relative_to(results).as_posix()))
    return tuple(Failure(reason, tuple(sorted(members))) for reason, members in cells.items())


def _data_uri(plot: Plot, dark: bool) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(plot.render("svg", dark)).decode()
