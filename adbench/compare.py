"""`adbench compare`: two networks on the same test images, and two methods over the same seeds. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adbench.errors import UserError, unknown
from adbench.record import FILE, Record, read, read_all
from adbench.report.runs import Run, collect, heading
from adbench.stats import mcnemar, student_t


@dataclass(frozen=True)
class Pair:
    """Two networks of one seed under one attack, on the images that both were attacked on.

    only_first, only_second: images on which just that one is still right. p_value: McNemar's exact test.
    """

    attack: str
    seed: int | None
    n: int
    first: float
    second: float
    only_first: int
    only_second: int
    p_value: float


@dataclass(frozen=True)
class Seeds:
    """Two methods under one attack over the seeds that both have: the mean difference and its interval's half-width."""

    attack: str
    seeds: int
    first: float
    second: float
    difference: float
    half: float


def networks(first: Record, second: Record) -> list[Pair]:
    """Each attack that both records have. Raises UserError for records of different test images or without outcomes."""
    for record in (first, second):
        if not record.done:
            raise UserError(f"'{record.path}' is the record of a failed cell; there is nothing to compare")
    if first["data"]["fingerprint"] != second["data"]["fingerprint"]:
        raise UserError(f"'{first.path}' and '{second.path}' were judged on different test images; they do not compare")
    one, other = first.outcomes(), second.outcomes()
    found = []
    for attack in first["metrics"]:
        if attack not in second["metrics"]:
            continue
        n = min(first["metrics"][attack]["n"], second["metrics"][attack]["n"])
        a, b = (_right(table, attack, n) for table in (one, other))
        only_a = sum(x and not y for x, y in zip(a, b, strict=True))
        only_b = sum(y and not x for x, y in zip(a, b, strict=True))
        p_value = mcnemar(only_a, only_b)
        found.append(Pair(attack, first["seed"], n, sum(a) / n, sum(b) / n, only_a, only_b, p_value))
    return found


def _right(table: Any, attack: str, n: int) -> list[bool]:
    """The first n images' verdicts; clean accuracy is the prediction's."""
    column = table["prediction"] == table["label"] if attack == "clean" else table[attack]
    return [bool(value) for value in column[:n]]


def methods(first: Run, second: Run) -> tuple[list[Seeds], list[Pair]]:
    """Two methods' runs in one place: over the seeds that both have, and each of these seeds on the same images."""
    by_seed = [{record["seed"]: record for record in run.done} for run in (first, second)]
    shared = [seed for seed in by_seed[0] if seed in by_seed[1]]
    pairs = [pair for seed in shared for pair in networks(by_seed[0][seed], by_seed[1][seed])]
    attacks = dict.fromkeys(pair.attack for pair in pairs)
    return [_over_seeds(attack, [pair for pair in pairs if pair.attack == attack]) for attack in attacks], pairs


def _over_seeds(attack: str, pairs: Sequence[Pair]) -> Seeds:
    difference, half = student_t([pair.first - pair.second for pair in pairs])
    mean = [math.fsum(values) / len(pairs) for values in ([p.first for p in pairs], [p.second for p in pairs])]
    return Seeds(attack, len(pairs), mean[0], mean[1], difference, half)


def lines(first: str, second: str, results: Path) -> Iterator[str]:
    """What the command prints: two records (given as paths), or two methods wherever both ran.

    Raises UserError for names without a record, and where the two have no place or seed in common.
    """
    if _is_path(first) or _is_path(second):
        one, other = _record(Path(first)), _record(Path(second))
        yield from _pair_table(networks(one, other), one["label"], other["label"])
        return
    runs = collect(read_all(results), "student")
    ours, theirs = (_named(name, runs, results) for name in (first, second))
    places = [(a, b) for a in ours for b in theirs if _same_place(a, b)]
    if not places:
        raise UserError(f"'{first}' and '{second}' have no data set, student and teacher in common in '{results}'")
    for a, b in places:
        over_seeds, pairs = methods(a, b)
        where = f"{a.dataset}, {a.student}" + (f" taught by {a.teacher or b.teacher}" if a.teacher or b.teacher else "")
        yield f"{where}: {a.label} against {b.label}"
        if not pairs:
            yield "  no seed in common"
            continue
        yield from _seed_table(over_seeds, a.label, b.label)
        yield "  on the same images, seed by seed:"
        yield from _pair_table(pairs, a.label, b.label)


def _is_path(text: str) -> bool:
    return "/" in text or text.endswith(".json") or Path(text).exists()


def _record(path: Path) -> Record:
    """The record at a path, or the one below a folder."""
    if path.is_dir():
        found = sorted(path.rglob(FILE))
        if len(found) != 1:
            raise UserError(f"'{path}' holds {len(found)} records; name one {FILE}")
        path = found[0]
    return read(path)


def _named(name: str, runs: Sequence[Run], results: Path) -> list[Run]:
    found = [run for run in runs if name in (run.method, run.label)]
    if not found:
        raise unknown("method", name, sorted({n for r in runs for n in (r.method or "", r.label)}), f"in '{results}'")
    return found


def _same_place(a: Run, b: Run) -> bool:
    """Methods without a teacher stand beside every teacher's students."""
    teachers = a.teacher == b.teacher or None in (a.teacher, b.teacher)
    return a is not b and teachers and (a.dataset, a.student) == (b.dataset, b.student)


def _seed_table(rows: Sequence[Seeds], first: str, second: str) -> Iterator[str]:
    head = ("attack", "seeds", first, second, "difference", "95% interval over seeds")
    body = [
        (heading(r.attack), str(r.seeds), _percent(r.first), _percent(r.second), f"{100 * r.difference:+.2f}",
         "-" if math.isnan(r.half) else f"{100 * (r.difference - r.half):+.2f} to {100 * (r.difference + r.half):+.2f}")
        for r in rows
    ]  # fmt: skip
    yield from columns([head, *body])


def _pair_table(rows: Sequence[Pair], first: str, second: str) -> Iterator[str]:
    if not rows:
        raise UserError("the two records have no attack in common")
    head = ("attack", "seed", "images", first, second, "only first right", "only second right", "McNemar p")
    body = [
        (heading(r.attack), "-" if r.seed is None else str(r.seed), str(r.n), _percent(r.first), _percent(r.second),
         str(r.only_first), str(r.only_second), f"{r.p_value:.3g}")
        for r in rows
    ]  # fmt: skip
    yield from columns([head, *body])


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"


def columns(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Rows as lines of a table on a terminal: the first column flush left, the others right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [
            text.ljust(w) if i == 0 else text.rjust(w) for i, (text, w) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  " + "  ".join(cells).rstrip()
