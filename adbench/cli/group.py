"""How commands are looked up, and how what a user got wrong is told: one sentence and exit code 2."""

from __future__ import annotations

import difflib
import sys
from typing import Any

import click

from adbench import stopping
from adbench.errors import UserError, unknown


class Group(click.Group):
    """Commands in the order in which they are defined; what a user got wrong is one sentence and exit code 2."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in self.commands and not args[0].startswith("-"):
            raise unknown("command", args[0], self.commands, "adbench --help")
        return super().resolve_command(ctx, args)

    def main(self, *args: Any, **extra: Any) -> Any:
        try:
            with stopping.heeded():
                code = super().main(*args, **{**extra, "standalone_mode": False})
        except UserError as error:
            code = _refuse(str(error))
        except click.ClickException as error:
            code = _refuse(_in_our_words(error))
        except (click.Abort, KeyboardInterrupt):
            click.echo("adbench: interrupted; the same command goes on from the last completed epoch", err=True)
            code = 130
        except stopping.Stopped:
            click.echo("adbench: stopped by SIGTERM; the same command goes on from where it was", err=True)
            code = stopping.EXIT_CODE
        sys.exit(code)


def _refuse(sentence: str) -> int:
    click.echo(f"adbench: {' '.join(sentence.split())}", err=True)
    return 2


def _instead_of(error: click.NoSuchOption) -> str:
    """What somebody may have meant by an option that there is not: another one, or a setting."""
    from adbench.config import settings_called

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
    said = error.format_message()
    if isinstance(error, click.NoSuchOption):
        said = f"unknown option '{error.option_name}'{_instead_of(error)}"
    said = said.rstrip(".").replace(". ", "; ")
    context = getattr(error, "ctx", None)
    return f"{said[0].lower()}{said[1:]}" + (f" ({context.command_path} --help)" if context else "")
