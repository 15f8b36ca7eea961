"""`adbench eval`. Torch is imported when the command runs: it takes seconds."""

from __future__ import annotations

import sys
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
from adbench.errors import UserError
from adbench.experiment import config, teacher
from adbench.experiment import named as names
from adbench.models.names import ONNX
from adbench.results import layout, record
from adbench.system import terminal


@click.command("eval")
@click.argument("checkpoint", type=FilePath())
@click.option(
    "--arch", metavar="NAME", callback=network, help="Architecture of the checkpoint. [required but for an ONNX file]"
)
@click.option("--dataset", default="digits", show_default=True, metavar="NAME", help="Dataset, by name or path.")
@click.option("--resize", type=click.IntRange(min=4), metavar="N", help="Bring images to NxN, as data.resize does.")
@names_option("--attacks", text="[default: fgsm,pgd20,cw,aa; of an ONNX file aa-square]")
@names_option(
    "--proxies",
    text="Teachers, or ARCHITECTURE@FILE, whose adversarial examples (pgd20, cw) it is shown. [default: none]",
)
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
    arch: str | None,
    dataset: str,
    resize: int | None,
    attacks: tuple[str, ...],
    proxies: tuple[str, ...],
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
    """Evaluate any checkpoint of a supported architecture, or any ONNX file, and record it.

    Of a file with several networks, FILE#KEY is the one whose names begin with KEY: both.pt#model_ema.

    An ONNX file takes images in [0, 1] and gives logits. It has no gradients: it is judged by Square, which asks for
    logits alone, and by the adversarial examples of other networks. Neither is a white-box figure.

    \b
    Example:
      adbench eval teacher.pt --arch wrn-10-2 --dataset cifar10 \\
        --attacks fgsm,pgd20 --images 1000
      adbench eval net.onnx --dataset cifar10 --aa-images 500 \\
        --proxies rn18@net.pt
    """
    onnx = checkpoint.suffix.lower() == ".onnx"
    if onnx and arch is not None:
        raise UserError("--arch: an ONNX file has its architecture inside; leave it out")
    arch = ONNX if onnx else arch
    if arch is None:
        raise UserError(f"missing option '--arch': the architecture of '{checkpoint}' (adbench list students)")
    if onnx and (mean or std):
        raise UserError("--mean and --std: an ONNX file has its normalisation inside; leave them out")
    if onnx and fast_aa:
        raise UserError("--fast-aa: an ONNX file is judged by Square, which has no other search; leave it out")
    judging: dict[str, Any] = {"images": images, "aa_images": aa_images}
    judging |= {"aa_search": "fast"} if fast_aa else {}
    judging |= {"attacks": attacks or ("aa-square",)} if attacks or onnx else {}
    judging |= {"proxies": proxies}
    judging |= {"masking": masking or 0, "keep_adversarial": keep_adversarial}
    asked = {"threat": {"eps": eps, "step": step}, "data": {"resize": resize}, "eval": judging}
    experiment = config.experiment(asked)
    names.check(experiment)
    spec = teacher.find(f"{arch}@{checkpoint}").model_copy(update={"mean": mean, "std": std})
    known_dataset(dataset)
    from adbench.execution import runner
    from adbench.execution.execute import check
    from adbench.execution.expand import checkpoint as checkpoint_matrix
    from adbench.weights.networks import lookup

    place = place_of(results, data_dir, device)
    matrix = checkpoint_matrix(experiment, dataset, spec, lookup(place.data_dir))
    for each in (*matrix.cells, *(cell := matrix.students[0]).proxies):
        check(each, place)
    make_writable(results)
    with Display(console(), 1) as display:
        runner.run(runner.plan(matrix, results), place, runner.Local(threads=threads), display)
    path = layout.record_path(cell, results)
    result = record.read(path)
    width = max(map(len, result.metrics), default=0)
    for name, metric in result.metrics.items():
        low, high = metric.ci_test
        click.echo(
            f"{name:{width}} {100 * metric.value:6.2f}%   n = {metric.n}   "
            f"95% interval over test images {terminal.percent(low)}-{terminal.percent(high)}%"
        )
    if result.masking:
        click.echo(f"gradient masking: {result.masking.verdict}")
        for test in result.masking.tests:
            click.echo(f"  {test.verdict:8} {test.says}")
    click.echo(f"record in {path}")
    sys.exit(0 if result.done else 1)
