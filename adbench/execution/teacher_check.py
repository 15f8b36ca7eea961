"""`adbench teachers NAME --verify` and `--train`: the accuracies that a teacher claims, and its training, made anew."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from adbench.errors import UserError
from adbench.execution import runner
from adbench.execution.execute import check
from adbench.execution.expand import teacher_cell
from adbench.execution.place import Place
from adbench.execution.runner import OnEvent
from adbench.experiment import teacher
from adbench.experiment.cell import Cell, Matrix
from adbench.experiment.config import DEFAULT_PRESETS, experiment, merged, read_preset
from adbench.experiment.teacher import TeacherSpec, Trained
from adbench.results import layout, record
from adbench.results.record import Record
from adbench.results.stats import wilson
from adbench.weights.checkpoint import weights_sha256
from adbench.weights.networks import cell_dataset, cell_network, lookup

CLAIMS = ("clean", "pgd20", "aa")


def train_teacher(
    name: str, dataset: str | None, images: int | None, place: Place, where: runner.Local, on_event: OnEvent
) -> list[str]:
    """Train a teacher by its recipe, in the results folder, and judge it as a run of its dataset's preset would.

    Returns lines to print: where the weights are, and whether they are those of the teacher's own file. Raises
    UserError for a teacher that has no recipe.
    """
    spec = teacher.find(name, dataset)
    cell, _ = _judged(_anew(spec), dataset, {"images": images, "proxies": []}, place, where, on_event)
    folder = cell.folder(place.results)
    lines = [f"trained: '{folder / layout.BEST}'"]
    if not isinstance(spec.source, Trained):
        data, theirs = cell_dataset(cell, place.data_dir), replace(cell, spec=spec, method=None)
        pair = (cell_network(one, data, place.results, place.data_dir) for one in (cell, theirs))
        same = len(set(map(weights_sha256, pair))) == 1
        other = "other weights than the teacher's file has: another processor, torch or number of threads rounds so"
        lines.append("the weights that the teacher's file has" if same else other)
    return lines


def verify_teacher(
    name: str,
    dataset: str | None,
    images: int | None,
    place: Place,
    where: runner.Local,
    on_event: OnEvent,
    anew: bool = False,
) -> tuple[list[str], bool]:
    """Measure every accuracy that a teacher claims: clean, under PGD-20 and under AutoAttack.

    Returns lines to print, of which the last says what was compared, and whether each of these claims lies within its
    tolerance of the measured value (on a part of the test set: within the 95% interval over test images too). The
    teacher is judged as a cell of its own, so that what is measured is recorded, and measured once; `where` is how it
    is run, and on_event hears of that. anew: the one that its recipe makes, instead of its own weights. Raises
    UserError when there is nothing to verify, and where the teacher cannot be judged.
    """
    spec = teacher.find(name, dataset)
    claims = {metric: claim for metric in CLAIMS if (claim := getattr(spec.expected, metric)) is not None}
    if not claims:
        raise UserError(f"teacher '{spec.name}' claims no {', '.join(CLAIMS)} accuracy; add [expected] to its file")
    attacks = [metric for metric in claims if metric != "clean"]
    judging = {"images": images, "aa_images": None, "attacks": attacks, "proxies": [], "masking": 0}
    _, judged = _judged(_anew(spec) if anew else spec, dataset, judging, place, where, on_event)
    lines, agrees = [], True
    for metric, claim in claims.items():
        correct, n = judged.metrics[metric].correct, judged.metrics[metric].n
        low, high = wilson(correct, n)
        near = abs(correct / n - claim) <= spec.expected.tolerance or (images is not None and low <= claim <= high)
        agrees &= near
        lines.append(
            f"  {metric:6} {100 * correct / n:6.2f}%  claimed {100 * claim:.2f}%  "
            f"n = {n}  {'agrees' if near else 'DIFFERS'}"
        )
    rest = [metric for metric in CLAIMS if metric not in claims]
    lines.append(f"compared: {', '.join(claims)}" + (f"; not claimed: {', '.join(rest)}" if rest else ""))
    return lines, agrees


def _anew(spec: TeacherSpec) -> TeacherSpec:
    """The teacher as its recipe makes it."""
    if isinstance(spec.source, Trained):
        return spec
    if spec.recipe is None:
        raise UserError(
            f"teacher '{spec.name}' has no recipe, so that --train cannot make it; add [recipe] to its file"
        )
    return spec.model_copy(update={"source": spec.recipe})


def _judged(
    spec: TeacherSpec,
    dataset: str | None,
    judging: dict[str, Any],
    place: Place,
    where: runner.Local,
    on_event: OnEvent,
) -> tuple[Cell, Record]:
    """The teacher's cell and its record, made if it is not there: judged as its dataset's preset has it, but for
    `judging`. Raises UserError where it cannot be had."""
    data = dataset or spec.dataset
    if data is None:
        raise UserError(f"teacher '{spec.name}' is for any dataset; say which with --dataset")
    preset = read_preset(DEFAULT_PRESETS.get(data, "paper"))
    cell = teacher_cell(experiment(merged(preset, {"eval": judging})), data, spec, lookup(place.data_dir))
    check(cell, place)
    runner.run(runner.plan(Matrix((cell,), ()), place.results), place, where, on_event)
    judged = record.read(layout.record_path(cell, place.results))
    if not judged.done:
        raise UserError(f"teacher '{spec.name}' failed in {judged.failure.phase}: {judged.failure.message}")
    return cell, judged
