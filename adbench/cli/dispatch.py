"""How commands are found and called, and how a user's mistake is reported: one sentence and exit code 2."""

from __future__ import annotations

import difflib
import io
import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, TextIO

import click

from adbench.errors import Caution, UserError, is_text, unknown
from adbench.system import signals, terminal

SHOWN = 100
"""Letters of a file's name that a complaint about it shows."""


class CommandGroup(click.Group):
    """Commands that are imported when they are called, so that `--help` is instant.

    commands_at: of each command, "module:function" in this package and a line for the overview.
    wants: headings of the overview, and their commands.
    """

    def __init__(
        self, *args: Any, commands_at: Mapping[str, tuple[str, str]], wants: Mapping[str, Sequence[str]], **more: Any
    ) -> None:
        super().__init__(*args, **more)
        self.commands_at, self.wants = commands_at, wants

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands_at)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.commands_at:
            return None
        module, _, function = self.commands_at[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(f"{__package__}.{module}"), function)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for want, names in self.wants.items():
            with formatter.section(want):
                formatter.write_dl([(f"{name:10}", self.commands_at[name][1]) for name in names])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in self.commands_at and not args[0].startswith("-"):
            raise unknown("command", args[0], self.commands_at, f"{ctx.command_path} --help")
        return super().resolve_command(ctx, args)

    def main(self, args: Sequence[str] | None = None, *more: Any, **extra: Any) -> Any:
        _print_anything()
        try:
            with signals.handled(), warnings.catch_warnings():
                warnings.showwarning = _show
                args = _as_text(sys.argv[1:] if args is None else args)
                code = super().main(args, *more, **{**extra, "standalone_mode": False})
        except UserError as error:
            code = _refuse(str(error))
        except OSError as error:
            # Whatever a path may be that no command expects: too long, a loop of links, on a disk that is gone.
            code = _refuse(_of_the_system(error))
        except click.ClickException as error:
            code = _refuse(_in_our_words(error))
        except (click.Abort, KeyboardInterrupt):
            click.echo("adbench: interrupted; the same command goes on from the last completed epoch", err=True)
            code = 130
        except signals.Stopped:
            click.echo("adbench: stopped by SIGTERM; the same command goes on from where it was", err=True)
            code = signals.EXIT_CODE
        sys.exit(code)


def _print_anything() -> None:
    """Print a question mark for each character that a terminal's encoding lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _as_text(args: Sequence[str]) -> list[str]:
    """The words of a command line. Raises UserError for bytes that are no UTF-8, which records cannot hold."""
    for word in args:
        if not is_text(word):
            raise UserError(f"'{word}' is not text in UTF-8; rename the file, or go into its folder first")
    return list(args)


def _of_the_system(error: OSError) -> str:
    """What the operating system refused, and for which file."""
    message = error.strerror or str(error) or type(error).__name__
    if error.filename is None:
        return message
    name = str(error.filename)
    return f"'{name if len(name) <= SHOWN else name[:SHOWN] + '...'}': {message}"


def _show(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,  # noqa: ARG001
    line: str | None = None,  # noqa: ARG001
) -> None:
    """Print a `Caution` as a sentence of adbench, other warnings as Python does."""
    place = "adbench" if issubclass(category, Caution) else f"{filename}:{lineno}: {category.__name__}"
    click.echo(f"{place}: {message}", err=True)


def _refuse(sentence: str) -> int:
    click.echo(terminal.plain(f"adbench: {' '.join(sentence.split())}"), err=True)
    return 2


def _instead_of(error: click.NoSuchOption) -> str:
    """What somebody may have meant by an option that there is not: another one, or a setting."""
    from adbench.experiment.config import settings_called  # for this mistake alone: pydantic takes a while to import

    name = error.option_name.lstrip("-")
    options = [option.lstrip("-") for option in error.possibilities or ()]
    if near := difflib.get_close_matches(name, options, n=1, cutoff=0.7):
        return f"; did you mean '--{near[0]}'?"
    takes_settings = error.ctx and any("--set" in parameter.opts for parameter in error.ctx.command.params)
    if takes_settings and (found := settings_called(name.replace("-", "_"))):
        return f"; it is a setting: --set {found[0]}=VALUE"
    return ""


def _in_our_words(error: click.ClickException) -> str:
    """Click's complaint about a command line as one sentence, and where to read more."""
    message = error.format_message()
    if isinstance(error, click.NoSuchOption):
        message = f"unknown option '{error.option_name}'{_instead_of(error)}"
    message = message.rstrip(".").replace(". ", "; ")
    context = getattr(error, "ctx", None)
    return f"{message[0].lower()}{message[1:]}" + (f" ({context.command_path} --help)" if context else "")
