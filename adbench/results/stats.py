"""Intervals. Two kinds, never mixed: over test images (`ci_test`) and over seeds (`ci_seed`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special  # scipy.stats has the same and takes a second to import


def wilson(correct: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a share `correct / n` (Wilson, JASA 1927), as two fractions in [0, 1].

    It speaks of the choice of test images only, not of how another training seed would have come out.
    Raises ValueError unless 0 <= correct <= n and n >= 1.
    """
    if not 0 <= correct <= n or n < 1:
        raise ValueError(f"wilson needs 0 <= correct <= n and n >= 1, got correct={correct}, n={n}")
    z = float(special.ndtri(0.5 + level / 2))
    share = correct / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def overlap(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether two intervals have a value in common."""
    return one[0] <= other[1] and other[0] <= one[1]


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p-value of McNemar's exact test (Psychometrika 1947) that two networks are equally often right.

    only_first, only_second: on how many images just that one is right. It speaks of these networks, not of methods.
    """
    total = only_first + only_second
    # Under equal chances both tails are alike.
    return min(1.0, 2 * float(special.bdtr(min(only_first, only_second), total, 0.5)))


def jackknife(statistic: Callable[[NDArray[Any]], float], counts: NDArray[Any], level: float = 0.95) -> float:
    """Half-width of the interval over test images of `statistic`, by its standard error when each image is left out.

    counts: numbers of images, any shape, of those that are alike to the statistic (Efron & Stein, Ann. Stat. 1981). Of
    a mean it is the normal approximation. nan where the statistic is nan without some image, or there is one image.
    """
    places = list(zip(*np.nonzero(counts), strict=True))
    weights = np.array([counts[place] for place in places], dtype=float)
    n = weights.sum()
    without = []
    for place in places:
        fewer = counts.copy()
        fewer[place] -= 1
        without.append(statistic(fewer) if n > 1 else math.nan)
    values = np.array(without)
    variance = (n - 1) / n * (weights * (values - (weights * values).sum() / n) ** 2).sum()
    return float(special.ndtri(0.5 + level / 2)) * math.sqrt(variance)


def student_t(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Mean of `values` and the half-width of its Student-t interval over independent seeds.

    The half-width is nan for a single value: one seed says nothing about the spread.
    Raises ValueError for no values.
    """
    n = len(values)
    if n == 0:
        raise ValueError("student_t needs at least one value")
    mean = math.fsum(values) / n
    if n == 1:
        return mean, math.nan
    variance = math.fsum((v - mean) ** 2 for v in values) / (n - 1)
    return mean, _t_quantile(n - 1, 0.5 + level / 2) * math.sqrt(variance / n)


def student_t_of(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """`student_t` of each column of `values` (seeds, m), as two arrays (m,)."""
    n = len(values)
    mean = values.mean(axis=0)
    if n == 1:
        return mean, np.full_like(mean, math.nan)
    return mean, _t_quantile(n - 1, 0.975) * values.std(axis=0, ddof=1) / math.sqrt(n)


def t_test(differences: Sequence[float]) -> float:
    """Two-sided p-value of the paired t-test that `differences`, two or more of as many seeds, have the mean 0."""
    mean, half = student_t(differences)
    if not half:
        return float(not mean)
    freedom = len(differences) - 1
    return 2 * float(special.stdtr(freedom, -abs(mean) * _t_quantile(freedom, 0.975) / half))


@cache
def _t_quantile(freedom: int, share: float) -> float:
    return float(special.stdtrit(freedom, share))
