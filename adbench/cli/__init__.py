"""The command line: words to calls."""

from __future__ import annotations

import os

import click

from adbench import __version__
from adbench.cli.dispatch import CommandGroup

# Torch's threads would spin while they wait for each other, and where a core is busy with something else make small
# networks fifty times slower (docs/performance.md). Torch reads this once, when it is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

COMMANDS = {
    "run": ("run:run", "Train and evaluate every cell of a matrix, or go on with it."),
    "cost": ("run:cost", "Say what a matrix costs on this device."),
    "status": ("status:status", "Say where a matrix stands, and the time left."),
    "prepare": ("prepare:prepare", "Fetch a matrix's datasets and teachers ahead of time."),
    "tune": ("tune:tune", "Search for a method's settings on held-out images."),
    "eval": ("eval:eval_", "Evaluate and record any checkpoint."),
    "report": ("report:report", "Write the paper's tables and figures from the records."),
    "results": ("results:results_", "Filter and print the records, or export them."),
    "show": ("record:show", "Tell one record in words, with what it does not show."),
    "list": ("list:list_", "List methods, teachers, students, datasets and attacks."),
    "teachers": ("list:teachers", "List the teachers, show one, or verify what it claims."),
    "info": ("methods:info", "Say what a method does, needs and costs."),
    "compare": ("analyses:compare", "Compare two methods over their seeds, or two records."),
    "cross": ("analyses:cross", "Attack each network with the others' examples."),
    "cam": ("analyses:cam", "Compare where students and their teacher look."),
    "verify": ("analyses:verify", "Recompute a record's figures from its weights."),
    "reproduce": ("record:reproduce", "Train a record's cell again, and compare."),
    "golden": ("methods:golden", "Replay the authors' reference values."),
    "validate": ("methods:validate", "Check methods against the plugin contract."),
    "merge": ("results:merge", "Join results folders of several machines into one."),
    "export": ("export:export", "Write a finished network for others to use."),
    "board": ("board:board", "Submit to a public board, challenge it, build its page."),
    "new-method": ("methods:new_method", "Write a plugin file to start a method of your own."),
}
"""Every command: where it is defined in this package, and what the overview says of it."""

WANTS = {
    "Run": ("run", "prepare", "cost", "status", "tune", "eval"),
    "Look": ("show", "results", "report", "list", "teachers", "info"),
    "Compare": ("compare", "cross", "cam"),
    "Check": ("verify", "reproduce", "golden", "validate"),
    "Share": ("export", "merge", "board", "new-method"),
}
"""What a person wants, and the commands for it, in the order of the overview."""


@click.group(
    cls=CommandGroup,
    commands_at=COMMANDS,
    wants=WANTS,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
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
