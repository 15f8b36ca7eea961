"""The command line: words to calls."""

from __future__ import annotations

import os

import click

from adbench import __version__
from adbench.cli.dispatch import Group

# Torch's threads would spin while they wait for each other, and where a core is busy with something else make small
# networks fifty times slower (docs/performance.md). Torch reads this once, when it is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

COMMANDS = {
    "run": ("run:run", "Train and evaluate every cell of a matrix, or go on with it."),
    "cost": ("run:cost", "What a matrix costs on this device."),
    "status": ("status:status", "Where a matrix stands, and the time left."),
    "report": ("report:report", "Write the paper's tables and figures from the records."),
    "list": ("list:list_", "Methods, teachers, students, datasets, attacks, presets."),
    "teachers": ("list:teachers", "List the teachers, show one, or verify what it claims."),
    "eval": ("eval:eval_", "Evaluate and record any checkpoint."),
    "results": ("results:results_", "Filter and print the records, or export them."),
    "merge": ("results:merge", "Join results folders from several machines into one."),
    "compare": ("analyses:compare", "Compare two methods over their seeds, or two records."),
    "cross": ("analyses:cross", "Attack each network with the others' adversarial examples."),
    "cam": ("analyses:cam", "Compare where students look with where their teacher looks."),
    "verify": ("analyses:verify", "Recompute a record's figures from its weights."),
    "prepare": ("prepare:prepare", "Fetch the datasets and teachers of a matrix ahead of time."),
    "export": ("export:export", "Write a finished network for others to use."),
    "golden": ("methods:golden", "Replay the authors' reference values through the methods."),
    "info": ("methods:info", "What a method maximises and minimises, needs and costs."),
    "validate": ("methods:validate", "Check methods against the plugin contract."),
    "new-method": ("methods:new_method", "Write a plugin file to start a method of your own from."),
}
"""Every command: where it is defined in this package, and what the overview says of it."""


@click.group(
    cls=Group,
    commands_at=COMMANDS,
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
