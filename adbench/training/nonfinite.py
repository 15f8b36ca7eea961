"""Losses and gradients that are not finite: noticed without making a GPU wait, named, and saved with their batch."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adbench.training.step import Step

LOOK_EVERY = 20
"""Iterations between two looks at a GPU's flag; a CPU is asked every time, which costs it nothing."""


@dataclass(frozen=True)
class BatchPart:
    """A part of a batch after its backward pass: its step, its examples x' and their losses (B,)."""

    step: Step
    x_adv: Tensor
    loss: Tensor


class Watch:
    """Whether every loss and gradient norm so far was finite.

    The verdict stays on the device as a number, 0 or 1, which the optimiser is given as `found_inf`: from the first
    failure on it changes nothing, so that weights and optimiser are as they were when the batch failed. The host
    asks every `every` iterations, and keeps the batches since it last did.
    """

    def __init__(self, optimiser: torch.optim.Optimizer, device: torch.device, every: int) -> None:
        self.every = every
        self.failed = torch.zeros((), device=device)
        self._place = torch.full((), -1, dtype=torch.int64, device=device)  # of the first failure, in `_since`
        self._since: list[list[BatchPart]] = []
        self.guard([optimiser])

    def guard(self, optimisers: Iterable[torch.optim.Optimizer]) -> None:
        """Have further optimisers change nothing from the first failure on: the fused ones, since others know no such
        number, and go on until the host asks."""
        for optimiser in optimisers if self.every > 1 else ():
            if all(group.get("fused") for group in optimiser.param_groups):
                optimiser.found_inf = self.failed  # type: ignore[attr-defined]

    def note(self, parts: list[BatchPart], total: Tensor) -> None:
        """One iteration: its parts, and a number that is finite if loss and gradients are."""
        bad = ~torch.isfinite(total)
        first = bad & (self.failed == 0)
        self._place.copy_(torch.where(first, len(self._since), self._place))
        self.failed.copy_(torch.maximum(self.failed, bad.to(self.failed)))
        self._since.append(parts)

    def failure(self, *, now: bool = False) -> list[BatchPart] | None:
        """The parts of the first batch that failed, or None. The device is asked if it is time to, or `now`."""
        if not (now or len(self._since) >= self.every):
            return None
        failed = self._since[int(self._place)] if self.failed else None
        self._since.clear()
        return failed


def diagnosis(parts: list[BatchPart], student: nn.Module) -> tuple[str, dict[str, float]]:
    """A sentence on what is not finite in a batch or in the student's gradients, and the terms of its loss."""
    parameters = dict(student.named_parameters())
    terms = {
        name: math.fsum(float(values[-1]) for values in (p.step.logged.get(name) for p in parts) if values) / len(parts)
        for name in parts[0].step.logged
    }
    loss, x_adv = torch.cat([p.loss for p in parts]), torch.cat([p.x_adv for p in parts])
    wrong = {
        "weights since the last update": [n for n, p in parameters.items() if not torch.isfinite(p).all()],
        "adversarial examples": [f"{_not_finite(x_adv)} of {len(x_adv)}"] if _not_finite(x_adv) else [],
        "terms": [f"{name} = {value}" for name, value in terms.items() if not math.isfinite(value)],
        "losses": [f"{_not_finite(loss)} of {len(loss)} examples"] if _not_finite(loss) else [],
        "gradients": [n for n, p in parameters.items() if p.grad is not None and not torch.isfinite(p.grad).all()],
    }
    return "; ".join(f"{what}: {_first(names)}" for what, names in wrong.items() if names), terms


def contents(parts: list[BatchPart]) -> dict[str, Any]:
    """The batch, for a file in which the cause can be looked for."""
    return {
        "x": torch.cat([p.step.x for p in parts]),
        "y": torch.cat([p.step.y for p in parts]),
        "x_adv": torch.cat([p.x_adv for p in parts]),
        "loss": torch.cat([p.loss for p in parts]),
        "iteration": parts[0].step.iteration,
        "lr": parts[0].step.lr,
    }


def _not_finite(values: Tensor) -> int:
    """How many examples have a value that is not finite."""
    return int((~torch.isfinite(values)).reshape(len(values), -1).any(dim=1).sum())


def _first(names: list[str]) -> str:
    """Up to three names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
