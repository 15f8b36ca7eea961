"""`adbench teachers NAME --verify`: the accuracies that a teacher claims, measured."""

from __future__ import annotations

from adbench.errors import UserError
from adbench.execution import runner
from adbench.execution.execute import check
from adbench.execution.expand import teacher_cell
from adbench.execution.place import Place
from adbench.execution.runner import OnEvent
from adbench.experiment import teacher
from adbench.experiment.cell import Matrix
from adbench.experiment.config import DEFAULT_PRESETS, experiment, merged, read_preset
from adbench.results import layout, record
from adbench.results.stats import wilson
from adbench.weights.networks import lookup

CLAIMS = ("clean", "pgd20", "aa")


def verify_teacher(
    name: str, dataset: str | None, images: int | None, place: Place, where: runner.Local, on_event: OnEvent
) -> tuple[list[str], bool]:
    """Measure every accuracy that a teacher claims: clean, under PGD-20 and under AutoAttack.

    Returns lines to print, of which the last says what was compared, and whether each of these claims lies within its
    tolerance of the measured value (on a part of the test set: within the 95% interval over test images too). The
    teacher is judged as a cell of its own, so that what is measured is recorded, and measured once; `where` is how it
    is run, and on_event hears of that. Raises UserError when there is nothing to verify, and where the teacher cannot
    be judged.
    """
    spec = teacher.find(name, dataset)
    data = dataset or spec.dataset
    if data is None:
        raise UserError(f"teacher '{spec.name}' is for any dataset; say which with --dataset")
    claims = {metric: claim for metric in CLAIMS if (claim := getattr(spec.expected, metric)) is not None}
    if not claims:
        raise UserError(f"teacher '{spec.name}' claims no {', '.join(CLAIMS)} accuracy; add [expected] to its file")
    preset = read_preset(DEFAULT_PRESETS.get(data, "paper"))
    attacks = [metric for metric in claims if metric != "clean"]
    judging = {"images": images, "aa_images": None, "attacks": attacks, "proxies": [], "masking": 0}
    cell = teacher_cell(experiment(merged(preset, {"eval": judging})), data, spec, lookup(place.data_dir))
    check(cell, place)
    runner.run(runner.plan(Matrix((cell,), ()), place.results), place, where, on_event)
    judged = record.read(layout.record_path(cell, place.results))
    if not judged.done:
        raise UserError(f"teacher '{spec.name}' failed in {judged.failure.phase}: {judged.failure.message}")
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
