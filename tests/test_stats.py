"""Intervals against scipy and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from adbench.results.stats import student_t, wilson


@pytest.mark.parametrize(("correct", "n"), [(0, 10), (10, 10), (5, 10), (437, 1000), (1, 3)])
def test_the_interval_over_test_images_is_scipys_wilson_interval(correct: int, n: int) -> None:
    expected = scipy.stats.binomtest(correct, n).proportion_ci(method="wilson")
    assert wilson(correct, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_the_interval_over_seeds_is_students() -> None:
    values = [0.51, 0.53, 0.50]
    mean, half = student_t(values)
    low, high = scipy.stats.t.interval(0.95, 2, loc=np.mean(values), scale=scipy.stats.sem(values))
    assert (mean - half, mean + half) == pytest.approx((low, high))


def test_one_seed_says_nothing_about_the_spread() -> None:
    mean, half = student_t([0.5])
    assert mean == 0.5
    assert math.isnan(half)


@pytest.mark.parametrize(("correct", "n"), [(3, 2), (-1, 2), (0, 0)])
def test_impossible_counts_are_refused(correct: int, n: int) -> None:
    with pytest.raises(ValueError, match="wilson needs"):
        wilson(correct, n)


def test_no_values_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        student_t([])
