"""Architectures: one small contract, `Network`, and `build` to get one by name.

Names alone (`canonical`) cost no import of torch; the rest is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from adbench.models.names import canonical

if TYPE_CHECKING:
    from adbench.models.network import Network, PerChannel, build, count_parameters

__all__ = ["Network", "PerChannel", "build", "canonical", "count_parameters"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module("adbench.models.network"), name)
