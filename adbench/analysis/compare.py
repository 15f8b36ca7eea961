"""`adbench compare`: two networks on the same test images, and two methods over the same seeds. Needs no torch."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from adbench.errors import UserError, unknown
from adbench.results.paired import Pair, Seeds, methods, networks
from adbench.results.paired import unlike as not_alike
from adbench.results.record import only, read, read_all
from adbench.results.runs import Run, collect, heading
from adbench.results.setting import Setting
from adbench.results.teachers import named_apart
from adbench.system import terminal


def lines(
    first: str, second: str, results: Path, left_out: Callable[[str], object] | None = None, *, anyway: bool = False
) -> Iterator[str]:
    """What the command prints: two records (given as paths), or two methods wherever both ran.

    anyway: compare networks also where they were not judged alike, with both settings on top.

    left_out: hears of damaged records, and of seeds whose outcomes are damaged; without it, either is a UserError.

    Raises UserError for names without a record, and where the two have no place or seed in common.
    """
    if _is_path(first) or _is_path(second):
        one, other = read(only(Path(first))), read(only(Path(second)))
        pairs = networks(one, other, anyway=anyway)
        yield from _settings(one.label, other.label, Setting.of(one), Setting.of(other))
        yield from _pair_table(pairs, one.label, other.label)
        return
    runs = collect(named_apart(list(read_all(results, left_out))), "student")
    ours, theirs = (_named(name, runs, results) for name in (first, second))
    places = [(a, b) for a in ours for b in theirs if _same_place(a, b)]
    if not places:
        raise UserError(f"'{first}' and '{second}' have no data set, student and teacher in common in '{results}'")
    unlike = [(a, b) for a, b in places if a.setting.apart(b.setting)]
    if len(unlike) == len(places) and not anyway:
        a, b = unlike[0]
        raise not_alike(a.label, b.label, a.setting, b.setting)
    for a, b in places:
        if (a, b) in unlike and not anyway:
            said = f"not judged alike, not compared ({a.setting.against(b.setting)})"
            yield from terminal.wrapped(f"{a.label} against {b.label}: {said}")
            continue
        over_seeds, pairs = methods(_judged(a, left_out), _judged(b, left_out), anyway=anyway)
        where = f"{a.dataset}, {a.student}" + (f" taught by {a.teacher or b.teacher}" if a.teacher or b.teacher else "")
        yield from terminal.wrapped(f"{where}: {a.label} against {b.label}")
        yield from _settings(a.label, b.label, a.setting, b.setting)
        if not pairs:
            yield "  no seed in common"
            continue
        yield from _seed_table(over_seeds, a.label, b.label)
        yield "  on the same images, seed by seed:"
        yield from _pair_table(pairs, a.label, b.label)


def _settings(first: str, second: str, one: Setting, other: Setting) -> Iterator[str]:
    """How both were judged: in one line, or in one each and a warning."""
    keys = one.apart(other)
    if not keys:
        yield from terminal.wrapped(f"both: {Setting.merged([one, other]).describe()}", "  ")
        return
    yield "  not judged alike: what follows is not of the networks alone"
    yield from terminal.wrapped(f"{first}: {one.describe(keys)}", "  ")
    yield from terminal.wrapped(f"{second}: {other.describe(keys)}", "  ")


def _is_path(text: str) -> bool:
    """Whether a record is meant by its path; a bare name is a method's, whatever lies beside you (./name is a path)."""
    return os.sep in text or "/" in text or text.endswith(".json")


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
        (
            heading(r.attack),
            str(r.seeds),
            _percent(r.first),
            _percent(r.second),
            f"{100 * r.difference:+.2f}",
            _spread(r),
        )
        for r in rows
    ]
    yield from terminal.table([head, *body])


def _spread(row: Seeds) -> str:
    """The 95% interval of the mean difference; of two seeds, which give none worth printing, their range."""
    if row.seeds < 2:
        return "-"
    two = row.seeds == 2
    low, high = (min(row.each), max(row.each)) if two else (row.difference - row.half, row.difference + row.half)
    return f"{100 * low:+.2f} to {100 * high:+.2f}" + (" (range)" if two else "")


def _pair_table(rows: Sequence[Pair], first: str, second: str) -> Iterator[str]:
    if not rows:
        raise UserError("the two records have no attack in common")
    head = ("attack", "seed", "images", first, second, "first only", "second only", "McNemar p")
    body = [
        (
            heading(r.attack),
            "-" if r.seed is None else str(r.seed),
            str(r.n),
            _percent(r.first),
            _percent(r.second),
            *("-" if count is None else str(count) for count in (r.only_first, r.only_second)),
            "-" if math.isnan(r.p_value) else f"{r.p_value:.3g}",
        )
        for r in rows
    ]
    yield from terminal.table([head, *body])


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"
