"""The options that name a matrix, and the experiment that they make."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adbench.cli.options import (
    config_option,
    fast_aa_option,
    keep_option,
    names_option,
    network_option,
    plugin_option,
    precision_option,
    preset_option,
    seeds_of,
)
from adbench.data.identity import known as known_dataset
from adbench.models.names import canonical
from adbench.registry import method_names

if TYPE_CHECKING:
    from adbench.experiment.config import Experiment


@dataclass(frozen=True)
class MatrixOptions:
    """A matrix as the command line names it. No torch."""

    methods: tuple[str, ...]
    students: tuple[str, ...]
    teachers: tuple[str, ...]
    datasets: tuple[str, ...]
    seeds: tuple[int, ...] | None
    presets: tuple[str, ...]
    config: Path | None
    settings: tuple[str, ...]
    fast_aa: bool
    precision: str | None
    keep_adversarial: bool

    @property
    def anything(self) -> bool:
        """Whether any of the options is there."""
        return any(getattr(self, field.name) for field in fields(self))

    def experiment(self, *, past: bool = False) -> Experiment:
        """The experiment: presets, then file, then --set, then the named options. Raises UserError.

        The names of the command line are looked up before pydantic is imported: a mistyped one is answered at once.
        past: of an experiment that was, whose methods and teachers need not be there any more.
        """
        if not past:
            method_names(self.methods)
            for name in self.students:
                canonical(name)
            for name in self.datasets:
                known_dataset(name)
        from adbench.experiment import config as configuration  # status without options needs no settings
        from adbench.experiment import named as names
        from adbench.experiment import settings

        named: dict[str, Any] = {
            key: getattr(self, key) for key in ("methods", "students", "teachers", "datasets", "seeds")
        }
        named = {key: value for key, value in named.items() if value}
        judging: dict[str, Any] = {"aa_search": "fast"} if self.fast_aa else {}
        judging |= {"keep_adversarial": True} if self.keep_adversarial else {}
        named |= {"eval": judging} if judging else {}
        named |= {"train": {"precision": self.precision}} if self.precision else {}
        file = configuration.read_toml(self.config) if self.config else {}
        line = configuration.merged(*(configuration.parse_setting(text) for text in self.settings), named)
        (file, in_file), (line, on_line) = settings.swept(file), settings.swept(line)
        other = {"train.epochs": "budget", "budget": "train.epochs"}  # either decides the other
        sweep = {
            key: values
            for key, values in in_file.items()
            if not any(configuration.is_set(line, one) for one in (key, other.get(key, key)))
        } | on_line
        chosen = self.presets or [configuration.default_preset(configuration.merged(file, line))]
        layers = (*(configuration.read_preset(name) for name in chosen), file, line)
        layers = (*layers, {"sweep": sweep}) if sweep else layers
        experiment = configuration.experiment(configuration.layered(*layers))
        if not past:
            names.check(experiment)
        given = {name for layer in (file, line) if isinstance(own := layer.get("hyper"), Mapping) for name in own}
        given |= {key.split(".")[1] for key in sweep if key.startswith("hyper.")}
        for one in settings.variants(experiment):  # raises for a value that its setting cannot have
            if not past:
                names.hyperparameters(one, given)
        return experiment


def matrix_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options; the command gets them as `options`."""

    @wraps(command)
    def with_matrix(**values: Any) -> None:
        command(
            options=MatrixOptions(**{field.name: values.pop(field.name) for field in fields(MatrixOptions)}), **values
        )

    wrapped: Callable[..., None] = with_matrix
    for option in reversed(
        (
            names_option(
                "--methods",
                "--method",
                text="Methods, or groups of them (adbench list methods), comma-separated or repeated. [default: all, "
                "the paper's ten]",
            ),
            names_option("--student", "--students", "students", text="Student architectures. [default: cnn-16]"),
            names_option(
                "--teacher",
                "--teachers",
                "teachers",
                text="Teachers: a name (adbench teachers), FILE.toml, ARCHITECTURE@CHECKPOINT or "
                "robustbench:ID. [default: the dataset's own]",
            ),
            names_option(
                "--dataset",
                "--datasets",
                "datasets",
                text="Datasets: names (adbench list datasets) or paths of a .npz or an image folder. [default: digits]",
            ),
            fast_aa_option,
            precision_option,
            keep_option,
            click.option(
                "--seeds",
                callback=seeds_of,
                metavar="N|LIST",
                help="How many seeds (3 means 0,1,2), or which. [default: 1]",
            ),
            preset_option,
            config_option,
            click.option(
                "--set",
                "settings",
                multiple=True,
                metavar="KEY=VALUE",
                help="One setting, winning over all others, as in train.epochs=10 or hyper.trades.beta=3; a list, as "
                "in hyper.trades.beta=[3,6], makes cells of each value. adbench list settings has all.",
            ),
            plugin_option,
            network_option,
        )
    ):
        wrapped = option(wrapped)
    return wrapped
