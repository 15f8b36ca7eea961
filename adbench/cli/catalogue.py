"""What there is and whether it is right: list, teachers, info, golden, validate, new-method."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from adbench.cli.options import (
    FilePath,
    data_dir_option,
    device_option,
    make_writable,
    place_of,
    plugin_option,
    results_option,
    threads_option,
)
from adbench.errors import UserError


@click.command("list")
@click.argument(
    "what", required=False, type=click.Choice(["methods", "teachers", "students", "datasets", "attacks", "presets"])
)
@plugin_option
def list_(what: str | None) -> None:
    """Print what there is: methods, teachers, students, datasets, attacks, presets.

    \b
    Examples:
      adbench list
      adbench list methods --plugin mine.py
    """
    from adbench.plugins.listing import listed, sections

    for title, rows in sections().items():
        if what in (None, title):
            click.secho(title, bold=True)
            for line in listed(rows):
                click.echo(line)
            click.echo()


@click.command()
@click.argument("name", required=False)
@click.option("--verify", is_flag=True, help="Measure each accuracy that the teacher claims.")
@click.option("--dataset", metavar="NAME", help="Dataset to verify on. [default: the teacher's own]")
@click.option("--images", type=click.IntRange(min=1), help="Verify on the first N test images. [default: all]")
@threads_option()
@device_option
@data_dir_option
@results_option
def teachers(
    name: str | None,
    verify: bool,
    dataset: str | None,
    images: int | None,
    threads: int | None,
    device: str | None,
    data_dir: Path,
    results: Path,
) -> None:
    """List the teachers, show one, or verify one against what it claims.

    A teacher that adbench trains itself is trained first if it is not there yet.

    \b
    Examples:
      adbench teachers
      adbench teachers digits-robust --verify
      adbench teachers mine.toml --verify --dataset cifar10 --images 1000
    """
    from adbench.plugins import listing

    if name is None:
        for line in listing.teacher_lines():
            click.echo(line)
        return
    click.echo(listing.describe_teacher(name, dataset))
    if verify:
        from adbench.cli.display import Display, console
        from adbench.execution.runner import Local
        from adbench.execution.teacher_check import verify_teacher

        place = place_of(results, data_dir, device)
        make_writable(results)
        with Display(console(), 1) as display:
            lines, agrees = verify_teacher(name, dataset, images, place, Local(threads=threads), display)
        for line in lines:
            click.echo(line)
        sys.exit(0 if agrees else 1)


@click.command()
@click.argument("file", type=FilePath(dir_okay=False), required=False)
@threads_option("1")
def golden(file: Path | None, threads: int | None) -> None:
    """Replay reference values of the authors' own code through the methods' losses and attacks.

    Without FILE those that adbench comes with.

    One line an entry with its largest absolute and relative error; exit code 1 if any differs. Losses and gradients
    must agree to 1e-9 (relative to |value| + 0.001), adversarial examples to 1e-12.

    \b
    Example:
      adbench golden
    """
    import torch

    from adbench.plugins import golden as reference

    torch.set_num_threads(threads or 1)  # on so small networks, a second thread only waits
    content = reference.read(file or reference.FILE)
    passed = total = 0
    for result in reference.replay(content):
        click.echo(str(result))
        total, passed = total + 1, passed + result.passed
    if not total:
        raise UserError(f"reference '{file or reference.FILE}' has no entry to replay")
    click.echo(f"{passed} of {total} entries agree")
    sys.exit(0 if passed == total else 1)


@click.command()
@click.argument("method", metavar="METHOD|FILE.py")
def info(method: str) -> None:
    """Print what a method maximises and minimises, what it needs and costs, and its hyperparameters.

    \b
    Examples:
      adbench info smaraad
      adbench info mine.py
    """
    from adbench.plugins.describe import card

    click.echo(card(_method(method)))


def _method(text: str) -> str:
    """The name of a method that is given by name or as the file that defines it."""
    from adbench.registry import METHODS

    return METHODS.add_file(Path(text)) if text.endswith(".py") else text


@click.command()
@click.argument("methods", nargs=-1, required=True, metavar="METHOD|FILE.py|all ...")
@threads_option("1")
def validate(methods: tuple[str, ...], threads: int | None) -> None:
    """Check methods against the plugin contract on a tiny problem, in seconds each.

    A line for each promise, and what was seen where it is broken; exit code 1 then. "all" stands for all registered.

    \b
    Examples:
      adbench validate mine.py
      adbench validate all
    """
    import torch

    from adbench.plugins.validate import validate as verdicts
    from adbench.registry import METHODS

    torch.set_num_threads(threads or 1)  # on so small a problem, a second thread only waits
    broken = 0
    for method in methods:
        for name in METHODS.names() if method == "all" else [_method(method)]:
            click.secho(name, bold=True)
            before = None
            for verdict in verdicts(name):
                word = "broken" if verdict.error else "ok" if verdict.claimed else "-"
                click.echo(f"  {word:6}  {verdict.check}{'' if verdict.claimed else ' (not claimed)'}")
                if verdict.error:
                    broken += 1
                    click.echo(f"          {'the same' if verdict.error == before else verdict.error}")
                before = verdict.error
    click.echo(f"{broken} broken promise{'s' if broken != 1 else ''}" if broken else "all promises kept")
    sys.exit(1 if broken else 0)


@click.command("new-method")
@click.argument("name")
@click.option(
    "--out", type=FilePath(file_okay=False), default=Path(), show_default=True, help="Folder to write the file to."
)
def new_method(name: str, out: Path) -> None:
    """Write a working plugin file to start a method of your own from.

    \b
    Example:
      adbench new-method mine
      adbench validate mine.py
      adbench run --methods mine,rslad --plugin mine.py
    """
    from adbench.plugins.scaffold import write_method

    path = write_method(name, out)
    click.echo(f"wrote {path}; try: adbench validate {path}, then adbench run --methods {name} --plugin {path}")
