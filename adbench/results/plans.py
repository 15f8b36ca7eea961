"""What a run set out to do, left in the results folder for `adbench status`. Reading needs no torch.

results/plans/<id>.json: the experiment, and every cell with its identity, its folder and what it was expected to
take. The id is that of the set of cells, so the same matrix has one plan however often it is run.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from adbench import REVISION, __version__
from adbench.errors import UserError
from adbench.registry import METHODS
from adbench.results import document, layout
from adbench.results.document import Count, Document, Identity, Kind, Limits, Positive, Seconds, table
from adbench.results.provenance import now
from adbench.system import files

if TYPE_CHECKING:
    from adbench.experiment.cell import Cell, Matrix
    from adbench.experiment.config import Experiment


@dataclass(slots=True)
class PlannedCell:
    """A cell that a run set out to do."""

    EXTRAS = "ignore"

    id: Identity
    train_id: Identity
    eval_id: Identity
    kind: Kind
    dataset: str
    name: str
    says: str
    method: str | None
    student: str
    teacher: str | None
    seed: int | None
    epochs: Count
    record: Annotated[
        str,
        Limits(pattern="^([^/.][^/]*/){4,}record[.]json$"),
        "where its record is or will be, below the results folder",
    ]
    seconds: Annotated[Seconds, "expected of the whole cell"]
    needs: Annotated[list[Identity], "its teachers, which stand before it"]
    training: Annotated[
        dict[str, Any],
        table({"revision": int, "architecture": str, "data": Annotated[dict[str, Any], table({"name": str})]}),
        "all that decides the weights",
    ]
    evaluation_seconds: Annotated[Seconds | None, "of these, of its evaluation; older plans lack it"] = None

    @property
    def expected(self) -> tuple[float, float]:
        """Seconds that the training and the evaluation were expected to take.

        An older plan has their sum alone; training is most of it.
        """
        evaluation = self.evaluation_seconds
        if evaluation is None:
            evaluation = 0.1 * self.seconds if self.epochs else self.seconds
        return self.seconds - evaluation, evaluation


@dataclass(slots=True)
class Plan(Document):
    """What a run set out to do, for `adbench status`."""

    schema_version: Literal[1]
    id: Annotated[Identity, "identity of the set of cells"]
    adbench: str
    revision: int
    command: str
    written: str
    jobs: Annotated[Positive, "cells at a time"]
    experiment: Annotated[dict[str, Any], "the complete validated configuration"]
    plugins: Annotated[dict[str, str], "files of methods by name"]
    evaluations: Annotated[dict[str, dict[str, Any]], "by eval_id"]
    cells: Annotated[list[PlannedCell], "teachers first"]

    @property
    def results(self) -> Path:
        return self.path.parent.parent


def write(
    results: Path, experiment: Experiment, matrix: Matrix, expected: dict[str, tuple[float, float]], jobs: int
) -> Path:
    """Leave the plan of a run that begins.

    expected: seconds of each cell's whole training and evaluation, 0 of one that is done; jobs: at a time.
    """
    path = path_of(results, matrix)
    before = _expected(path)
    content = {
        "schema_version": document.SCHEMA_VERSION,
        "id": path.stem,
        "adbench": __version__,
        "revision": REVISION,
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "written": now(),
        "jobs": jobs,
        "experiment": canonical(experiment),
        "plugins": {name: str(path) for name, path in METHODS.paths().items()},
        # Many cells are judged alike.
        "evaluations": {cell.eval_id: cell.judging for cell in matrix.cells},
        # Of a cell that was done by then, what an earlier plan expected.
        "cells": [
            _entry(cell, results, expected[cell.id] if any(expected[cell.id]) else before.get(cell.id, (0.0, 0.0)))
            for cell in matrix.cells
        ],
    }
    files.write_text(path, json.dumps(document.sealed(content), separators=(",", ":")) + "\n")
    return path


def path_of(results: Path, matrix: Matrix) -> Path:
    """Where the plan of a matrix is."""
    identity = files.content_id(sorted(cell.id for cell in matrix.cells))[:16]
    return results / layout.PLANS / f"{identity}.json"


def _entry(cell: Cell, results: Path, expected: tuple[float, float]) -> dict[str, Any]:
    return {
        "id": cell.id,
        "train_id": cell.train_id,
        "eval_id": cell.eval_id,
        "kind": cell.kind,
        "dataset": cell.dataset,
        "name": cell.name,
        "says": str(cell),
        "method": cell.method,
        "student": cell.architecture,
        "teacher": cell.teacher_name,
        "seed": cell.seed,
        "epochs": cell.train.epochs if cell.method else 0,
        "record": str(layout.record_path(cell, results).relative_to(results)),
        "seconds": sum(expected),
        "evaluation_seconds": expected[1],
        "needs": [needed.id for needed in cell.required()],
        "training": cell.training,
    }


def _expected(path: Path) -> dict[str, tuple[float, float]]:
    try:
        return {cell.id: cell.expected for cell in read(path).cells}
    except UserError:
        return {}


def canonical(experiment: Experiment) -> dict[str, Any]:
    """The experiment as JSON has it, for comparisons."""
    found: dict[str, Any] = json.loads(experiment.model_dump_json())
    return found


def filled(settings: dict[str, Any]) -> dict[str, Any]:
    """An experiment of a plan as today's adbench would have written it, with the settings that came since."""
    from adbench.experiment.config import experiment  # pydantic takes tenths of a second

    try:
        return canonical(experiment(settings))
    except UserError:  # settings that are no more
        return settings


def read(path: Path) -> Plan:
    """One plan. Raises UserError for a file that is none, and names the field that is not as its schema has it."""
    remedy = "delete it, a run writes it again"
    plan = document.read(path, Plan, remedy)
    before: set[str] = set()
    for cell in plan.cells:
        if not before.issuperset(cell.needs):
            raise UserError(f"'{path}' is no whole plan: {cell.says} needs a cell that does not stand before; {remedy}")
        before.add(cell.id)
    return plan


def read_all(results: Path, left_out: Callable[[str], object] | None = None) -> list[Plan]:
    """The plans of a results folder, the latest first. left_out: as of `record.read_all`."""
    folder, found = results / layout.PLANS, []
    for entry in files.entries(folder):
        if entry.name.endswith(".json"):
            try:
                found.append(read(folder / entry.name))
            except UserError as error:
                if left_out is None:
                    raise
                left_out(str(error))
    return sorted(found, key=lambda plan: (plan.written, plan.id), reverse=True)
