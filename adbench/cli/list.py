"""`adbench list` and `adbench teachers`: what there is by name.

Torch is imported when a teacher is verified: it takes seconds.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from adbench.cli.display import Display, console
from adbench.cli.options import (
    data_dir_option,
    device_option,
    make_writable,
    place_of,
    plugin_option,
    results_option,
    threads_option,
)
from adbench.plugins import listing


@click.command("list")
@click.argument("what", required=False, type=click.Choice([*listing.KINDS, "settings"]))
@plugin_option
def list_(what: str | None) -> None:
    """Print what there is: methods, teachers, students, datasets, attacks, presets; or every setting.

    \b
    Examples:
      adbench list
      adbench list methods --plugin mine.py
      adbench list settings
    """
    if what == "settings":
        for line in listing.settings_lines():
            click.echo(line)
        return
    for title, rows in listing.sections().items():
        if what in (None, title):
            click.secho(title, bold=True)
            for line in listing.listed(rows):
                click.echo(line)
            click.echo()


@click.command()
@click.argument("name", required=False)
@click.option("--verify", is_flag=True, help="Measure each accuracy that the teacher claims.")
@click.option("--train", is_flag=True, help="Make its weights anew, by its recipe, in the results folder.")
@click.option("--dataset", metavar="NAME", help="Dataset to verify on. [default: the teacher's own]")
@click.option("--images", type=click.IntRange(min=1), help="Verify on the first N test images. [default: all]")
@threads_option()
@device_option
@data_dir_option
@results_option
def teachers(
    name: str | None,
    verify: bool,
    train: bool,
    dataset: str | None,
    images: int | None,
    threads: int | None,
    device: str | None,
    data_dir: Path,
    results: Path,
) -> None:
    """List the teachers, show one, verify one against what it claims, or train one anew.

    A teacher that adbench trains itself is trained first if it is not there yet. With --train and --verify, what was
    trained here is verified, also where weights of it come with adbench.

    \b
    Examples:
      adbench teachers
      adbench teachers digits-robust --verify
      adbench teachers digits-robust --train
      adbench teachers mine.toml --verify --dataset cifar10 --images 1000
    """
    if name is None:
        for line in listing.teacher_lines():
            click.echo(line)
        return
    click.echo(listing.describe_teacher(name, dataset))
    if verify or train:
        from adbench.execution.runner import Local
        from adbench.execution.teacher_check import train_teacher, verify_teacher

        place = place_of(results, data_dir, device)
        make_writable(results)
        lines: list[str] = []
        agrees = True
        with Display(console(), 1) as display:
            if train:
                lines += train_teacher(name, dataset, images, place, Local(threads=threads), display)
            if verify:
                found, agrees = verify_teacher(name, dataset, images, place, Local(threads=threads), display, train)
                lines += found
        for line in lines:
            click.echo(line)
        sys.exit(0 if agrees else 1)
