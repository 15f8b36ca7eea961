"""`adbench reproduce`: a record's cell, trained and judged again from its own configuration, and compared with it.

On the same kind of processor, with the same torch, threads and code, a training on the CPU ends in the same bits; then
weights and verdicts have to be the same. Else only the figures can agree: each attack's 95% intervals over the test
images have to overlap. These do not hold how far trainings scatter, so that a difference is no proof of a false record.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from adbench.data import Dataset
from adbench.errors import UserError
from adbench.execution import runner
from adbench.execution.place import Place
from adbench.execution.runner import OnEvent
from adbench.experiment import teacher as teachers
from adbench.experiment.cell import Cell, Matrix
from adbench.experiment.config import Data, Evaluation, ThreatModel, Train, validated
from adbench.experiment.teacher import TeacherSpec
from adbench.results import layout, record
from adbench.results.record import Record
from adbench.results.runs import heading
from adbench.results.stats import overlap, wilson
from adbench.system import terminal
from adbench.verification.consistency import beside, known_guides, recipe
from adbench.weights import networks


@dataclass
class Comparison:
    """What came of it. reasons: why bits cannot be asked for; without any they are compared."""

    reasons: list[str]
    rows: list[tuple[str, str, bool]] = field(default_factory=list)
    """What was compared, what was found, and whether it agrees."""

    @property
    def agrees(self) -> bool:
        return all(fine for _, _, fine in self.rows)

    def lines(self) -> Iterator[str]:
        """The comparison as lines that fit the terminal."""
        if self.reasons:
            yield from terminal.wrapped(f"compared by intervals over the test images, not bit by bit: {self.because}")
        else:
            yield "compared bit by bit: processor, torch, threads and code are the record's"
        width = max(len(what) for what, _, _ in self.rows)
        for what, says, fine in self.rows:
            yield from terminal.wrapped(f"{'agrees' if fine else 'DIFFERS':7}  {what:{width}}  {says}", "  ")
        yield self._verdict()

    @property
    def because(self) -> str:
        return "; ".join(self.reasons)

    def _verdict(self) -> str:
        if self.reasons:
            return "reproduced: all intervals overlap" if self.agrees else "not reproduced: intervals lie apart"
        return "reproduced: the same bits" if self.agrees else "not reproduced: other bits"


class Reproduction:
    """A record's cell, planned in `place.results` with the teachers that it needs. left_out: what is not repeated.

    Raises UserError for the record of a failed cell, for weights from elsewhere, and where data or a teacher cannot be
    had.
    """

    def __init__(self, found: Record, place: Place) -> None:
        if not found.done:
            raise UserError(f"'{found.path}' is the record of a failed cell; `adbench run` tries it again")
        if found.method is None:
            raise UserError(f"'{found.path}' is about weights from elsewhere; adbench verify judges them again")
        if place.results.resolve() in found.path.resolve().parents:
            raise UserError(f"'{place.results}' holds the record itself; give another folder with --out")
        self.found, self.place = found, place
        self.cell, self.left_out = cell_of(found, place.data_dir)
        guides = {guide.id: guide for guide in self.cell.required()}
        for guide in guides.values():
            _take_weights(guide, found, place.results)
        self.plan = runner.plan(Matrix(tuple(guides.values()), (self.cell,)), place.results)

    def run(self, threads: int | None, on_event: OnEvent) -> Comparison:
        """Train and judge, or go on with it, and compare. threads: None for the record's.

        Raises UserError where training or judging fails.
        """
        found = self.found
        where = runner.Local(threads=threads or found.provenance.threads)
        runner.run(self.plan, self.place, where, on_event)
        again = record.read(layout.record_path(self.cell, self.place.results))
        if not again.done:
            raise UserError(f"it failed in {again.failure.phase}: {again.failure.message}")
        comparison = Comparison(_reasons(found, again))
        comparison.rows += _intervals(found, again) if comparison.reasons else _bits(found, again)
        comparison.rows += [(what, "not repeated: its network cannot be had", True) for what in self.left_out]
        return comparison


def cell_of(found: Record, data_dir: Path) -> tuple[Cell, list[str]]:
    """The cell of a record, with its teachers' cells, and the proxies that cannot be had.

    Raises UserError where data or a teacher cannot be had, or the configuration is none of this adbench.
    """
    dataset = networks.dataset_of(found, data_dir)
    training, judged = found.config.training, found.config.evaluation
    proxies, missing = [], []
    for name, train_id in judged["proxies"].items():
        try:
            proxies.append(_guide(found, dataset, train_id, name, data_dir))
        except networks.Missing:
            missing.append(f"transfer from {name}")
    settings = {key: value for key, value in judged.items() if key in Evaluation.model_fields and key != "proxies"}
    if not proxies:
        settings["transfer_attacks"] = ()
    teacher, natural = (
        _guide(found, dataset, train_id, key, data_dir) if (train_id := training.get(key)) else None
        for key in ("teacher", "natural")
    )
    cell = _bare(found, data_dir)
    evaluation = validated(Evaluation, settings, f"'{found.path}': evaluation")
    return replace(cell, evaluation=evaluation, proxies=tuple(proxies), teacher=teacher, natural=natural), missing


def _bare(found: Record, data_dir: Path) -> Cell:
    """The cell of a record without its guides, to be judged on clean images alone."""
    training = found.config.training
    method = found.method
    train = recipe(training["train"]) if method else Train()
    if train.init_sha256:
        raise UserError(
            f"'{found.path}': its training began with weights from a file (SHA-256 {train.init_sha256[:12]}...), "
            "which a record does not hold; run its cell with --set train.init=FILE instead"
        )
    return Cell(
        kind=found.kind,
        dataset=networks.place_of(found, data_dir),
        fingerprint=training["data"]["content"],
        data=_data(found, data_dir),
        threat=validated(ThreatModel, training["threat"], f"'{found.path}': threat"),
        architecture=training["architecture"],
        train=train,
        evaluation=Evaluation(attacks=(), transfer_attacks=()),
        seed=found.seed or 0,
        method=method,
        hyper=training["hyper"] if method else {},
        spec=_spec(found) if found.kind != "student" else None,
        extra=(training["data"].get("extra") or {}).get("sha256", ""),
    )


def _data(found: Record, data_dir: Path) -> Data:
    data = found.config.training["data"]
    settings = {key: data.get(key) for key in ("train_images", "val_images", "resize")}
    if extra := data.get("extra"):
        path = networks.extra_file(found, data_dir)
        if path is None:
            raise UserError(f"the extra images of '{found.path}' are not here; give their folder with --data-dir")
        settings |= {"extra": str(path), "extra_share": extra["share"]}
    return validated(Data, settings, f"'{found.path}': data")


def _spec(found: Record) -> TeacherSpec:
    """The teacher that a record is about. Raises UserError where its weights cannot be had."""
    training = found.config.training
    if found.method is not None:
        own = {"kind": "train", "method": found.method, "seed": found.seed, "hyper": training["hyper"]}
        mean, std = training["normalisation"]
    else:
        if not (members := networks.members_of(training)):
            return _from_elsewhere(found, training["source"], found.network.file)
        files = networks.files_of(found, len(members))
        pairs = zip(members, files, strict=True)
        parts = [_from_elsewhere(found, member, file).model_dump() for member, file in pairs]
        own, mean, std = {"kind": "ensemble", "members": parts}, None, None
    settings = {"name": found.label, "architecture": found.student, "source": own, "mean": mean, "std": std}
    return validated(TeacherSpec, settings, f"teacher '{found.label}'")


def _from_elsewhere(found: Record, identity: Mapping[str, Any], file: str | None) -> TeacherSpec:
    """The teacher of that identity, whose weights lay in `file`. Raises Missing where they are not there."""
    own = dict(identity["source"])
    if own["kind"] == "download" and own.get("id"):
        return teachers.find(f"{teachers.ROBUSTBENCH}:{own['id']}", found.dataset)
    if own["kind"] != "robustbench":
        where = teachers.shipped(own.get("sha256")) or file
        if where is None or not Path(where).is_file():
            raise networks.Missing(f"the weights of teacher '{found.label}' are not at '{where}'; put them back")
        own = {"kind": "file", "path": str(where), "key": own.get("key"), "sha256": own.get("sha256")}
    settings = {"name": found.label, "source": own} | {key: identity[key] for key in ("architecture", "mean", "std")}
    return validated(TeacherSpec, settings, f"teacher '{found.label}'")


def _guide(found: Record, dataset: Dataset, train_id: str, name: str, data_dir: Path) -> Cell:
    """The cell of a teacher or proxy: by its own record, or as adbench knows it. Raises Missing where neither is."""
    near = beside(found, train_id)
    if near is not None:
        return _bare(near, data_dir)
    known = known_guides(found, dataset).get(train_id)
    if known is None:
        raise networks.Missing(
            f"the {name} of '{found.path}' (train_id {train_id}) has no record in its results folder, and adbench "
            "knows none such; put its folder back"
        )
    judged = Evaluation(attacks=(), transfer_attacks=())
    data = _data(found, data_dir) if known.method else known.data
    return replace(known, dataset=networks.place_of(found, data_dir), data=data, evaluation=judged)


def _take_weights(guide: Cell, found: Record, results: Path) -> None:
    """Copy a finished training from beside the record, where its weights are there; else it is trained again."""
    wanted = (layout.CONFIGURATION, layout.LOG, layout.BEST, layout.SUMMARY)
    folder = guide.folder(results)
    for train_id in (guide.train_id, *map(found.config.training.get, ("teacher", "natural"))):
        near = beside(found, train_id) if train_id else None
        if guide.method is None or near is None or near.label != guide.name or (folder / layout.SUMMARY).is_file():
            continue
        source = near.path.parent.parent
        if all((source / name).is_file() for name in wanted):
            folder.mkdir(parents=True, exist_ok=True)
            for name in wanted:
                shutil.copyfile(source / name, folder / name)


def _reasons(found: Record, again: Record) -> list[str]:
    """Why the same bits cannot be expected; none where they can."""
    told = []
    before, now = found.provenance, again.provenance
    for what in ("torch", "processor", "threads"):
        if (theirs := getattr(before, what)) != (ours := getattr(now, what)):
            told.append(f"{what} is {ours} here, the record's {theirs or 'not stated'}")
    if not before.device.startswith("CPU") or not now.device.startswith("CPU"):
        told.append(f"a GPU adds up in an order of its own (here {now.device}, the record's {before.device})")
    if "aa" in "".join(found.metrics) and before.pyautoattack != now.pyautoattack:
        told.append(f"pyautoattack is {now.pyautoattack} here, the record's {before.pyautoattack}")
    names = {"revision": "adbench's revision", "source": "the method's code"}
    for key, theirs in found.config.training.items():
        if again.config.training.get(key) != theirs and key not in ("teacher", "natural"):
            told.append(f"{names.get(key, key)} is another")
    for which in ("robust", "natural"):
        one, other = getattr(found.teachers, which), getattr(again.teachers, which)
        if one and other and one.weights_sha256 != other.weights_sha256:
            told.append(f"the {which} teacher '{one.name}', trained again, has other weights")
    if found.training and (found.training.devices > 1 or found.training.micro_batch != _micro_batch(again)):
        told.append("its batches went through in other parts")
    return told


def _micro_batch(again: Record) -> int | None:
    return again.training.micro_batch if again.training else None


def _bits(found: Record, again: Record) -> Iterator[tuple[str, str, bool]]:
    one, other = found.training and found.training.weights, again.training and again.training.weights
    stated = asdict(one) if one else {found.network.checkpoint: found.network.weights_sha256}
    ours = asdict(other) if other else {}
    for which, sha256 in stated.items():
        yield f"weights, {which} epoch", _pair(sha256[:12], str(ours.get(which))[:12]), ours.get(which) == sha256
    theirs, here = found.verdicts(), again.verdicts()
    for name, metric in found.metrics.items():
        if name not in again.metrics:
            continue
        differ = sum(map(_differ, theirs[name].tolist(), here[name].tolist()))
        yield heading(name), f"{differ} of {metric.n:,} verdicts differ", differ == 0


def _differ(one: Any, other: Any) -> bool:
    """Whether two verdicts differ; an image that was not attacked has none."""
    if pd.isna(one) or pd.isna(other):
        return bool(pd.isna(one) != pd.isna(other))
    return bool((one == 1) != (other == 1))


def _intervals(found: Record, again: Record) -> Iterator[tuple[str, str, bool]]:
    for name, metric in found.metrics.items():
        if (other := again.metrics.get(name)) is None:
            continue
        ours, theirs = wilson(metric.correct, metric.n), wilson(other.correct, other.n)
        says = _pair(_share(metric.value, *ours), _share(other.value, *theirs))
        yield heading(name), says, overlap(ours, theirs)
    if found.network.weights_sha256 == again.network.weights_sha256:
        yield "weights", "the same bits all the same", True


def _pair(theirs: str, ours: str) -> str:
    return theirs if theirs == ours else f"{theirs}, again {ours}"


def _share(value: float, low: float, high: float) -> str:
    return f"{terminal.percent(value)}% ({terminal.percent(low)}-{terminal.percent(high)})"
