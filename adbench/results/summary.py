"""What a finished training says of itself: `training.json`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from adbench.errors import UserError
from adbench.results import document, layout

Which = Annotated[str, Field(pattern="^(best|last)$")]
Hash = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class Summary:
    """What `training.json` says of a finished training, within the bounds that records have."""

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid")

    epochs: Annotated[int, Field(ge=1)]
    best_epoch: Annotated[int, Field(ge=1)]
    best_val_robust: Annotated[float, Field(ge=0, le=1)]
    seconds: Annotated[float, Field(ge=0)]
    images_per_second: Annotated[float, Field(ge=0)]
    peak_memory_bytes: Annotated[int, Field(ge=0)]
    precision: Literal["float32", "bfloat16"] = "float32"
    micro_batch: Annotated[int, Field(ge=2)] | None = None
    devices: Annotated[int, Field(ge=1)] = 1
    weights: Annotated[dict[Which, Hash], Field(min_length=2)] | None = None
    """SHA-256 (`file_reader.state_sha256`) of what it ended with, by "best" and "last"; older trainings have none."""
    notes: list[str] = field(default_factory=list)
    """What was met on the way: damaged states that were passed over, another number of devices."""


def finished(folder: Path) -> Summary | None:
    """The summary of a training that ended in `folder`, or None."""
    path = folder / layout.SUMMARY
    try:
        # As JSON, which a strict dataclass is made of; a table is for an instance alone.
        return TypeAdapter(Summary).validate_json(json.dumps(document.opened(path)))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        said = f"{'.'.join(map(str, first['loc'])) or 'the whole'}: {first['msg']}"
    except (ValueError, TypeError) as error:
        said = str(error)
    raise UserError(f"'{path}' is damaged ({said}); delete its folder to train again")
