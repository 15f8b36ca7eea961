"""What comes from elsewhere and what goes there: prepare, export."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import click

from adbench.cli.matrix import Asked, matrix_options
from adbench.cli.options import FilePath, data_dir_option
from adbench.results import layout


@click.command()
@matrix_options
@click.option(
    "--from",
    "source",
    type=FilePath(file_okay=False),
    metavar="DIR",
    help="Take files from this folder first: another machine's data folder, or downloads under their own names.",
)
@data_dir_option
def prepare(asked: Asked, source: Path | None, data_dir: Path) -> None:
    """Fetch the datasets and teachers of a matrix ahead of time, and check that they can be used.

    Takes the options of `adbench run`. A transfer that breaks off goes on where it was, in this or the next call. For
    a machine without network, call it on one that has it, carry the data folder over, and give it with --from.
    Exit code 1 if something could not be had.

    \b
    Examples:
      adbench prepare --dataset cifar10 --teacher robustbench:Wang2023Better_WRN-28-10
      adbench prepare --dataset cifar10 --teacher robustbench:Chen2021LTD_WRN34_20 --from /media/stick
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    from adbench.execution import prepare as preparing
    from adbench.execution.place import Place

    console, failed = Console(), 0
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:

        def listener(name: str) -> Callable[[int, int | None], None]:
            task = None

            def hear(have: int, total: int | None) -> None:
                nonlocal task
                task = bars.add_task(name, total=total) if task is None else task
                bars.update(task, completed=have, total=total)

            return hear

        place = Place(Path(), data_dir, "cpu")  # it has no results to speak of
        for item in preparing.prepare(asked.experiment(), place, source, listener):
            failed += item.error
            said = " ".join(item.says.split())
            console.print(f"{item.name}: {said}", highlight=False, markup=False, soft_wrap=True)
    if failed:
        click.echo(f"{failed} could not be had", err=True)
    sys.exit(1 if failed else 0)


@click.command()
@click.argument("record_path", metavar="RECORD", type=FilePath())
@click.option("--out", type=FilePath(file_okay=False), required=True, metavar="DIR", help="Folder to write to.")
@click.option(
    "--name", metavar="NAME", help="Name of the files, as in Zi2021Revisiting. [default: of method and student]"
)
@click.option(
    "--checkpoint", type=FilePath(dir_okay=False), help="The network's weights. [default: where the record has them]"
)
@data_dir_option
def export(record_path: Path, out: Path, name: str | None, checkpoint: Path | None, data_dir: Path) -> None:
    """Write a finished network for others: a plain state dict, RobustBench's card, and safetensors with metadata.

    The files are read back, and have to give the logits of the network that was judged.

    \b
    Example:
      adbench export results/.../record.json --out shared
      adbench eval shared/RSLAD_rn18.safetensors --arch rn18 --dataset cifar10
    """
    from adbench.results import record
    from adbench.weights import export

    path = record_path / layout.RECORD if record_path.is_dir() else record_path
    for line in export.export(record.read(path), out, data_dir, name=name, file=checkpoint):
        click.echo(line)
