"""What a network in int8 is worth: judged beside the float network that it was made of.

No gradient goes through int8, so it gets no white-box figure. It is shown the x' that PGD-20 and C&W find on the float
network, and Square attacks it by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from adbench.attacks.autoattack import SQUARE
from adbench.execution import runner
from adbench.execution.execute import check
from adbench.execution.expand import checkpoint
from adbench.execution.place import Place
from adbench.experiment import config, teacher
from adbench.experiment.cell import Cell, Matrix
from adbench.models.names import ONNX
from adbench.results import layout, record
from adbench.results.record import Record
from adbench.results.runs import heading
from adbench.results.stats import mcnemar
from adbench.system import terminal
from adbench.weights.networks import lookup, place_of

ATTACKS = ("pgd20", "cw")
"""White-box attacks on the float network, whose x' are transferred."""


def cells(found: Record, toml: Path, int8: Path, place: Place, square: int) -> tuple[Cell, Cell]:
    """The cells that judge the float network of the teacher's file `toml` and the one in the ONNX file `int8`.

    They have the images, radius, step, start and seed of the record `found`. square: test images for Square.
    """
    judged, threat = found.config.evaluation, found.at("training", "threat")
    common: dict[str, Any] = {
        "datasets": [place_of(found, place.data_dir)],
        "threat": {"eps": threat["eps"], "step": threat["step"]},
        "data": {"resize": found.at("training", "data").get("resize")},
    }
    same = {key: judged[key] for key in ("images", "step", "start", "seed") if judged.get(key) is not None}
    same |= {"aa_images": square}
    as_float = same | {"attacks": [*ATTACKS, SQUARE]}
    as_int8 = same | {"attacks": [SQUARE], "transfer_attacks": ATTACKS, "proxies": [str(toml)]}
    asked = {str(toml): as_float, f"{ONNX}@{int8}": as_int8}
    first, second = (_cell(network, common | {"eval": how}, place) for network, how in asked.items())
    return first, second


def _cell(network: str, settings: dict[str, Any], place: Place) -> Cell:
    experiment = config.experiment(settings)
    (dataset,) = experiment.datasets
    matrix = checkpoint(experiment, dataset, teacher.find(network, dataset), lookup(place.data_dir))
    (cell,) = matrix.students
    check(cell, place)
    return cell


def judge(pair: tuple[Cell, Cell], place: Place, threads: int | None, on_event: runner.OnEvent) -> list[Record]:
    """Judge both, whose records are kept in the place's results; returns these."""
    runner.run(runner.plan(Matrix((), pair), place.results), place, runner.Local(threads=threads), on_event)
    return [record.read(layout.record_path(cell, place.results)) for cell in pair]


def lost(as_float: Record, as_int8: Record) -> Iterator[str]:
    """What int8 costs, a line an attack, on the same images. Raises UserError where outcomes are damaged."""
    proxy = next(iter(as_int8.config.evaluation["proxies"]))
    told = {
        "clean": ("clean", "clean"),
        **{f"{heading(name)}, found on float": (name, f"transfer:{proxy}:{name}") for name in ATTACKS},
        f"{heading(SQUARE)}, found on each": (SQUARE, SQUARE),
    }
    rows = {words: (as_float.right(first), as_int8.right(second)) for words, (first, second) in told.items()}
    n = min(len(a) for a, _ in rows.values())
    both = ([pair[which][:n] for pair in rows.values()] for which in (0, 1))
    rows["all of these"] = (np.all(next(both), axis=0), np.all(next(both), axis=0))
    yield f"{'':24}{'float':>8}{'int8':>8}"
    for words, (a, b) in rows.items():
        worse, better = int((a & ~b).sum()), int((~a & b).sum())
        yield (
            f"{words:24}{terminal.percent(a.mean()):>7}%{terminal.percent(b.mean()):>7}%   n = {len(a):,}: "
            f"{worse} lost, {better} won (p = {mcnemar(worse, better):.2g})"
        )
    yield "p: McNemar's exact test, on the same images"
