"""Accuracies as cells: the number, its evidence, and its rank within its column."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from adbench.errors import UserError
from adbench.report import captions
from adbench.report.families import arranged
from adbench.report.model import FAILED, MISSING, About, Column, Mark, Row, TableCell, number_of, ranked
from adbench.report.tables import paper
from adbench.report.view import View
from adbench.results import quantities
from adbench.results.paired import Standing, pair, standing
from adbench.results.record import Record
from adbench.results.runs import Estimate, Run

MOST_SEEDS = 10
"""Accuracies of more seeds than these are not listed one by one."""

MOST_TESTED = 20
"""So many values nearest the best of a column are tested against it; the outcomes of others are not read."""

RANKING = "The best number of a column is bold and the second best underlined"

BEST_FIRST = {"higher": -1, "lower": 1, "neither": 0}


@dataclass(frozen=True)
class UnrankedRow:
    """A row before it is printed: its name, and of each column the run and the metric (None: there is no such run)."""

    name: str
    values: tuple[tuple[Run | None, str], ...]
    block: str = ""
    about: About = ()
    family: str = ""


@dataclass(frozen=True)
class Ranking:
    """Rows with the best, the second best and the ties marked, and in words how ties were found."""

    rows: tuple[Row, ...]
    rule: str


def rank(lines: Sequence[UnrankedRow], columns: Sequence[Column], view: View) -> Ranking:
    """Mark, in every block and column, the best and second-best number as printed, and what is tied with the best.

    columns: the first names the rows, each other belongs to one of a line's values.
    """
    lines = arranged(lines)
    plain = [
        Row(
            (TableCell(line.name), *(accuracy(run, metric, view) for run, metric in line.values)),
            line.block,
            line.about,
            line.family,
        )
        for line in lines
    ]
    rows = [list(row.cells) for row in ranked(plain, columns)]
    tests: list[Standing] = []
    left_out = False
    for _, members in groupby(range(len(lines)), key=lambda i: lines[i].block):
        block = list(members)
        for column in range(1, len(columns)):
            values = {i: value for i in block if (value := lines[i].values[column - 1])[0]}
            best = next((i for i in values if rows[i][column].mark is Mark.BEST), None)
            if best is None:
                continue
            sign = BEST_FIRST[columns[column].better]
            others = {i: number for i in values if (number := _other(rows[i][column])) is not None}
            nearest = sorted(others, key=lambda i, sign=sign, others=others: sign * others[i])  # type: ignore[misc]
            left_out |= len(nearest) > MOST_TESTED
            for i in nearest[:MOST_TESTED]:
                rows[i][column], test = _against(rows[i][column], lines[i].values[column - 1], values[best])
                tests += [test] if test else []
    marked = tuple(replace(row, cells=tuple(cells)) for row, cells in zip(plain, rows, strict=True))
    return Ranking(marked, _rule(tests, left_out))


def _other(cell: TableCell) -> float | None:
    """The number of a cell, unless it is the best or none."""
    return None if cell.mark is Mark.BEST else number_of(cell)


def _against(
    cell: TableCell, value: tuple[Run | None, str], best: tuple[Run | None, str]
) -> tuple[TableCell, Standing | None]:
    (run, metric), (leader, _) = value, best
    assert run is not None
    assert leader is not None
    test = standing(run, leader, metric)
    if test is None:
        lacks = "two seeds" if quantities.split(metric)[0] else "seed and images"
        result = f"not tested against {leader.label}: no {lacks} in common, or no outcomes"
    else:
        gap = paper.signed(test.difference, digits_of(metric))
        result = f"{gap} to {leader.label}, {'' if test.apart else 'not '}told apart ({test.says})"
    return replace(
        cell, tied=bool(test and not test.apart), details=(*cell.details, ("Against the best", result))
    ), test


def _rule(tests: Sequence[Standing], left_out: bool) -> str:
    """How ties were found, in words; "" where nothing could be tested."""
    ways = []
    if any(test.spread.name for test in tests):
        ways.append("the 95% Student-t interval of the difference, paired over the seeds that both have, includes 0")
    if any(not test.spread.name for test in tests):
        ways.append("McNemar's exact test on the same images has p ≥ 0.05" + (" (one seed in common)" if ways else ""))
    if not ways:
        return ""
    nearest = f" Of each column the {MOST_TESTED} values nearest the best were tested." if left_out else ""
    return f"†: not told apart from the best, {' or '.join(ways)}; not corrected for the number of methods.{nearest}"


def accuracy(run: Run | None, metric: str, view: View) -> TableCell:
    """What a run has in the column `metric`: accuracy in percent, or another quantity, with n, interval, attack, seeds
    and records; a dash or a mark of failure where it has none."""
    if run is None:
        return MISSING
    estimate = run.estimate(metric)
    if estimate is None:
        if not run.failed or run.done:
            return MISSING
        reasons = tuple(("Failed", captions.reason(record)) for record in run.failed)
        return replace(FAILED, details=tuple(dict.fromkeys(reasons)))
    return replace(
        printed(estimate, view.spread, digits_of(metric)),
        details=_details(run, metric, estimate, view),
        records=view.where([run], last=quantities.split(metric)[0] in quantities.OVERFITTING),
    )


def _best_against_last(best: Record, last: Record | None, attack: str) -> list[tuple[str, str]]:
    """The test of one network's two epochs on the same images; nothing without outcomes."""
    assert last is not None
    try:
        found = pair(best, last, attack)
    except UserError:
        return []
    only = f"just the best is right on {found.only_first}, just the last on {found.only_second}"
    return [("Best against last", f"McNemar p = {found.p_value:.2g} on the same images: {only}")]


def digits_of(metric: str) -> int:
    """With how many decimals a column is printed."""
    quantity, _ = quantities.split(metric)
    return quantities.QUANTITIES[quantity].digits if quantity else 2


def printed(estimate: Estimate, spread: str, digits: int = 2) -> TableCell:
    """A number as printed, and the spread where there are several seeds."""
    over_seeds = estimate.spread(spread)
    half = f"{over_seeds.value:.{digits}f}" if over_seeds.name else ""
    # Adding 0.0 turns a rounded -0.0 into 0.0.
    text = f"{round(estimate.mean, digits) + 0.0:.{digits}f}" if estimate.mean < 0 else f"{estimate.mean:.{digits}f}"
    return TableCell(text.replace("-", "\N{MINUS SIGN}"), half, over_seeds.name)


def _details(run: Run, metric: str, estimate: Estimate, view: View) -> tuple[tuple[str, str], ...]:
    values = [(record, value) for record in run.done if (value := run.value(record, metric)) is not None]
    attack, digits = quantities.split(metric)[1], digits_of(metric)
    records, metrics = [record for record, _ in values], [record.metrics[attack] for record, _ in values]
    low, high = run.interval(metric)
    n = captions.listed((captions.whole(size) for size in sorted({each.n for each in metrics})), "or")
    details = [("n", f"{n} test images")]
    if len(metrics) > 1:
        kind = "95% interval over seeds" if len(metrics) > 2 else "Range of the two seeds"
        details.append((kind, f"{low:.{digits}f} to {high:.{digits}f}"))
        details.append(("Standard deviation over seeds", f"{estimate.std:.{digits}f}"))
        if len(metrics) <= MOST_SEEDS:
            each = ", ".join(f"{value:.{digits}f} ({record.seed})" for record, value in values)
            details.append(("Each seed", each))
        else:
            details.append(("Seeds", str(len(metrics))))
    else:
        if not math.isnan(low):
            details.append(("95% interval over test images", f"{low:.{digits}f} to {high:.{digits}f}"))
        if quantities.split(metric)[0] == "diff":
            details += _best_against_last(records[0], run.last_of(records[0]), attack)
        if records[0].seed is not None:
            details.append(("Seed", str(records[0].seed)))
    if "eps" in metrics[0].attack:
        details.append(("Attack", captions.attack(metrics[0].attack)))
    theirs = paper.value(run, metric, view)
    if theirs is not None:
        details.append(("Paper", f"{theirs:.2f}, ours {paper.signed(estimate.mean - theirs)}"))
    return tuple(details)
