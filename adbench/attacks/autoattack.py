"""AutoAttack (Croce & Hein, ICML 2020) by its authors' own code, behind one adapter."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from adbench.attacks.linf import attacking
from adbench.data.threat import as_text
from adbench.errors import UserError

# pyautoattack keeps counters and log handlers at module level: one evaluation at a time in a process.
_LOCK = threading.Lock()

# The package draws its random numbers a batch at a time, so the batch is part of what the attack is.
BATCH = 200


def definition(eps: Fraction, classes: int, seed: int) -> dict[str, Any]:
    """What `survivors` runs, for the record."""
    return {
        "name": "aa",
        "implementation": f"pyautoattack {version('pyautoattack')}",
        "version": "standard",
        "attacks": ["apgd-ce", "apgd-t", "fab-t", "square"],
        "eps": as_text(eps),
        "target_classes": min(9, classes - 1),
        "square_queries": 5000,
        "batch_size": BATCH,
        "seed": seed,
    }


class _Flags(logging.Handler):
    """Collects the warnings of one evaluation."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage().split(" See ")[0]
        if message not in self.messages:
            self.messages.append(message)


@contextmanager
def _captured() -> Iterator[_Flags]:
    logger = logging.getLogger("auto-attack")
    handler, propagated = _Flags(), logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield handler
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagated


class _Logits(nn.Module):
    """The network with contiguous input gradients, which AutoAttack takes views of."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x.contiguous())
        return logits.float()


def survivors(network: nn.Module, x: Tensor, y: Tensor, eps: Fraction, *, seed: int) -> tuple[Tensor, list[str]]:
    """Which images AutoAttack standard does not break.

    x: images (N, C, H, W) in [0, 1] that the network classifies correctly; y: labels (N,). Returns a (N,) boolean
    tensor (True: survived) and the warnings that the attack raised. Every x' found is judged again here: inside
    the ball, inside [0, 1], and misclassified. Raises UserError with fewer than 4 classes, for which the standard
    version is not defined (its targeted loss needs four logits).
    """
    if len(x) == 0:
        return torch.zeros(0, dtype=torch.bool, device=y.device), []
    import pyautoattack
    from pyautoattack import checks

    with _LOCK, attacking(network), _captured() as flags:
        model = _Logits(network).eval()
        with torch.no_grad():
            classes = model(x[:1]).shape[1]
        if classes < 4:
            raise UserError(
                f"AutoAttack standard needs at least 4 classes, this network has {classes}; "
                'set eval.attacks to others, as in eval.attacks = ["fgsm", "pgd20", "cw"]'
            )
        # The counters behind the "dynamic defense" warning are never reset by the package itself.
        for name in checks.funcs:
            checks.funcs[name] = 0
        attack = pyautoattack.AutoAttack(
            model, norm="Linf", eps=float(eps), version="standard", seed=seed, device=x.device
        )
        attack.apgd_targeted.n_target_classes = min(9, classes - 1)
        attack.fab.n_target_classes = min(9, classes - 1)
        # The package seeds torch's global generator; the caller's stream goes on as if it had not.
        with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):
            x_adv, _ = attack.run_standard_evaluation(x, y, batch_size=BATCH)
        with torch.no_grad():
            predicted = torch.cat([model(part).argmax(1) for part in torch.split(x_adv, BATCH)])
    inside = (x_adv - x).abs().flatten(1).amax(1) <= float(eps) + 1e-6
    inside &= (x_adv.flatten(1).amin(1) >= 0) & (x_adv.flatten(1).amax(1) <= 1)
    return ~(inside & (predicted != y)), list(flags.messages)
