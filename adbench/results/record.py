"""What one finished cell leaves behind: `record.json`, described by `record.schema.json`.

A record is a folder's truth: configuration, provenance and every metric with its n; beside it
`outcomes.parquet` holds, for each test image, whether the network was still right under each attack.
Tables, data frames and reports are derived from records and may be deleted. Reading needs no torch.
"""

from __future__ import annotations

import hashlib
import io
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic_core import ValidationError

from adbench.data.identity import is_path
from adbench.errors import UserError
from adbench.results import document, layout
from adbench.results.document import Document, Identity, Kind, Seconds, Text
from adbench.results.fields import (
    Configuration,
    Log,
    Masking,
    Metric,
    Provenance,
    RecordedData,
    RecordedFailure,
    RecordedNetwork,
    Stored,
    Teachers,
    Training,
)
from adbench.system import files
from adbench.system.files import below, content_id, sha256

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray


CONFIGURED = (
    ("training", "architecture"),
    ("training", "data", "content"),
    ("training", "data", "train_images"),
    ("training", "data", "val_images"),
    ("training", "threat"),
    ("evaluation", "images"),
)
TRAINED_HERE = (("training", "normalisation"),)
FROM_ELSEWHERE = (
    ("training", "source", "mean"),
    ("training", "source", "std"),
    ("training", "source", "source", "kind"),
)
"""What a configuration needs for the data and the network to be had again, beyond what every record has."""


class Contradiction(UserError):
    """A record whose accuracies are not those that its own outcomes give."""


@dataclass(slots=True)
class Record(Document):
    """One evaluated network: what it was, how it was made, how it fared under each attack."""

    schema_version: Literal[1]
    kind: Kind
    id: Annotated[Identity, "identity of the training and evaluation configuration together"]
    train_id: Identity
    eval_id: Identity
    status: Literal["done", "failed"]
    error: RecordedFailure | None
    dataset: Text
    method: Annotated[str | None, "registry name; null for a network that was not trained here"]
    label: Annotated[str, "the name to print: the method's for a student, the teacher's for a teacher"]
    teacher: Annotated[str | None, "null for methods without a teacher"]
    student: Annotated[str, "architecture of the evaluated network"]
    seed: int | None
    config: Configuration
    provenance: Provenance
    data: RecordedData | None
    model: RecordedNetwork | None
    teachers: Teachers
    training: Training | None
    metrics: dict[str, Metric]
    outcomes: Stored | None
    timing: Annotated[dict[str, Seconds], "wall seconds by phase: prepare, train, evaluate"]
    masking: Masking | None = None
    objectives: Annotated[
        dict[str, str] | None, "a plugin's formulas by name (attack, loss, ...), as it stated them"
    ] = None

    @property
    def done(self) -> bool:
        return self.status == "done"

    @property
    def network(self) -> RecordedNetwork:
        """The network that was judged, of a cell that is done."""
        assert self.model is not None
        return self.model

    @property
    def perturbed(self) -> bool:
        """Whether it was trained with adversarial weight perturbation."""
        recipe = self.config.training.get("train")
        return bool(isinstance(recipe, dict) and recipe.get("awp"))

    @property
    def failure(self) -> RecordedFailure:
        """Why it failed, of a cell that did."""
        assert self.error is not None
        return self.error

    @property
    def images(self) -> RecordedData:
        """The data that it was judged on, of a cell that is done."""
        assert self.data is not None
        return self.data

    def verdicts(self) -> pd.DataFrame:
        """Per test image: index, label, prediction, and one boolean column an attack (True: still right).

        Raises UserError when the file is missing, unreadable, or not the one that the record was written with.
        """
        import pandas as pd

        content = self._outcomes()
        try:
            return pd.read_parquet(io.BytesIO(content))
        except Exception as error:
            raise self._unreadable(error) from error

    def right(self, attack: str) -> NDArray[np.bool_]:
        """Per test image that it was run on, whether the network was still right under `attack`: (n,).

        Raises UserError when the outcomes are missing, unreadable or not those that the record was written with, and
        Contradiction where they give another accuracy than the record states.
        """
        return self._right([attack])[attack]

    def at(self, *keys: str) -> Any:
        """A value of the configuration that its schema does not ask for.

        Raises UserError that names the keys where it is lacking.
        """
        value: Any = self.config.table()
        for key in keys:
            if not isinstance(value, dict) or key not in value:
                raise UserError(
                    f"'{self.path}' lacks config.{'.'.join(keys)}, which is needed here; run its cell again"
                )
            value = value[key]
        return value

    def check_configuration(self) -> None:
        """Raise UserError unless the configuration has what it takes to get the data and the network again."""
        for keys in (*CONFIGURED, *(FROM_ELSEWHERE if self.method is None else TRAINED_HERE)):
            self.at(*keys)

    def check_outcomes(self) -> None:
        """Raise UserError, as `right` does, unless the outcomes are the record's and give all its accuracies."""
        if self.done and self.outcomes is not None:
            self._right(list(self.metrics))

    def _right(self, attacks: list[str]) -> dict[str, NDArray[np.bool_]]:
        import numpy as np
        import pyarrow.parquet as parquet

        content = self._outcomes()
        columns = [*(attack for attack in attacks if attack != "clean"), "prediction", "label"]
        try:
            table = parquet.ParquetFile(io.BytesIO(content)).read(columns=columns, use_threads=False)
            clean = np.asarray(table["prediction"]) == np.asarray(table["label"])
            right = {
                attack: clean if attack == "clean" else np.asarray(table[attack].drop_null()).astype(bool)
                for attack in attacks
            }
        except Exception as error:
            raise self._unreadable(error) from error
        for attack in attacks:
            metric = self.metrics[attack]
            right[attack] = right[attack][: metric.n]
            correct, n = int(right[attack].sum()), len(right[attack])
            if (correct, n) != (metric.correct, metric.n):
                raise Contradiction(
                    f"'{self.path}' states {metric.correct} of {metric.n} under {attack}, its outcomes give "
                    f"{correct} of {n}; run the cell again"
                )
        return right

    def identity(self) -> dict[str, Any]:
        """What the configuration says of fields that stand in the record again: its ids, method, seed, architecture."""
        training = self.config.training
        ids = content_id(training)[:16], content_id(self.config.evaluation)[:16]
        named = {"method": training.get("method"), "seed": training.get("seed"), "student": training["architecture"]}
        return {"train_id": ids[0], "eval_id": ids[1], "id": content_id(list(ids))[:16], **named}

    @property
    def _file(self) -> Path:
        return self.path.parent / layout.OUTCOMES

    def _unreadable(self, why: object) -> UserError:
        return UserError(f"'{self._file}' cannot be read ({why}); run the cell again to restore it")

    def _outcomes(self) -> bytes:
        """The content of the outcomes' file, which has to be the one that the record was written with."""
        if self.outcomes is None:
            raise UserError(f"'{self.path}' has no outcomes of single images")
        try:
            content = files.content(self._file)
        except OSError as error:
            raise self._unreadable(error.strerror) from error
        if hashlib.sha256(content).hexdigest() != self.outcomes.sha256:
            raise UserError(
                f"'{self._file}' is damaged: it has another SHA-256 than its record states; "
                f"run the cell again to restore it"
            )
        return content

    def log(self) -> list[dict[str, Any]]:
        """One dictionary per training epoch; empty where nothing was trained or the log was deleted.

        Raises UserError when it is not the log that the record was written with.
        """
        file = self.path.parent / self.training.log if self.training else None
        if self.training is None or file is None or not files.there(file):
            return []
        try:
            content = files.content(file)
            if self.training.log_sha256 not in (None, hashlib.sha256(content).hexdigest()):
                raise ValueError("it has another SHA-256 than its record states")
            lines = (line for line in content.decode("utf-8").splitlines() if line.strip())
            # What a method logs may be infinite.
            epochs = document.parsed(f"[{','.join(lines)}]", finite=False)
            try:
                log: list[dict[str, Any]] = document.validator(Log).validate_python(epochs)
            except ValidationError as error:
                raise ValueError(f"line {document.complaint(error)}") from error
            return log
        except (OSError, ValueError) as error:
            raise UserError(f"'{file}' is damaged ({error}); delete it to go on without its curve") from error


def write(path: Path, data: dict[str, Any]) -> None:
    """Write one record atomically; `path` is the `record.json` itself."""
    document.write(path, data)


_REMEDY = "delete it and run its cell again"


def read(path: Path) -> Record:
    """Read one record.

    Raises UserError when it is not a record of a version that is understood; where a field is not as the schema has
    it, or contradicts another, it names the field.
    """
    record = stated(path)
    if contradiction := _contradiction(record):
        raise UserError(f"'{path}' contradicts itself: {contradiction}; {_REMEDY}")
    return record


def only(path: Path) -> Path:
    """Where a record lies that is given by its path or as a folder with one below it. Raises UserError for others."""
    if not path.is_dir():
        return path
    found = below(path, layout.RECORD)
    if len(found) != 1:
        raise UserError(f"'{path}' holds {len(found)} records; name one {layout.RECORD}")
    return found[0]


def stated(path: Path) -> Record:
    """As `read`, but whatever its fields say of each other: for `adbench verify`, which judges them."""
    return document.read(path, Record, _REMEDY)


def _contradiction(record: Record) -> str | None:
    """What cannot be true of fields that are right by themselves."""
    needed = ("model", "data") if record.done else ("error",)
    for name in needed:
        if getattr(record, name) is None:
            return f"status is '{record.status}', but {name} is null"
    for name, metric in record.metrics.items():
        if metric.correct > metric.n or abs(metric.value - metric.correct / metric.n) > 1e-9:
            return f"metrics.{name}.value is {metric.value}, of {metric.correct} correct of {metric.n}"
        if any(correct > n for correct, n in metric.per_class or ()):
            return f"metrics.{name}.per_class has more correct than there are"
    return None


def finished(path: Path) -> Record | None:
    """The record of a finished cell, unless it or its outcomes are damaged; None where the cell is to be run."""
    record, damaged = examined(path)
    return record if record and record.done and not damaged else None


def damage(path: Path) -> str | None:
    """What is wrong with the record at `path` or its outcomes, in a sentence; None where all is well or nothing there.

    Reads every byte of both. Raises UserError for a record that another version of adbench wrote, and where the folder
    does not tell whether there is one.
    """
    return examined(path)[1]


def examined(path: Path) -> tuple[Record | None, str | None]:
    """The record at `path`, if it is there and can be read, and what `damage` says of it."""
    if not files.there(path):
        return None, None
    record = None
    try:
        record = read(path)
        file = path.parent / layout.OUTCOMES
        if record.done and record.outcomes is None:
            return record, f"'{path}' is done without outcomes"
        if record.done and record.outcomes and sha256(file) != record.outcomes.sha256:
            return record, f"'{file}' has another SHA-256 than its record states"
    except document.OtherVersion:
        raise
    except UserError as error:
        return None, str(error)
    except OSError as error:
        return record, f"'{error.filename}' cannot be read ({error.strerror})"
    return record, None


def read_all(results: Path, left_out: Callable[[str], object] | None = None) -> Iterator[Record]:
    """Every record below `results` (see `files.below`), in path order. Raises UserError for a missing folder.

    left_out: hears, in a sentence, of each record that is damaged or of another version, and the rest is read; without
    it such a record is a UserError.
    """
    layout.check_there(results)
    records = list(document.readable(below(results, layout.RECORD), read, left_out))
    _name_alike(records)
    yield from records


def _name_alike(records: list[Record]) -> None:
    """Give one's own data that lie at several paths the shortest as their name: the data are their content."""
    names: dict[str, set[str]] = defaultdict(set)
    for record in records:
        if record.data and is_path(record.dataset):
            names[record.data.fingerprint].add(record.dataset)
    for record in records:
        if record.data and record.dataset in (known := names.get(record.data.fingerprint, set())):
            record.dataset = min(known, key=lambda name: (len(name), name))
