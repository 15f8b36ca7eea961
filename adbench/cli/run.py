"""`adbench run` and `adbench cost`. Torch is imported when a command runs: it takes seconds."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from adbench.cli.display import Display, cost_csv, cost_table, plan_table, summary_table
from adbench.cli.display import console as make_console
from adbench.cli.matrix import MatrixOptions, matrix_options
from adbench.cli.options import (
    data_dir_option,
    device_option,
    make_writable,
    place_of,
    results_option,
    seconds_of,
    threads_option,
)
from adbench.errors import UserError
from adbench.experiment.config import Experiment
from adbench.results import layout, plans, record
from adbench.results.teachers import named_apart
from adbench.system import terminal

if TYPE_CHECKING:
    from adbench.execution.cost import Cost
    from adbench.execution.engines.ray import RayCluster
    from adbench.execution.place import Place
    from adbench.execution.runner import Local, Plan


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
    where = _where(engine, address, gpus, jobs, threads)
    failed = _on_all_ranks(options.experiment(), results, data_dir, device, where, timeout, dry_run)
    sys.exit(1 if failed else 0)


def _where(
    engine: str, address: str | None, gpus: float | None, jobs: int | None, threads: int | None
) -> Local | RayCluster:
    from adbench.execution.engines.ray import RayCluster
    from adbench.execution.runner import Local

    return Local(jobs or 1, threads) if engine == "local" else RayCluster(address, gpus, threads or 1, jobs)


def _on_all_ranks(
    experiment: Experiment,
    results: Path,
    data_dir: Path,
    device: str | None,
    where: Local | RayCluster,
    timeout: float | None,
    dry_run: bool,
) -> int:
    """Carry a run out, alone or as one of the processes that torchrun started; the cells that failed."""
    console = make_console()
    with console.status("reading data and teachers"):
        from adbench.execution.engines.worker import set_up_torch
        from adbench.execution.execute import assist
        from adbench.execution.runner import Local
        from adbench.training import distributed

        place = place_of(results, data_dir, device)
    if distributed.world_size() > 1 and (not isinstance(where, Local) or where.jobs > 1 or timeout):
        raise UserError("torchrun's processes share one cell at a time; leave out --jobs, --timeout and --engine ray")
    with distributed.joined(place.torch_device) as mine:
        place = replace(place, ranks=mine)
        if mine.first:
            return _carry_out(console, experiment, place, where, timeout, dry_run)
        set_up_torch(place, where.share)
        mine.wait_for_lead(lambda cell: assist(cell, place))
    return 0


def _carry_out(
    console: Console,
    experiment: Experiment,
    place: Place,
    where: Local | RayCluster,
    timeout: float | None,
    dry_run: bool,
) -> int:
    """Show the plan, run it, show the summary; returns the number of cells that failed."""
    results = place.results
    with console.status("reading data and teachers"):
        from adbench.execution import runner
        from adbench.execution.execute import check

        plan = _plan(experiment, place)
        for cell in plan.matrix.cells:
            check(cell, place, fetch=not dry_run)
        if not dry_run:
            make_writable(results)
        costs = _costs(plan, place, where)
    console.print(plan_table(plan, costs, console.width))
    seconds = {name: cost.seconds for name, cost in costs.items()}
    # Jobs share a GPU; each has cores of its own.
    at_a_time = where.jobs or 1
    shares = 1 if place.torch_device.type == "cuda" else min(at_a_time, max(1, len(plan.open)))
    hours = terminal.duration(sum(seconds.values()) / shares)
    shared = f", less as {place.ranks.size} share each training" if place.ranks.size > 1 else ""
    console.print(
        f"\n{len(plan.open)} of {len(plan.matrix.cells)} cells to do, about {hours} on {place.describe()}"
        f" with {where.jobs or 'as many as fit'} at a time{shared}\n",
        highlight=False,
    )
    if dry_run:
        return 0
    if plan.open or not plans.path_of(results, plan.matrix).is_file():
        whole = {name: cost.whole for name, cost in costs.items()}
        plans.write(results, experiment, plan.matrix, whole, at_a_time)
    with Display(console, len(plan.open)) as display:
        runner.run(plan, place, where, display, timeout)
    return _summarise(console, plan, results)


def _plan(experiment: Experiment, place: Place) -> Plan:
    from adbench.execution import runner
    from adbench.execution.expand import expand
    from adbench.weights.networks import lookup

    return runner.plan(expand(experiment, lookup(place.data_dir)), place.results)


def _costs(plan: Plan, place: Place, where: Local | RayCluster) -> dict[str, Cost]:
    """What each cell of the plan costs, by its id, in a process with its share of the cores."""
    from adbench.execution.cost import Estimator
    from adbench.execution.engines.worker import set_up_torch

    set_up_torch(place, where.share)
    estimator = Estimator(place)
    return {cell.id: estimator.cost(cell, plan.states[cell.id]) for cell in plan.matrix.cells}


def _summarise(console: Console, plan: Plan, results: Path) -> int:
    found = [(cell, record.read(layout.record_path(cell, results))) for cell in plan.matrix.cells]
    named = named_apart([one for _, one in found])
    records = [
        replace(one, label=f"{one.label} {cell.told}".rstrip()) for (cell, _), one in zip(found, named, strict=True)
    ]
    failed = sum(not one.done for one in records)
    console.print()
    console.print(summary_table(records))
    message = f"\nrecords in {results}; `adbench report` makes tables and figures of them"
    console.print(message, highlight=False, markup=False, soft_wrap=True)
    if failed:
        console.print(f"[red]{failed} of {len(records)} cells failed[/]; run the same command to try them again")
    return failed


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
    from adbench.execution.runner import Local

    place = place_of(results, data_dir, device)
    plan = _plan(options.experiment(), place)
    plan = replace(plan, states={cell.id: "new" if cell.method else "evaluate" for cell in plan.matrix.cells})
    costs = _costs(plan, place, Local(threads=threads))
    if form == "csv":
        click.echo(cost_csv(plan, costs), nl=False)
        return
    make_console().print(cost_table(plan, costs))
    total = sum(cost.seconds for cost in costs.values())
    click.echo(f"\n{len(plan.matrix.cells)} networks, about {terminal.duration(total)} on {place.describe()}")
