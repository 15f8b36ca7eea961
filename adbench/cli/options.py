"""Options that several commands share, and where a command runs.

What needs torch (seconds) or pydantic (tenths of a second) is imported when an option asks for it.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adbench.errors import LeftOut, Nothing, UserError
from adbench.models.names import given
from adbench.registry import METHODS
from adbench.seeding import LARGEST
from adbench.system import files, machine, terminal

if TYPE_CHECKING:
    from adbench.execution.place import Place

DATA_DIR = "~/.cache/adbench"
MOST_SEEDS = 1000
"""Larger numbers are seeds, not numbers of seeds."""


def names(_: click.Context, __: click.Parameter, values: Sequence[str]) -> tuple[str, ...]:
    """Repeated options and comma lists alike, in order, once each; a path with commas that exists is one name."""
    found = tuple(dict.fromkeys(name for value in values for name in listed(value)))
    for name in found:
        given(name)
    return found


def network(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    """One architecture's name."""
    if value is not None:
        given(value)
    return value


def names_option(
    *declarations: str, text: str, metavar: str = "NAMES"
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """An option that takes names, comma-separated or repeated. text: its help."""
    return click.option(*declarations, multiple=True, callback=names, metavar=metavar, help=text)


def listed(value: str) -> list[str]:
    """The names in a comma list."""
    parts, items = value.split(","), []
    while parts:
        count = next((n for n in range(len(parts), 1, -1) if _exists(",".join(parts[:n]))), 1)
        items.append(",".join(parts[:count]).strip())
        parts = parts[count:]
    return [name for name in items if name]


def _exists(name: str) -> bool:
    """Whether a dataset, a teacher's file or the checkpoint of ARCHITECTURE@FILE is there."""
    from adbench.experiment.teacher import split_key

    with suppress(UserError, OSError, ValueError):
        return any(split_key(Path(path.strip()))[0].exists() for path in (name, name.partition("@")[2]) if path.strip())
    return False


def seeds_of(_: click.Context, __: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """A number of seeds ("3" is 0, 1, 2) or a comma list of them ("0,4")."""
    if value is None:
        return None
    try:
        numbers = tuple(int(part) for part in value.split(",") if part.strip())
    except ValueError as error:
        raise click.BadParameter(f"'{value}' is neither a number of seeds nor a list like 0,1,2") from error
    if numbers and "," not in value:
        if numbers[0] > MOST_SEEDS:
            raise click.BadParameter(f"'{value}' is a number of seeds; for that one seed write '{value},'")
        numbers = tuple(range(numbers[0]))
    if not numbers or min(numbers) < 0 or max(numbers) > LARGEST:
        raise click.BadParameter(f"'{value}': give at least one seed, none below 0 or beyond {LARGEST}")
    return numbers


def one_seed(_: click.Context, __: click.Parameter, value: str | None) -> int | str | None:
    """A seed, or "all"."""
    if value is None or value == "all":
        return value
    if not value.isdecimal():
        raise click.BadParameter(f"'{value}' is neither a seed nor 'all'")
    return int(value)


def numbers(_: click.Context, __: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    """A comma list of numbers, one a channel."""
    if value is None:
        return None
    try:
        values = tuple(float(part) for part in value.split(","))
    except ValueError as error:
        raise click.BadParameter(f"'{value}' is not a list of numbers like 0.49,0.48,0.45") from error
    if not all(map(math.isfinite, values)):
        raise click.BadParameter(f"'{value}' holds a number that is not finite")
    return values


def seconds_of(_: click.Context, __: click.Parameter, value: str | None) -> float | None:
    """A time such as 90s, 30m or 2h, in seconds."""
    if value is None:
        return None
    unit = {"s": 1, "m": 60, "h": 3600}.get(value[-1:])
    try:
        seconds = float(value[:-1]) * unit if unit else 0.0
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise click.BadParameter(f"'{value}' is not a time like 90s, 30m or 2h")
    return seconds


def _plugins(_: click.Context, __: click.Parameter, paths: Sequence[Path]) -> tuple[str, ...]:
    return tuple(METHODS.add_file(path) for path in paths)


network_option = click.option(
    "--network",
    multiple=True,
    metavar="FILE.py:NAME",
    is_eager=True,
    expose_value=False,
    callback=names,
    help="The file of a network of your own, which records name and nothing executes unasked; repeatable.",
)


class ValueOrNone(click.Command):
    """A command with options whose value may be left out: a word behind one that is no number is not its value."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        left_out = {
            word: option.flag_value
            for option in self.params
            if isinstance(option, click.Option) and not option.is_flag and isinstance(option.flag_value, int)
            for word in option.opts
        }
        words = args[: args.index("--")] if "--" in args else args
        for place, word in enumerate(words):
            if word in left_out and not (words[place + 1 : place + 2] and _is_number(words[place + 1])):
                args[place] = f"{word}={left_out[word]}"
        return super().parse_args(ctx, args)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


class FilePath(click.Path):
    """A file or folder as a `Path`; `~` at its beginning is the home folder."""

    def __init__(self, **more: Any) -> None:
        super().__init__(path_type=Path, **more)

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        path = Path(value)
        try:
            path = files.expanded(path)
        except UserError:
            if value != DATA_DIR:  # a default: what needs it says so
                raise
        return super().convert(path, parameter, context)


class Folder(FilePath):
    """A folder, there or not. An empty name, as of a shell variable that is not set, is not the working directory."""

    def __init__(self) -> None:
        super().__init__(file_okay=False)

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        return super().convert(value, parameter, context) if value != "" else self.fail("no folder is named", parameter)


preset_option = names_option(
    "--preset",
    "presets",
    text="Recipe: adbench list presets; of several, later ones win. [default: digits for digits, else paper]",
)
config_option = click.option(
    "--config", type=FilePath(), metavar="FILE.toml", help="Settings; they win over the preset."
)
plugin_option = click.option(
    "--plugin",
    "plugins",
    type=FilePath(),
    multiple=True,
    callback=_plugins,
    expose_value=False,
    is_eager=True,
    metavar="FILE.py",
    help="Add the method that this Python file defines, under the file's name.",
)


results_option = click.option(
    "--results", type=Folder(), default=Path("results"), show_default=True, help="Folder of the records."
)
data_dir_option = click.option(
    "--data-dir",
    type=Folder(),
    default=DATA_DIR,
    show_default=True,
    envvar="ADBENCH_DATA",
    help="Folder of the datasets (downloaded there if they are not): the torchvision "
    "layout, or cifar10.npz / cifar100.npz. Also read from ADBENCH_DATA.",
)


def _device(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    """A device of a kind that there is, and that may be here: whether it is shows when torch is loaded."""
    known = value is None or re.fullmatch(r"cpu|cuda(:[0-9]{1,4})?|mps", value)
    if value is not None and not (known and machine.may_have(value)):
        raise UserError(f"device '{value}' cannot be used here; choose cpu, cuda or cuda:N, or mps on a Mac")
    return value


device_option = click.option(
    "--device",
    default=None,
    callback=_device,
    metavar="DEVICE",
    help="cpu, cuda, cuda:N or mps; by default a GPU of CUDA if there is one.",
)


def threads_option(otherwise: str = "the cores") -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The option of every command that computes; otherwise: how many threads where nobody asks for a number."""
    return click.option(
        "--threads",
        type=click.IntRange(1, machine.MOST_THREADS),
        metavar="N",
        callback=lambda _, __, value: machine.threads() if value is None else value,
        help=f"Processor threads. [default: OMP_NUM_THREADS, else {otherwise}]",
    )


spread_option = click.option(
    "--spread",
    type=click.Choice(["ci", "std"]),
    help="Over seeds, after \N{PLUS-MINUS SIGN}: the 95% interval's half-width (of two seeds, which give none worth "
    "printing, their standard deviation), or the standard deviation.",
)
keep_option = click.option(
    "--keep-adversarial", is_flag=True, help="Store the adversarial examples of every attack, for adbench verify."
)
fast_aa_option = click.option(
    "--fast-aa",
    is_flag=True,
    help="AutoAttack by a search in bfloat16 that float32 decides. [default: the authors' package, in float32]",
)
precision_option = click.option(
    "--precision",
    type=click.Choice(["auto", "float32", "bfloat16"]),
    help="Of training: auto is the fast form, on a GPU with convolutions in TF32 as is torch's default; float32 every "
    "layer as it is written. [default: auto]",
)


def finished_options(command: Callable[..., Iterator[str]]) -> Callable[..., None]:
    """Add the options of a command on finished networks: which of them, and on how many images.

    The command gets them as `groups`, `place`, `images` and `skip_missing`; the lines that it yields are printed.
    """

    @wraps(command)
    def with_networks(
        datasets: tuple[str, ...],
        methods: tuple[str, ...],
        students: tuple[str, ...],
        seed: int | str | None,
        threads: int | None,
        device: str | None,
        data_dir: Path,
        results: Path,
        **more: Any,
    ) -> None:
        from adbench.results.networks import Wanted, select

        with leaving_out() as left_out:
            groups = select(results, Wanted(datasets, methods, students, seed), left_out)
            place = ready(results, data_dir, device, threads)
            for line in command(groups=groups, place=place, **more):
                click.echo(line)

    wrapped: Callable[..., None] = with_networks
    for option in reversed(
        (
            names_option("--dataset", "--datasets", "datasets", text="Only these datasets. [default: each]"),
            names_option(
                "--methods",
                "--method",
                text="Only students of these methods, groups of them or labels of the report. [default: all]",
            ),
            names_option(
                "--student", "--students", "students", text="Only students of these architectures. [default: all]"
            ),
            click.option(
                "--seed",
                callback=one_seed,
                metavar="N|all",
                help="Students of this seed. [default: of each method the lowest]",
            ),
            click.option(
                "--images",
                type=click.IntRange(min=1),
                metavar="N",
                help="First N test images. [default: 1000, or all if there are fewer]",
            ),
            click.option("--skip-missing", is_flag=True, help="Leave out networks whose weights are not there."),
            threads_option(),
            device_option,
            network_option,
            data_dir_option,
            results_option,
        )
    ):
        wrapped = option(wrapped)
    return wrapped


@contextmanager
def leaving_out(watched: bool = False) -> Generator[LeftOut, None, None]:
    """What a command on many records does about damaged ones: names each on standard error, and ends with code 1.

    watched: the command goes on.
    """
    left_out = LeftOut(lambda message: click.echo(terminal.plain(f"adbench: left out: {message}"), err=True))
    try:
        yield left_out
    except Nothing as nothing:
        if watched or not left_out:
            raise
        click.echo(f"adbench: {nothing}", err=True)
    if left_out:
        click.echo(f"adbench: {len(left_out)} left out", err=True)
        if not watched:
            sys.exit(1)


def place_of(results: Path, data_dir: Path, device: str | None) -> Place:
    """Where to run, on a device that is there."""
    import torch

    from adbench.execution.place import Place
    from adbench.training import distributed

    name = distributed.local(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        # Torch knows devices, as "meta", on which nothing can be computed.
        usable = torch.zeros(1, device=name).device.type in ("cpu", "cuda", "mps")
    except (RuntimeError, AssertionError):
        usable = False
    if not usable:
        mps = ", or mps" if torch.backends.mps.is_available() else ""
        raise UserError(f"device '{name}' cannot be used here; choose cpu, cuda or cuda:N{mps}")
    return Place(results, data_dir, name)


def make_writable(results: Path) -> None:
    """Make the results folder. Raises UserError where nothing can be written."""
    probe = results / ".writable"
    files.write_text(probe, "")
    probe.unlink(missing_ok=True)


def ready(results: Path, data_dir: Path, device: str | None, threads: int | None) -> Place:
    """The place of a command that computes on finished networks in this process, with torch prepared for it."""
    from adbench.execution import runner
    from adbench.execution.engines.worker import set_up_torch

    place = place_of(results, data_dir, device)
    set_up_torch(place, threads or runner.threads_per_job(1))
    return place
