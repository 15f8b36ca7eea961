"""adbench: the benchmark for adversarial distillation.

What the author of a method imports, beside the pure functions of `adbench.losses`:

    from adbench import Method, Need, Passes, Start, Step, hyper
    from adbench.losses import cross_entropy, kl

    class Mine(Method):
        label = "Mine"
        needs = frozenset({Need.TEACHER})
        alpha: float = hyper(0.9, ge=0, le=1, doc="weight of distillation")

        def attack(self, step: Step) -> Tensor: ...
        def loss(self, step: Step, x_adv: Tensor) -> Tensor: ...

`adbench.load("results")` gives all records of a results folder as a pandas DataFrame, one row a record. Everything else
is private and may move. Each name is imported at its first use, so that the command line starts without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adbench import losses
    from adbench.attacks.linf import Start
    from adbench.results.frame import load
    from adbench.training.method import ATTACK_BN, Method, Passes, hyper
    from adbench.training.parts import Part
    from adbench.training.step import Mode, Need, Net, Step

__all__ = ["ATTACK_BN", "Method", "Mode", "Need", "Net", "Part", "Passes", "Start", "Step", "hyper", "load", "losses"]

__version__ = "0.1.0"

DISTRIBUTION = "adversarial-distillation-bench"
"""The name that pip knows this package by: `adbench` is another project's, with the same import name."""

REVISION = 2
"""Raised with every change to adbench after which the same configuration gives other numbers."""

FAST_SEARCH = 3
"""Raised instead where AutoAttack's fast search alone may give other verdicts."""

_DEFINED_IN = {
    "Start": "attacks.linf",
    "load": "results.frame",
    "Part": "training.parts",
    **dict.fromkeys(("ATTACK_BN", "Method", "Passes", "hyper"), "training.method"),
    **dict.fromkeys(("Mode", "Need", "Net", "Step"), "training.step"),
}


def __getattr__(name: str) -> Any:
    if name == "losses":
        return importlib.import_module("adbench.losses")
    if name not in _DEFINED_IN:
        raise AttributeError(f"module 'adbench' has no attribute '{name}'")
    return getattr(importlib.import_module(f"adbench.{_DEFINED_IN[name]}"), name)
