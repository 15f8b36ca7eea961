"""From a cell or a record to its images and its network: the one place where a configuration becomes either."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from adbench.data import Dataset, Threat, is_path, load, parse_fraction
from adbench.errors import UserError
from adbench.experiment.cell import Cell
from adbench.experiment.config import Data, Experiment
from adbench.experiment.teacher import Download, LocalFile, RobustBench, robustbench_file, shipped, split_key
from adbench.models import Network, build
from adbench.models.ensemble import Ensemble
from adbench.models.names import ONNX, canonical
from adbench.results import layout, summary
from adbench.results.record import Record
from adbench.seeding import derive
from adbench.system.files import no_file
from adbench.weights import checkpoint, onnx_file, robustbench
from adbench.weights.teacher_file import teacher_file


class Missing(UserError):
    """What a record speaks of is not at hand, so that nothing can be said of it."""


@lru_cache(maxsize=4)
def _planned(name: str, data_dir: Path, data: Data, test: int | None) -> Dataset:
    """A dataset that a run plans and trains with: read once."""
    return load(name, data_dir, test_images=test, **data.model_dump())


def lookup(data_dir: Path) -> Callable[[str, Experiment], Dataset]:
    """How a matrix gets at its datasets."""

    def dataset(name: str, experiment: Experiment) -> Dataset:
        return _planned(name, data_dir, experiment.data, experiment.evaluation.images)

    return dataset


def cell_dataset(cell: Cell, data_dir: Path) -> Dataset:
    """The cell's data under its threat model. Raises UserError where it is not the data that was planned with."""
    dataset = _planned(cell.dataset, data_dir, cell.data, cell.evaluation.images)
    if dataset.fingerprint != cell.fingerprint:
        raise UserError(f"the content of dataset '{cell.dataset}' changed during the run; run the same command again")
    if cell.extra and (dataset.extra is None or dataset.extra.sha256 != cell.extra):
        raise UserError(f"data.extra: '{cell.data.extra}' changed during the run; run the same command again")
    return _under_threat(dataset, cell.training)


def dataset_of(record: Record, data_dir: Path, *, whole_test: bool = False) -> Dataset:
    """The data that the record was made with, under its threat model.

    whole_test: with all test images, not only those that the network was judged on. Raises UserError where the
    dataset of that name has other images or labels today.
    """
    record.check_configuration()
    training, judged = record.config.training, record.config.evaluation
    data = training["data"]
    dataset = load(
        place_of(record, data_dir),
        data_dir,
        train_images=data["train_images"],
        val_images=data["val_images"],
        resize=data.get("resize"),
        test_images=None if whole_test else judged["images"],
    )
    if dataset.fingerprint != data["content"]:
        raise UserError(
            f"dataset '{record.dataset}' has the fingerprint {dataset.fingerprint[:12]}..., "
            f"'{record.path}' was made with {data['content'][:12]}...; give the same data"
        )
    return _under_threat(dataset, training)


def _under_threat(dataset: Dataset, training: Mapping[str, Any]) -> Dataset:
    threat = training["threat"]
    return replace(dataset, threat=Threat(eps=parse_fraction(threat["eps"]), step=parse_fraction(threat["step"])))


def place_of(record: Record, data_dir: Path) -> str:
    """The record's dataset, one's own by a path under which it is here.

    That is the recorded one; from one of the folders around the record, where it is relative; or in `data_dir`.
    """
    name = record.dataset
    if not is_path(name):
        return name
    if path := _found(name, record, data_dir):
        return str(path.absolute())  # since "./images" as a path is "images", which would be a name
    raise UserError(
        f"dataset '{name}' of '{record.path}' does not exist here; give the folder that '{Path(name).name}' lies in "
        f"with --data-dir"
    )


def extra_file(record: Record, data_dir: Path) -> Path | None:
    """The file of the record's extra training images, which is looked for as its dataset is; None where it is not."""
    extra = record.images.extra
    return _found(extra.file, record, data_dir) if extra else None


def _found(name: str, record: Record, data_dir: Path) -> Path | None:
    """What a record has a path of, where it is here."""
    places = (folder / name for folder in record.path.absolute().parents)
    return next((path for path in (Path(name), *places, data_dir / Path(name).name) if path.exists()), None)


def initial(cell: Cell, dataset: Dataset) -> Network:
    """The cell's architecture for its data, initialised from the cell's seed alone."""
    torch.manual_seed(derive(cell.seed, "init"))
    return built(cell.training, dataset)


def beginning(cell: Cell, dataset: Dataset) -> Network:
    """The network that the cell's training begins with: `initial`, or with the weights that its recipe names.

    Raises UserError where these are not there, are not what they were planned with, or do not fit.
    """
    network = initial(cell, dataset)
    if cell.train.init is not None:
        path, key = split_key(Path(cell.train.init))
        _read(network, path, {"key": key}, sha256=cell.train.init_sha256)
    return network


def built(training: Mapping[str, Any], dataset: Dataset) -> Network:
    """The network of a training's configuration, with weights that nobody trained."""
    channels = dataset.image_shape[0]
    if members := members_of(training):
        parts = [built({"architecture": one["architecture"], "source": one}, dataset) for one in members]
        return Ensemble(parts, channels=channels)
    own = training.get("normalisation") or [training["source"][key] for key in ("mean", "std")]
    try:
        return build(training["architecture"], classes=dataset.classes, channels=channels, mean=own[0], std=own[1])
    except (TypeError, ValueError, RuntimeError) as error:  # a record's may be anything
        raise UserError(f"'{training['architecture']}' cannot be built with mean and std {own} ({error})") from error


def members_of(training: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the members of an ensemble are, each as `TeacherSpec.identity` has it; of another network none."""
    own = training.get("source")
    source = own.get("source") if isinstance(own, Mapping) else None
    return source.get("members", []) if isinstance(source, Mapping) else []


def files_of(record: Record, members: int) -> list[str | None]:
    """Where the weights of so many members lay. Raises Missing for a record that does not say."""
    files = record.network.files or []
    if len(files) != members:
        raise Missing(f"'{record.path}' does not say where the weights of its {members} members lay")
    return files


def cell_network(cell: Cell, dataset: Dataset, results: Path, data_dir: Path, which: str = "best") -> Network:
    """The cell's finished network on the CPU: trained here (`which`: best or last), from a file, or RobustBench.

    Raises UserError where that cannot be had, and for weights in a training's folder that are not that training's.
    """
    source = cell.spec.source if cell.spec else None
    if cell.spec and cell.spec.members:
        members = [replace(cell, spec=one, architecture=one.architecture) for one in cell.spec.members]
        parts = [cell_network(one, dataset, results, data_dir) for one in members]
        return Ensemble(parts, channels=dataset.image_shape[0])
    if isinstance(source, RobustBench):
        return _robustbench(source.id, cell.dataset, data_dir)
    if isinstance(source, LocalFile) and cell.architecture == ONNX:
        return onnx_file.load(source.path, dataset, source.sha256)
    network = initial(cell, dataset)
    if isinstance(source, LocalFile):
        _read(network, source.path, source.model_dump(), sha256=source.sha256)
    elif isinstance(source, Download) and cell.spec:
        _read(network, teacher_file(cell.spec, cell.dataset, data_dir), source.model_dump())
    else:
        _read(network, cell.folder(results) / layout.WEIGHTS[which])
    return network


def network_of(
    record: Record,
    dataset: Dataset,
    data_dir: Path,
    file: Path | None = None,
    remedy: str = "give them with --checkpoint",
) -> Network:
    """The network that the record judges, on the CPU in evaluation mode.

    file: its weights, where they do not lie where the record has them: FILE or FILE#KEY (see `teacher.split_key`).
    remedy: what a user can do about weights that are not there. Raises UserError for the record of a failed cell, for
    weights that are not there, for weights with another hash than the record's, and for such as the record's training
    did not end with.
    """
    model = record.model
    if not record.done or model is None:
        raise UserError(f"'{record.path}' is the record of a failed cell; there is no network")
    record.check_configuration()
    training = record.config.training
    source = training["source"]["source"] if record.method is None else {}
    _check_at_hand(str(training["architecture"]), file)
    if file is None and source.get("kind") == "robustbench":
        try:
            network = _robustbench(str(source.get("id")), record.dataset, data_dir)
        except UserError as error:
            raise Missing(str(error)) from error
    elif training["architecture"] == ONNX:
        network = onnx_file.load(file or _weights(record, source, model.file, data_dir, remedy), dataset)
    elif file is None and (members := members_of(training)):
        network = built(training, dataset)
        assert isinstance(network, Ensemble)
        for part, own, lay in zip(network.members, members, files_of(record, len(members)), strict=True):
            _read(part, _weights(record, own["source"], lay, data_dir, remedy), own["source"])
    else:
        network = built(training, dataset)
        path, key = (
            split_key(file) if file else (_weights(record, source, model.file, data_dir, remedy), source.get("key"))
        )
        _read(network, path, {**source, "key": key})
    sha256 = checkpoint.weights_sha256(network)
    if sha256 != model.weights_sha256:
        where = f"the weights in '{file}'" if file else "the weights"
        raise UserError(
            f"{where} have the SHA-256 {sha256[:12]}..., '{record.path}' was made with "
            f"{model.weights_sha256[:12]}...; give the checkpoint that the record is about"
        )
    ended = record.training.weights if record.training else None
    if ended and sha256 != (due := ended.best if model.checkpoint == "best" else ended.last):
        raise UserError(
            f"'{record.path}' judges weights with the SHA-256 {sha256[:12]}..., its training ended with "
            f"{due[:12]}...; delete the folder '{record.path.parent.parent}' to train again"
        )
    return network.eval()


def _check_at_hand(architecture: str, file: Path | None) -> None:
    """Raise Missing for a network of a file that nobody named here, and for a checkpoint that is not there."""
    if file is not None and (reason := no_file(split_key(file)[0])):
        raise Missing(f"checkpoint '{file}' {reason}")
    if ".py:" in architecture:
        try:
            canonical(architecture)
        except UserError as error:
            raise Missing(str(error)) from error


def _weights(record: Record, source: Mapping[str, Any], lay: str | None, data_dir: Path, remedy: str) -> Path:
    """The file that the record's network lies in. source: of weights that were not trained here. lay: where the record
    has them."""
    model = record.network
    if not source:
        path = record.path.parent.parent / layout.WEIGHTS["best" if model.checkpoint == "best" else "last"]
    elif source["kind"] == "download" and source.get("id"):
        path = robustbench_file(data_dir, record.dataset, source["id"])
    elif ours := shipped(source.get("sha256")):
        path = ours
    elif lay:
        path = Path(lay)
    else:
        raise Missing(f"'{record.path}' does not say where its weights lay; {remedy}")
    if not path.is_file():
        raise Missing(f"the weights of '{record.path}' are not at '{path}'; {remedy}")
    return path


def _robustbench(model: str, dataset: str, data_dir: Path) -> Network:
    return robustbench.load(model, dataset, cache_dir=data_dir / "robustbench")


def _read(network: Network, path: Path, source: Mapping[str, Any] = {}, *, sha256: str | None = None) -> None:
    """Load the weights in the file at `path`. source: of weights that were not trained here."""
    # RobustBench's own loader takes this mapping where there is one.
    prefer = "state_dict" if source.get("id") else None
    checkpoint.load(network, path, sha256=sha256, key=source.get("key"), prefer=prefer)
    check_weights(path, checkpoint.weights_sha256(network))


def check_weights(path: Path, sha256: str) -> None:
    """Raise UserError where the file at `path`, whose weights have that SHA-256, is not what the training of its
    folder ended with.

    Files that lie in no training's folder are anybody's. The epoch in the
    file's header has to be the training's too: all there is to hold older files to, whose training left no hashes.
    """
    which = next((which for which, name in layout.WEIGHTS.items() if name == path.name), None)
    training = summary.finished(path.parent) if which else None
    if which is None or training is None:
        return
    due = training.best_epoch if which == "best" else training.epochs
    epoch, ended = checkpoint.metadata(path).get("epoch", str(due)), (training.weights or {}).get(which, sha256)
    other = ""
    if ended != sha256:
        other = f"they have the SHA-256 {sha256[:12]}..., the training ended with {ended[:12]}..."
    elif epoch != str(due):
        other = f"they are of epoch {epoch}, the training's {which} epoch is {due}"
    if other:
        raise UserError(
            f"the weights in '{path}' are not those of the training beside them ({other}); put the right file back, or "
            f"delete the folder '{path.parent}' to train again"
        )
