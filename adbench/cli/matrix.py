"""The options that name a matrix, for every command that takes one, and the experiment that they ask for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adbench.cli.options import exact_option, keep_option, names, plugin_option, precision_option, seeds_of

if TYPE_CHECKING:
    from adbench.config import Experiment


def matrix_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give `command` the options that name a matrix; it gets the validated `experiment` in their place."""

    @wraps(command)
    def asking(
        *, methods: tuple[str, ...], students: tuple[str, ...], teachers: tuple[str, ...], datasets: tuple[str, ...],
        seeds: tuple[int, ...] | None, presets: tuple[str, ...], config: Path | None, settings: tuple[str, ...],
        exact: bool, precision: str | None, keep_adversarial: bool, **others: Any,
    ) -> None:  # fmt: skip
        asked = {"methods": methods, "students": students, "teachers": teachers, "datasets": datasets, "seeds": seeds}
        named: dict[str, Any] = {k: v for k, v in asked.items() if v}
        judging = ({"aa_search": "exact"} if exact else {}) | ({"keep_adversarial": True} if keep_adversarial else {})
        named |= {"eval": judging} if judging else {}
        precision = precision or ("float32" if exact else None)
        named |= {"train": {"precision": precision}} if precision else {}
        command(experiment=_experiment(named, presets, config, settings), **others)

    for option in reversed(
        (
            click.option(
                "--methods",
                "--method",
                multiple=True,
                callback=names,
                metavar="NAMES",
                help="Methods, comma-separated or repeated; 'all' is the ten of the paper. [default: all]",
            ),
            click.option(
                "--student",
                "--students",
                "students",
                multiple=True,
                callback=names,
                metavar="NAMES",
                help="Student architectures. [default: cnn-16]",
            ),
            click.option(
                "--teacher",
                "--teachers",
                "teachers",
                multiple=True,
                callback=names,
                metavar="NAMES",
                help="Teachers: a name (adbench teachers), FILE.toml, ARCHITECTURE@CHECKPOINT or robustbench:ID. "
                "[default: the dataset's own]",
            ),
            click.option(
                "--dataset",
                "--datasets",
                "datasets",
                multiple=True,
                callback=names,
                metavar="NAMES",
                help="Datasets: digits, cifar10, cifar100, or the path of a .npz or an image folder. [default: digits]",
            ),
            exact_option,
            precision_option,
            keep_option,
            click.option(
                "--seeds",
                callback=seeds_of,
                metavar="N|LIST",
                help="How many seeds (3 means 0,1,2), or which. [default: 1]",
            ),
            click.option(
                "--preset",
                "presets",
                multiple=True,
                callback=names,
                metavar="NAMES",
                help="Recipe (adbench list presets); later ones win. [default: digits on digits, else paper]",
            ),
            click.option(
                "--config",
                type=click.Path(path_type=Path),
                metavar="FILE.toml",
                help="Settings; they win over the preset.",
            ),
            click.option(
                "--set",
                "settings",
                multiple=True,
                metavar="KEY=VALUE",
                help="One setting, winning over all others, as in train.epochs=10 or hyper.trades.beta=3.",
            ),
            plugin_option,
        )
    ):
        asking = option(asking)
    return asking


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
