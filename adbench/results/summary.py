"""What a finished training says of itself: `training.json`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from adbench.errors import UserError
from adbench.results import document, layout


@dataclass(frozen=True)
class Summary:
    """What `training.json` says of a finished training."""

    epochs: int
    best_epoch: int
    best_val_robust: float
    seconds: float
    images_per_second: float
    peak_memory_bytes: int
    precision: Literal["float32", "bfloat16"] = "float32"
    micro_batch: int | None = None
    devices: int = 1
    weights: dict[str, str] | None = None
    """SHA-256 (`file_reader.state_sha256`) of what it ended with, by "best" and "last"; older trainings have none."""
    notes: list[str] = field(default_factory=list)
    """What was met on the way: damaged states that were passed over, another number of devices."""


def finished(folder: Path) -> Summary | None:
    """The summary of a training that ended in `folder`, or None."""
    path = folder / layout.SUMMARY
    try:
        return Summary(**document.opened(path))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise UserError(f"'{path}' is damaged ({error}); delete its folder to train again") from error
