"""What a teacher is: an architecture, a source of weights, and the accuracy it should have.

A teacher is named in one of four ways, wherever a teacher is asked for:
    digits-robust               one of the declarative files in `teachers/`
    path/to/mine.toml           a file of the same form
    wrn-34-10@path/to/file.pt   an architecture and a local checkpoint
    robustbench:MODEL_ID        a model of RobustBench (extra `adbench[robustbench]`)
Nothing here imports torch; `adbench.cell.weights_of` turns a teacher into a network.
"""

from __future__ import annotations

import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from adbench.config import Section, Train, read_toml, validated
from adbench.errors import UserError, unknown
from adbench.files import sha256
from adbench.models.names import canonical


class Trained(Section):
    """Weights that adbench trains itself, once, by a registered method without a teacher."""

    kind: Literal["train"]
    method: str
    seed: int = 0
    hyper: dict[str, Any] = Field({}, description="of the method")
    train: Train | None = Field(None, description="its recipe; none means the run's own")


class LocalFile(Section):
    """Weights in a file, PyTorch's or safetensors."""

    kind: Literal["file"]
    path: Path
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")


class RobustBench(Section):
    """Weights of a RobustBench model."""

    kind: Literal["robustbench"]
    id: str


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
    source: Annotated[Trained | LocalFile | RobustBench, Field(discriminator="kind")]
    natural: str | None = Field(
        None, description="its naturally trained partner; none means one of its architecture, trained here"
    )
    mean: tuple[float, ...] | None = Field(None, description="normalisation inside the network, by channel")
    std: tuple[float, ...] | None = None
    expected: Expected = Expected()

    def identity(self) -> dict[str, Any]:
        """What weights that come from elsewhere depend on (those trained here: their cell's configuration)."""
        source = self.source.model_dump(mode="json", exclude={"path"})
        return {"source": source, "architecture": self.architecture, "mean": self.mean, "std": self.std}


def names() -> list[str]:
    """The teachers of `teachers/`."""
    listed = files("teachers").iterdir()
    return sorted(f.name.removesuffix(".toml") for f in listed if f.name.endswith(".toml"))


def find(text: str) -> TeacherSpec:
    """The teacher that `text` names (see the module's docstring). Raises UserError when there is none.

    A local checkpoint must exist; its hash is taken (and checked, where the teacher states one).
    """
    if text.startswith("robustbench:"):
        model = text.removeprefix("robustbench:")
        source = {"kind": "robustbench", "id": model}
        return validated(TeacherSpec, {"name": model, "architecture": model, "source": source}, text)
    if text.endswith(".toml"):
        path = Path(text)
        return _settle(path.stem, read_toml(path), path)
    if "@" in text:
        architecture, _, file = text.partition("@")
        settings = {"architecture": architecture, "source": {"kind": "file", "path": file}}
        return _settle(Path(file).stem, settings, None)
    if text not in names():
        raise unknown("teacher", text, names(), "adbench teachers, or ARCHITECTURE@FILE")
    resource = files("teachers") / f"{text}.toml"
    return _settle(text, tomllib.loads(resource.read_text(encoding="utf-8")), None)


def _settle(name: str, settings: dict[str, Any], file: Path | None) -> TeacherSpec:
    spec = validated(TeacherSpec, {"name": name, **settings}, f"teacher '{name}'")
    changes: dict[str, Any] = {"architecture": canonical(spec.architecture)}
    if file and spec.natural and spec.natural.endswith(".toml"):
        changes["natural"] = str(file.parent / spec.natural)
    if isinstance(spec.source, LocalFile):
        base = file.parent if file else Path()
        path = (base / spec.source.path).expanduser()
        if not path.is_file():
            raise UserError(f"teacher '{name}': checkpoint '{path}' does not exist")
        found = sha256(path)
        if spec.source.sha256 not in (None, found):
            raise UserError(
                f"teacher '{name}': '{path}' has SHA-256 {found[:12]}..., the teacher states "
                f"{str(spec.source.sha256)[:12]}...; it is another file or a damaged one"
            )
        changes["source"] = LocalFile(kind="file", path=path, sha256=found)
    return spec.model_copy(update=changes)


def natural_partner(spec: TeacherSpec) -> TeacherSpec:
    """The naturally trained network that stands beside a robust teacher (MTARD)."""
    if spec.natural:
        return find(spec.natural)
    try:
        architecture = canonical(spec.architecture)
    except UserError:  # a RobustBench model of an architecture that adbench cannot train
        architecture = "rn18"
    return TeacherSpec(
        name=f"{architecture}-natural",
        summary=f"naturally trained here, for '{spec.name}'",
        architecture=architecture,
        source=Trained(kind="train", method="natural"),
    )
