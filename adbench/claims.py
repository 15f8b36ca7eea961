"""Whether a teacher is what it claims to be."""

from __future__ import annotations

from adbench import runner, teacher
from adbench.cell import Place, cell_dataset, check, lookup, weights_of
from adbench.config import DEFAULT_PRESETS, experiment, merged, read_preset
from adbench.errors import UserError
from adbench.evaluate import Evaluator
from adbench.matrix import Matrix, teacher_cell
from adbench.stats import wilson


def verify_teacher(name: str, dataset: str | None, images: int | None, place: Place) -> tuple[list[str], bool]:
    """Measure clean and PGD-20 accuracy of a teacher against its claims.

    Returns lines to print and whether every claim lies within its tolerance of the measured value (on a part of
    the test set: within the 95% interval over test images too). Raises UserError when there is nothing to verify.
    """
    spec = teacher.find(name, dataset)
    where = dataset or spec.dataset
    if where is None:
        raise UserError(f"teacher '{spec.name}' is for any dataset; say which with --dataset")
    claims = {"clean": spec.expected.clean, "pgd20": spec.expected.pgd20}
    if all(claim is None for claim in claims.values()):
        raise UserError(f"teacher '{spec.name}' claims no clean or pgd20 accuracy; add [expected] to its file")
    preset = read_preset(DEFAULT_PRESETS.get(where, "paper"))
    settings = merged(preset, {"eval": {"images": images, "attacks": ["pgd20"], "proxies": []}})
    cell = teacher_cell(experiment(settings), where, spec, lookup(place.data_dir))
    check(cell, place)
    if cell.method is not None:
        done = runner.run(runner.plan(Matrix((cell,), ()), place.results), place, runner.Local(), lambda *_: None)
        failure = done[cell.id]["error"] if cell.id in done else None
        if failure:
            raise UserError(f"teacher '{spec.name}' failed in {failure['phase']}: {failure['message']}")
    data = cell_dataset(cell, place)
    evaluator = Evaluator(
        weights_of(cell, place, data, "best"), data.test, data.threat,
        seed=cell.evaluation.seed, batch_size=cell.evaluation.batch_size, device=place.torch_device,
    )  # fmt: skip
    measured = {"clean": evaluator.clean, "pgd20": evaluator.under("pgd20", len(data.test))}
    lines, agrees = [], True
    for metric, claim in claims.items():
        if claim is None:
            continue
        correct, n = int(measured[metric].right.sum()), len(data.test)
        low, high = wilson(correct, n)
        near = abs(correct / n - claim) <= spec.expected.tolerance or (images is not None and low <= claim <= high)
        agrees &= near
        lines.append(
            f"  {metric:6} {100 * correct / n:6.2f}%  claimed {100 * claim:.2f}%  "
            f"n = {n}  {'agrees' if near else 'DIFFERS'}"
        )
    return lines, agrees
