"""`adbench report`. Matplotlib is imported when the command runs: it takes a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from adbench.cli.options import FilePath, leaving_out, names, names_option, results_option, spread_option
from adbench.errors import unknown
from adbench.report.view import FORMATS, GROUPS
from adbench.results import layout


def _formats(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """A comma list of the report's formats; all when none is given."""
    chosen = names(_, __, values)
    for name in chosen:
        if name not in FORMATS:
            raise unknown("format", name, FORMATS, "adbench report --help")
    return chosen or FORMATS


@click.command()
@results_option
@click.option(
    "--out", type=FilePath(file_okay=False), default=Path("reports"), show_default=True, help="Folder to write to."
)
@click.option(
    "--format",
    "formats",
    multiple=True,
    callback=_formats,
    metavar="NAMES",
    help=f"{', '.join(FORMATS)}. [default: all]",
)
@names_option(
    "--columns",
    text="What to show, in this order: attacks (clean,pgd20,aa), and the quantities above. [default: all attacks, and "
    "worst,nsd where fairness methods are among the rows]",
)
@click.option(
    "--group-by",
    type=click.Choice(GROUPS),
    default=GROUPS[0],
    show_default=True,
    help="What rows of white-box and black-box tables stand together for, and are ranked within.",
)
@click.option("--compare", "against", metavar="METHOD", help="Also test every method against this one, in a table.")
@spread_option
@click.option("--watch", is_flag=True, help="Write again whenever records come or change, until interrupted.")
def report(
    results: Path,
    out: Path,
    formats: tuple[str, ...],
    columns: tuple[str, ...],
    group_by: str,
    against: str | None,
    spread: str | None,
    watch: bool,
) -> None:
    """Write the paper's tables and figures from the records: HTML, LaTeX, Markdown, CSV, Parquet, PNG, PDF and SVG.

    \b
    Quantities for --columns, of one attack as in worst:aa; without one, of the
    strongest (AutoAttack where it was run), and of clean images where it is of
    one accuracy:
      worst     accuracy of the class where it is lowest
      nsd       standard deviation over classes, divided by their mean
      mean      mean of clean and robust accuracy
      harmonic  their harmonic mean
      last      accuracy of the last epoch, beside the best one's
      diff      best minus last: robust overfitting

    \b
    Examples:
      adbench report --results results --out reports
      adbench report --format latex --columns clean,pgd20,aa --group-by teacher
      adbench report --columns clean,aa,harmonic,last:aa,diff:aa
      adbench report --compare rslad
      adbench report --watch                  # beside a running adbench run
    """
    if not watch:
        layout.check_there(results)
    from adbench.report import watching, writer

    def write() -> str:
        chosen: dict[str, Any] = {"formats": formats, "columns": columns, "group_by": group_by, "against": against}
        chosen |= {"spread": spread} if spread else {}
        with leaving_out(watched=watch) as left_out:
            written = writer.write(results, out, **chosen, left_out=left_out)
            opened = f"; open {out / 'index.html'}" if "html" in formats else ""
            message = f"{len(written)} files in {out}{opened}"
            if not watch:
                click.echo(message)
        return message

    if watch:
        for line in watching.lines(results, write):
            click.echo(line)
    else:
        write()
