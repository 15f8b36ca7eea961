"""Where a matrix stands: what is done, what runs, what is missing, and why. Reads plans and folders; no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from adbench import REVISION
from adbench.errors import UserError
from adbench.results import document, layout, record
from adbench.results.diff import differences, edited
from adbench.results.plans import Plan, PlannedCell
from adbench.results.record import Record
from adbench.system import files, locks

STATES = ("done", "running", "failed", "damaged", "stale", "interrupted", "trained", "waiting", "new")
"""damaged: there is a result, but not the one that was written; a run judges it again. stale: there is a result, but
with other settings, or with a source that has changed since. interrupted: training was begun, and nobody is at it.
trained: only the evaluation is missing. waiting: for a teacher."""


@dataclass(frozen=True)
class CellStatus:
    """One planned cell and where it stands."""

    cell: PlannedCell
    state: str
    why: str = ""
    todo: tuple[float, float] = (0.0, 0.0)
    """expected seconds of the training and the evaluation that are left to do"""
    took: tuple[float, float] | None = None
    """seconds of both, of a cell that is done"""
    outdated: bool = False
    """whether a run of today would make another cell in its place"""

    @property
    def left(self) -> float:
        """Expected seconds of what is left to do."""
        return sum(self.todo)


@dataclass
class PlannedCells:
    """The cells of one plan, looked up in its results folder."""

    plan: Plan
    _folders: dict[Path, dict[str, list[Path]]] = field(default_factory=dict)
    _edited: dict[tuple[str | None, str, str], list[str]] = field(default_factory=dict)

    @property
    def results(self) -> Path:
        return self.plan.results

    @cached_property
    def standings(self) -> dict[str, CellStatus]:
        """Every cell's standing by id, teachers first."""
        found: dict[str, CellStatus] = {}
        for cell in self.plan.cells:
            one = self._standing(cell, found)
            if changed := self.outdated(cell, found):
                one = replace(one, outdated=True)
                # What is there stays as it is; what is not is made anew in any case.
                if one.state in ("done", "failed", "trained", "interrupted"):
                    one = replace(one, state="stale", why=changed)
            found[cell.id] = one
        return found

    def folder(self, cell: PlannedCell) -> Path:
        """Where the cell's weights are."""
        return (self.results / cell.record).parent.parent

    def _standing(self, cell: PlannedCell, others: dict[str, CellStatus]) -> CellStatus:
        path = self.results / cell.record
        found, damage = _examined(path)
        if found and found.done and not damage:
            return CellStatus(cell, "done", took=(found.timing.get("train", 0.0), found.timing.get("evaluate", 0.0)))
        folder = path.parent.parent
        epochs = _epochs(folder / layout.LOG)
        progress = f"epoch {epochs} of {cell.epochs}" if cell.epochs else "evaluation"
        training, evaluation = cell.expected
        trained = (folder / layout.SUMMARY).is_file() or not cell.epochs
        # How far an evaluation is, is not known from outside.
        todo = (0.0 if trained else training * (1 - min(1.0, epochs / cell.epochs)), evaluation)
        if owner := locks.holder(folder):
            return CellStatus(cell, "running", f"{'evaluation' if trained else progress}, {owner}", todo)
        if damage:
            return CellStatus(cell, "damaged", damage, todo)
        if found:
            return CellStatus(cell, "failed", f"{found.failure.phase}: {found.failure.message}", todo)
        if (folder / layout.SUMMARY).is_file():
            return CellStatus(cell, "trained", "trained, but not judged in this way", todo)
        if any((folder / name).is_file() for name in layout.STATES):
            return CellStatus(cell, "interrupted", f"{progress} done", todo)
        missing = [others[needed] for needed in cell.needs if others[needed].state != "done"]
        if missing:
            told = ", ".join(f"{one.cell.says} ({one.state})" for one in missing)
            return CellStatus(cell, "waiting", f"for {told}", todo)
        if relatives := self.relatives(cell):
            return CellStatus(cell, "stale", f"{relatives[0].name} has other settings (--why {cell.id[:8]})", todo)
        return CellStatus(cell, "new", todo=todo)

    def outdated(self, cell: PlannedCell, others: Mapping[str, CellStatus]) -> str:
        """Why the cell's result is no longer what a run would make, "" where it is."""
        if self.plan.revision != REVISION:
            return f"adbench computes otherwise since (revision {REVISION}, planned with {self.plan.revision})"
        training = cell.training
        made_with = (cell.method, training["architecture"], training["data"]["name"])
        if made_with not in self._edited:
            self._edited[made_with] = edited(training, plugins=self.plan.plugins)
        if changed := self._edited[made_with]:
            return f"the code of {' and '.join(changed)} changed since; a run now makes other cells"
        for needed in cell.needs:
            if others[needed].outdated:
                return f"{others[needed].cell.says} is stale"
        return ""

    def relatives(self, cell: PlannedCell) -> list[Path]:
        """Folders of the same network (dataset, method, teacher, student, seed) with other settings."""
        own = self.folder(cell)
        if own.parent not in self._folders:
            named = self._folders[own.parent] = {}
            for other in files.entries(own.parent):
                named.setdefault(other.name.rpartition("-")[0], []).append(own.parent / other.name)
        alike = self._folders[own.parent].get(own.name.rpartition("-")[0], [])
        return [one for one in alike if one != own and ((one / layout.CONFIGURATION).is_file() or list(_records(one)))]

    def time_left(self) -> tuple[float, int, float]:
        """Expected wall seconds for the rest, with how many cells at a time, and the correction that went into it.

        Training and evaluation are each corrected by the median of what those of finished cells took over what was
        expected of them: the training may have been long ago, and elsewhere.
        """
        standings = self.standings.values()
        corrections = [self._correction(phase) for phase in (0, 1)]

        def corrected(one: CellStatus) -> float:
            return sum(correction * left for correction, left in zip(corrections, one.todo, strict=True))

        open_ = [one for one in standings if one.left]
        at_a_time = max(1, min(len(open_), sum(one.state == "running" for one in open_) or self.plan.jobs))
        rest = sum(map(corrected, open_))
        # One cell cannot be shared out.
        longest = max(map(corrected, open_), default=0.0)
        return max(rest / at_a_time, longest), at_a_time, rest / sum(one.left for one in open_) if open_ else 1.0

    def _correction(self, phase: int) -> float:
        ratios = [
            one.took[phase] / one.cell.expected[phase]
            for one in self.standings.values()
            if one.took and one.took[phase] and one.cell.expected[phase] > 1
        ]
        return median(ratios) if ratios else 1.0

    def find(self, text: str) -> CellStatus:
        """The cell that `text` names: the beginning of an id, a path of its record or folder, or its description.

        Raises UserError where that is none or several.
        """
        inside = Path(text).parts
        found = [
            one
            for one in self.standings.values()
            if one.cell.id.startswith(text)
            or one.cell.says == text
            or (len(inside) > 1 and _ends(self.folder(one.cell).parts, inside, (self.results / one.cell.record).parts))
        ]
        if len(found) == 1:
            return found[0]
        if found:
            named = ", ".join(f"{one.cell.id[:8]} ({one.cell.says})" for one in found[:5])
            raise UserError(f"'{text}' names {len(found)} cells of the plan: {named}; give more of the id")
        raise UserError(
            f"no cell of the plan is '{text}'; give the beginning of an id, the path of a record, or a description as "
            f"`adbench status` prints them"
        )


def _ends(folder: tuple[str, ...], asked: tuple[str, ...], path: tuple[str, ...]) -> bool:
    return folder[-len(asked) :] == asked or path[-len(asked) :] == asked or path[:-1][-len(asked) :] == asked


def why(matrix: PlannedCells, one: CellStatus, left_out: Callable[[str], object]) -> Iterator[str]:
    """Lines that explain where a cell stands: of a result, where it comes from; of a miss, what it lacks.

    left_out: hears of records and configurations of other cells that cannot be read.
    """
    cell = one.cell
    path, folder = matrix.results / cell.record, matrix.folder(cell)
    yield f"{cell.says}: {one.state}" + (f", {one.why}" if one.why else "")
    yield f"  id {cell.id}, weights {cell.train_id}, evaluation {cell.eval_id}"
    found, damage = _examined(path)
    yield f"  {path}{'' if found or damage else ' is not there'}"
    if found:
        origin = found.provenance
        yield f"  {found.status} {origin.finished} by adbench {origin.adbench} on {origin.device}"
        yield f"  {origin.command}"
        if found.error:
            yield f"  failed in {found.failure.phase}: {' '.join(found.failure.message.split())}"
            if (path.parent / layout.TRACEBACK).is_file():
                yield f"  {path.parent / 'traceback.txt'}"
        return
    judged = [other for other in _records(folder) if other != path and _readable(other, left_out)]
    if judged:
        nearest = min(judged, key=lambda other: len(_apart(matrix, cell, other)))
        yield f"  the same weights are judged otherwise in {nearest.parent}:"
        yield from (f"    {line}" for line in _apart(matrix, cell, nearest))
        return
    if one.state in ("interrupted", "running", "trained"):
        return
    candidates = [(len(lines), str(other), lines) for other, lines in _candidates(matrix, cell, left_out)]
    if not candidates:
        yield f"  nothing of {cell.name} on {cell.dataset} is there to compare it with"
        return
    _, nearest_folder, lines = min(candidates)
    yield f"  nearest: {nearest_folder}, which differs in"
    yield from (f"    {line}" for line in lines)


def _candidates(
    matrix: PlannedCells, cell: PlannedCell, left_out: Callable[[str], object]
) -> Iterator[tuple[Path, list[str]]]:
    """Other folders of the method (or of teachers) on this dataset, with what sets each apart."""
    parts = Path(cell.record).parts
    own, folders = matrix.folder(cell), [matrix.results / parts[0] / parts[1]]
    for _ in parts[4:]:
        folders = [folder / entry.name for folder in folders for entry in files.entries(folder)]
    for folder in folders:
        if folder == own:
            continue
        for path in [*_records(folder)][:1] or [folder / layout.CONFIGURATION]:
            if path.is_file() and _readable(path, left_out):
                yield folder, _apart(matrix, cell, path)


def _readable(path: Path, left_out: Callable[[str], object]) -> bool:
    """Whether a record, or the configuration of a training, can be read; `left_out` hears why not."""
    try:
        record.read(path) if path.name == layout.RECORD else _configuration(path)
    except UserError as error:
        left_out(str(error))
        return False
    return True


def _apart(matrix: PlannedCells, cell: PlannedCell, path: Path) -> list[str]:
    """What sets a planned cell apart from a record, or from the configuration of a training."""
    judged = None
    if path.name == layout.RECORD:
        there, judged = record.read(path).config.training, record.read(path).config.evaluation
    else:
        there = _configuration(path)
    lines = differences(there, cell.training, lambda identity: _network(matrix, identity))
    if judged is not None:
        evaluation = matrix.plan.evaluations[cell.eval_id]
        lines += differences(judged, evaluation, lambda identity: _network(matrix, identity), "eval.")
    return lines


def _configuration(path: Path) -> dict[str, Any]:
    try:
        found = document.parsed(files.content(path))
        if not isinstance(found, dict):
            raise ValueError("it holds no settings")
    except (OSError, ValueError) as error:
        raise UserError(f"'{path}' is damaged ({error}); delete it, a run writes it again") from error
    return found


def _network(matrix: PlannedCells, train_id: str) -> dict[str, Any] | None:
    """The training configuration behind a teacher's id: of the plan, or of a folder."""
    for cell in matrix.plan.cells:
        if cell.train_id == train_id:
            training: dict[str, Any] = cell.training
            return training
    for dataset in files.entries(matrix.results):
        teachers = matrix.results / dataset.name / layout.TEACHERS
        for folder in files.entries(teachers):
            if folder.name.endswith(f"-{train_id[:8]}"):
                for path in _records(teachers / folder.name):
                    with suppress(UserError):
                        found: dict[str, Any] = record.read(path).config.training
                        return found
    return None


def _records(folder: Path) -> Iterator[Path]:
    for entry in files.entries(folder):
        path = folder / entry.name / layout.RECORD
        if layout.is_evaluation(entry.name) and path.is_file():
            yield path


def _examined(path: Path) -> tuple[Record | None, str | None]:
    """The record, if it can be read, and what is wrong with it or its outcomes, if anything is."""
    try:
        return record.examined(path)
    except document.OtherVersion as error:
        return None, str(error)


def _epochs(log: Path) -> int:
    try:
        return log.read_bytes().count(b"\n")
    except OSError:
        return 0
