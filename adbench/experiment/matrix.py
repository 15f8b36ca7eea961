"""From an experiment to its cells, and what makes a cell the cell it is.

A cell is one network: a student (dataset x teacher x architecture x method x seed) or a teacher. Its identity is
the content of its configuration, in two parts: what decides its weights (`train_id`) and how it is judged
(`eval_id`). Changing either makes new folders and overwrites nothing; changing the second trains nothing again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from adbench import FAST_SEARCH, REVISION
from adbench.data import Dataset, Threat, as_text, is_path, parse_fraction
from adbench.errors import UserError, unknown
from adbench.experiment import spelling
from adbench.experiment import teacher as teachers
from adbench.experiment.config import (
    DEFAULT_TEACHERS,
    Data,
    Evaluation,
    Experiment,
    ThreatModel,
    Train,
    merged,
    validated,
)
from adbench.experiment.teacher import TeacherSpec, Trained
from adbench.models.names import canonical
from adbench.registry import DATASETS, METHODS, MODELS, Registry
from adbench.system.files import content_id

if TYPE_CHECKING:
    from adbench.training.method import Method, Passes

T = TypeVar("T")

LONGEST = 100
"""Letters of a name that a path component holds."""

# Gives an experiment's dataset by name, with the experiment's share of it.
Lookup = Callable[[str, Experiment], Dataset]

# The ten methods of the paper's tables, in their order: what `--methods all` means.
PAPER_METHODS = ("pgd-at", "trades", "las-at", "ard", "iad", "rslad", "mtard", "adaad", "smaraad", "smaraad-pp")


@dataclass(frozen=True)
class Cell:
    """One network to be had, and how it is to be judged. `method` is None for weights from elsewhere.

    fingerprint: of the dataset's content. threat: complete, the dataset's own where the experiment asks for no other.
    """

    kind: str
    dataset: str
    fingerprint: str
    data: Data
    threat: ThreatModel
    architecture: str
    train: Train
    evaluation: Evaluation
    seed: int = 0
    method: str | None = None
    hyper: dict[str, Any] = field(default_factory=dict)
    spec: TeacherSpec | None = None
    teacher: Cell | None = None
    natural: Cell | None = None
    proxies: tuple[Cell, ...] = ()

    @cached_property
    def training(self) -> dict[str, Any]:
        """All that decides the weights, JSON-able."""
        # A user's own data are their content, wherever they lie.
        name = self.dataset if self.dataset in DATASETS else ""
        base: dict[str, Any] = {
            "revision": REVISION,
            "architecture": self.architecture,
            "data": {"name": name, "content": self.fingerprint, **self.data.model_dump(mode="json")},
            "threat": self.threat.model_dump(mode="json"),
        }
        base |= {"network": code} if (code := _foreign(MODELS, self.architecture)) else {}
        base["data"] |= {"source": code} if (code := _foreign(DATASETS, self.dataset)) else {}
        if self.method is None:
            assert self.spec is not None
            return {**base, "source": self.spec.identity()}
        return base | {
            "method": self.method,
            "source": METHODS.code(self.method).sha256,
            "hyper": self.hyper,
            "seed": self.seed,
            "train": spelling.recipe(self.train, self.threat),
            "normalisation": [self.spec.mean, self.spec.std] if self.spec else [None, None],
            "teacher": self.teacher.train_id if self.teacher else None,
            "natural": self.natural.train_id if self.natural else None,
        }

    @cached_property
    def judging(self) -> dict[str, Any]:
        """All that decides the figures of given weights, JSON-able."""
        settings = self.evaluation.model_dump(mode="json")
        # How many images go through the network at once changes the time it takes, not the verdict.
        settings.pop("batch_size")
        # Settings that came later: where they are unset, the figures are what they were without them.
        for later in ("step", "start", "masking", "keep_adversarial"):
            if not settings[later]:
                settings.pop(later)
        # In whatever order they come, none has to do with another.
        settings["attacks"], settings["transfer_attacks"] = (
            sorted(settings["attacks"]),
            sorted(settings["transfer_attacks"]),
        )
        settings["revision"] = REVISION
        if any(name.startswith("aa") for name in settings["attacks"]):
            settings["pyautoattack"] = version("pyautoattack")
            if settings["aa_search"] == "fast":
                settings["fast_search"] = FAST_SEARCH
        else:
            settings.pop("aa_search")
            settings.pop("aa_shard")
        settings["proxies"] = {cell.name: cell.train_id for cell in self.proxies}
        return settings

    @cached_property
    def train_id(self) -> str:
        return content_id(self.training)[:16]

    @cached_property
    def eval_id(self) -> str:
        return content_id(self.judging)[:16]

    @cached_property
    def id(self) -> str:
        return content_id([self.train_id, self.eval_id])[:16]

    @property
    def name(self) -> str:
        """The name to print: a teacher's own, a student's method."""
        return self.spec.name if self.spec else str(self.method)

    @property
    def teacher_name(self) -> str | None:
        return self.teacher.name if self.teacher else None

    def __str__(self) -> str:
        if self.kind != "student":
            return f"{self.kind} {self.name}"
        guided = f" from {self.teacher_name}" if self.teacher else ""
        return f"{self.method} {self.architecture}{guided} seed {self.seed}"

    def folder(self, results: Path) -> Path:
        """Where its weights and training log lie."""
        dataset = dataset_folder(self.dataset)
        if self.kind != "student":
            return results / dataset / f"{self.kind}s" / f"{safe(self.name)}-{self.train_id[:8]}"
        pair = f"{safe(self.teacher_name or 'none')}__{safe(self.architecture)}"
        return results / dataset / safe(self.name) / pair / f"s{self.seed}-{self.train_id[:8]}"

    def record_path(self, results: Path) -> Path:
        """Where its record lies."""
        return self.folder(results) / f"eval-{self.eval_id[:8]}" / "record.json"

    def required(self) -> list[Cell]:
        """The cells that must be finished before this one can start."""
        return [cell for cell in (self.teacher, self.natural, *self.proxies) if cell is not None]


def _foreign(registry: Registry, name: str) -> str | None:
    """The hash of the code of a network or dataset that is not adbench's own, which has the revision."""
    return None if name not in registry or registry.built_in(name) else registry.code(name).sha256


def dataset_folder(name: str) -> str:
    """The folder of a dataset's results: its name, of a path its last component."""
    return safe(name if name in DATASETS else Path(name).stem)


def safe(name: str) -> str:
    """`name` as one path component: nothing but letters, digits and . _ + -, and no leading dot.

    Of a name longer than LONGEST its beginning and a digest, since file systems take 255 bytes and two names may have
    to fit.
    """
    if len(name) > LONGEST:
        name = f"{name[: LONGEST - 9]}-{content_id(name)[:8]}"
    return re.sub(r"[^A-Za-z0-9._+-]", "_", name).lstrip(".") or "_"


@dataclass(frozen=True)
class Matrix:
    """The cells of an experiment: teachers first, in an order in which each finds what it needs done."""

    teachers: tuple[Cell, ...]
    students: tuple[Cell, ...]

    @property
    def cells(self) -> tuple[Cell, ...]:
        return self.teachers + self.students


def method_names(asked: tuple[str, ...]) -> list[str]:
    """Registered method names, `all` standing for the paper's ten. Raises UserError for an unknown one."""
    expanded = [name for a in asked for name in (PAPER_METHODS if a == "all" else (a,))]
    for name in expanded:
        if name not in METHODS:
            raise unknown("method", name, [*METHODS.names(), "all"])
    return list(dict.fromkeys(expanded))


def configured(name: str, hyper: dict[str, Any]) -> Method:
    """The method `name` with its hyperparameters. Raises UserError that lists those that are wrong."""
    cls = METHODS.load(name)
    from adbench.training.method import Method

    if not (isinstance(cls, type) and issubclass(cls, Method)):
        raise UserError(f"method '{name}' ({METHODS.source(name)}) is not a subclass of adbench.training.method.Method")
    if not isinstance(getattr(cls, "label", None), str):
        raise UserError(f"method '{name}' ({METHODS.source(name)}) has no `label`, the name that tables print")
    for part in ("attack", "loss"):
        if getattr(cls, part) is getattr(Method, part):
            raise UserError(f"method '{name}' ({METHODS.source(name)}) does not implement `{part}`")
    return validated(cls, hyper, f"hyper.{name}")


def expand(experiment: Experiment, lookup: Lookup) -> Matrix:
    """The experiment's cells; what several cells share (teachers, methods without one) is there once."""
    from adbench.training.method import Need

    names = method_names(experiment.methods)
    for name in experiment.hyper:
        if name not in METHODS:
            raise unknown("method", name, METHODS.names(), "in the table [hyper]")
    for rule in experiment.overrides:
        for name in rule.methods:
            if name not in (*METHODS, "all"):
                raise unknown("method", name, [*METHODS.names(), "all"], "in an [[override]]")
        for dataset in rule.datasets:
            if not is_path(dataset) and dataset not in DATASETS:
                raise unknown("dataset", dataset, DATASETS.names(), "in an [[override]]")
    students: dict[str, Cell] = {}
    found: dict[str, Cell] = {}

    for dataset in experiment.datasets:
        recipes = {name: recipe(experiment, name, dataset) for name in names}
        guided = any(asked(name, "needed", method.needed) for name, (method, _) in recipes.items())
        data, tested = _data(experiment, dataset, lookup)
        known = _Teachers(experiment, dataset, lookup, found)
        proxies = known.proxies() if experiment.evaluation.transfer_attacks else ()
        for spec in known.asked(guided):
            for architecture in experiment.students:
                for name, (method, train) in recipes.items():
                    needs = method.needed()
                    for seed in experiment.seeds:
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
                            hyper=method.model_dump(mode="json"),
                            teacher=known.get(spec) if spec and Need.TEACHER in needs else None,
                            natural=known.get(teachers.natural_partner(spec))
                            if spec and Need.NATURAL_TEACHER in needs
                            else None,
                            proxies=proxies,
                        )
                        students.setdefault(cell.id, cell)
    return Matrix(tuple(found.values()), tuple(students.values()))


def recipe(experiment: Experiment, name: str, dataset: str) -> tuple[Method, Train]:
    """The method `name` as the experiment has it on `dataset`, and how its students are trained.

    Raises UserError for settings that are wrong, and where the budget does not pay for one epoch.
    """
    rules = [
        rule
        for rule in experiment.overrides
        if name in method_names(rule.methods) and (not rule.datasets or dataset in rule.datasets)
    ]
    method = configured(name, merged(*(rule.hyper for rule in rules), experiment.hyper.get(name, {})))
    train = experiment.train
    if any(rule.train for rule in rules):
        own = merged(train.model_dump(mode="json"), *(rule.train for rule in rules))
        train = validated(Train, own, f"override for {name}, train")
    if train.micro_batch and not method.divisible:
        raise UserError(f"train.micro_batch: '{name}' needs its batches whole; unset it for this method")
    if experiment.budget is not None:
        cost = passes(method, name, train.attack_steps).total
        epochs = int(experiment.budget / cost)
        if epochs < 1:
            raise UserError(
                f"budget = {experiment.budget:g}: one epoch of '{name}' takes {cost:g} passes an image; give more"
            )
        train = train.model_copy(update={"epochs": epochs})
    return method, train


def passes(method: Method, name: str, steps: int) -> Passes:
    """The cost that the method declares. Raises UserError where a plugin's declaration fails."""
    from adbench.training.method import Passes

    declared = asked(name, "passes", lambda: method.passes(steps))
    if not isinstance(declared, Passes) or declared.total <= 0:
        raise UserError(f"method '{name}': passes() gave {declared!r}, expected Passes with something to count")
    return declared


def asked(name: str, what: str, of: Callable[[], T]) -> T:
    """What a plugin's declaration gives. Raises UserError where it fails."""
    try:
        return of()
    except (Exception, SystemExit) as error:
        raise UserError(f"method '{name}': {what}() raised {type(error).__name__}: {error}") from error


def _data(experiment: Experiment, name: str, lookup: Lookup) -> tuple[dict[str, Any], int]:
    """What a cell knows of its data, and how many test images there are."""
    if not is_path(name) and name not in DATASETS:
        raise unknown("dataset", name, DATASETS.names(), "adbench list datasets; a path has a '/' or ends in .npz")
    dataset = lookup(name, experiment)
    known = {
        "dataset": name,
        "fingerprint": dataset.fingerprint,
        "data": spelling.data(experiment.data, dataset.whole),
        "threat": complete(experiment.threat, dataset.threat),
    }
    return known, dataset.whole[2]


def complete(asked: ThreatModel, default: Threat) -> ThreatModel:
    """The threat model that is asked for, the dataset's own where nothing is; a changed eps scales the step along."""
    eps = default.eps if asked.eps is None else parse_fraction(asked.eps)
    step = default.step * eps / default.eps if asked.step is None else parse_fraction(asked.step)
    return ThreatModel(eps=as_text(eps), step=as_text(step))


class _Teachers:
    """The teachers of one dataset as cells; each is asked for by its spec and made once."""

    def __init__(self, experiment: Experiment, dataset: str, lookup: Lookup, found: dict[str, Cell]) -> None:
        self.experiment = experiment
        self.dataset = dataset
        self.lookup = lookup
        self.found = found

    def asked(self, guided: bool) -> Sequence[TeacherSpec | None]:
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

    def get(self, spec: TeacherSpec) -> Cell:
        if spec.dataset not in (None, self.dataset):
            raise UserError(f"teacher '{spec.name}' is for '{spec.dataset}', not for '{self.dataset}'")
        cell = teacher_cell(self.experiment, self.dataset, spec, self.lookup)
        return self.found.setdefault(cell.id, cell)


def teacher_cell(experiment: Experiment, dataset: str, spec: TeacherSpec, lookup: Lookup) -> Cell:
    """The cell that trains or fetches a teacher and evaluates it as students are evaluated, but not by transfer.

    It is judged as it teaches: with the weights of its best epoch.
    """
    trained = spec.source if isinstance(spec.source, Trained) else None
    hyper: dict[str, Any] = {}
    if trained:
        method = configured(trained.method, trained.hyper)
        if method.needed():
            raise UserError(
                f"teacher '{spec.name}': method '{trained.method}' needs a teacher itself; choose one without"
            )
        hyper = method.model_dump(mode="json")
    data, tested = _data(experiment, dataset, lookup)
    # Which images others are trained on is nothing to weights from elsewhere.
    data |= {} if trained else {"data": Data()}
    judged = experiment.evaluation.model_copy(update={"proxies": (), "checkpoint": "best"})
    return Cell(
        kind="teacher",
        **data,
        architecture=spec.architecture,
        train=(trained and trained.train) or experiment.train,
        evaluation=spelling.evaluation(judged, data["threat"], tested, transfers=False, trained=None),
        seed=trained.seed if trained else 0,
        method=trained.method if trained else None,
        hyper=hyper,
        spec=spec,
    )
