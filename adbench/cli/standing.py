"""Where a matrix stands and how folders become one: status, merge."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from adbench.cli.matrix import Asked, matrix_options
from adbench.cli.options import FilePath, results_option
from adbench.errors import UserError
from adbench.system import terminal

if TYPE_CHECKING:
    from adbench.results.plans import Planned
    from adbench.results.status import Matrix

LISTED = 10
"""Cells of one state that are printed one by one."""


@click.command()
@matrix_options
@click.option("--plan", "plan_id", metavar="ID", help="The beginning of a plan's id. [default: the latest plan]")
@click.option("--why", metavar="CELL", help="Explain one cell: an id, the path of a record, or its description.")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
@results_option
def status(asked: Asked, plan_id: str | None, why: str | None, form: str, results: Path) -> None:
    """Show where a matrix stands: done, running, failed, stale and why, and the time left.

    Every `adbench run` leaves its plan in the results folder. Without options the latest is shown; the options of
    `adbench run` choose the one that was run with them.

    \b
    Examples:
      adbench status
      adbench status --dataset cifar10 --methods all --student rn18
      adbench status --why 3f2a91c0
    """
    from adbench.results import status as standing

    plans, plan = _plan(asked, plan_id, results)
    matrix = standing.Matrix(plan)
    if why:
        for line in standing.why(matrix, matrix.find(why)):
            click.echo(terminal.plain(line))
    elif form == "json":
        rows = [
            {
                "id": one.cell["id"],
                "cell": one.cell["says"],
                "state": one.state,
                "why": one.why,
                "record": str(matrix.results / one.cell["record"]),
                "seconds_left": one.left,
            }
            for one in matrix.standings.values()
        ]
        click.echo(json.dumps(rows, indent=1))
    else:
        for line in _table(matrix):
            click.echo(terminal.plain(line))
        others = [other for other in plans if other["id"] != plan["id"]]
        for other in others[:LISTED]:
            told = f"another plan: {other['id'][:8]} of {other['written']}, {len(other.cells)} cells (--plan)"
            click.echo(terminal.plain(told))


def _plan(asked: Asked, plan_id: str | None, results: Path) -> tuple[list[Planned], Planned]:
    from adbench.results import plans

    found = plans.read_all(results)
    if not found:
        raise UserError(
            f"no run was planned in '{results}' yet; `adbench run` begins one, `adbench results` lists records"
        )
    chosen = [plan for plan in found if plan["id"].startswith(plan_id)] if plan_id else found
    if asked.anything:
        experiment = plans.canonical(asked.experiment())
        chosen = [plan for plan in chosen if plan["experiment"] == experiment]
    if not chosen:
        known = ", ".join(plan["id"][:8] for plan in found[:5])
        named = f"whose id begins with '{plan_id}'" if plan_id else "with these options"
        raise UserError(f"no run {named} was planned in '{results}'; known plans are {known}")
    return found, chosen[0]


def _table(matrix: Matrix) -> Iterator[str]:
    """The matrix as lines of text: counts by dataset and network, then what needs a word."""
    from adbench.cli.display import duration
    from adbench.results.status import STATES

    plan, standings = matrix.plan, list(matrix.standings.values())
    yield f"plan {plan['id'][:8]} of {plan['written']}: {plan['command']}"
    yield ""
    rows: dict[tuple[str, str], Counter[str]] = {}
    for one in standings:
        network = "teachers" if one.cell["kind"] == "teacher" else one.cell["name"]
        rows.setdefault((one.cell["dataset"], network), Counter())[one.state] += 1
    total = Counter(one.state for one in standings)
    states = [state for state in STATES if total[state]]
    table = [("dataset", "network", "cells", *states)]
    for (dataset, network), counts in [*rows.items(), (("", "all"), total)]:
        table.append((dataset, network, str(counts.total()), *(str(counts[state] or "") for state in states)))
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    for row in table:
        yield "  ".join(
            text.ljust(width) if i < 2 else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
    yield ""
    for state in states:
        if state in ("done", "new"):
            continue
        these = [one for one in standings if one.state == state]
        for one in these[:LISTED]:
            yield f"{state:11} {one.cell['id'][:8]}  {one.cell['says']}: {' '.join(one.why.split())}"
        if len(these) > LISTED:
            yield f"{state:11} and {len(these) - LISTED} more (--format json lists all)"
    seconds, at_a_time, correction = matrix.time_left()
    if seconds:
        measured = f", as cells took {correction:.2g} times what was expected" if correction != 1 else ""
        yield f"about {duration(seconds)} left with {at_a_time} at a time{measured}"


@click.command()
@click.argument("folders", nargs=-1, required=True, metavar="FOLDER...", type=FilePath())
@click.option(
    "--into",
    type=FilePath(file_okay=False),
    required=True,
    metavar="RESULTS",
    help="The results folder that gets everything; made if it is not there.",
)
def merge(folders: tuple[Path, ...], into: Path) -> None:
    """Join results folders from several machines into one.

    Finished work is never overwritten. Of two records of one cell that agree, one is kept. Where their figures
    differ, the one that is there stays, the other goes with all its files to RESULTS.conflicts/, and the exit code
    is 1. A merge that was interrupted is finished by the same command.

    \b
    Example:
      adbench merge node1/results node2/results --into results
    """
    from adbench.results import merge as merging

    wrong = 0
    for outcome in merging.merge(folders, into):
        wrong += outcome.wrong
        if outcome.says:
            click.echo(terminal.plain(outcome.says))
    sys.exit(1 if wrong else 0)
