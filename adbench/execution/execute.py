"""What it takes to finish one cell: prepare, train, evaluate, record.

Everything that is finished stays finished: an interrupted training goes on from its last epoch, an interrupted
evaluation from its last attack, and a failure is recorded with its reason.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from adbench.attacks import autoattack
from adbench.attacks.linf import Start
from adbench.attacks.named import gradient_attack
from adbench.data import Dataset, Threat, idbh, parse_fraction
from adbench.errors import UserError, located
from adbench.evaluation import masking, outcome_files
from adbench.evaluation.evaluator import Evaluator, Outcome, evaluate
from adbench.evaluation.footprint import footprint
from adbench.execution.place import Place
from adbench.experiment.cell import Cell
from adbench.experiment.config import Evaluation, Train
from adbench.experiment.teacher import Download, LocalFile, RobustBench, TeacherSpec, file_of, robustbench_file
from adbench.models import Network, count_parameters
from adbench.models.names import ONNX
from adbench.models.precision import multiplies_bfloat16
from adbench.registry import METHODS
from adbench.results import document, layout, record, summary
from adbench.results.objectives import formulas
from adbench.results.provenance import now, provenance
from adbench.results.summary import Summary
from adbench.system import files, locks, signals
from adbench.training import resume, trainer
from adbench.training.configured import configured, training_passes
from adbench.training.distributed import Parted
from adbench.training.step import Ball, Need
from adbench.weights import checkpoint
from adbench.weights.networks import beginning, cell_dataset, cell_network

Report = Callable[[dict[str, Any]], None]


def teacher_network(cell: Cell, place: Place, dataset: Dataset) -> Network:
    """A required teacher's network, on the device. Raises UserError when that teacher failed."""
    path = layout.record_path(cell, place.results)
    if path.is_file() and not record.damage(path):
        judged = record.read(path)
        if judged.error and judged.error.phase != "evaluate":
            raise UserError(f"teacher '{cell.name}' failed: {judged.error.message}")
    return cell_network(cell, dataset, place.results, place.data_dir).to(place.torch_device)


def check(cell: Cell, place: Place, fetch: bool = True) -> None:
    """Raise UserError for a cell that cannot work: data, attacks, a file that is not the network it should be.

    fetch: weights that are not here are downloaded to be looked at; else they are taken to be right.
    """
    dataset = cell_dataset(cell, place.data_dir)
    attacks, transferred = cell.evaluation.attacks, cell.evaluation.transfer_attacks
    if cell.architecture == ONNX:
        _check_forward_only(cell)
    if set(transferred) & set(autoattack.VERSIONS):
        raise UserError("AutoAttack is not transferred; eval.transfer_attacks takes fgsm, pgdK and cw")
    for name in (*attacks, *transferred):
        if name not in autoattack.VERSIONS:
            gradient_attack(name, dataset.threat.eps, dataset.threat.step, _start(cell.evaluation))
    if cell.method is None and (fetch or _is_here(cell, place)):
        cell_network(cell, dataset, place.results, place.data_dir)
    if cell.method is not None:
        idbh.check(cell.train.augment, dataset.image_shape)
        if cell.train.init is not None:
            beginning(cell, dataset)


def _check_forward_only(cell: Cell) -> None:
    """Raise UserError for a cell of an ONNX file that is judged by what needs gradients."""
    needing = sorted(set(cell.evaluation.attacks) - {autoattack.SQUARE})
    needing += ["the tests for gradient masking"] if cell.evaluation.masking else []
    if needing:
        raise UserError(
            f"an ONNX file has no gradients, which {', '.join(needing)} would need; what judges it is "
            f"{autoattack.SQUARE}, and adversarial examples of other networks (--proxies)"
        )


def _is_here(cell: Cell, place: Place) -> bool:
    """Whether the weights of a cell that is not trained here lie in a file."""
    source = cell.spec.source if cell.spec else None
    if cell.spec and cell.spec.members:
        return all(_is_here(replace(cell, spec=member), place) for member in cell.spec.members)
    if cell.spec and isinstance(source, Download):
        return file_of(cell.spec, cell.dataset, place.data_dir).is_file()
    if isinstance(source, RobustBench):
        return robustbench_file(place.data_dir, cell.dataset, source.id).is_file()
    return True


@dataclass
class _Run:
    """One cell on its way."""

    cell: Cell
    place: Place
    report: Report
    phase: str = "prepare"
    timing: dict[str, float] = field(default_factory=dict)
    model: dict[str, Any] | None = None
    teachers: dict[str, Any] = field(default_factory=lambda: {"robust": None, "natural": None})
    summary: Summary | None = None
    dataset: Dataset | None = None
    masking: dict[str, Any] | None = None

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        self.phase = phase
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.timing[phase] = time.perf_counter() - begun


def execute(cell: Cell, place: Place, report: Report) -> dict[str, Any] | None:
    """Finish one cell and return its record, which is on disk too; None while another process works on the cell.

    A failure becomes a record with status "failed" and the traceback beside it, never an exception; only
    interruption from outside, and a disk on which not even that can be written, get through.
    """
    path = layout.record_path(cell, place.results)
    with locks.attempt(cell.folder(place.results)) as locked:
        if not locked:
            return None
        # Another run may have finished the cell since this one looked.
        if record.finished(path):
            data: dict[str, Any] = document.opened(path)
        else:
            report({"what": "start"})
            if damage := record.damage(path):
                report({"what": "note", "says": f"{damage}; the cell is judged again"})
            data = _execute(cell, place, report, path)
        if data["status"] == "done":
            _tidy(cell.folder(place.results), path.parent)
    return data


def train(cell: Cell, place: Place, report: Report, dataset: Dataset) -> Summary:
    """Train a cell whose teachers are trained, or go on with it, and judge nothing. dataset: the cell's.

    Raises UserError where another process has the cell, and for what ends a training.
    """
    with locks.attempt(cell.folder(place.results)) as locked:
        if not locked:
            raise UserError(f"another process works on '{cell}' in '{place.results}'; wait for it, or give --results")
        return _train(_Run(cell, place, report), dataset)


def record_failure(cell: Cell, place: Place, why: str) -> dict[str, Any] | None:
    """Record that the cell's worker failed, in its place, and return the record; None as `execute` does."""
    path = layout.record_path(cell, place.results)
    with locks.attempt(cell.folder(place.results)) as locked:
        if not locked:
            return None
        if record.finished(path):
            finished: dict[str, Any] = document.opened(path)
            return finished
        failure = {"phase": "worker", "type": "WorkerDied", "message": why}
        data = _record(_Run(cell, place, lambda _: None), now(), {}, None, failure)
        record.write(path, data)
    return data


def _tidy(folder: Path, judged: Path) -> None:
    """Remove a finished cell's partial outcomes, and what processes killed while writing left of their files."""
    for passing in (judged / layout.TRACEBACK, *judged.glob(layout.PARTIAL.format("*")), *folder.rglob(".*.tmp")):
        passing.unlink(missing_ok=True)


def _execute(cell: Cell, place: Place, report: Report, path: Path) -> dict[str, Any]:
    started = now()
    run = _Run(cell, place, report)
    try:
        outcomes = _finish(run, path.parent)
    except Parted:
        raise
    except (Exception, SystemExit) as error:  # a plugin may call sys.exit()
        signals.stop_if_requested()  # no failure is recorded that the interruption may have caused
        message = str(error) if isinstance(error, UserError) else located(error)
        failure = {"phase": run.phase, "type": type(error).__name__, "message": message}
        files.write_text(path.parent / layout.TRACEBACK, traceback.format_exc())
        data = _record(run, started, {}, None, failure)
    else:
        data = _record(run, started, outcomes, path.parent / layout.OUTCOMES, None)
    record.write(path, data)
    return data


def _finish(run: _Run, folder: Path) -> dict[str, Outcome]:
    cell, place = run.cell, run.place
    with run.during("prepare"):
        dataset = run.dataset = cell_dataset(cell, place.data_dir)
    if cell.method is not None:
        with run.during("train"):
            run.summary = _train(run, dataset)
        # All sessions of a training that was interrupted, not this one's alone.
        run.timing["train"] = run.summary.seconds
    with run.during("evaluate"):
        which = cell.evaluation.checkpoint
        network = cell_network(cell, dataset, place.results, place.data_dir, which)
        run.model = _network_entry(cell, network, which, place)
        step = cell.evaluation.step
        evaluator = Evaluator(
            network,
            dataset.test,
            dataset.threat if step is None else replace(dataset.threat, step=parse_fraction(step)),
            seed=cell.evaluation.seed,
            batch_size=cell.evaluation.batch_size,
            device=place.torch_device,
            start=_start(cell.evaluation),
            search=cell.evaluation.aa_search,
            shard=cell.evaluation.aa_shard,
            keep=cell.evaluation.keep_adversarial,
        )
        run.model["footprint"] = asdict(footprint(evaluator.network, dataset.image_shape))
        outcomes = _evaluate(run, dataset, evaluator, folder)
        outcome_files.write_table(folder / layout.OUTCOMES, dataset, evaluator.predicted.cpu(), outcomes)
    return outcomes


def _start(evaluation: Evaluation) -> Start:
    """Where PGD and C&W begin."""
    return Start(evaluation.start or Start.UNIFORM)


def _network_entry(cell: Cell, network: Network, which: str, place: Place) -> dict[str, Any]:
    spec = cell.spec
    file = _file_of(spec, cell, place) if spec else None
    return {
        "name": cell.name,
        "architecture": cell.architecture,
        "parameters": count_parameters(network),
        "weights_sha256": checkpoint.weights_sha256(network),
        "checkpoint": which if cell.method else str(spec.source.kind if spec else "file"),
        **({"file": file} if file else {}),
        **({"files": [_file_of(one, cell, place) for one in spec.members]} if spec and spec.members else {}),
    }


def _file_of(spec: TeacherSpec, cell: Cell, place: Place) -> str | None:
    """Where the weights of a teacher lie that are neither trained here nor known by name."""
    source = spec.source
    if isinstance(source, LocalFile) and not source.ours:
        return str(source.path)
    if isinstance(source, Download) and not source.id:
        return str(file_of(spec, cell.dataset, place.data_dir))
    return None


def _train(run: _Run, dataset: Dataset) -> Summary:
    cell, place = run.cell, run.place
    folder = cell.folder(place.results)
    assert cell.method is not None
    needed = _teachers(cell, place, dataset)
    for need, teacher in _needed(cell).items():
        run.teachers[KEYS[need]] = _network_entry(teacher, needed[need], "best", place)
    done = summary.finished(folder)
    if done:
        resume.clear(folder)  # left by a process killed between its last two deeds
        return done
    _check_source(cell)
    files.write_json(folder / layout.CONFIGURATION, cell.training)
    place.ranks.lead(cell)
    with place.ranks.together():
        training = _trainer(cell, place, dataset, needed)
    return training.run(
        on_epoch=lambda entry: run.report({"what": "epoch", **entry}),
        on_batch=lambda epoch, batch, of: run.report({"what": "batch", "epoch": epoch, "batch": batch, "of": of}),
        on_note=lambda note: run.report({"what": "note", "says": note}),
    )


def assist(cell: Cell, place: Place) -> None:
    """Take part in a training that the first rank leads, and that alone tells what came of it."""
    with suppress(Exception):  # it has been told, and raises too
        with place.ranks.together():
            dataset = cell_dataset(cell, place.data_dir)
            _check_source(cell)
            training = _trainer(cell, place, dataset, _teachers(cell, place, dataset))
        training.run(on_epoch=lambda _: None, on_batch=lambda *_: None)


KEYS = {Need.TEACHER: "robust", Need.NATURAL_TEACHER: "natural"}
"""What a record calls a student's teachers."""


def _needed(cell: Cell) -> dict[Need, Cell]:
    teachers = {Need.TEACHER: cell.teacher, Need.NATURAL_TEACHER: cell.natural}
    return {need: teacher for need, teacher in teachers.items() if teacher}


def _teachers(cell: Cell, place: Place, dataset: Dataset) -> dict[Need, Network]:
    return {need: teacher_network(teacher, place, dataset) for need, teacher in _needed(cell).items()}


def _trainer(cell: Cell, place: Place, dataset: Dataset, teachers: dict[Need, Network]) -> trainer.Trainer:
    assert cell.method is not None
    method = configured(cell.method, cell.hyper)
    trainer.check_sharing(method, cell.train, place.ranks.size)
    return trainer.Trainer(
        method=method,
        student=beginning(cell, dataset),
        teachers=teachers,
        dataset=dataset,
        attack=_training_attack(cell.train, dataset.threat),
        validation=Ball(float(dataset.threat.eps), float(dataset.threat.step), cell.train.val_steps),
        config=cell.train,
        seed=cell.seed,
        folder=cell.folder(place.results),
        device=place.torch_device,
        ranks=place.ranks,
        identity=cell.train_id,
    )


def _training_attack(config: Train, threat: Threat) -> Ball:
    """The ball that training attacks in: the threat model's, unless the recipe has one of its own."""
    eps, step = threat.eps, threat.step
    if config.attack_eps is not None:
        eps = parse_fraction(config.attack_eps)
        # A larger ball is crossed in as many steps; a ball of radius 0 has no proportion to keep.
        step = step * eps / threat.eps if threat.eps else step
    if config.attack_step is not None:
        step = parse_fraction(config.attack_step)
    return Ball(float(eps), float(step), config.attack_steps)


def _check_source(cell: Cell) -> None:
    """Raise UserError where this process loaded another version of the method than the one the cell is named by."""
    if cell.method and METHODS.code(cell.method).sha256 != cell.training["source"]:
        raise UserError(f"the source of method '{cell.method}' changed during the run; run the same command again")


def _evaluate(run: _Run, dataset: Dataset, evaluator: Evaluator, folder: Path) -> dict[str, Outcome]:
    cell, place = run.cell, run.place
    settings = cell.evaluation
    fast = settings.aa_search == "fast" and set(settings.attacks) & set(autoattack.VERSIONS)
    if fast and not multiplies_bfloat16(place.torch_device):
        slow = "this device has no arithmetic for bfloat16, so the search of --fast-aa is slower than the default"
        run.report({"what": "note", "says": slow})
    proxies = {proxy.name: teacher_network(proxy, place, dataset) for proxy in cell.proxies}

    weights = str(run.model and run.model["weights_sha256"])

    def keep(name: str, outcome: Outcome) -> None:
        outcome_files.save(folder, name, outcome, evaluator, dataset, weights)
        run.report({"what": "attack", "name": name, "value": outcome.metric()["value"]})

    outcomes = evaluate(
        evaluator,
        settings.attacks,
        aa_images=settings.aa_images,
        proxies=proxies,
        transfer_attacks=settings.transfer_attacks,
        known=outcome_files.load(folder, weights),
        on_attack=keep,
    )
    if settings.masking:
        run.masking = masking.examine(evaluator, outcomes, settings.masking)
    return outcomes


def _record(
    run: _Run, started: str, outcomes: dict[str, Outcome], outcomes_file: Path | None, failure: dict[str, str] | None
) -> dict[str, Any]:
    cell, dataset = run.cell, run.dataset
    training, device = None, run.place.describe()
    if run.summary:
        device = device if run.summary.devices == 1 else f"{run.summary.devices} x {device}"
        training = {**run.summary.__dict__, "log": f"../{layout.LOG}", **_passes(cell)}
        if (log := cell.folder(run.place.results) / layout.LOG).is_file():
            training["log_sha256"] = files.sha256(log)
    return {
        "schema_version": document.SCHEMA_VERSION,
        "kind": cell.kind,
        "id": cell.id,
        "train_id": cell.train_id,
        "eval_id": cell.eval_id,
        "status": "failed" if failure else "done",
        "error": failure,
        "dataset": cell.dataset,
        "method": cell.method,
        "label": _label(cell),
        "teacher": cell.teacher_name,
        "student": cell.architecture,
        "seed": cell.seed if cell.method else None,
        "config": {"training": cell.training, "evaluation": cell.judging},
        "provenance": provenance(device, torch.get_num_threads(), _source(cell), started),
        "data": dataset and dataset.summary(),
        "model": run.model,
        "teachers": run.teachers,
        "training": training,
        "metrics": {name: outcome.entry(dataset) for name, outcome in outcomes.items() if dataset},
        "outcomes": outcomes_file and {"file": outcomes_file.name, "sha256": files.sha256(outcomes_file)},
        "timing": run.timing,
        **({"masking": run.masking} if run.masking else {}),
        **({"objectives": stated} if (stated := _objectives(cell)) else {}),
    }


def _label(cell: Cell) -> str:
    """The name to print: a teacher's own, a student's method's."""
    if cell.kind != "student" or cell.method is None:
        return cell.name
    try:
        return configured(cell.method, cell.hyper).label
    except UserError:  # a plugin that is broken by now; that is what the record says
        return cell.method


def _objectives(cell: Cell) -> dict[str, str]:
    """The formulas of a plugin, which may not be at hand when a report is written."""
    if cell.method is None or METHODS.built_in(cell.method):
        return {}
    return formulas(METHODS.docstring(cell.method) or "")


def _passes(cell: Cell) -> dict[str, dict[str, float]]:
    """What the method says that an iteration costs at the recipe's attack steps, of each kind of pass that it needs."""
    assert cell.method is not None
    try:
        cost = training_passes(configured(cell.method, cell.hyper), cell.method, cell.train)
    except UserError:  # a plugin that is broken by now
        return {}
    return {"passes": {kind: number for kind, number in asdict(cost).items() if number} | {"total": cost.total}}


def _source(cell: Cell) -> str | None:
    """SHA-256 of the bytes of the file that defines the cell's method."""
    return METHODS.source_hash(cell.method) if cell.method else None
