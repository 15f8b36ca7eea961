"""Numbers of a network beside its accuracies, by the name of a column: QUANTITY:ATTACK, as in "worst:aa".

Accuracies and their differences are in percent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from adbench.errors import UserError
from adbench.results.record import Record
from adbench.results.stats import jackknife, wilson

Better = Literal["higher", "lower", "neither"]


@dataclass(frozen=True)
class Quantity:
    """What it is in a sentence, how a column is headed, which of two numbers is the better one, and its decimals."""

    says: str
    heading: str
    better: Better = "higher"
    digits: int = 2


QUANTITIES = {
    "worst": Quantity("accuracy of the class where it is lowest", "Worst class, {}"),
    "nsd": Quantity(
        "standard deviation of the accuracy over classes, divided by its mean over them (Yue et al., NeurIPS 2023; "
        "Zhao et al., NeurIPS 2024); lower is fairer",
        "NSD, {}",
        "lower",
        3,
    ),
    "mean": Quantity("mean of the accuracy on clean images and of that under the attack", "Mean, {}"),
    "harmonic": Quantity("harmonic mean of these two, which is low where one of them is", "Harmonic, {}"),
    "last": Quantity("accuracy with the weights of the last epoch", "{}, last"),
    "diff": Quantity(
        "the best epoch's accuracy minus the last one's, which is robust overfitting (Rice et al., ICML 2020)",
        "{}, best \N{MINUS SIGN} last",
        "neither",
    ),
}

SPREAD, TRADE_OFF, OVERFITTING = ("worst", "nsd"), ("mean", "harmonic"), ("last", "diff")

JUDGE_BOTH = '--set \'eval.checkpoint=["best","last"]\''
"""Has a run judge both epochs; what is trained or judged already is not trained or judged again."""


def split(column: str) -> tuple[str, str]:
    """A column as quantity and attack; the quantity is "" for an attack's accuracy."""
    quantity, _, attack = column.partition(":")
    return (quantity, attack) if quantity in QUANTITIES and attack else ("", column)


def better(column: str) -> Better:
    """Which of two of its numbers is the better one."""
    quantity, _ = split(column)
    return QUANTITIES[quantity].better if quantity else "higher"


def attacks_behind(columns: Iterable[str]) -> list[str]:
    """The attacks whose accuracies columns are made of, once each."""
    pairs = [split(column) for column in columns]
    return list(
        dict.fromkeys(name for q, attack in pairs for name in (("clean",) if q in TRADE_OFF else ()) + (attack,))
    )


def spelt_out(asked: Iterable[str], strongest: str) -> list[str]:
    """Columns as asked for, with a quantity that names no attack for all that it is of: the strongest attack, and
    clean images where it is of one accuracy alone."""
    found = []
    for name in asked:
        of = (strongest,) if name in TRADE_OFF else ("clean", strongest)
        found += [f"{name}:{attack}" for attack in of] if name in QUANTITIES else [name]
    return list(dict.fromkeys(found))


def value(record: Record, last: Record | None, column: str) -> float | None:
    """A number of a network; None where its record does not tell. last: the same network's, of its last epoch; the
    record itself, where that is of the last epoch."""
    quantity, attack = split(column)
    accuracy = _accuracy(record, attack)
    if accuracy is None or not quantity:
        return accuracy
    if quantity in SPREAD:
        counts = by_class(record, attack)
        return None if counts is None else _finite(_OF_CLASSES[quantity](counts))
    if quantity in TRADE_OFF:
        clean = _accuracy(record, "clean")
        return None if clean is None else _BOTH[quantity](clean, accuracy)
    at_last = None if last is None else _accuracy(last, attack)
    if at_last is None or quantity == "last":
        return at_last
    return None if last is record else accuracy - at_last


def interval(record: Record, last: Record | None, column: str) -> tuple[float, float] | None:
    """The 95% interval over test images of a number that `value` gives; None where there are no outcomes.

    Of an accuracy Wilson's, of the worst class over its images; else by the jackknife, over the images that all of its
    accuracies are of: a difference is paired image by image.
    """
    quantity, attack = split(column)
    estimate = value(record, last, column)
    if estimate is None:
        return None
    if quantity in ("", "last"):
        low, high = (record if not quantity or last is None else last).metrics[attack].ci_test
        return 100 * low, 100 * high
    if quantity == "worst":
        counts = by_class(record, attack)
        assert counts is not None
        correct, n = min((row for row in counts.tolist() if row[1]), key=lambda row: row[0] / row[1])
        low, high = wilson(int(correct), int(n))
        return 100 * low, 100 * high
    try:
        statistic, patterns = _patterns(quantity, attack, record, last)
    except UserError:
        return None
    half = jackknife(statistic, patterns)
    return None if math.isnan(half) else (estimate - half, estimate + half)


def by_class(record: Record, attack: str) -> NDArray[Any] | None:
    """Correct and n of each class, (classes, 2), from the record or its outcomes; None where neither tells."""
    metric = record.metrics[attack]
    if metric.per_class is not None:
        return np.asarray(metric.per_class)
    try:
        return _counted(record, attack)
    except UserError:
        return None


def _counted(record: Record, attack: str) -> NDArray[Any]:
    right = record.right(attack)
    labels = record.verdicts()["label"].to_numpy()[: len(right)]
    classes = max(record.images.classes, int(labels.max()) + 1)
    counts = [np.bincount(labels, weights, classes) for weights in (right, np.ones(len(right)))]
    return np.stack(counts, axis=1).astype(int)


def _accuracy(record: Record, attack: str) -> float | None:
    metric = record.metrics.get(attack)
    return None if metric is None else 100 * metric.value


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _shares(counts: NDArray[Any]) -> NDArray[Any]:
    """Accuracy in percent of each class that has images."""
    there = counts[counts[:, 1] > 0]
    shares: NDArray[Any] = 100 * there[:, 0] / there[:, 1]
    return shares


def _worst(counts: NDArray[Any]) -> float:
    return float(_shares(counts).min())


def _nsd(counts: NDArray[Any]) -> float:
    shares = _shares(counts)
    return float(shares.std() / shares.mean()) if shares.any() else math.nan


def _harmonic(first: float, second: float) -> float:
    return 2 * first * second / (first + second) if first + second else 0.0


_OF_CLASSES: dict[str, Callable[[NDArray[Any]], float]] = {"worst": _worst, "nsd": _nsd}
_BOTH: dict[str, Callable[[float, float], float]] = {"mean": lambda a, b: (a + b) / 2, "harmonic": _harmonic}


def _patterns(
    quantity: str, attack: str, record: Record, last: Record | None
) -> tuple[Callable[[NDArray[Any]], float], NDArray[Any]]:
    """What a quantity is of the numbers of images of each pattern, and these numbers."""
    if quantity == "nsd":
        correct, n = _counted(record, attack).T
        there = np.stack([n - correct, correct], axis=1)
        return lambda counts: _nsd(np.stack([counts[:, 1], counts.sum(axis=1)], axis=1)), there
    paired = [record.right("clean"), record.right(attack)]
    if quantity == "diff":
        assert last is not None
        paired = [record.right(attack), last.right(attack)]
    n = min(map(len, paired))
    first, second = (right[:n].astype(int) for right in paired)
    patterns = np.bincount(2 * first + second, minlength=4).reshape(2, 2)

    def statistic(counts: NDArray[Any]) -> float:
        shares = 100 * counts[1].sum() / counts.sum(), 100 * counts[:, 1].sum() / counts.sum()
        return float(shares[0] - shares[1]) if quantity == "diff" else _BOTH[quantity](*map(float, shares))

    return statistic, patterns
