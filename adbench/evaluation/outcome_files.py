"""What an evaluation leaves on disk while it runs and when it ends: outcomes, and their adversarial examples."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from adbench.attacks.named import radius
from adbench.data import Dataset
from adbench.evaluation import stored_examples
from adbench.evaluation.evaluator import Evaluator, Outcome
from adbench.experiment.cell import safe
from adbench.results import layout
from adbench.system import files


def save(folder: Path, name: str, outcome: Outcome, evaluator: Evaluator, dataset: Dataset, weights: str) -> None:
    """Write one finished attack, or one shard of AutoAttack, for `load`.

    Adversarial examples of an attack go to their final file and out of memory; those of a shard wait for the others.
    """
    arrays: dict[str, Any] = {"right": outcome.right.numpy()}
    if outcome.doubtful is not None:  # a shard
        arrays["doubtful"] = outcome.doubtful.numpy()
        if outcome.x_adv is not None:
            arrays["x_adv"] = outcome.x_adv.cpu().numpy()
    elif outcome.x_adv is not None:
        outcome.stored = _store(folder, name, outcome.x_adv, outcome.right, evaluator, dataset)
        outcome.x_adv = None
    meta = {
        "name": name,
        "definition": outcome.definition,
        "seconds": outcome.seconds,
        "flags": outcome.flags,
        "stored": outcome.stored,
        "weights": weights,
    }
    # The zip's own checksums leave out names, lengths and more of its directory.
    arrays["meta"] = np.array(json.dumps({**meta, "sha256": _digest(arrays, meta)}))
    files.write_npz(folder / layout.PARTIAL.format(files.content_id(name)[:12]), arrays)


def _digest(arrays: Mapping[str, Any], meta: dict[str, Any]) -> str:
    """SHA-256 of what a partial outcome says: its arrays by name and shape, and the rest."""
    content = {
        name: [str(array.dtype), list(array.shape), hashlib.sha256(array.tobytes()).hexdigest()]
        for name, array in arrays.items()
    }
    return files.content_id({"arrays": content, "meta": meta})


def load(folder: Path, weights: str) -> dict[str, Outcome]:
    """The outcomes that an interrupted evaluation of the same weights left behind, by name; damaged ones are not."""
    outcomes = {}
    for path in sorted(folder.glob(layout.PARTIAL.format("*"))):
        # Whatever a damaged zip makes numpy do, the attack is run again: no kind of error is left out.
        with suppress(Exception), np.load(io.BytesIO(files.content(path)), allow_pickle=False) as content:
            arrays = {key: content[key] for key in content if key != "meta"}
            meta = json.loads(str(content["meta"]))
            if meta.pop("sha256") != _digest(arrays, meta) or meta["weights"] != weights:
                continue
            outcome = Outcome(
                definition=meta["definition"],
                seconds=meta["seconds"],
                flags=meta["flags"],
                stored=meta["stored"],
                **{key: torch.from_numpy(array) for key, array in arrays.items()},
            )
            if _whole(folder, outcome.stored):
                outcomes[meta["name"]] = outcome
    return outcomes


def write_table(path: Path, dataset: Dataset, predicted: Tensor, outcomes: dict[str, Outcome]) -> None:
    """One row a test image; a column an attack, empty for the images that this attack was not run on."""
    n = len(dataset.test)
    columns: dict[str, Any] = {
        "index": np.arange(n),
        "label": dataset.test.labels.numpy(),
        "prediction": predicted.numpy(),
    }
    for name, outcome in outcomes.items():
        column = pd.array([None] * n, dtype="boolean")
        column[: len(outcome.right)] = outcome.right.numpy()
        columns[name] = column
    table = pd.DataFrame(columns)
    files.write_atomic(path, lambda p: table.to_parquet(p, index=False))


def _store(
    folder: Path, name: str, x_adv: Tensor, right: Tensor, evaluator: Evaluator, dataset: Dataset
) -> dict[str, str]:
    """Write the adversarial examples of an attack; returns where, relative to the record, and their hash."""
    n, device = len(right), evaluator.x.device
    arrays = stored_examples.pack(
        dataset.test.images[:n],
        x_adv,
        right,
        radius(name, dataset.threat.eps),
        lambda x: stored_examples.verdicts(evaluator.logits(x.to(device)), evaluator.y[:n]),
    )
    file = f"{layout.ADVERSARIAL}/{safe(name)}-{files.content_id(name)[:8]}.npz"
    files.write_npz(folder / file, arrays)
    return {"file": file, "sha256": files.sha256(folder / file)}


def _whole(folder: Path, stored: dict[str, str] | None) -> bool:
    """Whether the adversarial examples of an outcome are still what was written, if they were kept at all."""
    if stored is None:
        return True
    file = folder / layout.ADVERSARIAL / Path(stored["file"]).name
    return file.is_file() and files.sha256(file) == stored["sha256"]
