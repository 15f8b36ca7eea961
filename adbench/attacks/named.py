"""The named attacks of the evaluation, each with the exact definition that goes into the record."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adbench import __version__
from adbench.attacks.linf import Start, ascend, attacking
from adbench.data.threat import as_text
from adbench.errors import unknown
from adbench.losses import cross_entropy, margin

NAMES = ("fgsm", "pgd20", "cw", "aa")


@dataclass(frozen=True)
class GradientAttack:
    """One restart of projected sign ascent: FGSM, PGD and C&W-infinity differ in these few fields."""

    name: str
    loss: str
    steps: int
    eps: Fraction
    step: Fraction
    start: Start

    def definition(self, seed: int) -> dict[str, Any]:
        """What was run, for the record; eps and step as fractions of the image range."""
        return {
            "name": self.name,
            "implementation": f"adbench {__version__}",
            "loss": self.loss,
            "eps": as_text(self.eps),
            "step": as_text(self.step),
            "steps": self.steps,
            "start": self.start.value,
            "restarts": 1,
            "seed": seed,
        }

    def __call__(self, network: nn.Module, x: Tensor, y: Tensor, index: Tensor, seed: int) -> Tensor:
        """x' (B, C, H, W) against `network` in evaluation mode, for images x in [0, 1] with labels y (B,).

        index: (B,) places in the test set. An image's start depends on (seed, attack, index) alone, so its
        verdict does not depend on the batch that it is in.
        """
        objective: Callable[[Tensor, Tensor], Tensor] = margin if self.loss == "margin" else cross_entropy
        start: Start | Tensor = self.start
        if self.start is Start.UNIFORM:
            noise = uniform_noise(x, index, seed, self.name)
            start = (x + float(self.eps) * noise).clamp(0, 1)
        with attacking(network):
            return ascend(
                x,
                lambda z: objective(network(z), y),
                eps=float(self.eps),
                step=float(self.step),
                steps=self.steps,
                start=start,
            )


def uniform_noise(x: Tensor, index: Tensor, seed: int, name: str) -> Tensor:
    """Noise in U(-1, 1) shaped like images x; row i is a function of (seed, name, index[i])."""
    stream = int.from_bytes(name.encode()[:8].ljust(8, b"\0"), "big") ^ seed
    rows = [
        np.random.Generator(np.random.Philox(key=[stream, place])).uniform(-1, 1, tuple(x.shape[1:]))
        for place in index.tolist()
    ]
    return torch.from_numpy(np.stack(rows)).to(x)


def gradient_attack(name: str, eps: Fraction, step: Fraction) -> GradientAttack:
    """The attack called `name` at a threat model's eps and step.

    fgsm: one step of size eps from the image (Goodfellow et al., ICLR 2015). pgdK: K steps on the
    cross-entropy from one uniform start (Madry et al., ICLR 2018). cw: 20 such steps on the margin
    max_{j != y} z_j - z_y (the field's C&W-infinity). Raises UserError for another name.
    """
    if name == "fgsm":
        return GradientAttack(name, "cross-entropy", 1, eps, eps, Start.CLEAN)
    if name == "cw":
        return GradientAttack(name, "margin", 20, eps, step, Start.UNIFORM)
    if pgd := re.fullmatch(r"pgd([1-9][0-9]{0,3})", name):
        return GradientAttack(name, "cross-entropy", int(pgd[1]), eps, step, Start.UNIFORM)
    raise unknown("attack", name, NAMES, "fgsm, pgdK for K steps, cw, aa")
