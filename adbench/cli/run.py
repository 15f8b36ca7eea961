"""`adbench run` and `adbench cost`. What they do stands in `matrix_run`, imported when their words are in order."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import click

from adbench.cli.matrix import MatrixOptions, matrix_options
from adbench.cli.options import data_dir_option, device_option, place_of, results_option, seconds_of, threads_option
from adbench.errors import UserError


@click.command()
@matrix_options
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    metavar="N",
    help="Cells at a time, each in a process of its own. [default: 1; with Ray, as many as fit]",
)
@threads_option("the cores divided by the jobs; with Ray 1")
@click.option(
    "--timeout",
    callback=seconds_of,
    metavar="TIME",
    help="Fail a cell that shows no sign of life (a batch, "
    "a finished attack) for so long: 90s, 30m, 2h. [default: never]",
)
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Where cells run: on this machine, or as tasks of a Ray cluster.",
)
@click.option(
    "--address", metavar="HOST:PORT|auto", help="The running Ray cluster. [default: one is started on this machine]"
)
@click.option(
    "--gpus",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SHARE",
    help="GPUs of each cell under Ray; 0.25 puts four cells on one. [default: 1 on a GPU]",
)
@click.option("--dry-run", is_flag=True, help="Show the plan and its cost, then stop.")
@device_option
@data_dir_option
@results_option
def run(
    options: MatrixOptions,
    jobs: int | None,
    threads: int | None,
    timeout: float | None,
    engine: str,
    address: str | None,
    gpus: float | None,
    dry_run: bool,
    device: str | None,
    data_dir: Path,
    results: Path,
) -> None:
    """Train and evaluate every cell of a matrix: dataset x teacher x student x method x seed.

    Finished cells are skipped, interrupted ones continue, a failing one does not stop the others; other runs may
    work in the same results folder. Exit code 1 if a cell failed, 2 for bad input. Sharing one training among devices
    (torchrun) is experimental.

    \b
    Examples:
      adbench run --methods all --student rn18
      adbench run --dataset cifar10 --methods trades,rslad --seeds 3 \\
        --teacher wrn-34-10@teacher.pt --student rn18
      adbench run --methods rslad --dry-run \\
        --set train.epochs=5 --set hyper.rslad.alpha=0.5
      adbench run --dataset cifar10 --student rn18 --seeds 3 \\
        --engine ray --address auto --gpus 0.5
      torchrun --standalone --nproc-per-node 4 -m adbench run \\
        --dataset cifar10 --methods smaraad --student rn18
    """
    if gpus is not None and not math.isfinite(gpus):
        raise UserError(f"--gpus {gpus}: give a share such as 0.25, or a whole number of GPUs")
    if engine == "local" and (address or gpus):
        raise UserError(f"{'--address' if address else '--gpus'} is for --engine ray; add that, or leave it out")
    experiment = options.experiment()  # which may be refused before torch is loaded
    from adbench.cli import matrix_run

    where = matrix_run.where_to(engine, address, gpus, jobs, threads)
    failed = matrix_run.on_all_ranks(experiment, results, data_dir, device, where, timeout, dry_run)
    sys.exit(1 if failed else 0)


@click.command()
@matrix_options
@click.option("--format", "form", type=click.Choice(["table", "csv"]), default="table", show_default=True)
@threads_option()
@device_option
@data_dir_option
@results_option
def cost(
    options: MatrixOptions, form: str, threads: int | None, device: str | None, data_dir: Path, results: Path
) -> None:
    """What a matrix costs on this device, from its beginning to its end: a row for the seeds of each network.

    Passes and multiply-adds are those of one training image in one epoch, counted; the floor is their time at the
    device's measured rate of matrix products; the estimate comes from a short probe, and includes the evaluation.
    Teachers' weights are not needed.

    \b
    Examples:
      adbench cost --dataset cifar10 --methods all --student rn18,mn-v2 --seeds 3
      adbench cost --methods rslad,adaad --format csv
    """
    experiment = options.experiment()
    from adbench.cli import matrix_run

    matrix_run.print_cost(experiment, place_of(results, data_dir, device), form, threads)
