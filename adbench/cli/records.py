"""What is made of records: report, results, compare, cross, cam, verify."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from adbench.cli.options import (
    FilePath,
    data_dir_option,
    device_option,
    finished_options,
    leaving_out,
    names,
    ready,
    results_option,
    spread_option,
    threads_option,
)

FORMATS = ("html", "latex", "markdown", "csv", "parquet", "figures")


def _formats(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """A comma list of the report's formats; all when none is given."""
    from adbench.errors import unknown

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
@click.option(
    "--columns",
    multiple=True,
    callback=names,
    metavar="ATTACKS",
    help="Attacks to show, in this order, as clean,pgd20,aa. [default: all]",
)
@click.option(
    "--group-by",
    type=click.Choice(["student", "teacher", "method"]),
    default="student",
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
    Examples:
      adbench report --results results --out reports
      adbench report --format latex,csv --columns clean,pgd20,aa --group-by teacher
      adbench report --compare rslad
      adbench report --watch                  # beside a running adbench run
    """
    from adbench import report as reports
    from adbench.report import watching

    def write() -> str:
        chosen: dict[str, Any] = {"formats": formats, "columns": columns, "group_by": group_by, "against": against}
        chosen |= {"spread": spread} if spread else {}
        with leaving_out(watched=watch) as left_out:
            written = reports.write(results, out, **chosen, left_out=left_out)
            opened = f"; open {out / 'index.html'}" if "html" in formats else ""
            said = f"{len(written)} files in {out}{opened}"
            if not watch:
                click.echo(said)
        return said

    if watch:
        for line in watching.lines(results, write):
            click.echo(line)
    else:
        write()


@click.command("results")
@results_option
@click.option("--dataset", metavar="NAME", help="Only this dataset.")
@click.option("--method", metavar="NAME", help="Only this method.")
@click.option("--teacher", metavar="NAME", help="Only students of this teacher.")
@click.option("--student", metavar="NAME", help="Only this architecture.")
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
    dataset: str | None,
    method: str | None,
    teacher: str | None,
    student: str | None,
    kind: str | None,
    status: str | None,
    form: str,
    spread: str | None,
    out: Path | None,
) -> None:
    """Filter and print the records, or export them; with --spread a row for the seeds of each network.

    \b
    Examples:
      adbench results --method rslad
      adbench results --kind student --format csv --out students.csv
      adbench results --spread std            # mean and standard deviation over seeds
    """
    from adbench.results import table

    wanted = {
        "dataset": dataset,
        "method": method,
        "teacher": teacher,
        "student": student,
        "kind": kind,
        "status": status,
    }
    with leaving_out() as left_out:
        table.export(results, {k: v for k, v in wanted.items() if v}, form, out, left_out, spread)


@click.command()
@click.argument("first")
@click.argument("second")
@click.option("--anyway", is_flag=True, help="Compare also what was not judged alike, with both settings on top.")
@results_option
def compare(first: str, second: str, anyway: bool, results: Path) -> None:
    """Compare two methods (or labels of the report) over their seeds, or two records, on the same test images.

    Both have to be judged alike: data, radius, step, attacks, number of images. Records are given by paths with a
    slash.

    Differences of methods come with a 95% interval over the seeds that both have; of two networks with the images that
    only one of them gets right, and McNemar's exact test.

    \b
    Examples:
      adbench compare rslad adaad
      adbench compare results/a/record.json results/b/record.json
    """
    from adbench.analysis import compare as comparison

    with leaving_out() as left_out:
        for line in comparison.lines(first, second, results, left_out, anyway=anyway):
            click.echo(line)


@click.command()
@click.option("--attack", default="pgd20", show_default=True, metavar="NAME", help="A gradient attack: pgdK, cw, fgsm.")
@finished_options
def cross(
    attack: str,
    dataset: str | None,
    methods: tuple[str, ...],
    students: tuple[str, ...],
    seed: int | str | None,
    images: int | None,
    skip_missing: bool,
    threads: int | None,
    device: str | None,
    data_dir: Path,
    results: Path,
) -> None:
    """Attack every finished network with the adversarial examples of every other one.

    One matrix for each dataset and threat model, on its diagonal the white-box accuracy. A run can be killed at any
    time; the same command goes on with the next network. `adbench report` draws the result.

    \b
    Examples:
      adbench cross
      adbench cross --dataset cifar10 --methods trades,rslad --attack cw --images 500
    """
    from adbench.analysis import cross as crossing
    from adbench.results.networks import Wanted, select

    with leaving_out() as left_out:
        groups = select(results, Wanted(dataset, methods, students, seed), left_out)
        place = ready(results, data_dir, device, threads)
        for line in crossing.lines(groups, place, attack=attack, images=images, skip_missing=skip_missing):
            click.echo(line)


@click.command()
@finished_options
def cam(
    dataset: str | None,
    methods: tuple[str, ...],
    students: tuple[str, ...],
    seed: int | str | None,
    images: int | None,
    skip_missing: bool,
    threads: int | None,
    device: str | None,
    data_dir: Path,
    results: Path,
) -> None:
    """Compare where students look with where their teacher looks: class activation maps on the same images.

    The images are clean ones, and adversarial ones made on the teacher (PGD-20). `adbench report` draws some of the
    maps, and prints by how much they agree.

    \b
    Examples:
      adbench cam
      adbench cam --dataset cifar10 --methods ard,smaraad --images 500
    """
    from adbench.analysis import cam as attribution
    from adbench.results.networks import Wanted, select

    with leaving_out() as left_out:
        groups = select(results, Wanted(dataset, methods, students, seed), left_out)
        place = ready(results, data_dir, device, threads)
        for line in attribution.lines(groups, place, images=images, skip_missing=skip_missing):
            click.echo(line)


@click.command()
@click.argument("path", metavar="RECORD|FOLDER", type=FilePath())
@click.option(
    "--checkpoint",
    type=FilePath(dir_okay=False),
    help="The network's weights, of one record. [default: where the record has them]",
)
@click.option("--again", type=click.IntRange(min=1), metavar="N", help="Repeat the gradient attacks on N test images.")
@click.option(
    "--survivors",
    type=click.IntRange(min=1),
    is_flag=False,
    flag_value=200,
    metavar="[N]",
    help="Attack N survivors of each attack anew, AutoAttack's and transfer's too. [200 where no N is given]",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**31 - 1),
    metavar="N",
    help="Draws the images of --again and --survivors, and the new starts. [default: by chance]",
)
@click.option("--strict", is_flag=True, help="Exit code 1 also where something is not shown.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="JSON as docs/evaluation.md describes it.",
)
@threads_option()
@device_option
@data_dir_option
def verify(
    path: Path,
    checkpoint: Path | None,
    again: int | None,
    survivors: int | None,
    seed: int | None,
    strict: bool,
    form: str,
    threads: int | None,
    device: str | None,
    data_dir: Path,
) -> None:
    """Recompute a record's figures from its checkpoint, the test images and the stored adversarial examples.

    Each finding follows, or something contradicts it (exit code 1), or nothing shows it: no adversarial examples were
    stored (--keep-adversarial), or files are not there. Stored examples show that broken images are broken; whether
    survivors survive, --survivors tests. A folder's records are all verified.

    \b
    Examples:
      adbench verify results/.../record.json --survivors
      adbench verify results --again 200 --format json
    """
    from adbench.verification import command
    from adbench.verification import verify as verification

    place = ready(path.parent, data_dir, device, threads)
    asked = verification.Asked(again or 0, survivors or 0, verification.chance() if seed is None else seed)
    report = command.Report(path, place, checkpoint, asked, echo=click.echo if form == "text" else None)
    report.run()
    if form == "json":
        click.echo(report.json())
    sys.exit(report.exit_code(strict))
