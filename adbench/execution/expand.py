"""From an experiment to its cells."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

from adbench.data import Dataset, Threat, as_text, is_path, parse_fraction
from adbench.data.identity import known as known_dataset
from adbench.data.policies import mixing
from adbench.errors import UserError, unknown
from adbench.experiment import spelling
from adbench.experiment import teacher as teachers
from adbench.experiment.cell import Cell, Matrix
from adbench.experiment.config import (
    DEFAULT_TEACHERS,
    Data,
    Experiment,
    Override,
    ThreatModel,
    Train,
    merged,
    validated,
)
from adbench.experiment.settings import variants
from adbench.experiment.teacher import TeacherSpec, Trained
from adbench.models.names import ONNX, canonical
from adbench.registry import DATASETS, GROUPS, METHODS, method_names
from adbench.results.runs import differences
from adbench.training.configured import check_fits, configured, declared, training_passes
from adbench.training.method import Method
from adbench.training.step import Need

# Gives an experiment's dataset by name, with the experiment's share of it.
Lookup = Callable[[str, Experiment], Dataset]


def expand(experiment: Experiment, lookup: Lookup) -> Matrix:
    """The experiment's cells; what several cells share (teachers, methods without one) is there once.

    Of a sweep, students that differ in what it sets alone are told apart by it.
    """
    parts = [_expanded(one, lookup) for one in variants(experiment)]
    teacher_cells = {cell.id: cell for part in parts for cell in part.teachers}
    students = {cell.id: cell for part in parts for cell in part.students}
    told = _told(students.values()) if experiment.sweep else {}
    named = (replace(cell, told=told.get(cell.id, "")) for cell in students.values())
    return _told_apart(Matrix(tuple(teacher_cells.values()), tuple(named)))


def _told(students: Iterable[Cell]) -> dict[str, str]:
    """What sets students of one place apart, as "(alpha 0.5)", by their id."""
    places: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for cell in students:
        place = (cell.dataset, cell.method, cell.architecture, cell.teacher_name, cell.seed)
        table = {"training": cell.training, "evaluation": cell.judging}
        places.setdefault(place, {})[cell.id] = table
    return {key: text for tables in places.values() for key, text in differences(tables).items()}


def _expanded(experiment: Experiment, lookup: Lookup) -> Matrix:
    """The cells of an experiment without a sweep."""
    _check_names(experiment)
    names = method_names(experiment.methods)
    students: dict[str, Cell] = {}
    teacher_cells: dict[str, Cell] = {}
    for dataset in experiment.datasets:
        recipes = {name: recipe(experiment, name, dataset) for name in names}
        needs = {name: declared(name, "needed", method.needed) for name, (method, _) in recipes.items()}
        data, tested = _data(experiment, dataset, lookup)
        known = _Teachers(experiment, dataset, lookup, teacher_cells)
        proxies = known.proxies() if experiment.evaluation.transfer_attacks else ()
        specs = known.chosen(guided=any(needs.values()))
        for spec, architecture, name, seed in product(specs, experiment.students, names, experiment.seeds):
            method, train = recipes[name]
            cell = Cell(
                kind="student",
                **data,
                architecture=canonical(architecture),
                train=train,
                evaluation=spelling.evaluation(
                    experiment.evaluation, data["threat"], tested, transfers=bool(proxies), trained=train
                ),
                seed=seed,
                method=name,
                hyper=method.settings(),
                teacher=known.get(spec) if spec and Need.TEACHER in needs[name] else None,
                natural=known.natural(spec) if spec and Need.NATURAL_TEACHER in needs[name] else None,
                proxies=proxies,
            )
            students.setdefault(cell.id, cell)
    return Matrix(tuple(teacher_cells.values()), tuple(students.values()))


def _check_names(experiment: Experiment) -> None:
    """Raise UserError for a table of settings that is for an unknown method or dataset."""
    for name in experiment.hyper:
        if name not in METHODS:
            raise unknown("method", name, METHODS.names(), "in the table [hyper]")
    for rule in experiment.overrides:
        for name in rule.methods:
            if name not in (*METHODS, *GROUPS):
                raise unknown("method", name, [*METHODS.names(), *GROUPS], "in an [[override]]")
        for dataset in rule.datasets:
            if not is_path(dataset) and dataset not in DATASETS:
                raise unknown("dataset", dataset, DATASETS.names(), "in an [[override]]")


def _told_apart(matrix: Matrix) -> Matrix:
    """The matrix whose teachers of one name know that they are not alone."""
    names = Counter((cell.dataset, cell.name) for cell in matrix.teachers)
    if max(names.values(), default=1) == 1:
        return matrix
    teachers = {cell.id: replace(cell, namesake=names[cell.dataset, cell.name] > 1) for cell in matrix.teachers}
    students = (
        replace(cell, teacher=teachers.get(cell.teacher.id) if cell.teacher else None) for cell in matrix.students
    )
    return Matrix(tuple(teachers.values()), tuple(students))


def _rules(experiment: Experiment, name: str, dataset: str) -> list[Override]:
    """The rules that are for method `name` on `dataset`."""
    return [
        rule
        for rule in experiment.overrides
        if name in method_names(rule.methods) and (not rule.datasets or dataset in rule.datasets)
    ]


def _hyper(experiment: Experiment, name: str, dataset: str) -> dict[str, Any]:
    """The hyperparameters that the experiment sets of a method. One around another has that one as it is set by itself,
    so that the two can be compared, unless its own `base_hyper` says otherwise."""
    rules = _rules(experiment, name, dataset)
    own = merged(*(rule.hyper for rule in rules), experiment.hyper.get(name, {}))
    cls = METHODS.load(name)
    if not getattr(cls, "bases", None):
        return own
    base = own.get("base", cls.model_fields["base"].default)
    known = isinstance(base, str) and base in cls.bases and base in METHODS
    inherited = _hyper(experiment, base, dataset) if known else {}
    return merged({"base_hyper": inherited} if inherited else {}, own)


def recipe(experiment: Experiment, name: str, dataset: str) -> tuple[Method, Train]:
    """The method `name` as the experiment has it on `dataset`, and how its students are trained.

    Raises UserError for settings that are wrong, and where the budget does not pay for one epoch.
    """
    rules = _rules(experiment, name, dataset)
    method = configured(name, _hyper(experiment, name, dataset))
    train = experiment.train
    if any(rule.train for rule in rules):
        own = merged(train.model_dump(mode="json"), *(rule.train for rule in rules))
        train = validated(Train, own, f"override for {name}, train")
    train = teachers.with_hash(train)
    check_fits(method, name, train)
    _check_images(train, experiment.data, method, name)
    if experiment.budget is not None and not any("epochs" in rule.train for rule in rules):
        cost = training_passes(method, name, train).total
        epochs = int(experiment.budget / cost)
        if epochs < 1:
            raise UserError(
                f"budget = {experiment.budget:g}: one epoch of '{name}' takes {cost:g} passes an image; give more"
            )
        train = train.model_copy(update={"epochs": epochs})
    return method, train


def _check_images(train: Train, data: Data, method: Method, name: str) -> None:
    """Raise UserError for extra images that no batch has one of, and labels mixed for a method without soft ones."""
    if data.extra and not int(train.batch_size * data.extra_share):
        raise UserError(
            f"data.extra_share = {data.extra_share:g} of a batch of {train.batch_size} is no image; give more"
        )
    if (mixed := mixing(train.augment)) and not method.soft_labels:
        able = ", ".join(sorted(name for name in METHODS if getattr(METHODS.load(name), "soft_labels", False)))
        raise UserError(
            f"train.augment: {' and '.join(mixed)} mixes labels, which '{name}' does not declare to take "
            f"(soft_labels); leave it out for this method, or choose {able}"
        )


def _data(experiment: Experiment, name: str, lookup: Lookup) -> tuple[dict[str, Any], int]:
    """What a cell knows of its data, and how many test images there are."""
    known_dataset(name)
    dataset = lookup(name, experiment)
    known = {
        "dataset": name,
        "fingerprint": dataset.fingerprint,
        "data": spelling.data(experiment.data, dataset.whole),
        "extra": dataset.extra.sha256 if dataset.extra else "",
        "threat": complete(experiment.threat, dataset.threat),
    }
    return known, dataset.whole[2]


def complete(given: ThreatModel, default: Threat) -> ThreatModel:
    """The given threat model, completed by the dataset's own; a changed eps scales the step size along."""
    eps = default.eps if given.eps is None else parse_fraction(given.eps)
    step = default.step * eps / default.eps if given.step is None else parse_fraction(given.step)
    return ThreatModel(eps=as_text(eps), step=as_text(step))


class _Teachers:
    """The teachers of one dataset as cells; one a spec."""

    def __init__(self, experiment: Experiment, dataset: str, lookup: Lookup, cells: dict[str, Cell]) -> None:
        self.experiment = experiment
        self.dataset = dataset
        self.lookup = lookup
        self.cells = cells

    def chosen(self, guided: bool) -> Sequence[TeacherSpec | None]:
        """The experiment's teachers for this dataset, or the dataset's own where none is named but one is needed."""
        if self.experiment.teachers:
            if guided:
                return self._fitting(self.experiment.teachers)
            for name in self.experiment.teachers:
                teachers.find(name, self.dataset)  # raises for one that there is not
            return [None]
        if not guided:
            return [None]
        if self.dataset not in DEFAULT_TEACHERS:
            raise UserError(f"dataset '{self.dataset}' has no teacher of its own; name one with --teacher")
        return [teachers.find(DEFAULT_TEACHERS[self.dataset], self.dataset)]

    def _fitting(self, names: Sequence[str]) -> list[TeacherSpec]:
        """Those of the named teachers that are for this dataset or for any; one at least."""
        specs = [teachers.find(name, self.dataset) for name in names]
        fitting = [spec for spec in specs if spec.dataset in (None, self.dataset)]
        if not fitting:
            others = ", ".join(f"teacher '{spec.name}' is for '{spec.dataset}'" for spec in specs)
            raise UserError(f"{others}, not for '{self.dataset}'; name another with --teacher")
        return fitting

    def proxies(self) -> tuple[Cell, ...]:
        """The proxies of the transfer attacks that are for this dataset or for any. Names must differ."""
        specs = [teachers.find(name, self.dataset) for name in self.experiment.evaluation.proxies]
        cells = tuple(self.get(spec) for spec in specs if spec.dataset in (None, self.dataset))
        names = [cell.name for cell in cells]
        if len(set(names)) < len(names):
            raise UserError(
                f"eval.proxies: two of {', '.join(names)} have the same name; give one a TOML file of its own"
            )
        return cells

    def natural(self, spec: TeacherSpec) -> Cell:
        """The natural (not adversarially trained) partner of a teacher."""
        return self.get(teachers.natural_partner(spec))

    def get(self, spec: TeacherSpec) -> Cell:
        if spec.dataset not in (None, self.dataset):
            raise UserError(f"teacher '{spec.name}' is for '{spec.dataset}', not for '{self.dataset}'")
        if spec.architecture == ONNX:
            raise UserError(f"'{spec.name}' is an ONNX file, which has no gradients; `adbench eval` judges it")
        cell = teacher_cell(self.experiment, self.dataset, spec, self.lookup)
        return self.cells.setdefault(cell.id, cell)


def checkpoint(experiment: Experiment, dataset: str, spec: TeacherSpec, lookup: Lookup) -> Matrix:
    """The cell that judges a network from elsewhere, and those of its proxies that have to be trained first."""
    proxies = _Teachers(experiment, dataset, lookup, {}).proxies()
    alone = teacher_cell(experiment, dataset, spec, lookup)
    judged = experiment.evaluation
    if proxies:
        _, tested = _data(experiment, dataset, lookup)
        judged = spelling.evaluation(judged, alone.threat, tested, transfers=True, trained=None)
    cell = replace(alone, kind="checkpoint", proxies=proxies, evaluation=judged if proxies else alone.evaluation)
    return Matrix(tuple(proxy for proxy in proxies if proxy.method), (cell,))


def teacher_cell(experiment: Experiment, dataset: str, spec: TeacherSpec, lookup: Lookup) -> Cell:
    """The cell that trains or fetches a teacher and evaluates it as students are evaluated, but not by transfer.

    It is judged as it teaches: with the weights of its best epoch.
    """
    trained = spec.source if isinstance(spec.source, Trained) else None
    # The run's recipe serves teachers that have none of their own, but its first weights are the students'.
    common = experiment.train.model_copy(update={"init": None, "init_sha256": None})
    own = teachers.with_hash(trained.train) if trained and trained.train else None
    hyper: dict[str, Any] = {}
    if trained:
        method = configured(trained.method, trained.hyper)
        if method.needed():
            raise UserError(
                f"teacher '{spec.name}': method '{trained.method}' needs a teacher itself; choose one without"
            )
        hyper = method.settings()
        _check_images(trained.train or experiment.train, experiment.data, method, trained.method)
    data, tested = _data(experiment, dataset, lookup)
    # Which images others are trained on is nothing to weights from elsewhere.
    data |= {} if trained else {"data": Data(resize=experiment.data.resize), "extra": ""}
    judged = experiment.evaluation.model_copy(update={"proxies": (), "checkpoint": "best"})
    return Cell(
        kind="teacher",
        **data,
        architecture=spec.architecture,
        train=own or common,
        evaluation=spelling.evaluation(judged, data["threat"], tested, transfers=False, trained=None),
        seed=trained.seed if trained else 0,
        method=trained.method if trained else None,
        hyper=hyper,
        spec=spec,
    )
