"""What a matrix needs from the network, fetched ahead of time: for machines that have none, and before a long run."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torchvision import datasets

from adbench.data import cifar
from adbench.data import published as published_data
from adbench.data.own import read_npz
from adbench.errors import UserError
from adbench.execution.execute import check
from adbench.execution.expand import expand
from adbench.execution.place import Place
from adbench.experiment.cell import Cell
from adbench.experiment.config import Experiment
from adbench.experiment.teacher import Download, LocalFile, Trained, file_of, wanted
from adbench.system import download, files
from adbench.system.download import Progress
from adbench.weights.networks import lookup
from adbench.weights.teacher_file import teacher_file


@dataclass(frozen=True)
class Item:
    """One dataset or teacher, and what became of it. error: why it is not ready."""

    name: str
    says: str
    error: bool = False


def prepare(
    experiment: Experiment, place: Place, source: Path | None, progress: Callable[[str], Progress]
) -> Iterator[Item]:
    """Fetch the datasets and teachers of an experiment, and see that they can be used; one item each.

    source: a folder to take files from first: another machine's data folder, or downloads under their own names.
    progress: gives the listener for the transfer of that name.
    """
    if source is not None and not source.is_dir():
        raise UserError(f"--from: '{source}' is no folder")
    files.expanded(place.data_dir)  # raises where there is none
    look = lookup(place.data_dir)
    ready = []
    for name in experiment.datasets:
        try:
            came = _dataset(name, place.data_dir, source, progress(name))
            data = look(name, experiment)
            images = len(data.train) + len(data.val) + len(data.test)
            yield Item(name, f"{came}; {images:,} images, {data.classes} classes")
            ready.append(name)
        except UserError as error:
            yield Item(name, str(error), error=True)
    for name in ready:
        for cell in expand(experiment.model_copy(update={"datasets": (name,)}), look).teachers:
            try:
                says = _teacher(cell, place, source, progress(cell.name))
                check(cell, place)
                yield Item(cell.name, says)
            except UserError as error:
                yield Item(cell.name, str(error), error=True)


def _dataset(name: str, data_dir: Path, source: Path | None, progress: Progress) -> str:
    """Fetch or copy the files of a dataset if they are missing; returns how they came."""
    if name in DOWNLOADED:
        return _downloaded(DOWNLOADED[name], data_dir, source, progress)
    published = _published(name)
    if published is None or (data_dir / f"{name}.npz").is_file():
        return "there"
    if source:
        if file := files.search(source, [f"{name}.npz"]):
            read_npz(file)  # raises for a file that is not what its name says
            files.write_bytes(data_dir / f"{name}.npz", file.read_bytes())
            return f"copied from '{file}'"
        archive = data_dir / published.filename
        if download.copy_from(source, cifar.archive(published), archive, [published.filename]):
            return f"copied from '{source}'"
    there = (data_dir / published.base_folder).is_dir()
    cifar.read(name, data_dir, published, progress)
    return "there" if there else "fetched"


DOWNLOADED = {one.name: one for one in (published_data.SVHN, published_data.TINY_IMAGENET)}


def _downloaded(data: published_data.Published, data_dir: Path, source: Path | None, progress: Progress) -> str:
    """Fetch or copy the files of a dataset whose files are all to be downloaded."""
    if (data_dir / f"{data.name}.npz").is_file():
        return "there"
    came = "there" if all((data_dir / file.name).is_file() for file in data.files) else "fetched"
    if source and came == "fetched":
        if file := files.search(source, [f"{data.name}.npz"]):
            read_npz(file)  # raises for a file that is not what its name says
            files.write_atomic(data_dir / file.name, partial(_copy, file))
            return f"copied from '{file}'"
        copied = [download.copy_from(source, one, data_dir / one.name, [one.name]) for one in data.files]
        came = f"copied from '{source}'" if all(copied) else came
    published_data.load(data, data_dir, progress)
    return came


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)


def _published(name: str) -> Any:
    """Torchvision's class for a dataset that adbench downloads; None for one that it has or the user brings."""
    if name not in ("cifar10", "cifar100"):
        return None
    return {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]


def _teacher(cell: Cell, place: Place, source: Path | None, progress: Progress) -> str:
    """Fetch or copy the weights of a teacher if they are missing; returns a line on them."""
    assert cell.spec is not None
    spec = cell.spec
    if spec.members:
        parts = (_teacher(replace(cell, spec=one), place, source, progress) for one in spec.members)
        return "; ".join(f"{one.name}: {says}" for one, says in zip(spec.members, parts, strict=True))
    if isinstance(spec.source, Trained):
        return "nothing to fetch: adbench run trains it"
    if not isinstance(spec.source, Download):
        if isinstance(spec.source, LocalFile):
            return "comes with adbench" if spec.source.ours else "a file of yours"
        return "fetched by the package robustbench"
    path = file_of(spec, cell.dataset, place.data_dir)
    came = "there" if path.is_file() else "fetched"
    names = [f"{cell.dataset}/Linf/{path.name}", path.name]
    if source and came != "there" and download.copy_from(source, wanted(spec), path, names):
        came = f"copied from '{source}'"
    path = teacher_file(spec, cell.dataset, place.data_dir, progress)
    return f"{came}; {path.stat().st_size / 1e6:.1f} MB, SHA-256 {files.sha256(path)}"
