"""Datasets as uint8 tensors in memory, with the threat model that the field uses on them.

Importing this package imports neither torch nor numpy, which the check of a command's words must not wait for: it needs
names and threat models alone.  The rest is imported at its first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from adbench.data.identity import is_path
from adbench.data.threat import Threat, as_text, parse_fraction

if TYPE_CHECKING:
    from adbench.data.arrays import Arrays
    from adbench.data.dataset import Dataset, Split, load

__all__ = ["Arrays", "Dataset", "Split", "Threat", "as_text", "is_path", "load", "parse_fraction"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    module = "arrays" if name == "Arrays" else "dataset"
    return getattr(importlib.import_module(f"adbench.data.{module}"), name)
