"""The command line: words to calls. Commands import what they need when they run, so that help is instant."""

from __future__ import annotations

import os

import click

from adbench import __version__
from adbench.cli.catalogue import golden, info, list_, new_method, teachers, validate
from adbench.cli.group import Group
from adbench.cli.records import cam, compare, cross, report, results_, verify
from adbench.cli.run import cost, eval_, run
from adbench.cli.sharing import export, prepare
from adbench.cli.standing import merge, status

# Torch's threads would spin while they wait for each other, and where a core is busy with something else make small
# networks fifty times slower (docs/performance.md). Torch reads this once, when it is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@click.group(
    cls=Group,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="adbench")
@click.pass_context
def main(context: click.Context) -> None:
    """The benchmark for adversarial distillation.

    \b
    Ten methods on the embedded dataset, then their report:
      adbench run --methods all
      adbench report
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


for _command in (
    run,
    cost,
    status,
    report,
    list_,
    teachers,
    eval_,
    results_,
    merge,
    compare,
    cross,
    cam,
    verify,
    prepare,
    export,
    golden,
    info,
    validate,
    new_method,
):
    main.add_command(_command)
