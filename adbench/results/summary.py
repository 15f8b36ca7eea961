"""What a finished training says of itself: `training.json`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic_core import ValidationError

from adbench.errors import UserError
from adbench.results import document, layout
from adbench.results.document import Count, Limits, Positive, Seconds, Sha256, Share, table


@dataclass(frozen=True)
class Summary:
    """What `training.json` says of a finished training, within the bounds that records have."""

    epochs: Positive
    best_epoch: Positive
    best_val_robust: Share
    seconds: Seconds
    images_per_second: Seconds
    peak_memory_bytes: Count
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    micro_batch: Annotated[int, Limits(ge=2)] | None = None
    devices: Positive = 1
    weights: Annotated[dict[str, Any], table({"best": Sha256, "last": Sha256}, others=Sha256)] | None = None
    """SHA-256 (`file_reader.state_sha256`) of what it ended with, by "best" and "last"; older trainings have none."""
    notes: list[str] = field(default_factory=list)
    """What was met on the way: damaged states that were passed over, another number of devices."""


def finished(folder: Path) -> Summary | None:
    """The summary of a training that ended in `folder`, or None."""
    path = folder / layout.SUMMARY
    try:
        summary: Summary = document.validator(Summary).validate_python(document.opened(path))
        return summary
    except FileNotFoundError:
        return None
    except ValidationError as error:
        why = document.complaint(error)
    except ValueError as error:
        why = str(error)
    raise UserError(f"'{path}' is damaged ({why}); delete its folder to train again")
