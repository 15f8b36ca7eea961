"""Where cells run, and where their data and results lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from adbench.training.distributed import ALONE, Ranks


@dataclass(frozen=True)
class Place:
    """Where cells run and where they leave what they make. ranks: the processes that share each training."""

    results: Path
    data_dir: Path
    device: str
    ranks: Ranks = ALONE

    @property
    def torch_device(self) -> torch.device:
        return torch.device(self.device)

    def describe(self) -> str:
        """The device as a person would name it."""
        if self.torch_device.type == "cuda":
            return torch.cuda.get_device_name(self.torch_device)
        return f"CPU ({torch.get_num_threads()} threads)"
