"""`adbench results` and `adbench merge`: what is in a results folder, and several as one.

Pandas is imported when the words are in order: it takes its time.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from adbench.cli.options import FilePath, leaving_out, names_option, results_option, spread_option
from adbench.results import layout
from adbench.system import terminal


@click.command("results")
@results_option
@names_option("--dataset", "--datasets", "datasets", text="Only these datasets.")
@names_option("--methods", "--method", text="Only these methods, groups of them or labels of the report.")
@names_option("--teacher", "--teachers", "teachers", text="Only students of these teachers.")
@names_option("--student", "--students", "students", text="Only these architectures.")
@click.option("--kind", type=click.Choice(["student", "teacher", "checkpoint"]), help="Only this kind of network.")
@click.option("--status", type=click.Choice(["done", "failed"]), help="Only finished or only failed ones.")
@click.option(
    "--format",
    "form",
    default="table",
    show_default=True,
    type=click.Choice(["table", "csv", "json", "parquet", "latex", "markdown"]),
)
@spread_option
@click.option("--out", type=FilePath(dir_okay=False), help="Write there instead of printing.")
def results_(
    results: Path,
    datasets: tuple[str, ...],
    methods: tuple[str, ...],
    teachers: tuple[str, ...],
    students: tuple[str, ...],
    kind: str | None,
    status: str | None,
    form: str,
    spread: str | None,
    out: Path | None,
) -> None:
    """Filter and print the records, or export them; with --spread a row for the seeds of each network.

    \b
    Examples:
      adbench results --method rslad,ard
      adbench results --kind student --format csv --out students.csv
      adbench results --spread std        # mean and standard deviation of seeds
    """
    wanted = {
        "dataset": datasets,
        "method": methods,
        "teacher": teachers,
        "student": students,
        "kind": (kind,) if kind else (),
        "status": (status,) if status else (),
    }
    layout.check_there(results)
    from adbench.report.record_table import export

    with leaving_out() as left_out:
        export(results, {key: names for key, names in wanted.items() if names}, form, out, left_out, spread)


@click.command()
@click.argument("folders", nargs=-1, required=True, metavar="FOLDER...", type=FilePath())
@click.option(
    "--into",
    type=FilePath(file_okay=False),
    required=True,
    metavar="RESULTS",
    help="The results folder that gets everything; made if it is not there.",
)
def merge(folders: tuple[Path, ...], into: Path) -> None:
    """Join results folders from several machines into one.

    Finished work is never overwritten. Of two records of one cell that agree, one is kept. Where their figures
    differ, the one that is there stays, the other goes with all its files to RESULTS.conflicts/, and the exit code
    is 1. A merge that was interrupted is finished by the same command.

    \b
    Example:
      adbench merge node1/results node2/results --into results
    """
    from adbench.results import merge as merging

    wrong = 0
    for outcome in merging.merge(folders, into):
        wrong += outcome.wrong
        if outcome.says:
            click.echo(terminal.plain(outcome.says))
    sys.exit(1 if wrong else 0)
