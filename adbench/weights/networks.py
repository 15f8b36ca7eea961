"""From a record back to the images it speaks of and the network it judges."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from adbench.data import Dataset, Threat, is_path, load, parse_fraction
from adbench.errors import UserError
from adbench.experiment.teacher import robustbench_file, split_key
from adbench.models import Network, build
from adbench.results.record import Record
from adbench.training.trainer import BEST, LAST, check_weights
from adbench.weights import checkpoint, robustbench


class Missing(UserError):
    """What a record speaks of is not at hand, so that nothing can be said of it."""


def dataset_of(record: Record, data_dir: Path, *, whole_test: bool = False) -> Dataset:
    """The data that the record was made with, under its threat model.

    whole_test: with all test images, not only those that the network was judged on. Raises UserError where the
    dataset of that name has other images or labels today.
    """
    training, judged = record["config"]["training"], record["config"]["evaluation"]
    data = training["data"]
    dataset = load(
        _place(record, data_dir),
        data_dir,
        train_images=data["train_images"],
        val_images=data["val_images"],
        test_images=None if whole_test else judged["images"],
    )
    if dataset.fingerprint != data["content"]:
        raise UserError(
            f"dataset '{record['dataset']}' has the fingerprint {dataset.fingerprint[:12]}..., "
            f"'{record.path}' was made with {data['content'][:12]}...; give the same data"
        )
    threat = training["threat"]
    return replace(dataset, threat=Threat(eps=parse_fraction(threat["eps"]), step=parse_fraction(threat["step"])))


def _place(record: Record, data_dir: Path) -> str:
    """The record's dataset, one's own by a path under which it is here.

    That is the recorded one; from one of the folders around the record, where it is relative; or in `data_dir`.
    """
    name: str = record["dataset"]
    if not is_path(name) or Path(name).exists():
        return name
    for path in (*(folder / name for folder in record.path.absolute().parents), data_dir / Path(name).name):
        if path.exists():
            return str(path)
    raise UserError(
        f"dataset '{name}' of '{record.path}' does not exist here; give the folder that '{Path(name).name}' lies in "
        f"with --data-dir"
    )


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
    model = record["model"]
    if not record.done or model is None:
        raise UserError(f"'{record.path}' is the record of a failed cell; there is no network")
    training = record["config"]["training"]
    source = training["source"] if record["method"] is None else None
    if file is None and source and source["source"]["kind"] == "robustbench":
        network = robustbench.load(source["source"]["id"], record["dataset"], cache_dir=data_dir / "robustbench")
    else:
        network = built(record, dataset)
        origin = source["source"] if source else {}
        path, key = split_key(file) if file else (_weights(record, data_dir, remedy), origin.get("key"))
        checkpoint.load(network, path, key=key, prefer="state_dict" if origin.get("id") else None)
        check_weights(path, checkpoint.weights_sha256(network))
    found = checkpoint.weights_sha256(network)
    if found != model["weights_sha256"]:
        where = f"the weights in '{file}'" if file else "the weights"
        raise UserError(
            f"{where} have the SHA-256 {found[:12]}..., '{record.path}' was made with "
            f"{model['weights_sha256'][:12]}...; give the checkpoint that the record is about"
        )
    ended = (record["training"] or {}).get("weights") or {}
    if ended.get(model["checkpoint"], found) != found:
        raise UserError(
            f"'{record.path}' judges weights with the SHA-256 {found[:12]}..., its training ended with "
            f"{ended[model['checkpoint']][:12]}...; delete the folder '{record.path.parent.parent}' to train again"
        )
    return network.eval()


def built(record: Record, dataset: Dataset) -> Network:
    """A network like the record's, with weights that nobody trained."""
    training = record["config"]["training"]
    if record["method"] is None:
        source: dict[str, Any] = training["source"]
        mean, std = source["mean"], source["std"]
    else:
        mean, std = training["normalisation"]
    return build(training["architecture"], classes=dataset.classes, channels=dataset.image_shape[0], mean=mean, std=std)


def _weights(record: Record, data_dir: Path, remedy: str) -> Path:
    model, folder = record["model"], record.path.parent.parent
    source = None if record["method"] is not None else record["config"]["training"]["source"]["source"]
    if source and source["kind"] == "download" and source["id"]:
        path = robustbench_file(data_dir, record["dataset"], source["id"])
    elif record["method"] is not None:
        path = folder / (BEST if model["checkpoint"] == "best" else LAST)
    elif "file" in model:
        path = Path(model["file"])
    else:
        raise Missing(f"'{record.path}' does not say where its weights lay; {remedy}")
    if not path.is_file():
        raise Missing(f"the weights of '{record.path}' are not at '{path}'; {remedy}")
    return path
