"""What can be ranked: finished students on all test images under the data set's own threat model. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

from adbench.errors import UserError
from adbench.experiment import spelling, teacher
from adbench.experiment.config import (
    Experiment,
    ThreatModel,
    Train,
    experiment,
    merged,
    presets,
    read_preset,
    validated,
)
from adbench.registry import GROUPS
from adbench.results.record import Record
from adbench.results.runs import heading
from adbench.results.setting import size

REQUIRED = "pgd20"
"""The attack that every record has to have on all test images."""


@dataclass(frozen=True)
class Tested:
    """A data set's threat model and the number of its test images."""

    eps: str
    step: str
    images: int


RANKED = {
    "digits": Tested("28/255", "7/255", 360),
    "cifar10": Tested("8/255", "2/255", 10_000),
    "cifar100": Tested("8/255", "2/255", 10_000),
    "svhn": Tested("8/255", "2/255", 26_032),
    "tiny-imagenet": Tested("8/255", "2/255", 10_000),
}
"""The data sets that anybody can have."""


def white_box(record: Record) -> list[str]:
    """The record's attacks on the network itself within the threat model's ball."""
    return [name for name in record.metrics if name != "clean" and "@" not in name and not name.startswith("transfer:")]


def unranked(record: Record, more: Mapping[str, str] = MappingProxyType({})) -> list[str]:
    """Why the record cannot be ranked, a phrase each; [] where it can.

    more: teachers that the board takes beside adbench's, and the SHA-256 of their weights. What only its data, its
    weights or the installed code can tell is for `adbench verify`.
    """
    if not record.done or record.model is None or record.data is None:
        return ["its cell failed"]
    if record.kind != "student":
        return [f"it is a {record.kind}, and students are ranked"]
    try:
        record.check_configuration()
    except UserError as error:
        return [str(error)]
    tested = RANKED.get(record.dataset)
    if tested is None:
        return [f"dataset '{record.dataset}' is not one of {', '.join(RANKED)}, which anybody can have"]
    return [*misidentified(record), *_images(record, tested), *_threat(record, tested), *_origin(record, more)]


def misidentified(record: Record) -> list[str]:
    """What a record says of its identity and is not its configuration's: results of one network as another's."""
    wrong = [key for key, value in record.identity().items() if getattr(record, key) != value]
    data = record.config.training["data"]
    wrong += [] if (data["name"], data["content"]) == (record.dataset, record.images.fingerprint) else ["dataset"]
    return [f"its {', '.join(wrong)} is not its configuration's"] if wrong else []


def _images(record: Record, tested: Tested) -> Iterator[str]:
    images = record.images.test_images
    if record.config.evaluation["images"] is not None or images != tested.images:
        yield f"it was not judged on all {tested.images:,} test images of {record.dataset} (eval.images)"
    elif REQUIRED not in record.metrics or "clean" not in record.metrics:
        yield f"it has no accuracy under {heading(REQUIRED)}, which every row needs"
    else:
        for name in (REQUIRED, "clean"):
            if (n := record.metrics[name].n) != images:
                yield f"{heading(name)} was run on {n:,} of {images:,} test images"
    if record.outcomes is None:
        yield "it has no outcomes of single images, by which rows are compared"


def _threat(record: Record, tested: Tested) -> Iterator[str]:
    threat, judged = record.config.training["threat"], record.config.evaluation
    model = {"eps": size(threat["eps"]), "step": size(threat["step"])}
    due = {"eps": tested.eps, "step": tested.step}
    if model != due:
        told = (f"eps {of['eps']} and step {of['step']}" for of in (model, due))
        yield f"another threat model: {next(told)}, on {record.dataset} it is {next(told)}"
        return
    if judged.get("step") is not None or judged.get("start") not in (None, "uniform"):
        yield "its attacks have a step or a start of their own (eval.step, eval.start)"
    attack = record.metrics[REQUIRED].attack if REQUIRED in record.metrics else {}
    if attack and (size(attack.get("eps")), size(attack.get("step")), attack.get("steps")) != (*due.values(), 20):
        yield f"its {heading(REQUIRED)} is another attack than that of this name"
    other = [name for name in white_box(record) if size(record.metrics[name].attack.get("eps")) != tested.eps]
    if other:
        yield f"another threat model: {heading(other[0])} has not eps {tested.eps}"


def _origin(record: Record, more: Mapping[str, str]) -> Iterator[str]:
    training, origin = record.config.training, record.provenance
    if training.get("network") is not None or ":" in record.student:
        yield f"its architecture '{record.student}' is not adbench's own, so that a record does not say what it is"
    if record.teacher is not None and not (record.teacher in teachers() or _taken(record, more)):
        yield f"unknown teacher '{record.teacher}'; those that adbench or board.toml lists can be had by everybody"
    if record.training is None or record.seed is None:
        yield "nothing was trained"
    if origin.git_dirty:
        yield f"it was made with uncommitted changes of adbench at {str(origin.git_commit)[:10]}"


def _taken(record: Record, more: Mapping[str, str]) -> bool:
    """Whether the record's teacher is one of those that the board takes."""
    robust = record.teachers.robust
    return robust is not None and more.get(robust.name) == robust.weights_sha256 and robust.name == record.teacher


@cache
def teachers() -> frozenset[str]:
    """The names of the teachers that adbench lists, with their natural partners."""
    named = [teacher.find(name) for name in teacher.names()]
    specs = [*named, *teacher.published()]
    return frozenset(one.name for spec in specs for one in (spec, teacher.natural_partner(spec)))


OWN = "own"


def track(record: Record) -> str:
    """The presets whose recipe the student was trained by, on all training images; OWN where there is none."""
    data = record.config.training["data"]
    if data.get("train_images") is not None or record.training is None:
        return OWN
    return ", ".join(name for name in presets() if _trained_by(name, record)) or OWN


def _trained_by(preset: str, record: Record) -> bool:
    training = record.config.training
    try:
        asked = _experiment(preset)
        train = _recipe(asked, record)
        due = spelling.recipe(train, ThreatModel(eps=training["threat"]["eps"], step=training["threat"]["step"]))
    except (UserError, OverflowError):  # passes may be stated as next to none
        return False
    return bool(due == training.get("train")) and _extra(asked) == (record.images.extra is not None)


def _extra(asked: Experiment) -> bool:
    return asked.data.extra is not None


@cache
def _experiment(preset: str) -> Experiment:
    return experiment(read_preset(preset))


def _recipe(asked: Experiment, record: Record) -> Train:
    """The preset's recipe for the record's method. Raises UserError where its budget pays for no epoch."""
    own = [
        rule.train
        for rule in asked.overrides
        if any(record.method in GROUPS.get(name, (name,)) for name in rule.methods)
        and (not rule.datasets or record.dataset in rule.datasets)
    ]
    train = validated(Train, merged(asked.train.model_dump(mode="json"), *own), "train")
    passes = record.training.passes if record.training else None
    if asked.budget is None:
        return train
    epochs = int(asked.budget / passes["total"]) if passes else 0
    return validated(Train, train.model_dump(mode="json") | {"epochs": epochs}, "train")
