"""What others found out about submitted records: checks, which attacked survivors again, and challenges.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic_core import ValidationError

from adbench.board import folders, rules
from adbench.errors import UserError
from adbench.results import document
from adbench.results.document import Count, Document, Limits, Positive, Sha256, Size, Text, table
from adbench.results.record import Record

SURVIVORS = 200
"""So many survivors of each attack, or all, a check has to have attacked."""


@dataclass(slots=True)
class CheckedRecord:
    """One record of a check."""

    EXTRAS = "ignore"

    sha256: Annotated[Sha256, "of the record's file"]
    findings: list[Annotated[dict[str, Any], table({"what": str, "answer": str, "says": str})]]


@dataclass(slots=True)
class Check:
    """What `adbench verify --format json` prints, as far as a board needs it."""

    EXTRAS = "ignore"

    schema_version: Literal[1]
    date: Annotated[str, Limits(pattern=r"^\d{4}-\d\d-\d\d")]
    asked: Annotated[dict[str, Any], table({"seed": Count}, survivors=Count)]
    records: list[CheckedRecord]


@dataclass(slots=True)
class Challenge(Document):
    """Adversarial examples that broke test images of one network."""

    schema_version: Literal[1]
    id: Annotated[Text, "of the record that was challenged"]
    train_id: Annotated[Text, "of its training, whose configuration says how the weights are used"]
    weights_sha256: Sha256
    fingerprint: Annotated[Sha256, "of the data"]
    eps: Size
    examples_sha256: Annotated[Sha256, "of the file of adversarial examples"]
    examples: Annotated[Positive, "how many there were"]
    broken: Annotated[list[Count], Limits(min_length=1), "test images that the network misclassifies with them"]
    by: Annotated[str, "who made them"]
    date: str
    adbench: str


@dataclass(frozen=True)
class CheckResult:
    """What a check found of one record: contradictions as sentences, the seed, the day, and whether it attacked all."""

    wrong: tuple[str, ...]
    seed: int
    date: str
    attacked: bool


class Evidence:
    """All checks and challenges of a board. left_out: hears of each file that cannot be used, in a sentence."""

    def __init__(self, board: Path, left_out: list[str]) -> None:
        self._verdicts: dict[str, list[tuple[Check, CheckedRecord]]] = {}
        self.challenges: list[Challenge] = []
        for path in _documents(board / folders.CHECKS, left_out):
            try:
                check = read_check(path)
            except UserError as error:
                left_out.append(str(error))
                continue
            for judged in check.records:
                self._verdicts.setdefault(judged.sha256, []).append((check, judged))
        for path in _documents(board / folders.CHALLENGES, left_out):
            try:
                folders.bounded(path, folders.DOCUMENT_SIZE)
                self.challenges.append(document.read(path, Challenge, "challenge the record again"))
            except UserError as error:
                left_out.append(str(error))

    def verdicts(self, record: Record, sha256: str) -> list[CheckResult]:
        """What checks found of the record whose file has that SHA-256."""
        found = []
        for check, judged in self._verdicts.get(sha256, ()):
            answers = {finding["what"]: finding["answer"] for finding in judged.findings}
            wrong = tuple(f"{f['what']}: {f['says']}" for f in judged.findings if f["answer"] == "contradicts")
            held = all(answers.get(f"{name} survivors") == "follows" for name in rules.white_box(record))
            attacked = held and check.asked.get("survivors", 0) >= SURVIVORS
            found.append(CheckResult(wrong, check.asked["seed"], check.date[:10], attacked))
        return found

    def broken(self, record: Record) -> list[Challenge]:
        """The challenges to the record's network on its data, within the board's ball."""
        eps = rules.RANKED[record.dataset].eps
        return [
            one
            for one in self.challenges
            if (one.train_id, one.weights_sha256, one.fingerprint, one.eps)
            == (record.train_id, record.network.weights_sha256, record.images.fingerprint, eps)
        ]


def read_check(path: Path) -> Check:
    """A check's file. Raises UserError for anything else."""
    try:
        content = document.parsed(folders.bounded(path, folders.DOCUMENT_SIZE))
        found: Check = document.validator(Check).validate_python(content)
    except ValidationError as error:
        why = document.complaint(error)
        raise UserError(f"'{path}' is not what `adbench verify FOLDER --format json` prints: {why}") from error
    except ValueError as error:
        raise UserError(f"'{path}' is no JSON ({error}); write it with adbench verify --format json") from error
    return found


def _documents(folder: Path, left_out: list[str]) -> Iterator[Path]:
    try:
        names: Iterable[str] = folders.inside(folder)
    except UserError as error:
        left_out.append(str(error))
        return
    for name in names:
        if name.endswith(".json"):
            yield folder / name
        elif not name.startswith("."):
            left_out.append(f"'{folder / name}' is no .json; left out")
