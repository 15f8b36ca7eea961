"""Records that nobody had to train: valid by the schema, with outcomes and a log beside them.

add(results, method="rslad", metrics={"clean": 0.9, "aa": 0.5}, seed=1)
add(results, kind="teacher", label="strong", student="wrn-10-2", metrics={"aa": 0.6})
add(results, method="ard", error="CUDA out of memory")
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from adbench.results import document, layout, record
from adbench.results.runs import METHODS as LABELS
from adbench.results.stats import wilson
from adbench.system.files import content_id, sha256

TEACHERLESS = ("pgd-at", "trades", "las-at")

ATTACKS: dict[str, dict[str, Any]] = {
    "fgsm": {"eps": "8/255", "step": "8/255", "steps": 1, "loss": "ce", "start": "none", "restarts": 1},
    "pgd20": {"eps": "8/255", "step": "2/255", "steps": 20, "loss": "ce", "start": "uniform", "restarts": 1},
    "cw": {"eps": "8/255", "step": "2/255", "steps": 20, "loss": "margin", "start": "uniform", "restarts": 1},
    "aa": {"eps": "8/255", "version": "standard", "search": "authors' package, float32"},
}


def add(
    results: Path,
    *,
    kind: str = "student",
    dataset: str = "digits",
    method: str | None = "rslad",
    label: str | None = None,
    teacher: str | None = None,
    teacher_architecture: str = "wrn-10-2",
    student: str = "cnn-16",
    seed: int | None = 0,
    metrics: Mapping[str, float] | None = None,
    n: int | Mapping[str, int] = 1000,
    flags: Mapping[str, Sequence[str]] | None = None,
    checkpoint: str = "best",
    epochs: int = 6,
    settings: Mapping[str, Any] | None = None,
    evaluation: Mapping[str, Any] | None = None,
    weights: str | None = None,
    error: str | None = None,
    outcomes: bool = True,
    per_class: bool = False,
    passes: Mapping[str, float] | None = None,
    checked: bool = True,
    finished: str = "2026-01-01T00:00:00+00:00",
) -> Path:
    """Write one record with its outcomes and log; returns the path of its `record.json`.

    metrics: accuracy as a fraction by metric name, rounded to whole images of n. error: the cell failed so.
    settings: further configuration; seeds are averaged only where it is equal. evaluation: its settings.
    weights: whose weights the network has, its label's where not given; a student's teacher has those of its
    name, so `add(kind="teacher", label="robust")` is the teacher of every student with `teacher="robust"`.
    outcomes: write outcomes.parquet too, which takes time. per_class: metrics tell each class's share. passes: what
    training cost. checked: hold the record to the schema, which takes time too.
    """
    label = label if label is not None else LABELS.get(method or "", method or "network")
    weights = weights if weights is not None else label
    own = {} if seed is None else {"seed": seed}
    training = {"train": {"epochs": epochs}, **own, "teacher": teacher, **(settings or {})}
    config = {"training": training, "evaluation": {"images": None, "proxies": {}, **(evaluation or {})}}
    identity = content_id([kind, dataset, label, teacher, student, weights, config])[:16]
    path = results / dataset / f"{identity}-{seed}" / layout.RECORD
    path.parent.mkdir(parents=True, exist_ok=True)
    failed = error is not None
    found = {} if failed else {m: _metric(m, share, n, flags or {}) for m, share in (metrics or {}).items()}
    if per_class:
        for metric in found.values():
            metric["per_class"] = [[metric["correct"] // 10, metric["n"] // 10] for _ in range(10)]
    trained = kind != "checkpoint" and not failed
    if trained:
        _write_log(path.parent / "log.jsonl", epochs, found)
    data = {
        "schema_version": document.SCHEMA_VERSION,
        "kind": kind,
        "id": identity,
        "train_id": content_id([kind, dataset, label, teacher, student, weights, training])[:16],
        "eval_id": content_id(config["evaluation"])[:16],
        "status": "failed" if failed else "done",
        "error": {"phase": "train", "type": "RuntimeError", "message": error} if failed else None,
        "dataset": dataset,
        "method": method if kind == "student" else None,
        "label": label,
        "teacher": teacher,
        "student": student,
        "seed": seed,
        "config": config,
        "provenance": {
            "adbench": "0.1.0",
            "torch": "2.11.0",
            "python": "3.11.9",
            "pyautoattack": "0.2.0",
            "platform": "Linux x86_64",
            "device": "cpu",
            "threads": 2,
            "git_commit": "0" * 40,
            "git_dirty": False,
            "method_source_sha256": None,
            "command": "adbench run",
            "started": finished,
            "finished": finished,
        },
        "data": {
            "fingerprint": content_id(dataset),
            "classes": 10,
            "image_shape": [3, 32, 32],
            "train_images": 49000,
            "val_images": 1000,
            "test_images": 10000,
        },
        "model": None if failed else _network(label, student, checkpoint, weights),
        "teachers": {
            "robust": _network(teacher, teacher_architecture, "file", teacher) if teacher else None,
            "natural": None,
        },
        "training": {
            "epochs": epochs,
            "best_epoch": epochs,
            "best_val_robust": 0.5,
            "seconds": 100.0 + len(label),
            "images_per_second": 2000.0 - 10 * len(label),
            "peak_memory_bytes": 300 * 2**20,
            "log": "log.jsonl",
            **({"passes": dict(passes)} if passes else {}),
        }
        if trained
        else None,
        "metrics": found,
        "outcomes": _write_outcomes(path.parent / layout.OUTCOMES, found) if found and outcomes else None,
        # The last session's training alone: a resumed one took `seconds` in all.
        "timing": {} if failed else {"train": 1.5, "evaluate": 12.5},
    }
    if checked:
        conform(data)
    record.write(path, data)
    return path


def conform(data: Mapping[str, Any], kind: Any = record.Record) -> None:
    """Raise ValidationError unless the content of a file is that of such a document."""
    document.validator(kind).validate_python({key: value for key, value in data.items() if key != document.DIGEST})


def _network(name: str, architecture: str, checkpoint: str, weights: str) -> dict[str, Any]:
    return {
        "name": name,
        "architecture": architecture,
        "parameters": 11_173_962,
        "weights_sha256": content_id(weights),
        "checkpoint": checkpoint,
    }


def _metric(name: str, share: float, n: int | Mapping[str, int], flags: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    images = n if isinstance(n, int) else n[name]
    correct = round(share * images)
    attack = name.rsplit(":", 1)[-1]
    return {
        "value": correct / images,
        "correct": correct,
        "n": images,
        "ci_test": list(wilson(correct, images)),
        "seconds": 1.5,
        "flags": list(flags.get(name, ())),
        "attack": {"name": attack, "implementation": "adbench 0.1.0", "seed": 0, **ATTACKS.get(attack, {})},
    }


def _write_log(path: Path, epochs: int, metrics: Mapping[str, Mapping[str, Any]]) -> None:
    clean, robust = (metrics[m]["value"] if m in metrics else 0.5 for m in ("clean", "pgd20"))
    with path.open("w", encoding="utf-8") as file:
        for epoch in range(1, epochs + 1):
            reached = 1 - 0.6 ** (8 * epoch / epochs)
            seen = epoch % 2 == 0 or epoch == epochs
            line = {
                "epoch": epoch,
                "lr": 0.1,
                "loss": 0.4 + 2 * (1 - clean) + 1.9 * 0.6 ** (8 * epoch / epochs),
                "seconds": 1.1,
                "images_per_second": 900.0,
                "val_clean": clean * reached if seen else None,
                "val_robust": robust * reached if seen else None,
            }
            file.write(json.dumps(line) + "\n")


def _write_outcomes(path: Path, metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    images = max(metric["n"] for metric in metrics.values())
    index = np.arange(images)
    truth = index % 10
    clean = index < metrics["clean"]["correct"] if "clean" in metrics else np.ones(images, dtype=bool)
    columns: dict[str, Any] = {"index": index, "label": truth, "prediction": np.where(clean, truth, (truth + 1) % 10)}
    for name, metric in metrics.items():
        right = [i < metric["correct"] if i < metric["n"] else None for i in range(images)]
        columns[name] = pd.array(right, dtype="boolean")
    pd.DataFrame(columns).to_parquet(path)
    return {"file": path.name, "sha256": sha256(path)}
