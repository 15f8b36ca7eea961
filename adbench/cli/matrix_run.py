"""What `adbench run` and `adbench cost` do once their options are read. Torch is imported on the way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from adbench.cli.display import Display, cost_csv, cost_table, plan_table, summary_table
from adbench.cli.display import console as make_console
from adbench.cli.options import make_writable, place_of
from adbench.errors import UserError
from adbench.experiment.config import Experiment
from adbench.results import layout, plans, record
from adbench.system import terminal

if TYPE_CHECKING:
    from adbench.execution.cost import Cost
    from adbench.execution.engines.ray import RayCluster
    from adbench.execution.place import Place
    from adbench.execution.runner import Local, MatrixState


def where_to(
    engine: str, address: str | None, gpus: float | None, jobs: int | None, threads: int | None
) -> Local | RayCluster:
    """Where cells run, by the options of `adbench run`."""
    from adbench.execution.engines.ray import RayCluster
    from adbench.execution.runner import Local

    return Local(jobs or 1, threads) if engine == "local" else RayCluster(address, gpus, threads or 1, jobs)


def on_all_ranks(
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
    seconds = {cell.id: costs[cell.id].seconds for cell in plan.open}
    with Display(console, len(plan.open), seconds, at_a_time) as display:
        runner.run(plan, place, where, display, timeout)
    return _summarise(console, plan, results)


def _plan(experiment: Experiment, place: Place) -> MatrixState:
    from adbench.execution import runner
    from adbench.execution.expand import expand
    from adbench.weights.networks import lookup

    return runner.plan(expand(experiment, lookup(place.data_dir)), place.results)


def _costs(plan: MatrixState, place: Place, where: Local | RayCluster) -> dict[str, Cost]:
    """What each cell of the plan costs, by its id, in a process with its share of the cores."""
    from adbench.execution.cost import Estimator
    from adbench.execution.engines.worker import set_up_torch

    set_up_torch(place, where.share)
    estimator = Estimator(place)
    return {cell.id: estimator.cost(cell, plan.states[cell.id]) for cell in plan.matrix.cells}


def _summarise(console: Console, plan: MatrixState, results: Path) -> int:
    from adbench.results.teachers import named_apart  # with scipy

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


def print_cost(experiment: Experiment, place: Place, form: str, threads: int | None) -> None:
    """Print what a matrix costs. form: table or csv."""
    from adbench.execution.runner import Local

    plan = _plan(experiment, place)
    plan = replace(plan, states={cell.id: "new" if cell.method else "evaluate" for cell in plan.matrix.cells})
    costs = _costs(plan, place, Local(threads=threads))
    if form == "csv":
        click.echo(cost_csv(plan, costs), nl=False)
        return
    make_console().print(cost_table(plan, costs))
    total = sum(cost.seconds for cost in costs.values())
    click.echo(f"\n{len(plan.matrix.cells)} networks, about {terminal.duration(total)} on {place.describe()}")
