"""`adbench compare`: two networks on the same test images, and two methods over the same seeds. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from adbench.errors import UserError, unknown
from adbench.files import below
from adbench.record import FILE, Record, read, read_all
from adbench.report.paired import Pair, Seeds, methods, networks
from adbench.report.runs import Run, collect, heading


def lines(first: str, second: str, results: Path, left_out: Callable[[str], object] | None = None) -> Iterator[str]:
    """What the command prints: two records (given as paths), or two methods wherever both ran.

    left_out: hears of damaged records, and of seeds whose outcomes are damaged; without it, either is a UserError.

    Raises UserError for names without a record, and where the two have no place or seed in common.
    """
    if _is_path(first) or _is_path(second):
        one, other = _record(Path(first)), _record(Path(second))
        yield from _pair_table(networks(one, other), one["label"], other["label"])
        return
    runs = collect(read_all(results, left_out), "student")
    ours, theirs = (_named(name, runs, results) for name in (first, second))
    places = [(a, b) for a in ours for b in theirs if _same_place(a, b)]
    if not places:
        raise UserError(f"'{first}' and '{second}' have no data set, student and teacher in common in '{results}'")
    for a, b in places:
        over_seeds, pairs = methods(_judged(a, left_out), _judged(b, left_out))
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
        found = below(path, FILE)
        if len(found) != 1:
            raise UserError(f"'{path}' holds {len(found)} records; name one {FILE}")
        path = found[0]
    return read(path)


def _named(name: str, runs: Sequence[Run], results: Path) -> list[Run]:
    found = [run for run in runs if name in (run.method, run.label)]
    if not found:
        raise unknown("method", name, sorted({n for r in runs for n in (r.method or "", r.label)}), f"in '{results}'")
    return found


def _judged(run: Run, left_out: Callable[[str], object] | None) -> Run:
    """The run without the seeds whose outcomes are damaged, contradict the record or are not there."""
    kept = []
    for record in run.done:
        try:
            record.check_outcomes()
        except UserError as error:
            if left_out is None:
                raise
            left_out(str(error))
        else:
            kept.append(record)
    return replace(run, done=tuple(kept))


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
