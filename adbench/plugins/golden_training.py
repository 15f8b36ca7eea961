"""Reference values of whole trainings, for `adbench golden`: schedules, through the code that trains here."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from adbench.experiment.config import Train, validated
from adbench.plugins.reference import Node, Result
from adbench.training import schedule

RATES = 2e-15
"""Largest relative error of a learning rate or momentum: their values are written with 16 digits."""

FINE = 100
"""Iterations an epoch, for entries whose time is a number of epochs with two decimals."""

RECIPE = {"max_lr": "lr", "lr": "lr", "epochs": "epochs", "lr_min": "lr_min"}


def recipe(entry: Node, rule: dict[str, Any]) -> Train:
    """The recipe that an entry stands for."""
    given = entry.get("params", {})
    settings = {name: given[key] for key, name in RECIPE.items() if key in given} | rule.get("train", {})
    epochs = settings.get("epochs", 200)
    settings |= {"milestones": [drop / epochs for drop in rule.get("drops", ())]}
    for share in ("warmup", "schedule_start"):
        if settings.get(share, 0) >= 1:
            settings[share] /= epochs
    return validated(Train, settings, entry.path)


def schedules(_: Node, entry: Node, rule: dict[str, Any], result: Result) -> None:
    """The rates and momenta of a schedule's iterations, each to the last digit that is written."""
    train = recipe(entry, rule)
    unit = str(entry["columns"][0])
    first = rule.get("first", int(found[1]) if (found := re.search(r"from (\d)", unit)) else 0)
    for at, *expected in entry["values"]:
        if unit == "t":
            batches = FINE
            epoch, batch = divmod(round(at * FINE) - 1, FINE)
        elif unit.startswith("iteration"):
            batches = entry["params"].get("steps_per_epoch") or entry["params"]["iterations_per_epoch"]
            epoch, batch = divmod(max(at - lag, -1) if (lag := rule.get("lag", 0)) else at, batches)
        else:
            batches, epoch, batch = 1, at - first, 0
        values = schedule.rate(train, epoch, batch, batches), schedule.momentum(train, epoch, batch, batches)
        for name, value, due in zip(entry["columns"][1:], values, expected, strict=False):
            result.compare(f"{name} at {unit} {at}", value, due, RATES * abs(due))


SECTIONS: dict[str, Callable[[Node, Node, dict[str, Any], Result], None]] = {"schedules": schedules}
"""What replays the entries of a section of the reference file."""
