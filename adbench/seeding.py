"""One root seed a cell; every consumer of randomness has a named stream of its own.

A stream is a pure function of (seed, names), so adding a consumer shifts no other, and what happens in an
epoch does not depend on how often the run was interrupted before it.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

LARGEST = 2**63 - 1
"""The largest seed, and whole number of any setting: what a data frame holds."""


def derive(seed: int, *names: str | int) -> int:
    """A 63-bit seed from a root seed and the names of a stream."""
    text = "/".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: str | int, device: str | torch.device = "cpu") -> torch.Generator:
    """A torch generator for the stream (seed, names)."""
    import torch

    return torch.Generator(device=device).manual_seed(derive(seed, *names))
