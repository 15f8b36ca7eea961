"""`adbench prepare`. Torch is imported when the command runs: it takes seconds."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from adbench.cli.matrix import MatrixOptions, matrix_options
from adbench.cli.options import FilePath, data_dir_option


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
def prepare(options: MatrixOptions, source: Path | None, data_dir: Path) -> None:
    """Fetch the datasets and teachers of a matrix ahead of time, and check that they can be used.

    Takes the options of `adbench run`. A transfer that breaks off goes on where it was, in this or the next call. For
    a machine without network, call it on one that has it, carry the data folder over, and give it with --from.
    Exit code 1 if something could not be had.

    \b
    Examples:
      adbench prepare --dataset cifar10 \\
        --teacher robustbench:Wang2023Better_WRN-28-10
      adbench prepare --dataset cifar10 --from /media/stick \\
        --teacher robustbench:Chen2021LTD_WRN34_20
    """
    experiment = options.experiment()
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
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:

        def listener(name: str) -> Callable[[int, int | None], None]:
            task = None

            def hear(have: int, total: int | None) -> None:
                nonlocal task
                task = bars.add_task(name, total=total) if task is None else task
                bars.update(task, completed=have, total=total)

            return hear

        place = Place(Path(), data_dir, "cpu")  # it has no results to speak of
        for item in preparing.prepare(experiment, place, source, listener):
            failed += item.error
            message = " ".join(item.says.split())
            console.print(f"{item.name}: {message}", highlight=False, markup=False, soft_wrap=True)
    if failed:
        click.echo(f"{failed} could not be had", err=True)
    sys.exit(1 if failed else 0)
