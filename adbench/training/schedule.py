"""The learning rate and momentum of every iteration: pure functions of the epoch and of the batch in it.

Nothing here keeps state, so a resumed training has the rates of one that nobody disturbed.
"""

from __future__ import annotations

import bisect
import itertools
import math

from adbench.experiment.config import Train

RISE, FALL = 25, 1e4
"""One-cycle begins at lr / RISE and ends at a FALL-th of that (torch's OneCycleLR, which the authors use)."""
SLOW, FAST = 0.85, 0.95
"""Momentum at its peak and at its ends, where it is cycled."""


def rate(train: Train, epoch: int, batch: int, batches: int) -> float:
    """The learning rate of an iteration: `batch` of the `batches` of `epoch`, all counted from 0.

    Per iteration, steps, cosine and straight lines are taken at the end of the iteration, (batch + 1) / batches of an
    epoch further (Rice et al., ICML 2020); one-cycle at its beginning, as torch does.
    """
    if train.schedule == "onecycle":
        begin = train.lr / RISE
        return _cycled(train, epoch, batch, batches, begin, train.lr, begin / FALL)
    in_epoch = batches if train.per == "iteration" else 1
    at = epoch * batches + batch + 1 if train.per == "iteration" else epoch
    if train.schedule in ("cosine", "linear"):
        at = max(at + train.schedule_shift, 0)
    if train.schedule == "linear":
        return _on_line([(round(share * train.epochs * in_epoch), train.lr * part) for share, part in train.points], at)
    shares = train.warmup, train.schedule_start, train.schedule_end
    warmup, start, end = (round(share * train.epochs * in_epoch) for share in shares)
    if at < warmup:
        return train.warmup_lr + at * (train.lr - train.warmup_lr) / warmup
    if train.schedule == "step":
        return _dropped(train, at // in_epoch)
    if at < start:
        return train.lr
    if at >= end:
        return train.lr_min
    done, whole = at - start, end - start
    damping = math.exp(-train.cosine_damping * (done / whole) ** 2)
    return max(train.lr * 0.5 * (1 + math.cos(math.pi * done / whole)) * damping, train.lr_min)


def momentum(train: Train, epoch: int, batch: int, batches: int) -> float:
    """The momentum of an iteration (see `rate`)."""
    if not train.cycle_momentum:
        return train.momentum
    return _cycled(train, epoch, batch, batches, FAST, SLOW, FAST)


def drop(train: Train, epoch: int) -> float:
    """The factor by which the rate drops between the epochs `epoch` - 1 and `epoch`; 1 for none, and in smooth
    schedules."""
    return float(train.lr_factor ** train.drops().count(epoch))


def _dropped(train: Train, epoch: int) -> float:
    """The rate after the drops up to `epoch`, which are multiplied one by one: the last bits depend on it. A drop at
    the end of the training is none, also for its last iteration."""
    value = train.lr
    for _, same in itertools.groupby(drop for drop in train.drops() if 0 < drop <= epoch and drop < train.epochs):
        value *= train.lr_factor ** len(list(same))
    return value


def _on_line(points: list[tuple[int, float]], at: int) -> float:
    """The height at `at` of the line through the points; of two at the same place the latter counts from there on."""
    passed = bisect.bisect_right(points, at, key=lambda point: point[0])
    if passed in (0, len(points)):
        return points[max(passed - 1, 0)][1]
    (left, low), (right, high) = points[passed - 1 : passed + 1]
    return (high - low) / (right - left) * (at - left) + low


def _cycled(train: Train, epoch: int, batch: int, batches: int, begin: float, peak: float, end: float) -> float:
    """Half a cosine from `begin` to `peak`, which is reached one step before the share `warmup` ends, and half a one
    to `end` in the last step."""
    step, steps = (
        (epoch * batches + batch, train.epochs * batches) if train.per == "iteration" else (epoch, train.epochs)
    )
    top, last = train.warmup * steps - 1, steps - 1
    if step <= top:
        return _half_cosine(begin, peak, step, top)
    return _half_cosine(peak, end, step - top, last - top)


def _half_cosine(begin: float, end: float, step: float, steps: float) -> float:
    share = step / steps if steps else 1.0
    return end + (begin - end) / 2 * (1 + math.cos(math.pi * share))
