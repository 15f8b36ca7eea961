"""`adbench run` and `adbench eval`: what trains and judges networks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adbench.cli.options import (
    data_dir_option,
    device_option,
    exact_option,
    keep_option,
    make_writable,
    names,
    numbers,
    place_of,
    plugin_option,
    precision_option,
    results_option,
    seeds_of,
)  # fmt: skip

if TYPE_CHECKING:
    from adbench.config import Experiment
    from adbench.runner import Plan


@click.command()
@click.option(
    "--methods",
    "--method",
    multiple=True,
    callback=names,
    metavar="NAMES",
    help="Methods, comma-separated or repeated; 'all' is the ten of the paper. [default: all]",
)
@click.option(
    "--student",
    "--students",
    "students",
    multiple=True,
    callback=names,
    metavar="NAMES",
    help="Student architectures. [default: cnn-16]",
)
@click.option(
    "--teacher",
    "--teachers",
    "teachers",
    multiple=True,
    callback=names,
    metavar="NAMES",
    help="Teachers: a name (adbench teachers), FILE.toml, ARCHITECTURE@CHECKPOINT or robustbench:ID. "
    "[default: the dataset's own]",
)
@click.option(
    "--dataset",
    "--datasets",
    "datasets",
    multiple=True,
    callback=names,
    metavar="NAMES",
    help="Datasets: digits, cifar10, cifar100, or the path of a .npz or an image folder. [default: digits]",
)
@exact_option
@precision_option
@keep_option
@click.option(
    "--seeds", callback=seeds_of, metavar="N|LIST", help="How many seeds (3 means 0,1,2), or which. [default: 1]"
)
@click.option(
    "--preset",
    "presets",
    multiple=True,
    callback=names,
    metavar="NAMES",
    help="Recipe: adbench list presets; of several, later ones win. [default: digits for digits, else paper]",
)
@click.option(
    "--config", type=click.Path(path_type=Path), metavar="FILE.toml", help="Settings; they win over the preset."
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="One setting, winning over all others, as in train.epochs=10 or hyper.trades.beta=3.",
)
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Cells at a time, each in a process with its share of the cores.",
)
@click.option("--dry-run", is_flag=True, help="Show the plan and its cost, then stop.")
@plugin_option
@device_option
@data_dir_option
@results_option
def run(
    methods: tuple[str, ...], students: tuple[str, ...], teachers: tuple[str, ...], datasets: tuple[str, ...],
    seeds: tuple[int, ...] | None, presets: tuple[str, ...], config: Path | None, settings: tuple[str, ...],
    jobs: int, dry_run: bool, exact: bool, precision: str | None, keep_adversarial: bool, device: str | None,
    data_dir: Path, results: Path,
) -> None:  # fmt: skip
    """Train and evaluate every cell of a matrix: dataset x teacher x student x method x seed.

    Finished cells are skipped, interrupted ones continue, a failing one does not stop the others. Exit code 1
    if a cell failed, 2 for bad input.

    \b
    Examples:
      adbench run --methods all --student rn18
      adbench run --dataset cifar10 --methods trades,rslad --teacher wrn-34-10@teacher.pt --student rn18 --seeds 3
      adbench run --methods rslad --set train.epochs=5 --set hyper.rslad.alpha=0.5 --dry-run
    """
    asked = {"methods": methods, "students": students, "teachers": teachers, "datasets": datasets, "seeds": seeds}
    named: dict[str, Any] = {k: v for k, v in asked.items() if v}
    judging = ({"aa_search": "exact"} if exact else {}) | ({"keep_adversarial": True} if keep_adversarial else {})
    named |= {"eval": judging} if judging else {}
    precision = precision or ("float32" if exact else None)
    named |= {"train": {"precision": precision}} if precision else {}
    experiment = _experiment(named, presets, config, settings)
    failed = _carry_out(experiment, results, data_dir, device, jobs, dry_run)
    sys.exit(1 if failed else 0)


def _experiment(
    asked: dict[str, Any], presets: Sequence[str], config: Path | None, settings: Sequence[str]
) -> Experiment:
    """The experiment of the command line: presets, then file, then --set, then the named options."""
    from adbench import config as configuration

    file = configuration.read_toml(config) if config else {}
    line = configuration.merged(*(configuration.parse_setting(text) for text in settings), asked)
    chosen = presets or [configuration.default_preset(configuration.merged(file, line))]
    layers = (*(configuration.read_preset(name) for name in chosen), file, line)
    return configuration.experiment(configuration.layered(*layers))


def _carry_out(
    experiment: Experiment, results: Path, data_dir: Path, device: str | None, jobs: int, dry_run: bool
) -> int:
    """Show the plan, run it, show the summary; returns the number of cells that failed."""
    from rich.console import Console

    console = Console()
    with console.status("reading data and teachers"):
        from adbench import runner
        from adbench.cell import check, lookup
        from adbench.display import Display, duration, plan_table, summary_table
        from adbench.estimate import Estimator
        from adbench.matrix import expand

        place = place_of(results, data_dir, device)
        matrix = expand(experiment, lookup(place.data_dir))
        for cell in matrix.cells:
            check(cell, place)
        if not dry_run:
            make_writable(results)
        plan = runner.plan(matrix, results)
        runner.prepare_torch(place, runner.threads_per_job(jobs))
        estimator = Estimator(place)
        seconds = {cell.id: estimator.seconds(cell, plan.states[cell.id]) for cell in matrix.cells}
    console.print(plan_table(plan, seconds))
    # Jobs share a GPU; each has cores of its own.
    shares = 1 if place.torch_device.type == "cuda" else min(jobs, max(1, len(plan.open)))
    total = sum(seconds.values()) / shares
    console.print(
        f"\n{len(plan.open)} of {len(matrix.cells)} cells to do, about {duration(total)} on {place.describe()}"
        f" with {jobs} at a time\n",
        highlight=False,
    )
    if dry_run:
        return 0
    with Display(console, len(plan.open)) as display:
        runner.run(plan, place, jobs, display)
    return _summarise(console, plan, results, summary_table)


def _summarise(console: Any, plan: Plan, results: Path, table: Callable[[list[dict[str, Any]]], Any]) -> int:
    from adbench import record

    records = [record.read(cell.record_path(results)).data for cell in plan.matrix.cells]
    failed = [r["status"] for r in records].count("failed")
    console.print()
    console.print(table(records))
    told = f"\nrecords in {results}; `adbench report` makes tables and figures of them"
    console.print(told, highlight=False, markup=False, soft_wrap=True)
    if failed:
        console.print(f"[red]{failed} of {len(records)} cells failed[/]; run the same command to try them again")
    return failed


@click.command("eval")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--arch", required=True, metavar="NAME", help="Architecture of the checkpoint.")
@click.option("--dataset", default="digits", show_default=True, metavar="NAME", help="Dataset, by name or path.")
@click.option("--attacks", multiple=True, callback=names, metavar="NAMES", help="[default: fgsm,pgd20,cw,aa]")
@click.option("--images", type=click.IntRange(min=1), metavar="N", help="First N test images. [default: all]")
@click.option("--aa-images", type=click.IntRange(min=1), metavar="N", help="Of these, images for AutoAttack.")
@click.option("--eps", metavar="FRACTION", help="Radius, as in 8/255. [default: the dataset's]")
@click.option("--step", metavar="FRACTION", help="Step of PGD and C&W. [default: the dataset's, scaled with eps]")
@exact_option
@keep_option
@click.option("--masking", type=click.IntRange(min=1), metavar="N", help="Test for gradient masking on N images.")
@click.option("--mean", callback=numbers, metavar="M,M,M", help="Normalisation that the checkpoint was trained with.")
@click.option("--std", callback=numbers, metavar="S,S,S", help="The same: standard deviation by channel.")
@device_option
@data_dir_option
@results_option
def eval_(
    checkpoint: Path, arch: str, dataset: str, attacks: tuple[str, ...], images: int | None, aa_images: int | None,
    eps: str | None, step: str | None, exact: bool, keep_adversarial: bool, masking: int | None,
    mean: tuple[float, ...] | None, std: tuple[float, ...] | None,
    device: str | None, data_dir: Path, results: Path,
) -> None:  # fmt: skip
    """Evaluate any checkpoint of a supported architecture and record it.

    \b
    Example:
      adbench eval teacher.pt --arch wrn-10-2 --dataset cifar10 --attacks fgsm,pgd20 --images 1000
    """
    from dataclasses import replace

    from rich.console import Console

    from adbench import config, record, runner, teacher
    from adbench.cell import check, lookup
    from adbench.display import Display, percent
    from adbench.matrix import Matrix, teacher_cell

    judging: dict[str, Any] = {"images": images, "aa_images": aa_images}
    judging |= {"aa_search": "exact"} if exact else {}
    judging |= {"attacks": attacks} if attacks else {}
    judging |= {"masking": masking or 0, "keep_adversarial": keep_adversarial}
    experiment = config.experiment({"threat": {"eps": eps, "step": step}, "eval": judging})
    place = place_of(results, data_dir, device)
    spec = teacher.find(f"{arch}@{checkpoint}").model_copy(update={"mean": mean, "std": std})
    cell = replace(teacher_cell(experiment, dataset, spec, lookup(place.data_dir)), kind="checkpoint")
    check(cell, place)
    make_writable(results)
    with Display(Console(), 1) as display:
        runner.run(runner.plan(Matrix((cell,), ()), results), place, 1, display)
    path = cell.record_path(results)
    found = record.read(path)
    for name, metric in found["metrics"].items():
        low, high = metric["ci_test"]
        click.echo(
            f"{name:8} {100 * metric['value']:6.2f}%   n = {metric['n']}   "
            f"95% interval over test images {percent(low)}-{percent(high)}%"
        )
    if "masking" in found.data:
        click.echo(f"gradient masking: {found['masking']['verdict']}")
        for test in found["masking"]["tests"]:
            click.echo(f"  {test['verdict']:8} {test['says']}")
    click.echo(f"record in {path}")
    sys.exit(0 if found.done else 1)
