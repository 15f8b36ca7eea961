"""`adbench board`: results for a public board, challenges to them, and its page."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from adbench.cli.dispatch import CommandGroup
from adbench.cli.options import FilePath, Folder, data_dir_option, device_option, ready, threads_option
from adbench.results import layout
from adbench.system import terminal

COMMANDS = {
    "submit": ("board:submit", "Collect finished cells into a folder for a board."),
    "challenge": ("board:challenge", "Break a row's images with examples of your own."),
    "build": ("board:build", "Write the page of a board's folder."),
}


@click.group(cls=CommandGroup, commands_at=COMMANDS, wants={"Commands": tuple(COMMANDS)})
def board() -> None:
    """A public board whose numbers anybody can attack; docs/board.md says what its levels mean.

    A board is a folder of data, in a repository of its own. Nothing in it is ever imported or executed.

    \b
    Examples:
      adbench board submit results --label "Our lab" \\
        --weights https://host/weights --out board/submissions/our-lab
      adbench board build board --out site
    """


@click.command()
@click.argument("results", metavar="RESULTS", type=FilePath())
@click.option("--label", required=True, metavar="NAME", help="Whose results these are, as the board shows it.")
@click.option("--weights", required=True, metavar="URL", help="Where anybody can have the networks' weights.")
@click.option("--out", required=True, metavar="DIR", type=Folder(), help="The new folder.")
@click.option(
    "--plugin",
    "plugins",
    multiple=True,
    metavar="FILE.py",
    type=FilePath(dir_okay=False),
    help="A plugin's file, which goes along as text and is not executed; repeatable.",
)
@click.option("--board", "home", metavar="DIR", type=Folder(), help="The board, for the teachers in its board.toml.")
@threads_option()
@device_option
@data_dir_option
def submit(
    results: Path,
    label: str,
    weights: str,
    out: Path,
    plugins: tuple[Path, ...],
    home: Path | None,
    threads: int | None,
    device: str | None,
    data_dir: Path,
) -> None:
    """Collect the finished students of a results folder into a folder for a board.

    Each is checked as `adbench verify` does, and refused with its reasons where it cannot be ranked: not all test
    images, another threat model, an unknown teacher, uncommitted code (exit code 1). Nothing is sent anywhere: put the
    weights at the address, and open a pull request with the folder.

    \b
    Example:
      adbench board submit results --label "Our lab" \\
        --weights https://host/weights --out board/submissions/our-lab
    """
    from adbench.board import folders
    from adbench.board import submit as submission

    submission.described(label, weights)
    code = submission.code_at(plugins)
    known = folders.rules(home) if home else folders.Rules()
    layout.check_there(results)
    place = ready(results, data_dir, device, threads)
    found = submission.Collection(results, place, code, known, _say)
    found.write(label, weights, out)
    _say(f"{out}: {len(found.taken)} records; weights, to be had at {weights}:")
    for path, name in found.uploads():
        _say(f"  {path if path.is_file() else f'{path} (not here)'} as {name}")
    sys.exit(int(bool(found.refused)))


@click.command()
@click.argument("path", metavar="RECORD", type=FilePath())
@click.argument("examples", metavar="X.npz", type=FilePath())
@click.option("--by", default="anonymous", metavar="NAME", show_default=True, help="Who made the examples.")
@click.option(
    "--checkpoint", type=FilePath(dir_okay=False), help="The network's weights. [default: where the record has them]"
)
@click.option(
    "--out", type=FilePath(dir_okay=False), metavar="FILE", help="What to write. [default: X.challenge.json beside it]"
)
@threads_option()
@device_option
@data_dir_option
def challenge(
    path: Path,
    examples: Path,
    by: str,
    checkpoint: Path | None,
    out: Path | None,
    threads: int | None,
    device: str | None,
    data_dir: Path,
) -> None:
    """Judge adversarial examples of your own against the network of a record, in one forward pass.

    X.npz holds x, float32 in [0, 1] and shape (N, C, H, W), and index, which test image each was made of (left out: the
    first N). Each has to lie in the threat model's ball. What they break lowers the row's best-known accuracy, once the
    file that this writes lies in the board's challenges.

    \b
    Example:
      adbench board challenge board/submissions/our-lab/cells/.../record.json \\
        x.npz --checkpoint weights.safetensors
    """
    from adbench.board import challenge as challenging
    from adbench.board.folders import label

    place = ready(path.parent, data_dir, device, threads)
    record = path / "record.json" if path.is_dir() else path
    outcome, before, after = challenging.challenge(record, examples, place=place, by=label(by), weights=checkpoint)
    target = out or examples.with_suffix(".challenge.json")
    challenging.write(outcome, target)
    _say(
        f"{len(outcome.broken)} of {outcome.examples} examples break their image; of {before} that stood {after} stand"
    )
    _say(f"{target}: for the board's challenges")


@click.command()
@click.argument("folder", metavar="BOARD", type=FilePath(file_okay=False))
@click.option("--out", required=True, metavar="DIR", type=Folder(), help="Where the page goes, as index.html.")
def build(folder: Path, out: Path) -> None:
    """Write the page of a board's folder. What cannot be used is left out and named, with exit code 1.

    \b
    Example:
      adbench board build board --out site
    """
    from adbench.board import site
    from adbench.board.standings import Board

    found = Board(folder)
    path = site.build(found, out)
    for why in found.left_out:
        _say(f"left out  {why}")
    _say(f"{path}: {sum(map(len, found.ranked.values()))} rows ranked, {len(found.false)} found out")
    sys.exit(int(bool(found.left_out)))


def _say(text: str) -> None:
    click.echo(terminal.plain(text))
