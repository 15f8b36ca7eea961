"""Square (Andriushchenko et al., ECCV 2020) by AutoAttack's authors' code: an attack that sees logits and no gradient.

AutoAttack runs it last and with 5,000 queries. Here it stands alone, with few, to find out whether gradients mislead;
its squares shrink over the queries that it has.
"""

from __future__ import annotations

from fractions import Fraction
from importlib.metadata import version
from typing import Any

import torch
from pyautoattack.square import SquareAttack
from torch import Tensor, nn

from adbench.attacks import autoattack
from adbench.attacks.linf import attacking
from adbench.data.threat import as_text


def definition(eps: Fraction, seed: int, queries: int) -> dict[str, Any]:
    """What `survivors` runs, for the record."""
    return {
        "name": "square",
        "implementation": f"pyautoattack {version('pyautoattack')}",
        "loss": "margin",
        "eps": as_text(eps),
        "queries": queries,
        "schedule": "rescaled to the queries",
        "restarts": 1,
        "seed": seed,
    }


class _InParts(nn.Module):
    """A network that takes any number of images at once, `size` of them at a time."""

    def __init__(self, network: nn.Module, size: int) -> None:
        super().__init__()
        self.network, self.size = network, size

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.network(part) for part in torch.split(x, self.size)])


def survivors(
    network: nn.Module, x: Tensor, y: Tensor, eps: Fraction, *, seed: int, queries: int, batch_size: int
) -> Tensor:
    """Which images (N, C, H, W) in [0, 1] with labels y (N,) Square does not break with so many queries each: (N,).

    The package draws its random numbers for all images together, so they are attacked together whatever the batch
    size, and a verdict depends on which images these are. The caller's random stream goes on as if nothing was drawn.
    """
    if len(x) == 0:
        return torch.zeros(0, dtype=torch.bool, device=y.device)
    # The package seeds torch's global generators.
    devices = [x.device] if x.device.type == "cuda" else []
    with autoattack.LOCK, attacking(network), torch.random.fork_rng(devices=devices):
        model = _InParts(autoattack.searching(network, "exact"), batch_size)
        attack = SquareAttack(model, norm="Linf", eps=float(eps), n_queries=queries, seed=seed, device=x.device)
        x_adv = attack.perturb(x.contiguous(), y)
        return ~autoattack.falls(_InParts(network, batch_size), x, x_adv, y, eps)
