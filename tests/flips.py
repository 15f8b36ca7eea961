"""One bit of a file flipped, many times: nothing reads another figure without a word, and nothing fails for ever.

    python tests/flips.py --flips 2000 --seed 0

Every kind of file that adbench writes, and a dataset, has single bits flipped, and is read by what reads it in a
command. Either the damage is told (by UserError, or by computing the file again), or what is read is what was there.
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from tiny import TEACHER, cli, options

from adbench.data.own import read_own
from adbench.data.sources import digits
from adbench.errors import UserError
from adbench.evaluation import outcome_files
from adbench.execution import execute
from adbench.models import build
from adbench.report import attribution
from adbench.results import analyses, layout, plans, record, summary
from adbench.training import resume
from adbench.weights import checkpoint
from adbench.weights.networks import check_weights

Reader = Callable[[], object]
"""Reads a file as a command does, into something that can be compared. Raises UserError, or Told, for damage."""


class Told(Exception):
    """The damage was seen by a reader that goes on without the file."""


def make(folder: Path) -> dict[str, tuple[Path, Reader]]:
    """Every kind of file in `folder`, and its reader."""
    results, teacher, images = folder / "results", folder / "tiny.toml", folder / "own.npz"
    teacher.write_text(TEACHER, encoding="utf-8")
    found = digits(Path())
    np.savez_compressed(
        images,
        x_train=found.x_train[:60],
        y_train=found.y_train[:60],
        x_test=found.x_test[:30],
        y_test=found.y_test[:30],
    )
    words = options(train__epochs="2")
    with mock.patch.object(execute, "_tidy"), mock.patch.object(resume, "clear"):  # what a killed run leaves
        _run("run", "--methods", "pgd-at,ard", "--teacher", teacher, "--keep-adversarial", *words, "--results", results)
    _run("cross", "--results", results, "--images", "8")
    _run("cam", "--results", results, "--images", "8")
    (judged,) = results.glob("digits/ard/*/*/eval-*")
    trained = judged.parent
    _run("export", judged, "--out", folder / "shared")
    weights = record.read(judged / layout.RECORD).network.weights_sha256
    (partial,) = sorted(judged.glob(layout.PARTIAL.format("*")))[:1]
    (stored,) = sorted(judged.glob("adversarial/pgd20*.npz"))
    (cross,), (cam,) = results.rglob("cross.json"), results.rglob("cam.json")
    (plan,) = (results / "plans").iterdir()
    (tensors,) = (folder / "shared").glob("*.safetensors")
    plain, card = tensors.with_suffix(".pt"), tensors.with_suffix(".json")
    state = trained / layout.STATES[0]
    return {
        "record.json": (judged / layout.RECORD, lambda: record.read(judged / layout.RECORD)),
        "outcomes.parquet": (judged / layout.OUTCOMES, lambda: _outcomes(judged / layout.RECORD)),
        "partial outcomes": (partial, lambda: _partial(partial, weights)),
        "adversarial examples": (stored, lambda: _stored(judged, stored)),
        "best.safetensors": (trained / layout.BEST, lambda: _weights(trained / layout.BEST)),
        "last.safetensors": (trained / layout.LAST, lambda: _weights(trained / layout.LAST)),
        "exported safetensors": (tensors, lambda: _weights(tensors)),
        "exported .pt": (plain, lambda: _weights(plain)),
        "exported card": (card, lambda: _weights(plain)),
        "resume state": (state, lambda: _state(state)),
        "training.json": (trained / layout.SUMMARY, lambda: summary.finished(trained)),
        "log.jsonl": (trained / layout.LOG, lambda: record.read(judged / layout.RECORD).log()),
        "plan": (plan, lambda: plans.read(plan)),
        "cross.json": (cross, lambda: analyses.read(cross, analyses.Cross)),
        "cam.json": (cam, lambda: analyses.read(cam, analyses.Cam)),
        "attribution maps": (
            cam.with_name("examples.npz"),
            lambda: attribution._examples(analyses.read(cam, analyses.Cam)),
        ),
        "dataset .npz": (images, lambda: read_own(images)),
    }


def _run(*words: Any) -> None:
    result = cli(*words)
    assert result.exit_code == 0, result.output


def _outcomes(path: Path) -> object:
    found = record.read(path)
    found.check_outcomes()
    return {attack: found.right(attack) for attack in found.metrics}


def _partial(path: Path, weights: str) -> object:
    with tempfile.TemporaryDirectory() as alone:
        shutil.copy(path, alone)
        (Path(alone) / "adversarial").symlink_to(path.parent / "adversarial")
        found = outcome_files.load(Path(alone), weights)
    if not found:
        raise Told("computed again")
    return {name: vars(outcome) for name, outcome in found.items()}


def _stored(judged: Path, path: Path) -> object:
    stated = record.read(judged / layout.RECORD).metrics["pgd20"].adversarial
    if not outcome_files._whole(judged, asdict(stated)):
        raise Told("another SHA-256 than the record states")
    return path.read_bytes()


def _weights(path: Path) -> object:
    network = build("cnn-4", classes=10, channels=1)
    checkpoint.load(network, path)
    check_weights(path, checkpoint.weights_sha256(network))
    return network.state_dict()


def _state(path: Path) -> object:
    try:
        return resume._read(path)
    except resume.Damaged as error:
        raise Told(str(error)) from error


def equal(a: Any, b: Any) -> bool:
    """Whether two values are the same, with the arrays and tensors in them, bit for bit."""
    if isinstance(a, Mapping):
        return isinstance(b, Mapping) and a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, torch.Tensor | np.ndarray):
        return np.array_equal(np.asarray(a), np.asarray(b))
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b) if not hasattr(a, "__dict__") or isinstance(a, type) else equal(vars(a), vars(b))


def flip(flips: int, seed: int, kinds: Mapping[str, tuple[Path, Reader]]) -> dict[str, Counter[str]]:
    """Flip so many bits, one at a time and in turn over the kinds; for each kind, how often it was told or harmless.

    Raises AssertionError for a bit that changes what is read in silence, or that ends in another kind of exception.
    """
    places, seen = random.Random(seed), {kind: Counter[str]() for kind in kinds}
    whole = {kind: (path.read_bytes(), read()) for kind, (path, read) in kinds.items()}
    for number in range(flips):
        kind = list(kinds)[number % len(kinds)]
        path, read = kinds[kind]
        content, expected = whole[kind]
        bit = places.randrange(8 * len(content))
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            assert equal(read(), expected), f"{kind}, bit {bit}: something else is read, and nothing is said"
            seen[kind]["harmless"] += 1
        except (UserError, Told):
            seen[kind]["told"] += 1
        except AssertionError:
            raise
        except Exception as error:
            raise AssertionError(f"{kind}, bit {bit}: {type(error).__name__}: {error}") from error
        finally:
            path.write_bytes(content)
    return seen


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--flips", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        for kind, counts in flip(arguments.flips, arguments.seed, make(Path(temporary))).items():
            print(f"{kind:22} {counts['told']:5} told {counts['harmless']:5} harmless")
