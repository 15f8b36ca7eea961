"""For authors of methods: info, validate, golden, new-method.

Commands that compute import torch when they run; the others start without it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from adbench.cli.options import FilePath, threads_option
from adbench.errors import UserError
from adbench.models.names import given, known
from adbench.plugins import scaffold
from adbench.registry import METHODS, method_names
from adbench.system.files import no_file


@click.command()
@click.argument("name", metavar="METHOD|FILE.py|ARCHITECTURE")
def info(name: str) -> None:
    """Print what a method maximises and minimises, what it needs and costs, and its hyperparameters; or the size of a
    network and its stages, whose feature maps a method can ask for.

    \b
    Examples:
      adbench info smaraad
      adbench info mine.py
      adbench info wrn-34-10
      adbench info nets.py:Mine
    """
    given(name)
    network = name not in METHODS and known(name)
    method = "" if network else _method(name)
    if method:
        method_names((method,))  # raises for one that there is not
    from adbench.plugins import describe

    click.echo(describe.network_card(name) if network else describe.card(method))


def _method(text: str) -> str:
    """The name of a method that is given by name or as the file that defines it."""
    return METHODS.add_file(Path(text)) if text.endswith(".py") else text


@click.command()
@click.argument("methods", nargs=-1, required=True, metavar="METHOD|FILE.py|GROUP|all ...")
@threads_option("1")
def validate(methods: tuple[str, ...], threads: int | None) -> None:
    """Check methods against the plugin contract on a tiny problem, in seconds each.

    A line for each promise, and what was seen where it is broken; exit code 1 then. "all" stands for all
    registered, and the name of another group for its methods.

    \b
    Examples:
      adbench validate mine.py
      adbench validate all
    """
    names = [
        name for text in methods for name in (METHODS.names() if text == "all" else method_names((_method(text),)))
    ]
    import torch

    from adbench.plugins.validate import validate as verdicts

    torch.set_num_threads(threads or 1)  # on so small a problem, a second thread only waits
    broken = 0
    for name in names:
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


@click.command()
@click.argument("file", type=FilePath(dir_okay=False), required=False)
@threads_option("1")
def golden(file: Path | None, threads: int | None) -> None:
    """Replay reference values of the authors' own code through the methods' losses and attacks.

    Without FILE those that adbench comes with.

    One line an entry with its largest absolute and relative error, or why it is skipped (a method that is not
    installed); exit code 1 if any differs or none is replayed. Losses and gradients
    must agree to 1e-9 (relative to |value| + 0.001), adversarial examples to 1e-12.

    \b
    Example:
      adbench golden
    """
    if file and (reason := no_file(file)):
        raise UserError(f"reference '{file}' {reason}")
    import torch

    from adbench.plugins import golden as reference

    torch.set_num_threads(threads or 1)  # on so small networks, a second thread only waits
    passed = failed = skipped = 0
    for path in [file] if file else reference.FILES:
        for result in reference.replay(reference.read(path)):
            click.echo(str(result))
            passed, failed = passed + result.passed, failed + bool(result.wrong)
            skipped += bool(result.skipped)
    if not passed + failed + skipped:
        raise UserError(f"reference '{file}' has no entry to replay")
    click.echo(f"{passed} of {passed + failed} entries agree" + (f", {skipped} skipped" if skipped else ""))
    sys.exit(0 if passed and not failed else 1)


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
    path = scaffold.write_method(name, out)
    click.echo(f"wrote {path}; try: adbench validate {path}, then adbench run --methods {name} --plugin {path}")
