"""A finished network for others: as files that other people's tools read, and that give the same logits here."""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adbench import __version__
from adbench.data import Dataset, parse_fraction
from adbench.errors import UserError
from adbench.experiment.cell import safe
from adbench.models import Network
from adbench.models.ensemble import Ensemble
from adbench.models.names import is_deepmind, wide_shape
from adbench.registry import DATASETS
from adbench.results.fields import Metric
from adbench.results.record import Record
from adbench.system import files
from adbench.weights import checkpoint, graphs, int8, networks

_SPOKEN = {
    "rn18": "ResNet-18",
    "rn34": "ResNet-34",
    "rn56": "ResNet-56",
    "prn18": "PreActResNet-18",
    "mn-v2": "MobileNet-V2",
}
INT8_SUFFIX = ".int8.onnx"
_PROBES = 32
"""Test images whose logits are compared, bit for bit."""
_COMPARED = 1000
"""Of a graph, whose sums go in another order."""
WEIGHTS, ONNX, INT8 = "weights", "onnx", "int8"
KINDS = (WEIGHTS, *graphs.SUFFIXES)


def export(
    record: Record,
    out: Path,
    data_dir: Path,
    *,
    name: str | None = None,
    file: Path | None = None,
    kinds: Collection[str] = (WEIGHTS,),
) -> Iterator[str]:
    """Write NAME.pt (a plain state dict), NAME.json (RobustBench's card) and NAME.safetensors; a line on each.

    kinds: WEIGHTS for these files, and those of `graphs`: ONNX for NAME.onnx, "torch.export" for NAME.pt2; INT8, beside
    these two, for NAME.int8.onnx and NAME.toml. name: of the files, made of method and architecture where none is
    given. file: the weights, where they do not lie where the record has them. Raises UserError for a failed cell, a
    network that was not trained here, weights that are not the record's, and where a written file does not give the
    network's logits.
    """
    if record.method is None and record.kind != "teacher":
        raise UserError(f"'{record.path}' is about weights from elsewhere; export is for networks trained by adbench")
    dataset = networks.dataset_of(record, data_dir, whole_test=True)
    network = networks.network_of(record, dataset, data_dir, file)
    stem = out / name_of(record, name)
    for kind in (kind for kind in graphs.SUFFIXES if kind in kinds):
        path = beside(stem, graphs.SUFFIXES[kind])
        x = dataset.test.images[:_COMPARED].float() / 255
        away = graphs.write(network, x, path, kind, metadata(record, dataset, network))
        yield f"{path}: loaded again, its logits of {len(x):,} test images differ by {away:.1e} at most"
    if WEIGHTS not in kinds:
        return
    if isinstance(network, Ensemble) and any(member.mean is not None for member in network.members):
        raise UserError(
            f"'{record.path}' is of an ensemble whose members normalise the images each by itself, which one file of "
            "weights does not say; export it as a graph (--format onnx), or its members"
        )
    plain, tensors = beside(stem, ".pt"), beside(stem, ".safetensors")
    weights = {key: value.detach().cpu().contiguous().clone() for key, value in network.state_dict().items()}
    written, lacking = card(record, dataset, network)
    files.write_json(stem.with_name(f"{stem.name}.json"), written)  # which the weights are held to when they are read
    files.write_bytes(plain, checkpoint.serialised(weights))
    checkpoint.save_state(tensors, weights, metadata(record, dataset, network))
    for path in (plain, tensors):
        _same(path, network, record, dataset)
        yield f"{path}: {len(weights)} tensors; gives the logits of the network that was judged"
    yield f"{stem}.json: RobustBench's card; {lacking}"
    yield f"read again with: adbench eval {tensors} {shlex.join(_options(record, network))}"
    if INT8 in kinds:
        source, int8_file, toml = (beside(stem, suffix) for suffix in (".onnx", INT8_SUFFIX, ".toml"))
        calibrated = int8.write(source, int8_file, dataset.train)
        declared(record, network, tensors, toml)
        sizes = " of ".join(f"{path.stat().st_size:,}" for path in (int8_file, source))
        yield f"{int8_file}: {sizes} bytes, calibrated on {calibrated} training images"


def name_of(record: Record, name: str | None) -> str:
    """The name of the files, made of method and architecture where none is given."""
    return safe(name or f"{record.label}_{record.student}")


def beside(stem: Path, suffix: str) -> Path:
    """The file of an export with that suffix; names may have dots."""
    return stem.with_name(f"{stem.name}{suffix}")


def declared(record: Record, network: Network, weights: Path, toml: Path) -> None:
    """Write a teacher's file `toml` on the exported weights beside it: a name for `--teacher` and `--proxies`."""
    normalisation = _normalisation(network) or {}
    lines = [
        f"summary = {json.dumps(f'{record.label} on {record.dataset}, exported by adbench')}",
        f"architecture = {json.dumps(record.student)}",
        *(
            f"{name} = {json.dumps([float(np.float32(value)) for value in values])}"
            for name, values in normalisation.items()
        ),
        "",
        "[source]",
        'kind = "file"',
        f"path = {json.dumps(weights.name)}",
        f'sha256 = "{files.sha256(weights)}"',
    ]
    files.write_text(toml, "\n".join(lines) + "\n")


def metadata(record: Record, dataset: Dataset, network: Network) -> dict[str, str]:
    """What the header of the safetensors says of the network: all it takes to build it, and where it came from."""
    said: dict[str, Any] = {
        "adbench": __version__,
        "architecture": record.student,
        "classes": dataset.classes,
        "class_names": list(dataset.class_names),
        "channels": dataset.image_shape[0],
        "normalisation": _normalisation(network),
        "dataset": record.dataset,
        "data_sha256": dataset.fingerprint,
        "method": record.method,
        "teacher": record.teacher,
        "seed": record.seed,
        "checkpoint": record.network.checkpoint,
        "threat": record.at("training", "threat"),
        "accuracy": {name: [metric.correct, metric.n] for name, metric in record.metrics.items()},
        "record": record.id,
    }
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in said.items()}


def card(record: Record, dataset: Dataset, network: Network) -> tuple[dict[str, Any], str]:
    """RobustBench's card (`model_info/*.json`), and a sentence on what is left to the one who submits it.

    Accuracies are percentages, as there, and claimed only of all test images.
    """
    metrics, eps = record.metrics, record.at("training", "threat", "eps")
    whole = len(dataset.test)
    written: dict[str, Any] = {
        "link": "",
        "name": record.label,
        "authors": "",
        "additional_data": record.images.extra is not None,
        "number_forward_passes": 1,
        "dataset": record.dataset,
        "venue": "",
        "architecture": spoken(record.student),
        "eps": eps,
    }
    left = ["link, authors and venue are yours to fill in"]
    if metrics["clean"].n < whole:
        left.append(f"clean_acc is left out, since it was measured on {metrics['clean'].n:,} images of {whole:,}")
    else:
        written["clean_acc"] = _percent(metrics["clean"])
    judged = metrics.get("aa")
    if judged is None or judged.n < whole or parse_fraction(judged.attack["eps"]) != parse_fraction(eps):
        seen = f"AutoAttack ran on {judged.n:,} images of {whole:,}" if judged else "AutoAttack was not run"
        left.append(f"autoattack_acc is left out, since {seen}")
    else:
        written |= {"reported": _percent(judged), "autoattack_acc": _percent(judged)}
    notes = [f"SHA-256 of the weights in adbench: {checkpoint.weights_sha256(network)}."]
    if normalisation := _normalisation(network):
        mean, std = normalisation["mean"], normalisation["std"]
        notes.append(f"The network normalises its inputs: mean {mean}, std {std}.")
    if record.dataset not in DATASETS:
        notes.append(f"Classes, in the order of the logits: {', '.join(dataset.class_names)}.")
    written["footnote"] = " ".join(notes)
    return written, "; ".join(left)


def spoken(architecture: str) -> str:
    """An architecture's name as papers write it."""
    if shape := wide_shape(architecture):
        return f"WideResNet-{shape[0]}-{shape[1]}" + (" (SiLU)" if is_deepmind(architecture) else "")
    return _SPOKEN.get(architecture, architecture)


def _percent(metric: Metric) -> str:
    return f"{100 * metric.value:.2f}"


def _normalisation(network: Network) -> dict[str, list[float]] | None:
    if network.mean is None or network.std is None:
        return None
    return {"mean": network.mean.flatten().tolist(), "std": network.std.flatten().tolist()}


def _options(record: Record, network: Network) -> list[str]:
    words = ["--arch", record.student, "--dataset", record.dataset]
    words += ["--resize", str(side)] if (side := record.at("training", "data").get("resize")) else []
    for name, values in (_normalisation(network) or {}).items():
        words += [f"--{name}", ",".join(str(np.float32(value)) for value in values)]
    return words


@torch.no_grad()
def _same(path: Path, network: Network, record: Record, dataset: Dataset) -> None:
    """Raise UserError unless the file, read as anybody's would be, gives the network's logits bit for bit."""
    again = networks.built(record.config.training, dataset)
    checkpoint.load(again, path)
    x = dataset.test.images[:_PROBES].float() / 255
    if not torch.equal(again.eval()(x), network(x)):
        raise UserError(f"'{path}' does not give the logits of the network that it was written from; remove it")
