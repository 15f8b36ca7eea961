"""What a teacher is: an architecture, a source of weights, and the accuracy it should have.

A teacher is named in one of four ways, wherever a teacher is asked for:
    digits-robust               one of the declarative files in `teachers/`
    path/to/mine.toml           a file of the same form; `kind = "ensemble"` names several teachers as one
    wrn-34-10@path/to/file.pt   an architecture and a local checkpoint; with '#ema' after it, of several networks in
                                the file the one whose names begin with 'ema.'
    robustbench:MODEL_ID        a model of RobustBench: one of `teachers/robustbench.toml`, else by way of RobustBench's
                                own package (the extra `robustbench`)
Nothing here imports torch; `adbench.weights.networks` turns a teacher into a network.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, FiniteFloat, model_validator

from adbench.errors import UserError, unknown
from adbench.experiment.config import Section, Train, read_toml, validated
from adbench.models.names import ONNX, TOGETHER, canonical, together
from adbench.system.download import RemoteFile, google_drive
from adbench.system.files import content_id, expanded, no_file, sha256


class Trained(Section):
    """Weights that adbench trains itself, once, by a registered method without a teacher."""

    kind: Literal["train"] = "train"
    method: str
    seed: int = 0
    hyper: dict[str, Any] = Field({}, description="of the method")
    train: Train | None = Field(None, description="its recipe; none means the run's own")


class LocalFile(Section):
    """Weights in a file, PyTorch's or safetensors."""

    kind: Literal["file"]
    path: Path
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    key: str | None = Field(None, description="what stands before the network's names, where the file holds several")

    @property
    def ours(self) -> bool:
        """Whether the file comes with adbench; it is then found wherever that is installed (`shipped`)."""
        return self.path.is_relative_to(FOLDER)


class Download(Section):
    """Weights from the network, in a file that is kept in the data folder."""

    kind: Literal["download"]
    id: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$", description="its name at RobustBench")
    urls: tuple[str, ...] = Field((), description="mirrors, asked in this order")
    gdrive: str | None = Field(None, pattern=r"^[A-Za-z0-9_-]+$", description="its Google Drive id; asked last")
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    size: int | None = Field(None, ge=1, description="bytes")
    key: str | None = Field(None, description="what stands before the network's names, where the file holds several")

    @model_validator(mode="after")
    def _somewhere(self) -> Self:
        if not (self.urls or self.gdrive):
            raise ValueError("a download needs urls or gdrive")
        if bad := [url for url in self.urls if not re.match("https?://[^/]", url)]:
            raise ValueError(f"'{bad[0]}' is not a http or https address")
        return self


class RobustBench(Section):
    """Weights of a RobustBench model, built and fetched by RobustBench's own package."""

    kind: Literal["robustbench"]
    id: str


class EnsembleSource(Section):
    """Several teachers as one, whose logits are the mean of theirs; a method may ask each of them."""

    kind: Literal["ensemble"]
    members: tuple[TeacherSpec, ...] = Field(description="named as a teacher is anywhere; their weights are files")

    @model_validator(mode="after")
    def _several(self) -> Self:
        if len(self.members) < 2:
            raise ValueError("an ensemble has at least two members")
        for member in self.members:
            if not isinstance(member.source, LocalFile | Download):
                what = "trained here" if isinstance(member.source, Trained) else f"of kind {member.source.kind}"
                raise ValueError(f"'{member.name}' is {what}; a member's weights are a file: ARCHITECTURE@FILE")
            if member.architecture == ONNX:
                raise ValueError(f"'{member.name}' is an ONNX file, which has no gradients")
        if len(datasets := sorted({member.dataset for member in self.members if member.dataset})) > 1:
            raise ValueError(f"its members are for different datasets: {', '.join(datasets)}")
        return self


class Expected(Section):
    """Accuracies that a teacher claims, as shares of the full test set."""

    clean: float | None = Field(None, ge=0, le=1)
    pgd20: float | None = Field(None, ge=0, le=1)
    aa: float | None = Field(None, ge=0, le=1)
    tolerance: float = Field(0.005, gt=0, le=1, description="largest difference that is still no difference")


class TeacherSpec(Section):
    """A named teacher."""

    name: str
    summary: str = ""
    dataset: str | None = Field(None, description="the dataset it is for; none means any that fits")
    architecture: str
    source: Annotated[Trained | LocalFile | Download | RobustBench | EnsembleSource, Field(discriminator="kind")]
    natural: str | None = Field(
        None, description="its naturally trained partner; none means one of its architecture, trained here"
    )
    recipe: Trained | None = Field(None, description="how the weights of its file were made, and can be made anew")
    mean: tuple[FiniteFloat, ...] | None = Field(None, description="normalisation inside the network, by channel")
    std: tuple[Annotated[FiniteFloat, Field(gt=0)], ...] | None = None
    expected: Expected = Expected()

    @property
    def members(self) -> tuple[TeacherSpec, ...]:
        """Of an ensemble; none of another."""
        return self.source.members if isinstance(self.source, EnsembleSource) else ()

    def identity(self) -> dict[str, Any]:
        """What weights that come from elsewhere depend on (those trained here: their cell's configuration)."""
        source = self.source.model_dump(mode="json", exclude={"path", "urls", "gdrive", "size", "members"})
        source |= {"members": [member.identity() for member in self.members]} if self.members else {}
        if source.get("key") is None:  # it came later: where it is unset, the identity is what it was
            source.pop("key", None)
        if isinstance(self.source, Download) and self.source.id is None:
            # Neither a name nor a hash says which weights these are; their address is all there is.
            source |= {} if self.source.sha256 else {"urls": self.source.urls, "gdrive": self.source.gdrive}
        return {"source": source, "architecture": self.architecture, "mean": self.mean, "std": self.std}


EnsembleSource.model_rebuild()

FOLDER = Path(str(files("adbench.teachers")))
"""Where the built-in teachers are, and the weights that come with adbench."""

ROBUSTBENCH = "robustbench"
"""The file in `teachers/` that holds many, and the prefix of their names."""


def names() -> list[str]:
    """The teachers of `teachers/` that have files of their own."""
    listed = {file.stem for file in FOLDER.glob("*.toml")}
    return sorted(listed - {ROBUSTBENCH})


@cache
def published() -> tuple[TeacherSpec, ...]:
    """RobustBench's models whose architecture adbench has, the most robust of each dataset first."""
    table = tomllib.loads((FOLDER / f"{ROBUSTBENCH}.toml").read_text(encoding="utf-8"))["teacher"]
    specs = [validated(TeacherSpec, entry, f"teacher '{entry['name']}'") for entry in table]
    return tuple(sorted(specs, key=lambda spec: (spec.dataset or "", -(spec.expected.aa or 0), spec.name)))


def find(text: str, dataset: str | None = None) -> TeacherSpec:
    """The teacher that `text` names (see the module's docstring). Raises UserError when there is none.

    dataset: for which, since RobustBench has models for CIFAR-10 and CIFAR-100 under one name. A local checkpoint must
    exist; its hash is taken (and checked, where the teacher states one).
    """
    model = text.removeprefix(f"{ROBUSTBENCH}:")
    if same := [spec for spec in published() if spec.name == model]:
        return _for(same, dataset)
    if model != text:
        source = {"kind": "robustbench", "id": model}
        return validated(TeacherSpec, {"name": model, "architecture": model, "source": source}, text)
    if text.endswith(".toml"):
        path = expanded(Path(text))
        return _settle(path.stem, read_toml(path), path, dataset)
    if "@" in text:
        architecture, _, file = text.partition("@")
        path, key = split_key(Path(file))
        settings = {"architecture": architecture, "source": {"kind": "file", "path": path, "key": key}}
        return _settle(path.stem, settings, None)
    if text not in names():
        known = [*names(), *(spec.name for spec in published())]
        raise unknown("teacher", text, known, "adbench teachers, or ARCHITECTURE@FILE")
    return _built_in(text)


def _built_in(name: str) -> TeacherSpec:
    file = FOLDER / f"{name}.toml"
    return _settle(name, tomllib.loads(file.read_text(encoding="utf-8")), file)


def shipped(digest: str | None) -> Path | None:
    """The file of weights with that SHA-256 that comes with adbench."""
    sources = (_built_in(name).source for name in names()) if digest else ()
    return next((one.path for one in sources if isinstance(one, LocalFile) and one.sha256 == digest), None)


def split_key(path: Path) -> tuple[Path, str | None]:
    """A checkpoint given as FILE or FILE#KEY; what exists as a whole is meant as a whole."""
    path = expanded(path)
    file, hash_sign, key = str(path).rpartition("#")
    return (Path(file), key) if hash_sign and file and not path.exists() else (path, None)


def with_hash(train: Train) -> Train:
    """The recipe with the hash of the file of weights that it begins with. Raises UserError where that is not there,
    or has another hash than the recipe states."""
    if train.init is None:
        if train.init_sha256:
            raise UserError("train.init_sha256 is the hash of train.init, which is not set; set both or neither")
        return train
    path, _ = split_key(Path(train.init))
    digest = _digest(path, train.init_sha256, "train.init", "train.init_sha256 is")
    return train.model_copy(update={"init_sha256": digest})


def check_file(path: Path, who: str) -> None:
    """Raise UserError where a file of weights is not there. who: what asks for it."""
    if reason := no_file(path):
        raise UserError(f"{who}: checkpoint '{path}' {reason}")


def _digest(path: Path, due: str | None, who: str, stated: str) -> str:
    """SHA-256 of a file of weights. Raises UserError where it is not there, or not what is due."""
    check_file(path, who)
    digest = sha256(path)
    if due not in (None, digest):
        raise UserError(
            f"{who}: '{path}' has SHA-256 {digest[:12]}..., {stated} {str(due)[:12]}...; "
            "it is another file or a damaged one"
        )
    return digest


def _for(same: Sequence[TeacherSpec], dataset: str | None) -> TeacherSpec:
    """The one for `dataset`, else one for another, which its user refuses; by that it must be clear which is meant."""
    fitting = [spec for spec in same if spec.dataset == dataset]
    if not fitting and dataset is None and len(same) > 1:
        datasets = " and ".join(str(spec.dataset) for spec in same)
        raise UserError(f"teacher '{same[0].name}' is there for {datasets}; say which with --dataset")
    return (fitting or same)[0]


def robustbench_file(data_dir: Path, dataset: str, model: str) -> Path:
    """Where RobustBench's own package puts a model, and adbench too."""
    # Both may come from a record, and that from anywhere.
    parts = (re.sub(r"[^A-Za-z0-9._+-]", "_", part).lstrip(".") or "_" for part in (dataset, f"{model}.pt"))
    return (expanded(data_dir) / ROBUSTBENCH).joinpath(next(parts), "Linf", next(parts))


def file_of(spec: TeacherSpec, dataset: str, data_dir: Path) -> Path:
    """Where the downloaded weights of a teacher lie: RobustBench's models in its own layout, others by their name."""
    source = spec.source
    assert isinstance(source, Download)
    if source.id:
        return robustbench_file(data_dir, dataset, source.id)
    address = content_id([source.urls, source.gdrive])[:8]
    return expanded(data_dir) / "teachers" / f"{re.sub(r'[^A-Za-z0-9._+-]', '_', spec.name).lstrip('.')}-{address}.pt"


def wanted(spec: TeacherSpec) -> RemoteFile:
    """What is to be downloaded, and what it has to be."""
    source = spec.source
    assert isinstance(source, Download)
    urls = source.urls + ((google_drive(source.gdrive),) if source.gdrive else ())
    return RemoteFile(spec.name, urls, sha256=source.sha256, size=source.size)


def _settle(name: str, settings: dict[str, Any], file: Path | None, wanted_for: str | None = None) -> TeacherSpec:
    """The teacher of that table. wanted_for: the dataset that it is asked for, by which its members are looked up."""
    if isinstance(source := settings.get("source"), dict) and source.get("kind") == "ensemble":
        settings = _with_members(name, settings, file, wanted_for)
    spec = validated(TeacherSpec, {"name": name, **settings}, f"teacher '{name}'")
    changes: dict[str, Any] = {"architecture": canonical(spec.architecture)}
    if isinstance(spec.source, Trained) and len(together(spec.architecture)) > 1:
        raise UserError(f"teacher '{name}': '{spec.architecture}' is an ensemble; what is trained is one network")
    if file and spec.natural and spec.natural.endswith(".toml"):
        changes["natural"] = str(file.parent / expanded(Path(spec.natural)))
    if isinstance(spec.source, LocalFile):
        base = file.parent if file else Path()
        path = base / expanded(spec.source.path)
        digest = _digest(path, spec.source.sha256, f"teacher '{name}'", "the teacher states")
        changes["source"] = spec.source.model_copy(update={"path": path, "sha256": digest})
    return spec.model_copy(update=changes)


def _with_members(name: str, settings: dict[str, Any], file: Path | None, wanted_for: str | None) -> dict[str, Any]:
    """The settings of an ensemble with its members found, and what follows from them."""
    names = settings["source"].get("members")
    if not isinstance(names, list) or not all(isinstance(one, str) for one in names):
        raise UserError(f"teacher '{name}': source.members is a list of teachers' names, not {names!r}")
    if own := [key for key in ("architecture", "mean", "std", "recipe") if key in settings]:
        raise UserError(f"teacher '{name}': an ensemble has the {', '.join(own)} of its members; leave it out")
    dataset = settings.get("dataset")
    members = [find(_beside(file, one), dataset or wanted_for) for one in names]
    if others := [member.name for member in members if dataset and member.dataset not in (None, dataset)]:
        raise UserError(f"teacher '{name}' is for '{dataset}', its member '{others[0]}' is not")
    known = dataset or next((member.dataset for member in members if member.dataset), None)
    architecture = TOGETHER.join(member.architecture for member in members)
    source = settings["source"] | {"members": [member.model_dump() for member in members]}
    return settings | {"source": source, "architecture": architecture, "dataset": known}


def _beside(file: Path | None, name: str) -> str:
    """A teacher's name in a file, whose paths begin at the file's folder."""
    if file is None:
        return name
    if name.endswith(".toml"):
        return str(file.parent / expanded(Path(name)))
    architecture, at, path = name.partition("@")
    return f"{architecture}{at}{file.parent / expanded(Path(path))}" if at else name


def natural_partner(spec: TeacherSpec) -> TeacherSpec:
    """The naturally trained network that stands beside a robust teacher (MTARD); of an ensemble its first member's."""
    if spec.natural:
        return find(spec.natural, spec.dataset)
    if spec.members:
        return natural_partner(spec.members[0])
    try:
        architecture = together(canonical(spec.architecture))[0]
    except UserError:  # a RobustBench model of an architecture that adbench cannot train
        architecture = "rn18"
    return TeacherSpec(
        name=f"{architecture}-natural",
        summary=f"naturally trained here, for '{spec.name}'",
        architecture=architecture,
        source=Trained(kind="train", method="natural"),
    )
