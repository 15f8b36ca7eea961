"""Architectures: one small contract, `Network`, and `build`, which makes a network by name.

`canonical` imports no torch; the rest is imported at its first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from adbench.models.names import canonical

if TYPE_CHECKING:
    from adbench.models.factory import build, count_parameters
    from adbench.models.network import Network, PerChannel

__all__ = ["Network", "PerChannel", "build", "canonical", "count_parameters"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    module = "factory" if name in ("build", "count_parameters") else "network"
    return getattr(importlib.import_module(f"adbench.models.{module}"), name)
