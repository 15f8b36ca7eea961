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
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adbench.data.identity import is_path
from adbench.errors import UserError
from adbench.results import document, layout
from adbench.system import files
from adbench.system.files import below, sha256

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

SCHEMA_VERSION = 1


def schema() -> dict[str, Any]:
    """The published JSON schema (draft 2020-12) of a record."""
    return document.schema("record")


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


class Record(document.Document):
    """One `record.json` and where it lies."""

    @property
    def done(self) -> bool:
        return bool(self.data["status"] == "done")

    def outcomes(self) -> pd.DataFrame:
        """Per test image: index, label, prediction, and one boolean column an attack (True: still right).

        Raises UserError when the file is missing, unreadable, or not the one that the record was written with.
        """
        import pandas as pd

        content = self._outcomes()
        try:
            return pd.read_parquet(io.BytesIO(content))
        except Exception as error:
            raise UserError(f"'{self._file}' cannot be read ({error}); run the cell again to restore it") from error

    def right(self, attack: str) -> NDArray[np.bool_]:
        """Per test image that it was run on, whether the network was still right under `attack`: (n,).

        Raises UserError when the outcomes are missing, unreadable or not those that the record was written with, and
        Contradiction where they give another accuracy than the record states.
        """
        return self._verdicts([attack])[attack]

    def check_configuration(self) -> None:
        """Raise UserError unless the configuration has what it takes to get the data and the network again."""
        trained = self["method"] is not None
        for keys in (*CONFIGURED, *(TRAINED_HERE if trained else FROM_ELSEWHERE)):
            self.at("config", *keys)

    def check_outcomes(self) -> None:
        """Raise UserError, as `right` does, unless the outcomes are the record's and give all its accuracies."""
        if self.done and self.data["outcomes"] is not None:
            self._verdicts(list(self["metrics"]))

    def _verdicts(self, attacks: list[str]) -> dict[str, NDArray[np.bool_]]:
        import numpy as np
        import pyarrow.parquet as parquet

        content = self._outcomes()
        columns = [*(attack for attack in attacks if attack != "clean"), "prediction", "label"]
        try:
            table = parquet.ParquetFile(io.BytesIO(content)).read(columns=columns, use_threads=False)
            clean = np.asarray(table["prediction"]) == np.asarray(table["label"])
            found = {
                attack: clean if attack == "clean" else np.asarray(table[attack].drop_null()).astype(bool)
                for attack in attacks
            }
        except Exception as error:
            raise UserError(f"'{self._file}' cannot be read ({error}); run the cell again to restore it") from error
        for attack, verdicts in found.items():
            metric = self["metrics"][attack]
            found[attack] = verdicts[: metric["n"]]
            given = int(found[attack].sum()), len(found[attack])
            if given != (metric["correct"], metric["n"]):
                raise Contradiction(
                    f"'{self.path}' states {metric['correct']} of {metric['n']} under {attack}, its outcomes give "
                    f"{given[0]} of {given[1]}; run the cell again"
                )
        return found

    @property
    def _file(self) -> Path:
        return self.path.parent / layout.OUTCOMES

    def _outcomes(self) -> bytes:
        """The content of the outcomes' file, which has to be the one that the record was written with."""
        stated = (self.data["outcomes"] or {}).get("sha256")
        if stated is None:
            raise UserError(f"'{self.path}' has no outcomes of single images")
        try:
            content = files.content(self._file)
        except OSError as error:
            raise UserError(
                f"'{self._file}' cannot be read ({error.strerror}); run the cell again to restore it"
            ) from error
        if hashlib.sha256(content).hexdigest() != stated:
            raise UserError(
                f"'{self._file}' is damaged: it has another SHA-256 than its record states; "
                f"run the cell again to restore it"
            )
        return content

    def log(self) -> list[dict[str, Any]]:
        """One dictionary per training epoch; empty where nothing was trained or the log was deleted.

        Raises UserError when it is not the log that the record was written with.
        """
        training = self.data["training"]
        # The record comes from anywhere; its log is one of these two files and no other.
        file = self.path.parent / training["log"] if training and training["log"] in layout.LOGS else None
        if file is None or not files.there(file):
            return []
        try:
            content = files.content(file)
            if training.get("log_sha256") not in (None, hashlib.sha256(content).hexdigest()):
                raise ValueError("it has another SHA-256 than its record states")
            lines = (line for line in content.decode("utf-8").splitlines() if line.strip())
            # What a method logs may be infinite.
            found: list[dict[str, Any]] = document.parsed(f"[{','.join(lines)}]", finite=False)
            if said := document.complaint("log", found):
                raise ValueError(f"line {said}")
            return found
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
    data = document.content(path, "record", _REMEDY)
    if said := _contradiction(data):
        raise UserError(f"'{path}' contradicts itself: {said}; {_REMEDY}")
    return Record(path, data)


def stated(path: Path) -> Record:
    """As `read`, but whatever the single fields say: for `adbench verify`, which judges them."""
    return Record(path, document.stated(path, "record", _REMEDY))


def _contradiction(data: dict[str, Any]) -> str | None:
    """What cannot be true of fields that are right by themselves."""
    needed = ("model", "data") if data["status"] == "done" else ("error",)
    for field in needed:
        if data[field] is None:
            return f"status is '{data['status']}', but {field} is null"
    for name, metric in data["metrics"].items():
        correct, n = metric["correct"], metric["n"]
        if correct > n or abs(metric["value"] - correct / n) > 1e-9:
            return f"metrics.{name}.value is {metric['value']}, of {correct} correct of {n}"
        if any(right > of for right, of in metric.get("per_class", ())):
            return f"metrics.{name}.per_class has more correct than there are"
    return None


def finished(path: Path) -> Record | None:
    """The record of a finished cell, unless it or its outcomes are damaged; None where the cell is to be run."""
    found, said = examined(path)
    return found if found and found.done and not said else None


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
    found = None
    try:
        found = read(path)
        file = path.parent / layout.OUTCOMES
        if found.done and found["outcomes"] is None:
            return found, f"'{path}' is done without outcomes"
        if found.done and sha256(file) != found["outcomes"]["sha256"]:
            return found, f"'{file}' has another SHA-256 than its record states"
    except document.OtherVersion:
        raise
    except UserError as error:
        return None, str(error)
    except OSError as error:
        return found, f"'{error.filename}' cannot be read ({error.strerror})"
    return found, None


def read_all(results: Path, left_out: Callable[[str], object] | None = None) -> Iterator[Record]:
    """Every record below `results` (see `files.below`), in path order. Raises UserError for a missing folder.

    left_out: hears, in a sentence, of each record that is damaged or of another version, and the rest is read; without
    it such a record is a UserError.
    """
    if not results.is_dir():
        raise UserError(f"results folder '{results}' does not exist; `adbench run` makes it")
    found = []
    for path in below(results, layout.RECORD):
        try:
            found.append(read(path))
        except UserError as error:
            if left_out is None:
                raise
            left_out(str(error))
    yield from _one_name(found)


def _one_name(records: list[Record]) -> Iterator[Record]:
    """Records, those of one's own data that lie at several paths under the shortest: the data are their content."""
    names: dict[str, set[str]] = defaultdict(set)
    for record in records:
        if record["data"] and is_path(record["dataset"]):
            names[record["data"]["fingerprint"]].add(record["dataset"])
    for record in records:
        known = names.get((record["data"] or {}).get("fingerprint", ""), set())
        if len(known) > 1 and record["dataset"] in known:
            record = Record(record.path, {**record.data, "dataset": min(known, key=lambda name: (len(name), name))})
        yield record


def frame(records: Iterator[Record] | list[Record]) -> pd.DataFrame:
    """Records as a table, one row each, ready for pandas.

    Columns: kind, status, dataset, method, label, teacher, student, seed, eps, step (of PGD and C&W), n (test images),
    id, train_seconds, evaluate_seconds, parameters, path, error; for every metric m the accuracy `m` (fraction in
    [0, 1]) and `m.n`; and for AutoAttack how it searched, `m.search`.
    """
    import pandas as pd

    from adbench.results.setting import Setting, search

    rows = []
    for record in records:
        data = record.data
        row = {key: data[key] for key in ("kind", "status", "dataset", "method", "label", "teacher", "student")}
        row |= {
            "seed": data["seed"],
            "eps": (setting := Setting.of(record)).items.get("eps"),
            "step": setting.items.get("step"),
            "n": max((metric["n"] for metric in data["metrics"].values()), default=None),
            "id": data["id"],
            "train_seconds": data["timing"].get("train"),
            "evaluate_seconds": data["timing"].get("evaluate"),
            "parameters": (data["model"] or {}).get("parameters"),
            "error": (data["error"] or {}).get("message"),
            "path": str(record.path),
        }
        for name, metric in data["metrics"].items():
            row[name] = metric["value"]
            row[f"{name}.n"] = metric["n"]
            if "version" in metric["attack"]:
                row[f"{name}.search"] = search(metric["attack"])
        rows.append(row)
    return pd.DataFrame(rows)


def load(results: Path | str = "results", left_out: Callable[[str], object] | None = None) -> pd.DataFrame:
    """All records below a results folder as a pandas DataFrame (see `frame`). left_out: as of `read_all`."""
    return frame(read_all(Path(results), left_out))
