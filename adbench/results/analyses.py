"""What `adbench cross` and `adbench cam` leave behind: one JSON file an analysis, with a published schema.

They lie in `results/<dataset>/<kind>/<id>/<kind>.json`, kind being the verb. Reading needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from adbench.errors import UserError
from adbench.results import document
from adbench.results.document import (
    Count,
    Document,
    Identity,
    Interval,
    Kind,
    Limits,
    Positive,
    Seconds,
    Sha256,
    Size,
    Text,
    table,
)
from adbench.results.fields import Stored
from adbench.system.files import below


@dataclass(frozen=True)
class AttackSetting:
    """How the records' networks were judged: sizes as fractions of the image range ("8/255"), start and noise seed."""

    eps: Size
    step: Size
    start: Literal["uniform", "gauss", "clean"]
    seed: Count


@dataclass(slots=True)
class Images:
    """The test images."""

    fingerprint: Sha256
    images: Annotated[Positive, "the first so many test images"]


@dataclass(slots=True)
class AnalysedNetwork:
    """One network."""

    name: Annotated[str, "its name among these networks"]
    kind: Kind
    method: str | None
    student: Annotated[str, "architecture"]
    teacher: str | None
    seed: int | None
    weights_sha256: Sha256
    record: Annotated[str, "path of its record, relative to the results folder"]


@dataclass(slots=True)
class Accuracy:
    """On the images, as they are and at every restart."""

    correct: Count
    n: Positive
    ci_test: Annotated[Interval, "95% Wilson interval over test images"]


@dataclass(slots=True)
class Crossed(AnalysedNetwork):
    """One network and its accuracy on the images as they are."""

    clean: Accuracy


Attack = Annotated[
    dict[str, Any],
    table(
        {"name": str, "implementation": str, "loss": str, "start": str, "eps": Size, "step": Size}
        | {"steps": Positive, "restarts": Positive, "seed": Count}
    ),
    "the exact definition, as in a record",
]
Origin = Annotated[
    dict[str, Any],
    table(
        dict.fromkeys(("adbench", "torch", "python", "platform", "device", "command", "started", "finished"), str)
        | {"threads": Positive, "git_commit": Any, "git_dirty": Any}
    ),
    "as in a record",
]


@dataclass(slots=True)
class Analysis(Document):
    """Finished networks on the same test images under one attack."""

    schema_version: Literal[1]
    id: Annotated[Identity, "identity of weights, attack, setting and images together"]
    dataset: Text
    data: Images
    setting: AttackSetting
    attack: Attack


@dataclass(slots=True)
class Cross(Analysis):
    """Accuracy of every network on adversarial examples made on every network of one dataset and setting."""

    networks: Annotated[list[Crossed], Limits(min_length=2)]
    matrix: Annotated[
        list[Annotated[list[Accuracy], Limits(min_length=2)]],
        Limits(min_length=2),
        "matrix[s][t]: networks[t] on the images made on networks[s]; matrix[s][s] is white-box",
    ]
    seconds: Annotated[list[Seconds], "by source"]
    provenance: Origin

    def contradiction(self) -> str | None:
        """What cannot be true of fields that are right by themselves."""
        shares = [*(network.clean for network in self.networks), *(share for row in self.matrix for share in row)]
        if any(share.correct > share.n for share in shares):
            return "it has more correct than there are"
        rows = {f"matrix.{place}": row for place, row in enumerate(self.matrix)}
        return _uneven(len(self.networks), {"matrix": self.matrix, "seconds": self.seconds, **rows})


@dataclass(slots=True)
class Mean:
    """Over n images."""

    mean: Annotated[float | None, "null where n is 0"]
    ci_test: Annotated[
        Annotated[list[float], Limits(min_length=2, max_length=2)] | None,
        "95% Student-t interval over test images; null where n is below 2",
    ]
    n: Count


@dataclass(slots=True)
class Similarity:
    """Of maps resized bilinearly to the larger and brought to [0, 1] each."""

    cosine: Annotated[Mean, "without images on which a map is constant, which have none"]
    mse: Annotated[Mean, "Eq. 7; a constant map is 0 everywhere"]


@dataclass(slots=True)
class Agreement:
    """Of a student's maps with the teacher's."""

    adversarial: Similarity
    clean: Similarity


@dataclass(slots=True)
class Example:
    """One image whose maps are kept."""

    index: Annotated[Count, "in the test set"]
    label: str
    cosine: Annotated[
        list[float | None], "of each student's map at x' with the teacher's, in the order of networks[1:]"
    ]


@dataclass(slots=True)
class StoredExamples(Stored):
    """An npz beside this file, of k images: x (k, C, H, W) uint8; x_adv (k, C, H, W) float32 in [0, 1]; map0, map1, ...
    (k, h, w), the maps at x' in the order of networks, as they are."""

    images: list[Example]


@dataclass(slots=True)
class Cam(Analysis):
    """Class activation maps of a teacher and of its students on the same images, and how much they agree."""

    networks: Annotated[
        list[AnalysedNetwork],
        Limits(min_length=2),
        "the teacher, on which x' is made, then its students and those that no teacher taught",
    ]
    agreement: Annotated[
        list[Agreement], Limits(min_length=1), "of each student's maps with the teacher's, in the order of networks[1:]"
    ]
    examples: StoredExamples
    provenance: Origin

    def contradiction(self) -> str | None:
        """What cannot be true of fields that are right by themselves."""
        cosines = {f"examples.images.{place}.cosine": image.cosine for place, image in enumerate(self.examples.images)}
        # The teacher's maps are what the others agree with.
        return _uneven(len(self.networks) - 1, {"agreement": self.agreement, **cosines})


KINDS: dict[str, type[Cross] | type[Cam]] = {"cross": Cross, "cam": Cam}
A = TypeVar("A", Cross, Cam)


def read(path: Path, kind: type[A]) -> A:
    """Read one analysis.

    Raises UserError when it is not a whole one of a version that is understood, and names the field that is not as its
    schema has it, or that is not one for each network.
    """
    remedy = f"delete it and run `adbench {path.stem}` again"
    analysis = document.read(path, kind, remedy)
    if contradiction := analysis.contradiction():
        raise UserError(f"'{path}' contradicts itself: {contradiction}; {remedy}")
    return analysis


def _uneven(networks: int, counted: Mapping[str, Sequence[Any]]) -> str | None:
    """Which field has not one entry for each network."""
    for name, values in counted.items():
        if len(values) != networks:
            return f"{name} has {len(values)} entries, of {networks} networks"
    return None


def read_all(results: Path, kind: type[A], left_out: Callable[[str], object] | None = None) -> list[A]:
    """Every analysis of a kind below `results`, in path order. left_out: as of `record.read_all`."""
    name = kind.__name__.lower()
    paths = (path for path in below(results, f"{name}.json") if path.parent.parent.name == name)
    return list(document.readable(paths, lambda path: read(path, kind), left_out))


def latest(analyses: Iterable[A]) -> list[A]:
    """Those that no later one replaces, in path order.

    A later one replaces an earlier one of the same images, setting and attack if it has all of its networks.
    """
    standing: list[A] = []
    for one in sorted(analyses, key=lambda a: (a.provenance["finished"], str(a.path)), reverse=True):
        if not any(_replaces(later, one) for later in standing):
            standing.append(one)
    return sorted(standing, key=lambda a: str(a.path))


def _made_by(one: Analysis) -> dict[str, Any]:
    """The attack of an analysis, whatever version of the code had it."""
    return {key: value for key, value in one.attack.items() if key != "implementation"}


def _replaces(later: A, earlier: A) -> bool:
    of_later, of_earlier = ([network.weights_sha256 for network in one.networks] for one in (later, earlier))
    return (
        (later.dataset, later.setting, later.data.fingerprint, later.data.images, _made_by(later))
        == (earlier.dataset, earlier.setting, earlier.data.fingerprint, earlier.data.images, _made_by(earlier))
        # The first network of `cam` is the teacher that the others are compared with.
        and (not isinstance(later, Cam) or of_later[0] == of_earlier[0])
        and set(of_earlier) <= set(of_later)
    )
