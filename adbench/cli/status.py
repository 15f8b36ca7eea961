"""`adbench status`: where a matrix stands."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from adbench.cli.matrix import MatrixOptions, matrix_options
from adbench.cli.options import leaving_out, results_option
from adbench.errors import Nothing, UserError
from adbench.results import plans
from adbench.results import status as standing
from adbench.results.plans import Plan
from adbench.system import terminal

LISTED = 10
"""Cells of one state that are printed one by one."""


@click.command()
@matrix_options
@click.option("--plan", "plan_id", metavar="ID", help="The beginning of a plan's id. [default: the latest plan]")
@click.option("--why", metavar="CELL", help="Explain one cell: an id, the path of a record, or its description.")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
@results_option
def status(options: MatrixOptions, plan_id: str | None, why: str | None, form: str, results: Path) -> None:
    """Show where a matrix stands: done, running, failed, stale and why, and the time left.

    Every `adbench run` leaves its plan in the results folder. Without options the latest is shown; the options of
    `adbench run` choose the one that was run with them.

    \b
    Examples:
      adbench status
      adbench status --dataset cifar10 --methods all --student rn18
      adbench status --why 3f2a91c0
    """
    with leaving_out() as left_out:
        plans, plan = _plan(options, plan_id, results, left_out)
        matrix = standing.PlannedCells(plan)
        if why:
            for line in standing.why(matrix, matrix.find(why), left_out):
                click.echo(terminal.plain(line))
        elif form == "json":
            rows = [
                {
                    "id": one.cell.id,
                    "cell": one.cell.says,
                    "state": one.state,
                    "why": one.why,
                    "record": str(matrix.results / one.cell.record),
                    "seconds_left": one.left,
                }
                for one in matrix.standings.values()
            ]
            click.echo(json.dumps(rows, indent=1))
        else:
            for line in _table(matrix):
                click.echo(terminal.plain(line))
            others = [other for other in plans if other.id != plan.id]
            for other in others[:LISTED]:
                line = f"another plan: {other.id[:8]} of {other.written}, {len(other.cells)} cells (--plan)"
                click.echo(terminal.plain(line))


def _plan(
    options: MatrixOptions, plan_id: str | None, results: Path, left_out: Callable[[str], object]
) -> tuple[list[Plan], Plan]:
    known = plans.read_all(results, left_out)
    if not known:
        raise Nothing(
            f"no run was planned in '{results}' yet; `adbench run` begins one, `adbench results` lists records"
        )
    chosen = [plan for plan in known if plan.id.startswith(plan_id)] if plan_id else known
    if options.anything:
        experiment = plans.canonical(options.experiment(past=True))
        chosen = [plan for plan in chosen if plans.filled(plan.experiment) == experiment]
    if not chosen:
        ids = ", ".join(plan.id[:8] for plan in known[:5])
        named = f"whose id begins with '{plan_id}'" if plan_id else "with these options"
        raise UserError(f"no run {named} was planned in '{results}'; known plans are {ids}")
    return known, chosen[0]


def _table(matrix: standing.PlannedCells) -> Iterator[str]:
    """The matrix as lines of text: counts by dataset and network, then what needs a word."""
    plan, standings = matrix.plan, list(matrix.standings.values())
    yield f"plan {plan.id[:8]} of {plan.written}: {plan.command}"
    yield ""
    rows: dict[tuple[str, str], Counter[str]] = {}
    for one in standings:
        network = "teachers" if one.cell.kind == "teacher" else one.cell.name
        rows.setdefault((one.cell.dataset, network), Counter())[one.state] += 1
    total = Counter(one.state for one in standings)
    states = [state for state in standing.STATES if total[state]]
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
            yield f"{state:11} {one.cell.id[:8]}  {one.cell.says}: {' '.join(one.why.split())}"
        if len(these) > LISTED:
            yield f"{state:11} and {len(these) - LISTED} more (--format json lists all)"
    seconds, at_a_time, correction = matrix.time_left()
    if seconds:
        measured = f", as cells took {correction:.2g} times what was expected" if correction != 1 else ""
        yield f"about {terminal.duration(seconds)} left with {at_a_time} at a time{measured}"
