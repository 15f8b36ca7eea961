"""Results folders of several machines made one.

What is finished stays as it is. A cell's files are copied in the order in which a run writes them, its record last,
and under the cell's lock: a merge killed at any moment leaves cells that are whole, or that the same merge (or a run)
completes. Two records of one cell that differ in a figure are a conflict, of which both sides are kept.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adbench import files, locks, record
from adbench.errors import UserError
from adbench.matrix import safe
from adbench.plans import FOLDER as PLANS
from adbench.record import Record
from adbench.status import CONFIGURATION, SUMMARY, UNDER_WAY

WEIGHTS = ("last.safetensors", "best.safetensors")
ANALYSES = ("cross.json", "cam.json")


@dataclass(frozen=True)
class Outcome:
    """What became of a cell, in a sentence where it needs one. wrong: somebody has to look."""

    what: str
    says: str = ""
    wrong: bool = False


def merge(folders: Iterable[Path], into: Path) -> Iterator[Outcome]:
    """Join results folders into `into`; what became of each cell, and a line for each folder.

    Raises UserError for a folder that is not there, or that is the other.
    """
    sources = list(folders)
    for source in sources:
        if not source.is_dir():
            raise UserError(f"results folder '{source}' does not exist; give folders that `adbench run` wrote")
        if source.resolve() == into.resolve():
            raise UserError(f"'{source}' is the folder to merge into; leave it out")
    for source in sources:
        counts: Counter[str] = Counter()
        for outcome in _folder(source, into):
            counts[outcome.what] += 1
            yield outcome
        told = ", ".join(f"{number} {what}" for what, number in counts.items())
        yield Outcome("", f"{source}: {told or 'nothing to take'}")


def _folder(source: Path, into: Path) -> Iterator[Outcome]:
    judged = {folder.parent for folder in files.folders(source) if folder.name.startswith("eval-")}
    for cell in sorted(judged | {path.parent for path in files.below(source, CONFIGURATION)}):
        yield from _cell(source, cell, into)
    for name in ANALYSES:
        for path in files.below(source, name):
            if not (into / path.relative_to(source)).exists():
                _take(path.parent, into / path.parent.relative_to(source), last=(name,))
                yield Outcome("analyses taken")
    for plan in sorted((source / PLANS).glob("*.json")):
        if not (into / PLANS / plan.name).exists():
            files.write_bytes(into / PLANS / plan.name, plan.read_bytes())


def _cell(source: Path, cell: Path, into: Path) -> Iterator[Outcome]:
    """One network: its training, and each way in which it was judged."""
    inside = cell.relative_to(source)
    target = into / inside
    with locks.attempt(target) as held:
        if not held or locks.holder(cell):
            yield Outcome("in use", f"{inside}: a run works on it; merge again when it is done", wrong=True)
            return
        apart = [name for name in WEIGHTS if _differ(cell / name, target / name)]
        if (cell / SUMMARY).is_file() and (target / SUMMARY).is_file() and apart:
            kept = _keep(source, cell, into)
            yield Outcome(
                "conflicts", f"{inside}: conflict, {' and '.join(apart)} differ; theirs is in {kept}", wrong=True
            )
            return
        _training(cell, target)
        for judged in sorted(cell.glob("eval-*")):
            yield _evaluation(source, judged, into)


def _training(cell: Path, target: Path) -> None:
    """Take weights and log, or the state of a training under way, unless there is as much already."""
    if (target / SUMMARY).is_file():
        return
    finished = (cell / SUMMARY).is_file()
    if finished or not any((target / name).is_file() for name in UNDER_WAY):
        _take(cell, target, last=(*UNDER_WAY, SUMMARY))
    if finished:
        for name in UNDER_WAY:
            (target / name).unlink(missing_ok=True)


def _evaluation(source: Path, judged: Path, into: Path) -> Outcome:
    inside = judged.relative_to(source)
    target = into / inside
    theirs, ours = judged / record.FILE, target / record.FILE
    if said := record.damage(theirs):
        return Outcome("damaged", f"{said}; left out", wrong=True)
    if not theirs.is_file():
        if not target.is_dir():
            _take(judged, target)
        return Outcome("unfinished")
    found = record.read(theirs)
    if not (judged.parent.name.endswith(found["train_id"][:8]) and judged.name.endswith(found["eval_id"][:8])):
        return Outcome("misplaced", f"{theirs}: its id belongs elsewhere; left out", wrong=True)
    if have := record.finished(ours):
        if not found.done:
            return Outcome("failed")
        if not (apart := _apart(have, found)):
            return Outcome("already there")
        kept = _keep(source, judged.parent, into)
        return Outcome("conflicts", f"{inside}: conflict, {'; '.join(apart)}; theirs is in {kept}", wrong=True)
    if found.done or not ours.is_file():
        _take(judged, target, last=(record.FILE,))
        if found.done:
            (target / "traceback.txt").unlink(missing_ok=True)
            return Outcome("taken")
    return Outcome("failed")


def _apart(ours: Record, theirs: Record) -> list[str]:
    """In which figures two records of one cell differ: here first, there second."""
    said = []
    if ours["model"]["weights_sha256"] != theirs["model"]["weights_sha256"]:
        said.append("the weights differ")
    for name in dict.fromkeys([*ours["metrics"], *theirs["metrics"]]):
        one, other = (_correct(side, name) for side in (ours, theirs))
        if one != other:
            said.append(f"{name} {one} here and {other} there")
    # Another version of the writer makes other bytes of the same table.
    same_bytes = ours["outcomes"]["sha256"] == theirs["outcomes"]["sha256"]
    if not (said or same_bytes or ours.outcomes().equals(theirs.outcomes())):
        said.append("the verdicts on single images differ")
    return said


def _correct(side: Record, name: str) -> str:
    metric: dict[str, Any] | None = side["metrics"].get(name)
    return f"{metric['correct']}/{metric['n']}" if metric else "missing"


def _keep(source: Path, cell: Path, into: Path) -> Path:
    """Copy the other side of a conflict, as a results folder of its own beside the merged one."""
    origin = safe("-".join(source.resolve().parts[-2:]))
    number = 1
    while True:
        root = into.with_name(f"{into.name}.conflicts") / (origin if number == 1 else f"{origin}-{number}")
        target = root / cell.relative_to(source)
        if all(not _differ(path, target / path.relative_to(cell)) for path in _regular(cell)):
            break
        number += 1  # something else of the same name is kept there already
    _take(cell, target, last=(*UNDER_WAY, SUMMARY))
    for judged in sorted(cell.glob("eval-*")):
        _take(judged, target / judged.name, last=(record.FILE,))
    return root


def _take(folder: Path, target: Path, last: tuple[str, ...] = ()) -> None:
    """Copy a folder's files, those named `last` at the end, and its folders that are no evaluations."""
    order = sorted(_regular(folder), key=lambda path: (last.index(path.name) + 1 if path.name in last else 0, path))
    for path in order:
        inside = path.relative_to(folder)
        if inside.parts[0].startswith("eval-") or not _differ(path, target / inside, missing=True):
            continue
        files.write_atomic(target / inside, lambda temporary, path=path: _copy(path, temporary))  # type: ignore[misc]


def _copy(path: Path, temporary: Path) -> None:
    shutil.copyfile(path, temporary)


def _regular(folder: Path) -> Iterator[Path]:
    """The files below a folder that are a cell's: no links, which may lead anywhere, no locks, nothing half written."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink() and not path.name.startswith("."):
            yield path


def _differ(path: Path, other: Path, *, missing: bool = False) -> bool:
    """Whether two files differ; `missing` is the answer where one of them is not there."""
    if not (path.is_file() and other.is_file()):
        return missing
    if path.suffix == ".safetensors":
        return _tensors(path) != _tensors(other)
    return path.stat().st_size != other.stat().st_size or files.sha256(path) != files.sha256(other)


def _tensors(path: Path) -> tuple[Any, str]:
    """What a safetensors file says of its tensors, and the hash of their bytes: the order of its header is random."""
    with path.open("rb") as file:
        header = file.read(min(int.from_bytes(file.read(8), "little"), path.stat().st_size))
        body = hashlib.file_digest(file, "sha256").hexdigest()
    try:
        return json.loads(header), body
    except ValueError:  # damaged; equal only to what is damaged in the same way
        return header, body
