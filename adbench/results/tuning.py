"""The record of a search for settings (`adbench tune`): results/tuning/ID.json. Reading needs no torch.

It has every setting that was tried, in the order in which they were drawn, with its robust accuracy on the held-out
images; test images had no part in it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from adbench.results import document, layout
from adbench.results.document import Count, Document, Identity, Limits, Positive, Seconds, Share
from adbench.system.files import walk


@dataclass(slots=True)
class Trial:
    """One training of a search."""

    settings: Annotated[dict[str, Any], "by their keys; none: those of the recipe as it is"]
    train_id: Identity
    passes: Annotated[Annotated[float, Limits(gt=0)], "forward and backward passes an image of the training set"]
    epochs: Positive
    seconds: Seconds
    val_robust: Annotated[Share | None, "of its best epoch; null where it failed"]
    best_epoch: Count
    failed: Annotated[str, "why, if it did"] = ""


@dataclass(slots=True)
class Tuning(Document):
    """A random search over settings of one method, within a budget of passes, judged on held-out images alone."""

    schema_version: Literal[1]
    id: Annotated[Identity, "of method, place, values, budget and seed"]
    adbench: str
    command: str
    written: str
    method: str
    dataset: str
    student: str
    teacher: str | None
    seed: Annotated[Count, "of the draw"]
    budget: Annotated[Annotated[float, Limits(gt=0)], "forward and backward passes an image, for all trials together"]
    held_out: Annotated[Positive, "images that the trials were judged on"]
    over: Annotated[dict[str, list[Any]], "values by the key of their setting"]
    trials: Annotated[list[Trial], Limits(min_length=1)]

    @property
    def spent(self) -> float:
        """Passes of all trials."""
        return sum(trial.passes for trial in self.trials)

    @property
    def best(self) -> Trial | None:
        """The trial of the highest held-out robust accuracy, the first of equals; None where all failed."""
        found = [trial for trial in self.trials if trial.val_robust is not None]
        return max(found, key=lambda trial: trial.val_robust or 0.0, default=None)


def path_of(results: Path, identity: str) -> Path:
    """Where the record of a search is."""
    return results / layout.TUNING / f"{identity}.json"


def read_all(results: Path, left_out: Callable[[str], object] | None = None) -> list[Tuning]:
    """Every search below `results`, in path order. left_out: as of `record.read_all`."""
    folders = sorted((folder, names) for folder, names in walk(results) if folder.name == layout.TUNING)
    paths = (folder / name for folder, names in folders for name in sorted(names) if name.endswith(".json"))
    return list(document.readable(paths, read, left_out))


def told(settings: Mapping[str, Any]) -> str:
    """A trial's settings in words."""
    return ", ".join(f"{key} {json.dumps(value)}" for key, value in settings.items()) or "the recipe as it is"


def read(path: Path) -> Tuning:
    """Read one. Raises UserError, as for records, where it is not one of a version that is understood."""
    return document.read(path, Tuning, "delete it and search again")
