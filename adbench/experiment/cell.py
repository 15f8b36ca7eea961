"""A cell: one network, and what makes it the one that it is.

A cell is a student (dataset x teacher x architecture x method x seed) or a teacher. Its identity is the content of its
configuration, in two parts: what decides its weights (`train_id`) and how it is judged (`eval_id`). Changing either
makes new folders and overwrites nothing; changing the second trains nothing again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from adbench import FAST_SEARCH, REVISION
from adbench.experiment import attack_names, spelling
from adbench.experiment.config import Data, Evaluation, ThreatModel, Train
from adbench.experiment.teacher import TeacherSpec
from adbench.models.names import code as network_code
from adbench.registry import DATASETS, METHODS, Registry
from adbench.system.files import content_id

LONGEST = 100
"""Letters of a name that a path component holds."""


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
    extra: str = ""
    """SHA-256 of the file of extra training images."""
    namesake: bool = False
    """Whether another teacher of the experiment has the same name: a digest then stands beside it."""

    told: str = ""
    """What sets it apart from others of a sweep, as "(alpha 0.5)"."""

    @cached_property
    def training(self) -> dict[str, Any]:
        """All that decides the weights, JSON-able."""
        # A user's own data are their content, wherever they lie.
        name = self.dataset if self.dataset in DATASETS else ""
        base: dict[str, Any] = {
            "revision": REVISION,
            "architecture": self.architecture,
            "data": {"name": name, "content": self.fingerprint, **spelling.content(self.data, self.extra)},
            "threat": self.threat.model_dump(mode="json"),
        }
        base |= {"network": code} if (code := network_code(self.architecture)) else {}
        base["data"] |= {"source": code} if (code := _foreign(DATASETS, self.dataset)) else {}
        if self.method is None:
            assert self.spec is not None
            return {**base, "source": self.spec.identity()}
        if codes := {name: code for name in _texts(self.hyper) if (code := network_code(name))}:
            base["own_networks"] = codes
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
        if any(map(attack_names.autoattack, settings["attacks"])):
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
    def shown(self) -> str:
        """The name to print where teachers are told apart, as reports do it: "best #5e0775"."""
        return f"{self.name} #{self.train_id[:6]}" if self.namesake else self.name

    @property
    def teacher_name(self) -> str | None:
        return self.teacher.name if self.teacher else None

    def __str__(self) -> str:
        if self.kind != "student":
            return f"{self.kind} {self.shown}"
        guided = f" from {self.teacher.shown}" if self.teacher else ""
        told = f" {self.told}" if self.told else ""
        return f"{self.method}{told} {self.architecture}{guided} seed {self.seed}"

    def folder(self, results: Path) -> Path:
        """Where its weights and training log lie."""
        dataset = dataset_folder(self.dataset)
        if self.kind != "student":
            return results / dataset / f"{self.kind}s" / f"{safe(self.name)}-{self.train_id[:8]}"
        pair = f"{safe(self.teacher_name or 'none')}__{safe(self.architecture)}"
        return results / dataset / safe(self.name) / pair / f"s{self.seed}-{self.train_id[:8]}"

    def required(self) -> list[Cell]:
        """The cells that must be finished before this one can start."""
        return [cell for cell in (self.teacher, self.natural, *self.proxies) if cell is not None]


@dataclass(frozen=True)
class Matrix:
    """The cells of an experiment: teachers first, in an order in which each finds what it needs done."""

    teachers: tuple[Cell, ...]
    students: tuple[Cell, ...]

    @property
    def cells(self) -> tuple[Cell, ...]:
        return self.teachers + self.students


def _texts(value: Any) -> Iterator[str]:
    """The texts among a method's hyperparameters, of which some may be networks of its own."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(inner)


def _foreign(registry: Registry, name: str) -> str | None:
    """The hash of the code of a dataset that is not adbench's own, which has the revision."""
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
