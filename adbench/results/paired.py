"""Two networks on the same test images, two methods over the same seeds: what `adbench compare` prints, and ties."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from adbench.errors import UserError
from adbench.results import quantities
from adbench.results.record import Record
from adbench.results.runs import CI, Estimate, Run, Spread
from adbench.results.setting import Setting
from adbench.results.stats import mcnemar, student_t, t_test

LEVEL = 0.05
"""Two networks differ where McNemar's p is below it; intervals over seeds are those of 1 - LEVEL."""


@dataclass(frozen=True)
class Pair:
    """Two networks of one seed under one attack, on the images that both were attacked on.

    only_first, only_second: images on which just that one is still right. p_value: McNemar's exact test. None, None and
    nan for networks that were judged on different test images.
    """

    attack: str
    seed: int | None
    n: int
    first: float
    second: float
    only_first: int | None
    only_second: int | None
    p_value: float


@dataclass(frozen=True)
class Seeds:
    """Two methods under one attack over the seeds that both have: the mean difference and its interval's half-width.

    each: the difference of every seed.
    """

    attack: str
    seeds: int
    first: float
    second: float
    difference: float
    half: float
    each: tuple[float, ...]


@dataclass(frozen=True)
class Standing:
    """How a run fares against another under one attack: whether the test tells them apart, and the test in words.

    difference: in points, its own accuracy minus the other's, over what both have. p_value: of the paired t-test over
    seeds, or McNemar's for one seed. spread: over seeds, as of an accuracy.
    """

    apart: bool
    says: str
    difference: float
    p_value: float
    spread: Spread = field(default=Spread())


def networks(first: Record, second: Record, *, anyway: bool = False) -> list[Pair]:
    """Each attack that both records have.

    Raises UserError for records without outcomes and, unless `anyway`, for networks that were not judged alike.
    """
    for record in (first, second):
        if not record.done:
            raise UserError(f"'{record.path}' is the record of a failed cell; there is nothing to compare")
    one, other = Setting.of(first), Setting.of(second)
    if one.apart(other) and not anyway:
        raise unlike(f"'{first.path}'", f"'{second.path}'", one, other)
    return [pair(first, second, attack) for attack in first.metrics if attack in second.metrics]


def unlike(first: str, second: str, one: Setting, other: Setting) -> UserError:
    """The error for two networks, or methods, that were judged in different settings."""
    on = " on different test images" if "fingerprint" in one.apart(other) else ""
    return UserError(
        f"{first} and {second} were not judged alike{on}: {one.against(other)}; they do not compare (--anyway prints "
        f"both all the same)"
    )


def pair(first: Record, second: Record, attack: str) -> Pair:
    """One attack that both records have, of the same test images. Raises UserError where there are no outcomes."""
    if first.images.fingerprint != second.images.fingerprint:
        metrics = first.metrics[attack], second.metrics[attack]
        n = min(metric.n for metric in metrics)
        return Pair(attack, first.seed, n, metrics[0].value, metrics[1].value, None, None, math.nan)
    n = min(first.metrics[attack].n, second.metrics[attack].n)
    a, b = (record.right(attack)[:n] for record in (first, second))
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    return Pair(attack, first.seed, n, int(a.sum()) / n, int(b.sum()) / n, only_a, only_b, mcnemar(only_a, only_b))


def shared(first: Run, second: Run) -> list[tuple[Record, Record]]:
    """The finished records of the seeds that both runs have."""
    other = {record.seed: record for record in second.done}
    return [(record, other[record.seed]) for record in first.done if record.seed in other]


def methods(first: Run, second: Run, *, anyway: bool = False) -> tuple[list[Seeds], list[Pair]]:
    """Two methods' runs in one place: over the seeds that both have, and each of these seeds on the same images."""
    pairs = [pair for records in shared(first, second) for pair in networks(*records, anyway=anyway)]
    attacks = dict.fromkeys(pair.attack for pair in pairs)
    return [_over_seeds(attack, [pair for pair in pairs if pair.attack == attack]) for attack in attacks], pairs


def _over_seeds(attack: str, pairs: Sequence[Pair]) -> Seeds:
    each = tuple(pair.first - pair.second for pair in pairs)
    difference, half = student_t(each)
    mean = [math.fsum(values) / len(pairs) for values in ([p.first for p in pairs], [p.second for p in pairs])]
    return Seeds(attack, len(pairs), mean[0], mean[1], difference, half, each)


def standing(run: Run, other: Run, metric: str, *, exact: bool = False, spread: str = CI) -> Standing | None:
    """`run` against `other` under `metric`; None where no test is possible.

    For runs that were judged alike. Over two or more seeds that both have: they are apart where the 95% Student-t
    interval of the paired difference leaves out 0. Of one seed: where McNemar's exact test on the images has p < 0.05;
    unless `exact`, its p may be an upper bound that needs no outcomes. None for one seed's
    quantity that is no accuracy.
    """
    if run.setting.apart(other.setting):
        return None
    records = [(a, b) for a, b in shared(run, other) if None not in (run.value(a, metric), other.value(b, metric))]
    if len(records) > 1:
        differences = [_gap(run, a, other, b, metric) for a, b in records]
        found, p_value = Estimate.over(differences), t_test(differences)
        if found.seeds > 2:
            low, high = found.mean - found.half, found.mean + found.half
            says = f"95% interval {low:+.2f} to {high:+.2f}, paired over {len(records)} seeds"
        else:
            says = f"paired t-test over two seeds p = {p_value:.2g}"
        return Standing(p_value < LEVEL, says.replace("-", "\N{MINUS SIGN}"), found.mean, p_value, found.spread(spread))
    # Of one seed, images alone can tell two networks apart, and only by whether they are right.
    return _on_images(*records[0], metric, exact) if records and not quantities.split(metric)[0] else None


def _gap(run: Run, a: Record, other: Run, b: Record, metric: str) -> float:
    """The difference of two records, one of each run, in what both have."""
    if metric in a.metrics:
        return 100 * (a.metrics[metric].value - b.metrics[metric].value)
    one, two = run.value(a, metric), other.value(b, metric)
    assert one is not None
    assert two is not None
    return one - two


def _on_images(a: Record, b: Record, metric: str, exact: bool) -> Standing | None:
    one, two = a.metrics[metric], b.metrics[metric]
    n, ahead = one.n, one.correct - two.correct
    difference = 100 * ahead / n
    # At most so many images are right by the weaker network alone. Where even then the test tells the two apart, the
    # outcomes need not be read: most pairs of a large table end here.
    fewer, more = sorted((one.correct, two.correct))
    most = min(fewer, n - more)
    bound = mcnemar(most + abs(ahead), most)
    if bound < LEVEL and not exact:
        return Standing(True, f"McNemar p ≤ {bound:.2g} on the same images", difference, bound)
    try:
        found = pair(a, b, metric)
    except UserError:
        return None
    says = f"McNemar p = {found.p_value:.2g} on the same images"
    return Standing(found.p_value < LEVEL, says, difference, found.p_value)
