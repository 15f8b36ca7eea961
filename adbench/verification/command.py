"""`adbench verify` on one record or a folder of them: the findings as lines, or all of them as one table of JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from adbench import __version__
from adbench.errors import UserError
from adbench.execution.place import Place
from adbench.results import layout, provenance, record
from adbench.system import files
from adbench.verification.consistency import ANSWERS, CONTRADICTS, FOLLOWS, NOT_SHOWN, Finding
from adbench.verification.verify import UNSHOWABLE, Asked, verify

SCHEMA_VERSION = 1

_MARKS = {FOLLOWS: "follows", CONTRADICTS: "CONTRADICTS", NOT_SHOWN: "not shown"}
_VERBS = {FOLLOWS: "follow", CONTRADICTS: "contradict", NOT_SHOWN: "not shown"}


class Report:
    """What was found of the records at `path`, one or a folder of them.

    weights: the checkpoint of the one record. echo: prints each line as it comes, if given.
    Raises UserError where there is no record, and for the record of a failed cell.
    """

    def __init__(
        self, path: Path, place: Place, weights: Path | None, asked: Asked, echo: Callable[[str], object] | None = None
    ) -> None:
        one = path / layout.RECORD if path.is_dir() else path
        self.alone = one.is_file() or not path.is_dir()
        self.paths = [one] if self.alone else files.below(path, layout.RECORD)
        if not self.paths:
            raise UserError(f"there is no record in '{path}'; give a record or a folder of records")
        if weights and not self.alone:
            raise UserError(f"--checkpoint is the network of one record, and '{path}' is a folder; give one record")
        self.place, self.weights, self.asked = place, weights, asked
        self._echo = echo or (lambda _: None)
        self.records: list[dict[str, Any]] = []
        self.failed = 0

    def run(self) -> None:
        """Verify all records, and say what was found."""
        if self.asked.again or self.asked.survivors:
            self._echo(f"images drawn and attacked with seed {self.asked.seed} (--seed {self.asked.seed} repeats this)")
        for path in self.paths:
            if not self.alone and self._failed_cell(path):
                self.failed += 1
                continue
            findings = []
            for finding in self._findings(path):
                findings.append(finding)
                if self.alone:
                    self._echo(_line(finding))
            counts = Counter(finding.answer for finding in findings)
            self.records.append(
                {
                    "path": str(path),
                    "sha256": files.sha256(path),
                    "findings": [asdict(finding) for finding in findings],
                    "counts": {answer: counts[answer] for answer in ANSWERS},
                }
            )
            if not self.alone:
                self._echo(f"{path}: {_told(counts)}")
                for finding in findings:
                    if finding.answer != FOLLOWS:
                        self._echo(_line(finding))
        self._total()

    def _total(self) -> None:
        self._echo("no file can show:")
        for kind in UNSHOWABLE:
            self._echo(f"  - {kind}")
        if self.alone:
            self._echo(_told(self.counts))
        else:
            failed = f"; {self.failed} of failed cells state no figure" if self.failed else ""
            self._echo(f"{len(self.records)} records: {_told(self.counts)}{failed}")

    @property
    def counts(self) -> Counter[str]:
        """How many findings there are of each answer."""
        return Counter(finding["answer"] for one in self.records for finding in one["findings"])

    def exit_code(self, strict: bool) -> int:
        """1 where something contradicts, or where anything is not shown and one is strict; else 0."""
        return int(bool(self.counts[CONTRADICTS] or (strict and self.counts[NOT_SHOWN])))

    def json(self) -> str:
        """All of it, as docs/evaluation.md describes it."""
        asked = {key: value for key, value in asdict(self.asked).items() if value is not None}
        content = {
            "schema_version": SCHEMA_VERSION,
            "adbench": __version__,
            "date": provenance.now(),
            "asked": asked,
            "records": self.records,
            "failed_cells": self.failed,
            "counts": {answer: self.counts[answer] for answer in ANSWERS},
            "no_file_shows": list(UNSHOWABLE),
        }
        return json.dumps(content, indent=1)

    def _failed_cell(self, path: Path) -> bool:
        try:
            return not record.read(path).done
        except UserError:
            return False

    def _findings(self, path: Path) -> Iterator[Finding]:
        try:
            yield from verify(
                path,
                data_dir=self.place.data_dir,
                device=self.place.torch_device,
                weights=self.weights,
                asked=self.asked,
            )
        except UserError as error:
            if self.alone:
                raise
            yield Finding("form", CONTRADICTS, str(error))


def _line(finding: Finding) -> str:
    return f"  {_MARKS[finding.answer]:11}  {finding.what}: {finding.says}"


def _told(counts: Counter[str]) -> str:
    return ", ".join(f"{counts[answer]} {_VERBS[answer]}" for answer in ANSWERS)
