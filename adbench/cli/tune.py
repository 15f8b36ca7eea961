"""`adbench tune`. Torch is imported when the words are in order: it takes seconds."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from adbench.cli.matrix import MatrixOptions
from adbench.cli.options import (
    config_option,
    data_dir_option,
    device_option,
    make_writable,
    network_option,
    place_of,
    plugin_option,
    preset_option,
    results_option,
    threads_option,
)
from adbench.errors import UserError


def _over(method: str, texts: Sequence[str]) -> dict[str, list[Any]]:
    """The lists of --over by the keys of their settings. Raises UserError for what is no list of values."""
    from adbench.experiment import config, declared, settings

    found: dict[str, list[Any]] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        parts = key.split(".")
        if parts[0] == "hyper" and len(parts) == 2:
            key = f"hyper.{method}.{parts[1]}"
            declared.known(method, parts[1])
        elif parts[0] != "train" or parts[-1] in ("val_steps", "val_every"):
            raise UserError(
                f"--over {text}: a search is over hyper.* and train.*, but for how it is validated; what else differs "
                "would be judged otherwise"
            )
        swept = settings.swept(config.parse_setting(f"{key}={values}"))[1] if equals else {}
        if list(swept) != [key] or len(swept[key]) < 2:
            raise UserError(f"--over {text}: give a setting and two values or more, as in hyper.alpha=[0.5,1]")
        found |= swept
    return found


@click.command()
@click.argument("method")
@click.option(
    "--over",
    multiple=True,
    required=True,
    metavar="KEY=[VALUES]",
    help="A setting and the values to choose from, as in hyper.alpha=[0.5,1] or train.lr=[0.05,0.1]; repeatable.",
)
@click.option(
    "--budget",
    type=click.FloatRange(min=0, min_open=True),
    required=True,
    metavar="PASSES",
    help="Forward and backward passes an image of the training set, for all trials together.",
)
@click.option(
    "--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Draws the settings to try."
)
@click.option("--student", default="cnn-16", show_default=True, metavar="NAME", help="The student's architecture.")
@click.option("--teacher", metavar="NAME", help="The teacher. [default: the dataset's own]")
@click.option("--dataset", default="digits", show_default=True, metavar="NAME", help="Dataset, by name or path.")
@preset_option
@config_option
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="One setting, winning over all others.")
@plugin_option
@network_option
@threads_option()
@device_option
@data_dir_option
@results_option
def tune(
    method: str,
    over: tuple[str, ...],
    budget: float,
    seed: int,
    student: str,
    teacher: str | None,
    dataset: str,
    presets: tuple[str, ...],
    config: Path | None,
    settings: tuple[str, ...],
    threads: int | None,
    device: str | None,
    data_dir: Path,
    results: Path,
) -> None:
    """Search for a method's settings on the held-out images, within a budget.

    Settings are drawn at random from the values given, the recipe as it is first, until the budget is spent. The
    budget is in passes, so that with the same number every method has the same chance; test images have no part in
    it. The search is recorded in RESULTS/tuning, and its trainings are those that adbench run goes on from.

    \b
    Example:
      adbench tune rslad --over hyper.alpha=[0.5,0.7,0.9] --budget 1000
    """
    if not math.isfinite(budget):
        raise UserError(f"--budget {budget}: give a finite number of passes")
    named = MatrixOptions(
        methods=(method,),
        students=(student,),
        teachers=(teacher,) if teacher else (),
        datasets=(dataset,),
        seeds=None,
        presets=presets,
        config=config,
        settings=settings,
        fast_aa=False,
        precision=None,
        keep_adversarial=False,
    )
    experiment = named.experiment()
    if experiment.sweep:
        raise UserError(f"'{next(iter(experiment.sweep))}' has several values; give them with --over")
    if experiment.methods != (method,) or len(experiment.seeds) > 1:
        raise UserError("a search is of one method and seed; name one of each")
    values = _over(method, over)
    from adbench.cli.display import Display, console
    from adbench.execution import runner
    from adbench.execution import tune as tuning

    place = place_of(results, data_dir, device)
    make_writable(results)
    search = tuning.Search(experiment, values, budget, seed, place)
    with Display(console(), len(search.drawn)) as display:
        found = search.run(threads or runner.threads_per_job(1), display)
    for line in tuning.lines(found):
        click.echo(line)
    click.echo(f"record in {search.path}")
    sys.exit(0 if found.best else 1)
