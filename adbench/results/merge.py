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
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import filter as matching
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from adbench.errors import UserError
from adbench.experiment.cell import safe
from adbench.results import analyses, layout, plans, record, summary, tuning
from adbench.results.diff import edited
from adbench.results.record import Record
from adbench.system import files, locks


@dataclass(frozen=True)
class Merged:
    """What became of a cell, in a sentence where it needs one. wrong: somebody has to look."""

    what: str
    says: str = ""
    wrong: bool = False


def merge(folders: Iterable[Path], into: Path) -> Iterator[Merged]:
    """Join results folders into `into`; what became of each cell, and a line for each folder.

    Links in a folder that is merged are not followed. Raises UserError, before anything is written, for a folder that
    is not there, that is the other, or that holds it.
    """
    sources = list(folders)
    for source in sources:
        if not source.is_dir():
            raise UserError(f"results folder '{source}' does not exist; give folders that `adbench run` wrote")
        if source.resolve() == into.resolve():
            raise UserError(f"'{source}' is the folder to merge into; leave it out")
        if source.resolve() in into.resolve().parents:
            raise UserError(f"'{into}' lies in '{source}', which is to be merged; merge into a folder outside of it")
    for source in sources:
        counts: Counter[str] = Counter()
        for outcome in _folder(source, into):
            counts[outcome.what] += 1
            yield outcome
        told = ", ".join(f"{number} {what}" for what, number in counts.items())
        yield Merged("", f"{source}: {told or 'nothing to take'}")
    files.remove_abandoned(
        folder / name
        for folder, names in files.walk(into, left_out=_unheard)
        for name in names
        if fnmatch(name, files.TEMPORARY)
    )


def _unheard(_: Path, __: str) -> None:
    """For folders that were walked before, and of which was said what is left out."""


def _folder(source: Path, into: Path) -> Iterator[Merged]:
    left_out: dict[Path, str] = {}
    tree = dict(files.walk(source, linked=False, left_out=left_out.__setitem__))
    for said in left_out.values():
        yield Merged("left out", said, wrong=True)
    judged = {folder.parent for folder in tree if layout.is_evaluation(folder.name)}
    cells = judged | {folder for folder, names in tree.items() if layout.CONFIGURATION in names}
    incomplete = _incomplete(left_out)
    for cell in sorted(cells - incomplete):
        try:
            yield from _cell(source, cell, into, incomplete)
        except OSError as error:
            name = error.filename or cell
            yield Merged("left out", f"'{name}' cannot be read ({error.strerror}); left out", wrong=True)
    for folder, names in sorted(tree.items()):
        for name in (f"{kind}.json" for kind in layout.ANALYSES):
            if name in names and not (into / (inside := folder.relative_to(source)) / name).exists():
                yield _analysis(folder / name, into / inside, into)
    for kind in _READ:
        for name in matching(sorted(tree.get(source / kind, ())), "*.json"):
            yield from _document(source / kind / name, into)


def _incomplete(left_out: Iterable[Path]) -> set[Path]:
    """Evaluations of which a part was left out, and cells whose training was: half of one is nothing to take."""
    found = set()
    for path in left_out:
        judged = next((folder for folder in (path, *path.parents) if layout.is_evaluation(folder.name)), None)
        if judged:
            found.add(judged)
        elif path.name in layout.TRAINING:
            found.add(path.parent)
    return found


def _analysis(path: Path, target: Path, into: Path) -> Merged:
    try:
        analyses.read(path, analyses.KINDS[path.stem])  # type: ignore[type-var]
    except UserError as error:
        return Merged("damaged", f"{error}; left out", wrong=True)
    if link := _link(target, into):
        return _behind(link)
    _take(path.parent, target, last=(path.name,))
    return Merged("analyses taken")


_READ: dict[str, Callable[[Path], object]] = {layout.PLANS: plans.read, layout.TUNING: tuning.read}
"""Folders of documents that stand for themselves, and how these are read."""


def _document(path: Path, into: Path) -> Iterator[Merged]:
    target = into / path.parent.name / path.name
    try:
        theirs = _READ[path.parent.name](path)
    except UserError as error:
        if not target.exists():
            yield Merged("damaged", f"{error}; left out", wrong=True)
        return
    if target.exists() and not _fuller(theirs, target):
        return
    if target.parent.is_symlink():
        yield _behind(target.parent)
        return
    files.write_bytes(target, files.content(path))


def _fuller(theirs: object, target: Path) -> bool:
    """Whether a document tells more than the one of its name that is there: a search of more trials, or any in place
    of one that cannot be read."""
    try:
        ours = _READ[target.parent.name](target)
    except UserError:
        return True
    return len(getattr(theirs, "trials", ())) > len(getattr(ours, "trials", ()))


def _link(target: Path, into: Path) -> Path | None:
    """A link to a folder through which writing below `target` would go.

    One in place of a dataset's whole folder is followed: where large results lie is their owner's wish.
    """
    above = [target, *target.parents]
    inside: list[Path] = []
    for _ in files.walk(target, linked=False, left_out=lambda path, _: inside.append(path)):
        pass
    found = [*above[: max(0, above.index(into) - 1)], *inside]
    return next((path for path in found if path.is_symlink() and path.is_dir()), None)


def _behind(link: Path) -> Merged:
    return Merged("left out", f"'{link}' is a link, through which nothing is written; left out", wrong=True)


def _cell(source: Path, cell: Path, into: Path, incomplete: set[Path]) -> Iterator[Merged]:
    """One network: its training, and each way in which it was judged."""
    inside = cell.relative_to(source)
    target = into / inside
    if target.exists() and target.samefile(cell):  # by way of a link
        yield Merged("already there")
        return
    if link := _link(target, into):
        yield _behind(link)
        return
    with locks.attempt(target) as held:
        if not held or locks.holder(cell):
            yield Merged("in use", f"{inside}: a run works on it; merge again when it is done", wrong=True)
            return
        apart = [name for name in layout.WEIGHTS.values() if _differ(cell / name, target / name)]
        apart += _ended_apart(cell, target)
        if (cell / layout.SUMMARY).is_file() and (target / layout.SUMMARY).is_file() and apart:
            kept = _keep(source, cell, into)
            yield Merged(
                "conflicts", f"{inside}: conflict, {' and '.join(apart)} differ; theirs is in {kept}", wrong=True
            )
            return
        _training(cell, target)
        for judged in _evaluations(cell):
            if judged not in incomplete:
                outcome = _evaluation(source, judged, into)
                yield outcome
                if outcome.what == "taken" and _edited(judged / layout.RECORD):
                    yield Merged("made with other code than is installed here")


def _edited(path: Path) -> list[str]:
    found = record.read(path)
    return edited(found.config.training, found.provenance.method_source_sha256)


def _evaluations(cell: Path) -> list[Path]:
    tree = files.walk(cell, linked=False, left_out=_unheard)
    return sorted(folder for folder, _ in tree if folder.parent == cell and layout.is_evaluation(folder.name))


def _ended_apart(cell: Path, target: Path) -> list[str]:
    """That two finished trainings ended with other weights, by their summaries: the files may be on one side alone."""
    try:
        theirs, ours = (found.weights if (found := summary.finished(folder)) else None for folder in (cell, target))
    except UserError:  # damaged, which its reader will say
        return []
    return ["the weights that they ended with"] if theirs and ours and theirs != ours else []


def _training(cell: Path, target: Path) -> None:
    """Take weights and log, or the state of a training under way, unless there is as much already. Of one that ended
    alike, what lies on the other side alone."""
    if (target / layout.SUMMARY).is_file():
        if (cell / layout.SUMMARY).is_file():
            for name in (*layout.WEIGHTS.values(), layout.LOG):
                if (cell / name).is_file() and not (target / name).exists():
                    files.write_bytes(target / name, files.content(cell / name))
        return
    finished = (cell / layout.SUMMARY).is_file()
    if finished or not any((target / name).is_file() for name in layout.STATES):
        _take(cell, target, last=(*layout.STATES, layout.SUMMARY))
    if finished:
        for name in layout.STATES:
            (target / name).unlink(missing_ok=True)


def _evaluation(source: Path, judged: Path, into: Path) -> Merged:
    inside = judged.relative_to(source)
    target = into / inside
    theirs, ours = judged / layout.RECORD, target / layout.RECORD
    try:
        said = record.damage(theirs)
    except UserError as error:  # of another version
        said = str(error)
    if said:
        return Merged("damaged", f"{said}; left out", wrong=True)
    if not theirs.is_file():
        if not target.is_dir():
            _take(judged, target)
        return Merged("unfinished")
    found = record.read(theirs)
    if not (judged.parent.name.endswith(found.train_id[:8]) and judged.name.endswith(found.eval_id[:8])):
        return Merged("misplaced", f"{theirs}: its id belongs elsewhere; left out", wrong=True)
    if have := record.finished(ours):
        if not found.done:
            return Merged("failed")
        if not (apart := _apart(have, found)):
            return Merged("already there")
        kept = _keep(source, judged.parent, into)
        return Merged("conflicts", f"{inside}: conflict, {'; '.join(apart)}; theirs is in {kept}", wrong=True)
    if found.done or not ours.is_file():
        _take(judged, target, last=(layout.RECORD,))
        if found.done:
            (target / layout.TRACEBACK).unlink(missing_ok=True)
            return Merged("taken")
    return Merged("failed")


def _apart(ours: Record, theirs: Record) -> list[str]:
    """In which figures two records of one cell differ: here first, there second."""
    said = []
    if ours.network.weights_sha256 != theirs.network.weights_sha256:
        said.append("the weights differ")
    for name in dict.fromkeys([*ours.metrics, *theirs.metrics]):
        one, other = (_correct(side, name) for side in (ours, theirs))
        if one != other:
            said.append(f"{name} {one} here and {other} there")
    # Another version of the writer makes other bytes of the same table.
    same_bytes = ours.outcomes == theirs.outcomes
    if not (said or same_bytes or ours.verdicts().equals(theirs.verdicts())):
        said.append("the verdicts on single images differ")
    return said


def _correct(side: Record, name: str) -> str:
    metric = side.metrics.get(name)
    return f"{metric.correct}/{metric.n}" if metric else "missing"


def _keep(source: Path, cell: Path, into: Path) -> Path:
    """Copy the other side of a conflict, as a results folder of its own beside the merged one."""
    origin = safe("-".join(source.resolve().parts[-2:]))
    number = 1
    while True:
        beside = into if into.name not in ("", "..") else into.resolve()
        root = beside.with_name(f"{beside.name}.conflicts") / (origin if number == 1 else f"{origin}-{number}")
        target = root / cell.relative_to(source)
        if all(not _differ(path, target / path.relative_to(cell)) for path in _regular(cell)):
            break
        number += 1  # something else of the same name is kept there already
    _take(cell, target, last=(*layout.STATES, layout.SUMMARY))
    for judged in _evaluations(cell):
        _take(judged, target / judged.name, last=(layout.RECORD,))
    return root


def _take(folder: Path, target: Path, last: tuple[str, ...] = ()) -> None:
    """Copy a folder's files, those named `last` at the end, and its folders that are no evaluations."""
    order = sorted(_regular(folder), key=lambda path: (last.index(path.name) + 1 if path.name in last else 0, path))
    for path in order:
        inside = path.relative_to(folder)
        if layout.is_evaluation(inside.parts[0]) or not _differ(path, target / inside, missing=True):
            continue
        files.write_atomic(target / inside, lambda temporary, path=path: _copy(path, temporary))  # type: ignore[misc]


def _copy(path: Path, temporary: Path) -> None:
    shutil.copyfile(path, temporary)


def _regular(folder: Path) -> Iterator[Path]:
    """The files below a folder that are a cell's: no links, which may lead anywhere, no locks, nothing half written."""
    for inner, names in sorted(files.walk(folder, linked=False, left_out=_unheard)):
        yield from (inner / name for name in names if not name.startswith("."))


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
