"""Measurements on finished networks: compare, cross, cam, verify.

Torch is imported when a command runs: it takes seconds.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from adbench.cli.options import (
    FilePath,
    ValueOrNone,
    data_dir_option,
    device_option,
    finished_options,
    leaving_out,
    network_option,
    ready,
    results_option,
    threads_option,
)
from adbench.errors import UserError
from adbench.system.files import no_file


@click.command()
@click.argument("first")
@click.argument("second")
@click.option("--anyway", is_flag=True, help="Compare also what was not judged alike, with both settings on top.")
@results_option
def compare(first: str, second: str, anyway: bool, results: Path) -> None:
    """Compare two methods (or labels of the report) over their seeds, or two records, on the same test images.

    Both have to be judged alike: data, radius, step, attacks, number of images. Records are given by paths with a
    slash.

    Differences of methods come with a 95% interval over the seeds that both have; of two networks with the images that
    only one of them gets right, and McNemar's exact test.

    \b
    Examples:
      adbench compare rslad adaad
      adbench compare results/a/record.json results/b/record.json
    """
    from adbench.analysis import compare as comparison

    with leaving_out() as left_out:
        for line in comparison.lines(first, second, results, left_out, anyway=anyway):
            click.echo(line)


@click.command()
@click.option("--attack", default="pgd20", show_default=True, metavar="NAME", help="A gradient attack: pgdK, cw, fgsm.")
@finished_options
def cross(**options: Any) -> Iterator[str]:
    """Attack every finished network with the adversarial examples of every other one.

    One matrix for each dataset and threat model, on its diagonal the white-box accuracy. A run can be killed at any
    time; the same command goes on with the next network. `adbench report` draws the result.

    \b
    Examples:
      adbench cross
      adbench cross --dataset cifar10 --methods trades,rslad --attack cw
    """
    from adbench.analysis import cross as crossing

    return crossing.lines(**options)


@click.command()
@finished_options
def cam(**options: Any) -> Iterator[str]:
    """Compare where students look with where their teacher looks: class activation maps on the same images.

    The images are clean ones, and adversarial ones made on the teacher (PGD-20). `adbench report` draws some of the
    maps, and prints by how much they agree.

    \b
    Examples:
      adbench cam
      adbench cam --dataset cifar10 --methods ard,smaraad --images 500
    """
    from adbench.analysis import cam as attribution

    return attribution.lines(**options)


@click.command(cls=ValueOrNone)
@click.argument("path", metavar="RECORD|FOLDER", type=FilePath())
@click.option(
    "--checkpoint",
    type=FilePath(dir_okay=False),
    help="The network's weights, of one record. [default: where the record has them]",
)
@click.option("--again", type=click.IntRange(min=1), metavar="N", help="Repeat the gradient attacks on N test images.")
@click.option(
    "--survivors",
    type=click.IntRange(min=1),
    is_flag=False,
    flag_value=200,
    metavar="[N]",
    help="Attack N survivors of each attack anew, AutoAttack's and transfer's too. [200 where no N is given]",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**31 - 1),
    metavar="N",
    help="Draws the images of --again and --survivors, and the new starts. [default: by chance]",
)
@click.option("--strict", is_flag=True, help="Exit code 1 also where something is not shown.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="JSON as docs/evaluation.md describes it.",
)
@threads_option()
@device_option
@network_option
@data_dir_option
def verify(
    path: Path,
    checkpoint: Path | None,
    again: int | None,
    survivors: int | None,
    seed: int | None,
    strict: bool,
    form: str,
    threads: int | None,
    device: str | None,
    data_dir: Path,
) -> None:
    """Recompute a record's figures from its checkpoint, the test images and the stored adversarial examples.

    Each finding follows, or something contradicts it (exit code 1), or nothing shows it: no adversarial examples were
    stored (--keep-adversarial), or files are not there. Stored examples show that broken images are broken; whether
    survivors survive, --survivors tests. A folder's records are all verified.

    \b
    Examples:
      adbench verify results/.../record.json --survivors
      adbench verify results --again 200 --format json
    """
    if reason := not path.is_dir() and no_file(path):
        raise UserError(f"record '{path}' {reason}; give the path of one, or a folder of them")
    from adbench.verification import command
    from adbench.verification import verify as verification

    place = ready(path.parent, data_dir, device, threads)
    repeats = verification.Asked(again or 0, survivors or 0, verification.chance() if seed is None else seed)
    report = command.Report(path, place, checkpoint, repeats, echo=click.echo if form == "text" else None)
    report.run()
    if form == "json":
        click.echo(report.json())
    sys.exit(report.exit_code(strict))
