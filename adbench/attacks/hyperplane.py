"""The projection that FAB (Croce & Hein, ICML 2020) takes in every step, without sorting the pixels."""

from __future__ import annotations

import torch
from torch import Tensor

TOLERANCE = 1e-6
"""Of the distance to the hyperplane: what float32 sums over an image's pixels resolve."""

MOST = 100
"""Steps at most; about four are taken."""


def nearest_in_box(points: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """d (N, D), of least L-infinity norm, with which points + d lies in [0, 1] and on the hyperplane w z = b.

    points: (N, D) in [0, 1]; w: (N, D); b: (N,). Where the hyperplane misses the box, d leads to the corner nearest to
    it; where w is 0, d is. The same point as pyautoattack's `projection_linf`, to float32's rounding.

    A coordinate moves by the level that all move by, or as far as the box lets it. What that changes in w z is a
    concave function of the level, linear between the levels at which a coordinate is stopped, so that Newton's method
    comes to the level which is wanted from below, in finitely many steps.
    """
    distance = (w * points).sum(1) - b
    direction = w.sign() * torch.where(distance >= 0, -1.0, 1.0)[:, None]
    room = torch.where(direction > 0, 1 - points, points).clamp_min_(0)
    distance, steepness = distance.abs(), w.abs()
    level = distance / steepness.sum(1).clamp_min(1e-30)
    moved = torch.empty_like(room)
    for _ in range(MOST):
        missing = distance - torch.minimum(room, level[:, None], out=moved).mul_(steepness).sum(1)
        slope = torch.where(room > level[:, None], steepness, 0).sum(1)
        ended = (missing <= TOLERANCE * distance) | (slope == 0)
        if ended.all():
            break
        level = torch.where(ended, level, level + missing / slope)
    return direction * torch.minimum(room, level[:, None], out=moved)
