"""`adbench show` and `adbench reproduce`: one record, read and made again.

Torch is imported when a cell is trained: it takes seconds.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from adbench.cli.display import Display, console
from adbench.cli.options import (
    FilePath,
    data_dir_option,
    device_option,
    make_writable,
    network_option,
    place_of,
    plugin_option,
)
from adbench.report import words
from adbench.results import record
from adbench.system import machine


@click.command()
@click.argument("path", metavar="RECORD", type=FilePath())
def show(path: Path) -> None:
    """Tell a record in words: how its network was made, what it reached, and what is not shown.

    RECORD is a record.json, or a folder with one below it.

    \b
    Example:
      adbench show results/digits/rslad
    """
    for line in words.lines(record.read(record.only(path))):
        click.echo(line)


@click.command()
@click.argument("path", metavar="RECORD", type=FilePath())
@click.option(
    "--out",
    type=FilePath(file_okay=False),
    metavar="DIR",
    help="Results folder to train in. [default: reproduced/ID, the record's]",
)
@click.option(
    "--threads",
    type=click.IntRange(1, machine.MOST_THREADS),
    metavar="N",
    help="Processor threads. [default: the record's, as its bits need]",
)
@device_option
@plugin_option
@network_option
@data_dir_option
def reproduce(path: Path, out: Path | None, threads: int | None, device: str | None, data_dir: Path) -> None:
    """Train and judge a record's cell again from its own configuration, and compare.

    Bits are compared (weights and the verdict on each image) where processor, torch, threads and code are the
    record's and both trained on a CPU; else intervals, and why is said. Teachers whose weights are not beside the
    record are trained again too. Exit code 1 if it does not agree. An interrupted one goes on by the same command.

    \b
    Example:
      adbench reproduce results/digits/rslad/digits-robust__cnn-16/s0-1a2b3c4d
    """
    found = record.read(record.only(path))
    results = out or Path("reproduced") / found.id
    from adbench.verification import reproduce as reproducing  # with torch

    cpu = found.provenance.device.startswith("CPU")
    place = place_of(results, data_dir, device or ("cpu" if cpu else None))
    make_writable(results)
    reproduction = reproducing.Reproduction(found, place)
    with Display(console(), len(reproduction.plan.open)) as display:
        comparison = reproduction.run(threads, display)
    for line in comparison.lines():
        click.echo(line)
    click.echo(f"trained again in {results}")
    sys.exit(0 if comparison.agrees else 1)
