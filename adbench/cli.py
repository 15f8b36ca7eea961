"""The command line: words to calls. Commands import what they need when they run, so that help is instant."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adbench import __version__
from adbench.errors import UserError, unknown

if TYPE_CHECKING:
    from adbench.cell import Place
    from adbench.config import Experiment
    from adbench.runner import Plan

DATA_DIR = "~/.cache/adbench"
# Who asks for more means a seed of that value.
MOST_SEEDS = 1000


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
            code = super().main(*args, **{**extra, "standalone_mode": False})
        except UserError as error:
            code = _refuse(str(error))
        except click.ClickException as error:
            code = _refuse(_in_our_words(error))
        except (click.Abort, KeyboardInterrupt):
            click.echo("adbench: interrupted; the same command goes on from the last completed epoch", err=True)
            code = 130
        sys.exit(code)


def _refuse(sentence: str) -> int:
    click.echo(f"adbench: {' '.join(sentence.split())}", err=True)
    return 2


def _in_our_words(error: click.ClickException) -> str:
    """Click's complaint about a command line as one sentence, and where to read more."""
    said = error.format_message()
    if isinstance(error, click.NoSuchOption):
        near = f"; did you mean '{error.possibilities[0]}'?" if error.possibilities else ""
        said = f"unknown option '{error.option_name}'{near}"
    said = said.rstrip(".").replace(". ", "; ")
    context = getattr(error, "ctx", None)
    return f"{said[0].lower()}{said[1:]}" + (f" ({context.command_path} --help)" if context else "")


def _names(_: click.Context, __: click.Parameter, values: Sequence[str]) -> tuple[str, ...]:
    """Repeated options and comma lists alike, in order, once each."""
    return tuple(dict.fromkeys(part.strip() for value in values for part in value.split(",") if part.strip()))


def _seeds(_: click.Context, __: click.Parameter, value: str | None) -> tuple[int, ...] | None:
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
    if not numbers or min(numbers) < 0:
        raise click.BadParameter(f"'{value}': give at least one seed, none below 0")
    return numbers


def _one_seed(_: click.Context, __: click.Parameter, value: str | None) -> int | str | None:
    """A seed, or "all"."""
    if value is None or value == "all":
        return value
    if not value.isdecimal():
        raise click.BadParameter(f"'{value}' is neither a seed nor 'all'")
    return int(value)


def _numbers(_: click.Context, __: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    """A comma list of numbers, one a channel."""
    if value is None:
        return None
    try:
        return tuple(float(part) for part in value.split(","))
    except ValueError as error:
        raise click.BadParameter(f"'{value}' is not a list of numbers like 0.49,0.48,0.45") from error


def _plugins(_: click.Context, __: click.Parameter, paths: Sequence[Path]) -> tuple[str, ...]:
    from adbench.registry import METHODS

    return tuple(METHODS.add_file(path) for path in paths)


plugin_option = click.option(
    "--plugin", "plugins", type=click.Path(path_type=Path), multiple=True, callback=_plugins, expose_value=False,
    is_eager=True, metavar="FILE.py", help="Add the method that this Python file defines, under the file's name.",
)  # fmt: skip
results_option = click.option(
    "--results", type=click.Path(path_type=Path, file_okay=False), default=Path("results"), show_default=True,
    help="Folder of the records.",
)  # fmt: skip
data_dir_option = click.option(
    "--data-dir", type=click.Path(path_type=Path, file_okay=False), default=DATA_DIR, show_default=True,
    envvar="ADBENCH_DATA", help="Folder of the datasets (downloaded there if they are not): the torchvision "
    "layout, or cifar10.npz / cifar100.npz. Also read from ADBENCH_DATA.",
)  # fmt: skip
device_option = click.option(
    "--device", default=None, metavar="DEVICE", help="cpu, cuda or cuda:N; by default a GPU where there is one."
)


keep_option = click.option(
    "--keep-adversarial", is_flag=True, help="Store the adversarial examples of every attack, for adbench verify."
)


def _finished_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options of a command that takes finished networks: which of them, and on how many images."""
    for option in reversed(
        (
            click.option("--dataset", metavar="NAME", help="Only this dataset. [default: each]"),
            click.option("--methods", "--method", multiple=True, callback=_names, metavar="NAMES",
                         help="Only students of these methods (or labels of the report). [default: all]"),
            click.option("--student", "--students", "students", multiple=True, callback=_names, metavar="NAMES",
                         help="Only students of these architectures. [default: all]"),
            click.option("--seed", callback=_one_seed, metavar="N|all",
                         help="Students of this seed. [default: of each method the lowest]"),
            click.option("--images", type=click.IntRange(min=1), metavar="N",
                         help="First N test images. [default: 1000, or all if there are fewer]"),
            click.option("--skip-missing", is_flag=True, help="Leave out networks whose weights are not there."),
            device_option, data_dir_option, results_option,
        )
    ):  # fmt: skip
        command = option(command)
    return command


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


@main.command()
@click.option(
    "--methods",
    "--method",
    multiple=True,
    callback=_names,
    metavar="NAMES",
    help="Methods, comma-separated or repeated; 'all' is the ten of the paper. [default: all]",
)
@click.option(
    "--student",
    "--students",
    "students",
    multiple=True,
    callback=_names,
    metavar="NAMES",
    help="Student architectures. [default: cnn-16]",
)
@click.option(
    "--teacher",
    "--teachers",
    "teachers",
    multiple=True,
    callback=_names,
    metavar="NAMES",
    help="Teachers: a name (adbench teachers), FILE.toml, ARCHITECTURE@CHECKPOINT or robustbench:ID. "
    "[default: the dataset's own]",
)
@click.option(
    "--dataset",
    "--datasets",
    "datasets",
    multiple=True,
    callback=_names,
    metavar="NAMES",
    help="Datasets: digits, cifar10, cifar100, or the path of a .npz or an image folder. [default: digits]",
)
@keep_option
@click.option(
    "--seeds", callback=_seeds, metavar="N|LIST", help="How many seeds (3 means 0,1,2), or which. [default: 1]"
)
@click.option(
    "--preset",
    "presets",
    multiple=True,
    callback=_names,
    metavar="NAMES",
    help="Recipe: adbench list presets; of several, later ones win. [default: digits for digits, else paper]",
)
@click.option(
    "--config", type=click.Path(path_type=Path), metavar="FILE.toml", help="Settings; they win over the preset."
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="One setting, winning over all others, as in train.epochs=10 or hyper.trades.beta=3.",
)
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Cells at a time, each in a process with its share of the cores.",
)
@click.option("--dry-run", is_flag=True, help="Show the plan and its cost, then stop.")
@plugin_option
@device_option
@data_dir_option
@results_option
def run(
    methods: tuple[str, ...], students: tuple[str, ...], teachers: tuple[str, ...], datasets: tuple[str, ...],
    seeds: tuple[int, ...] | None, presets: tuple[str, ...], config: Path | None, settings: tuple[str, ...],
    jobs: int, dry_run: bool, keep_adversarial: bool, device: str | None, data_dir: Path, results: Path,
) -> None:  # fmt: skip
    """Train and evaluate every cell of a matrix: dataset x teacher x student x method x seed.

    Finished cells are skipped, interrupted ones continue, a failing one does not stop the others. Exit code 1
    if a cell failed, 2 for bad input.

    \b
    Examples:
      adbench run --methods all --student rn18
      adbench run --dataset cifar10 --methods trades,rslad --teacher wrn-34-10@teacher.pt --student rn18 --seeds 3
      adbench run --methods rslad --set train.epochs=5 --set hyper.rslad.alpha=0.5 --dry-run
    """
    asked = {"methods": methods, "students": students, "teachers": teachers, "datasets": datasets, "seeds": seeds}
    named: dict[str, Any] = {k: v for k, v in asked.items() if v}
    if keep_adversarial:
        named["eval"] = {"keep_adversarial": True}
    experiment = _experiment(named, presets, config, settings)
    failed = _carry_out(experiment, results, data_dir, device, jobs, dry_run)
    sys.exit(1 if failed else 0)


def _experiment(
    asked: dict[str, Any], presets: Sequence[str], config: Path | None, settings: Sequence[str]
) -> Experiment:
    """The experiment of the command line: presets, then file, then --set, then the named options."""
    from adbench import config as configuration

    file = configuration.read_toml(config) if config else {}
    line = configuration.merged(*(configuration.parse_setting(text) for text in settings), asked)
    chosen = presets or [configuration.default_preset(configuration.merged(file, line))]
    layers = (*(configuration.read_preset(name) for name in chosen), file, line)
    return configuration.experiment(configuration.layered(*layers))


def _carry_out(
    experiment: Experiment, results: Path, data_dir: Path, device: str | None, jobs: int, dry_run: bool
) -> int:
    """Show the plan, run it, show the summary; returns the number of cells that failed."""
    from rich.console import Console

    console = Console()
    with console.status("reading data and teachers"):
        from adbench import runner
        from adbench.cell import check, lookup
        from adbench.display import Display, duration, plan_table, summary_table
        from adbench.estimate import Estimator
        from adbench.matrix import expand

        place = _place(results, data_dir, device)
        matrix = expand(experiment, lookup(place.data_dir))
        for cell in matrix.cells:
            check(cell, place)
        if not dry_run:
            _make_writable(results)
        plan = runner.plan(matrix, results)
        runner.prepare_torch(place, runner.threads_per_job(jobs))
        estimator = Estimator(place)
        seconds = {cell.id: estimator.seconds(cell, plan.states[cell.id]) for cell in matrix.cells}
    console.print(plan_table(plan, seconds))
    # Jobs share a GPU; each has cores of its own.
    shares = 1 if place.torch_device.type == "cuda" else min(jobs, max(1, len(plan.open)))
    total = sum(seconds.values()) / shares
    console.print(
        f"\n{len(plan.open)} of {len(matrix.cells)} cells to do, about {duration(total)} on {place.describe()}"
        f" with {jobs} at a time\n",
        highlight=False,
    )
    if dry_run:
        return 0
    with Display(console, len(plan.open)) as display:
        runner.run(plan, place, jobs, display)
    return _summarise(console, plan, results, summary_table)


def _summarise(console: Any, plan: Plan, results: Path, table: Callable[[list[dict[str, Any]]], Any]) -> int:
    from adbench import record

    records = [record.read(cell.record_path(results)).data for cell in plan.matrix.cells]
    failed = [r["status"] for r in records].count("failed")
    console.print()
    console.print(table(records))
    told = f"\nrecords in {results}; `adbench report` makes tables and figures of them"
    console.print(told, highlight=False, markup=False, soft_wrap=True)
    if failed:
        console.print(f"[red]{failed} of {len(records)} cells failed[/]; run the same command to try them again")
    return failed


def _place(results: Path, data_dir: Path, device: str | None) -> Place:
    """Where to run, on a device that is there."""
    import torch

    from adbench.cell import Place

    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        # Torch knows devices, as "meta", on which nothing can be computed.
        found = torch.zeros(1, device=name).device.type in ("cpu", "cuda")
    except (RuntimeError, AssertionError):
        found = False
    if not found:
        raise UserError(f"device '{name}' cannot be used here; choose cpu, cuda or cuda:N")
    return Place(results, data_dir.expanduser(), name)


def _make_writable(results: Path) -> None:
    """Make the results folder. Raises UserError where nothing can be written."""
    from adbench import files

    probe = results / ".writable"
    files.write_text(probe, "")
    probe.unlink(missing_ok=True)


@main.command()
@results_option
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("reports"),
    show_default=True,
    help="Folder to write to.",
)
def report(results: Path, out: Path) -> None:
    """Write the paper's tables and figures from the records: HTML, LaTeX, Markdown, CSV, PNG and PDF.

    \b
    Example:
      adbench report --results results --out reports
    """
    from adbench import report as reports

    written = reports.write(results, out)
    click.echo(f"{len(written)} files in {out}; open {out / 'index.html'}")


@main.command("list")
@click.argument(
    "what", required=False, type=click.Choice(["methods", "teachers", "students", "datasets", "attacks", "presets"])
)
@plugin_option
def list_(what: str | None) -> None:
    """Print what there is: methods, teachers, students, datasets, attacks, presets.

    \b
    Examples:
      adbench list
      adbench list methods --plugin mine.py
    """
    from adbench.listing import sections

    for title, rows in sections().items():
        if what in (None, title):
            click.secho(title, bold=True)
            width = max(len(name) for name, _ in rows)
            for name, summary in rows:
                click.echo(f"  {name:{width}}  {summary}")
            click.echo()


@main.command()
@click.argument("name", required=False)
@click.option("--verify", is_flag=True, help="Measure the teacher's clean and PGD-20 accuracy against its claim.")
@click.option("--dataset", metavar="NAME", help="Dataset to verify on. [default: the teacher's own]")
@click.option("--images", type=click.IntRange(min=1), help="Verify on the first N test images. [default: all]")
@device_option
@data_dir_option
@results_option
def teachers(
    name: str | None, verify: bool, dataset: str | None, images: int | None, device: str | None,
    data_dir: Path, results: Path,
) -> None:  # fmt: skip
    """List the teachers, show one, or verify one against what it claims.

    A teacher that adbench trains itself is trained first if it is not there yet.

    \b
    Examples:
      adbench teachers
      adbench teachers digits-robust --verify
      adbench teachers mine.toml --verify --dataset cifar10 --images 1000
    """
    from adbench import listing

    if name is None:
        for row in listing.teacher_rows():
            click.echo("  ".join(row))
        return
    click.echo(listing.describe_teacher(name))
    if verify:
        from adbench.claims import verify_teacher

        place = _place(results, data_dir, device)
        _make_writable(results)
        lines, agrees = verify_teacher(name, dataset, images, place)
        for line in lines:
            click.echo(line)
        sys.exit(0 if agrees else 1)


@main.command("eval")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--arch", required=True, metavar="NAME", help="Architecture of the checkpoint.")
@click.option("--dataset", default="digits", show_default=True, metavar="NAME", help="Dataset, by name or path.")
@click.option("--attacks", multiple=True, callback=_names, metavar="NAMES", help="[default: fgsm,pgd20,cw,aa]")
@click.option("--images", type=click.IntRange(min=1), metavar="N", help="First N test images. [default: all]")
@click.option("--aa-images", type=click.IntRange(min=1), metavar="N", help="Of these, images for AutoAttack.")
@click.option("--eps", metavar="FRACTION", help="Radius, as in 8/255. [default: the dataset's]")
@click.option("--step", metavar="FRACTION", help="Step of PGD and C&W. [default: the dataset's, scaled with eps]")
@click.option(
    "--aa-search",
    type=click.Choice(["exact", "fast"]),
    default="exact",
    show_default=True,
    help="AutoAttack in float32, or by a bfloat16 search that float32 confirms.",
)
@keep_option
@click.option("--masking", type=click.IntRange(min=1), metavar="N", help="Test for gradient masking on N images.")
@click.option("--mean", callback=_numbers, metavar="M,M,M", help="Normalisation that the checkpoint was trained with.")
@click.option("--std", callback=_numbers, metavar="S,S,S", help="The same: standard deviation by channel.")
@device_option
@data_dir_option
@results_option
def eval_(
    checkpoint: Path, arch: str, dataset: str, attacks: tuple[str, ...], images: int | None, aa_images: int | None,
    eps: str | None, step: str | None, aa_search: str, keep_adversarial: bool, masking: int | None,
    mean: tuple[float, ...] | None, std: tuple[float, ...] | None,
    device: str | None, data_dir: Path, results: Path,
) -> None:  # fmt: skip
    """Evaluate any checkpoint of a supported architecture and record it.

    \b
    Example:
      adbench eval teacher.pt --arch wrn-10-2 --dataset cifar10 --attacks fgsm,pgd20 --images 1000
    """
    from dataclasses import replace

    from rich.console import Console

    from adbench import config, record, runner, teacher
    from adbench.cell import check, lookup
    from adbench.display import Display, percent
    from adbench.matrix import Matrix, teacher_cell

    judging: dict[str, Any] = {"images": images, "aa_images": aa_images, "aa_search": aa_search}
    judging |= {"attacks": attacks} if attacks else {}
    judging |= {"masking": masking or 0, "keep_adversarial": keep_adversarial}
    experiment = config.experiment({"threat": {"eps": eps, "step": step}, "eval": judging})
    place = _place(results, data_dir, device)
    spec = teacher.find(f"{arch}@{checkpoint}").model_copy(update={"mean": mean, "std": std})
    cell = replace(teacher_cell(experiment, dataset, spec, lookup(place.data_dir)), kind="checkpoint")
    check(cell, place)
    _make_writable(results)
    with Display(Console(), 1) as display:
        runner.run(runner.plan(Matrix((cell,), ()), results), place, 1, display)
    path = cell.record_path(results)
    found = record.read(path)
    for name, metric in found["metrics"].items():
        low, high = metric["ci_test"]
        click.echo(
            f"{name:8} {100 * metric['value']:6.2f}%   n = {metric['n']}   "
            f"95% interval over test images {percent(low)}-{percent(high)}%"
        )
    if "masking" in found.data:
        click.echo(f"gradient masking: {found['masking']['verdict']}")
        for test in found["masking"]["tests"]:
            click.echo(f"  {test['verdict']:8} {test['says']}")
    click.echo(f"record in {path}")
    sys.exit(0 if found.done else 1)


@main.command("results")
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
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write there instead of printing.")
def results_(
    results: Path, dataset: str | None, method: str | None, teacher: str | None, student: str | None,
    kind: str | None, status: str | None, form: str, out: Path | None,
) -> None:  # fmt: skip
    """Filter and print the records, or export them.

    \b
    Examples:
      adbench results --method rslad
      adbench results --kind student --format csv --out students.csv
    """
    from adbench import export

    wanted = {"dataset": dataset, "method": method, "teacher": teacher, "student": student,
              "kind": kind, "status": status}  # fmt: skip
    export.export(results, {k: v for k, v in wanted.items() if v}, form, out)


@main.command()
@click.argument("first")
@click.argument("second")
@results_option
def compare(first: str, second: str, results: Path) -> None:
    """Compare two methods (or labels of the report) over their seeds, or two records, on the same test images.

    Differences of methods come with a 95% interval over the seeds that both have; of two networks with the images that
    only one of them gets right, and McNemar's exact test.

    \b
    Examples:
      adbench compare rslad adaad
      adbench compare results/a/record.json results/b/record.json
    """
    from adbench import compare as comparison

    for line in comparison.lines(first, second, results):
        click.echo(line)


@main.command()
@click.option("--attack", default="pgd20", show_default=True, metavar="NAME", help="A gradient attack: pgdK, cw, fgsm.")
@_finished_options
def cross(
    attack: str, dataset: str | None, methods: tuple[str, ...], students: tuple[str, ...], seed: int | str | None,
    images: int | None, skip_missing: bool, device: str | None, data_dir: Path, results: Path,
) -> None:  # fmt: skip
    """Attack every finished network with the adversarial examples of every other one.

    One matrix for each dataset and threat model, on its diagonal the white-box accuracy. A run can be killed at any
    time; the same command goes on with the next network. `adbench report` draws the result.

    \b
    Examples:
      adbench cross
      adbench cross --dataset cifar10 --methods trades,rslad --attack cw --images 500
    """
    from adbench import cross as crossing
    from adbench.report.finished import Wanted, select

    groups = select(results, Wanted(dataset, methods, students, seed))
    place = _ready(results, data_dir, device)
    for line in crossing.lines(groups, place, attack=attack, images=images, skip_missing=skip_missing):
        click.echo(line)


@main.command()
@_finished_options
def cam(
    dataset: str | None, methods: tuple[str, ...], students: tuple[str, ...], seed: int | str | None,
    images: int | None, skip_missing: bool, device: str | None, data_dir: Path, results: Path,
) -> None:  # fmt: skip
    """Compare where students look with where their teacher looks: class activation maps on the same images.

    The images are clean ones, and adversarial ones made on the teacher (PGD-20). `adbench report` draws some of the
    maps, and prints by how much they agree.

    \b
    Examples:
      adbench cam
      adbench cam --dataset cifar10 --methods ard,smaraad --images 500
    """
    from adbench import cam as attribution
    from adbench.report.finished import Wanted, select

    groups = select(results, Wanted(dataset, methods, students, seed))
    place = _ready(results, data_dir, device)
    for line in attribution.lines(groups, place, images=images, skip_missing=skip_missing):
        click.echo(line)


def _ready(results: Path, data_dir: Path, device: str | None) -> Place:
    """The place of a command that computes on finished networks in this process, with torch prepared for it."""
    from adbench import runner

    place = _place(results, data_dir, device)
    runner.prepare_torch(place, runner.threads_per_job(1))
    return place


@main.command()
@click.argument("record_path", metavar="RECORD", type=click.Path(path_type=Path))
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The network's weights. [default: where the record has them]",
)
@click.option("--again", type=click.IntRange(min=1), metavar="N", help="Attack N test images anew, chosen by chance.")
@device_option
@data_dir_option
def verify(record_path: Path, checkpoint: Path | None, again: int | None, device: str | None, data_dir: Path) -> None:
    """Recompute a record's figures from its checkpoint, the test images and the stored adversarial examples.

    For records made with --keep-adversarial. One line a figure; exit code 1 if any does not follow. Stored examples
    show that broken images are broken; whether survivors survive, --again tests with the record's gradient attacks.

    \b
    Example:
      adbench verify results/.../record.json --again 200
    """
    from adbench import record, runner
    from adbench import verify as verification

    place = _place(record_path.parent, data_dir, device)
    runner.prepare_torch(place, runner.threads_per_job(1))
    path = record_path / record.FILE if record_path.is_dir() else record_path
    findings = []
    for finding in verification.verify(
        path, data_dir=place.data_dir, device=place.torch_device, weights=checkpoint, again=again or 0
    ):
        findings.append(finding)
        click.echo(f"  {'ok' if finding.holds else 'FAILS':5}  {finding.what}: {finding.says}")
    click.echo(verification.NOT_CHECKED)
    failed = sum(not finding.holds for finding in findings)
    click.echo(f"{failed} of {len(findings)} findings fail" if failed else "the record follows")
    sys.exit(1 if failed else 0)


@main.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
def golden(file: Path) -> None:
    """Replay reference values of the authors' own code through the methods' losses and attacks.

    One line an entry with its largest absolute and relative error; exit code 1 if any differs. Losses and gradients
    must agree to 1e-9 (relative to |value| + 0.001), adversarial examples to 1e-12.

    \b
    Example:
      adbench golden golden.json
    """
    from adbench import golden as reference

    content = reference.read(file)
    passed = total = 0
    for result in reference.replay(content):
        click.echo(str(result))
        total, passed = total + 1, passed + result.passed
    if not total:
        raise UserError(f"reference '{file}' has no entry to replay")
    click.echo(f"{passed} of {total} entries agree")
    sys.exit(0 if passed == total else 1)


@main.command()
@click.argument("method", metavar="METHOD|FILE.py")
def info(method: str) -> None:
    """Print what a method maximises and minimises, what it needs and costs, and its hyperparameters.

    \b
    Examples:
      adbench info smaraad
      adbench info mine.py
    """
    from adbench.card import card

    click.echo(card(_method(method)))


def _method(text: str) -> str:
    """The name of a method that is given by name or as the file that defines it."""
    from adbench.registry import METHODS

    return METHODS.add_file(Path(text)) if text.endswith(".py") else text


@main.command()
@click.argument("methods", nargs=-1, required=True, metavar="METHOD|FILE.py|all ...")
def validate(methods: tuple[str, ...]) -> None:
    """Check methods against the plugin contract on a tiny problem, in seconds each.

    A line for each promise, and what was seen where it is broken; exit code 1 then. "all" stands for all registered.

    \b
    Examples:
      adbench validate mine.py
      adbench validate all
    """
    import torch

    from adbench.contract import validate as verdicts
    from adbench.registry import METHODS

    torch.set_num_threads(1)  # on so small a problem, a second thread only waits
    broken = 0
    for method in methods:
        for name in METHODS.names() if method == "all" else [_method(method)]:
            click.secho(name, bold=True)
            for verdict in verdicts(name):
                word = "broken" if verdict.error else "ok" if verdict.claimed else "-"
                click.echo(f"  {word:6}  {verdict.check}{'' if verdict.claimed else ' (not claimed)'}")
                if verdict.error:
                    broken += 1
                    click.echo(f"          {verdict.error}")
    click.echo(f"{broken} broken promise{'s' if broken != 1 else ''}" if broken else "all promises kept")
    sys.exit(1 if broken else 0)


@main.command("new-method")
@click.argument("name")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    show_default=True,
    help="Folder to write the file to.",
)
def new_method(name: str, out: Path) -> None:
    """Write a working plugin file to start a method of your own from.

    \b
    Example:
      adbench new-method mine
      adbench validate mine.py
      adbench run --methods mine,rslad --plugin mine.py
    """
    from adbench.scaffold import write_method

    path = write_method(name, out)
    click.echo(f"wrote {path}; try: adbench validate {path}, then adbench run --methods {name} --plugin {path}")
