"""`adbench eval`. Torch is imported when the command runs: it takes seconds."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from adbench.cli.display import Display, console
from adbench.cli.options import (
    FilePath,
    data_dir_option,
    device_option,
    fast_aa_option,
    keep_option,
    make_writable,
    names_option,
    network,
    numbers,
    place_of,
    results_option,
    threads_option,
)
from adbench.data.identity import known as known_dataset
from adbench.experiment import config, teacher
from adbench.experiment import named as names
from adbench.experiment.cell import Matrix
from adbench.results import layout, record
from adbench.system import terminal


@click.command("eval")
@click.argument("checkpoint", type=FilePath())
@click.option("--arch", required=True, metavar="NAME", callback=network, help="Architecture of the checkpoint.")
@click.option("--dataset", default="digits", show_default=True, metavar="NAME", help="Dataset, by name or path.")
@click.option("--resize", type=click.IntRange(min=4), metavar="N", help="Bring images to NxN, as data.resize does.")
@names_option("--attacks", text="[default: fgsm,pgd20,cw,aa]")
@click.option("--images", type=click.IntRange(min=1), metavar="N", help="First N test images. [default: all]")
@click.option("--aa-images", type=click.IntRange(min=1), metavar="N", help="Of these, images for AutoAttack.")
@click.option("--eps", metavar="FRACTION", help="Radius, as in 8/255. [default: the dataset's]")
@click.option("--step", metavar="FRACTION", help="Step of PGD and C&W. [default: the dataset's, scaled with eps]")
@fast_aa_option
@keep_option
@click.option("--masking", type=click.IntRange(min=1), metavar="N", help="Test for gradient masking on N images.")
@click.option("--mean", callback=numbers, metavar="M,M,M", help="Normalisation that the checkpoint was trained with.")
@click.option("--std", callback=numbers, metavar="S,S,S", help="The same: standard deviation by channel.")
@threads_option()
@device_option
@data_dir_option
@results_option
def eval_(
    checkpoint: Path,
    arch: str,
    dataset: str,
    resize: int | None,
    attacks: tuple[str, ...],
    images: int | None,
    aa_images: int | None,
    eps: str | None,
    step: str | None,
    fast_aa: bool,
    keep_adversarial: bool,
    masking: int | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    threads: int | None,
    device: str | None,
    data_dir: Path,
    results: Path,
) -> None:
    """Evaluate any checkpoint of a supported architecture and record it.

    Of a file with several networks, FILE#KEY is the one whose names begin with KEY: both.pt#model_ema.

    \b
    Example:
      adbench eval teacher.pt --arch wrn-10-2 --dataset cifar10 \\
        --attacks fgsm,pgd20 --images 1000
    """
    judging: dict[str, Any] = {"images": images, "aa_images": aa_images}
    judging |= {"aa_search": "fast"} if fast_aa else {}
    judging |= {"attacks": attacks} if attacks else {}
    judging |= {"masking": masking or 0, "keep_adversarial": keep_adversarial}
    experiment = config.experiment({"threat": {"eps": eps, "step": step}, "data": {"resize": resize}, "eval": judging})
    names.check(experiment)
    spec = teacher.find(f"{arch}@{checkpoint}").model_copy(update={"mean": mean, "std": std})
    known_dataset(dataset)
    from adbench.execution import runner
    from adbench.execution.execute import check
    from adbench.execution.expand import teacher_cell
    from adbench.weights.networks import lookup

    place = place_of(results, data_dir, device)
    cell = replace(teacher_cell(experiment, dataset, spec, lookup(place.data_dir)), kind="checkpoint")
    check(cell, place)
    make_writable(results)
    with Display(console(), 1) as display:
        runner.run(runner.plan(Matrix((cell,), ()), results), place, runner.Local(threads=threads), display)
    path = layout.record_path(cell, results)
    result = record.read(path)
    for name, metric in result.metrics.items():
        low, high = metric.ci_test
        click.echo(
            f"{name:8} {100 * metric.value:6.2f}%   n = {metric.n}   "
            f"95% interval over test images {terminal.percent(low)}-{terminal.percent(high)}%"
        )
    if result.masking:
        click.echo(f"gradient masking: {result.masking.verdict}")
        for test in result.masking.tests:
            click.echo(f"  {test.verdict:8} {test.says}")
    click.echo(f"record in {path}")
    sys.exit(0 if result.done else 1)
