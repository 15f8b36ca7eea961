"""Reference values of trainings, for `adbench golden`: schedules and averages, through the code that trains here."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adbench.data import Dataset, Split, Threat
from adbench.data.extra import Extra
from adbench.data.training_images import TrainingImages
from adbench.experiment.config import Train, validated
from adbench.plugins.reference import Node, Result, Toy, tensor
from adbench.training import schedule
from adbench.training.average import RE_ESTIMATED, Average

THREAT = Threat(Fraction(8, 255), Fraction(2, 255))
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


def sampler(_: Node, entry: Node, rule: dict[str, Any], result: Result) -> None:
    """How many images of either source each batch of a training has."""
    for number, case in enumerate(entry["cases"]):
        own, others, size = case["real"], case["generated"], case["batch"]
        images, labels = torch.zeros(own, 1, 1, 1, dtype=torch.uint8), torch.zeros(own, dtype=torch.long)
        extra = Extra(np.zeros((others, 1, 1, 1), np.uint8), np.zeros(others, np.uint8), "", case["fraction"], "")
        split = Split(images, labels)
        dataset = Dataset("", split, split, split, 1, ("0",), THREAT, 0, False, "", (own, 0, own), extra)
        source = TrainingImages(dataset, torch.device("cpu"))
        source.epoch_images = size * case["num_batches"]
        batches = [index for index, _ in source.epoch(size, rule["seed"], 0)]
        found = [[int((index < own).sum()), int((index >= own).sum())] for index in batches]
        result.compare(f"case {number}", found, case["per_batch"], 0)


def averages(file: Node, entry: Node, rule: dict[str, Any], result: Result) -> None:
    """The averaged network after each sample of a live one, its batch-norm statistics included."""
    inputs = file["averages"]["inputs"]
    student = _student(inputs, str(entry.get("start", "live_states[0]")))
    average = Average(student, recipe(entry, rule), 1)
    batches = [tensor(images) / 255 for images in inputs["batches_uint8"]]
    samples = [_number(name) for name in entry.get("samples", ())]
    for number, (live, expected) in enumerate(zip(samples, entry.get("after", ()), strict=True), 1):
        student.load_state_dict(_state(inputs["live_states"][live]))
        average.after_update(student, number)
        average.after_epoch(student, number)
        if average.statistics == RE_ESTIMATED:
            average.estimate(batches)
        due = {name: value for name, value in expected.items() if not name.endswith(tuple(rule.get("unused", ())))}
        result.compare(f"sample {number}", average.network.state_dict(), due)
    for step in entry.get("steps", ()):
        student.load_state_dict(_state(inputs["live_states"][step["live"]]))
        average.after_update(student, step["global_step"])
        result.compare(f"decay {step['global_step']}", average.decay_at(step["global_step"]), step["decay"])
        result.compare(f"step {step['global_step']}", average.network.state_dict(), step["parameters"])
    if "state_after_update_bn" in entry:
        average.after_epoch(student, 1)
        result.compare("epoch", average.network.state_dict(), entry["state_after_update_bn"])
    if "later_steps" in entry:
        averages(file, entry["later_steps"], rule, result)


def _number(name: str) -> int:
    """Of "live_states[2]": 2."""
    return int(name.removesuffix("]").rpartition("[")[2])


def _state(values: dict[str, Any]) -> dict[str, Tensor]:
    return {name: tensor(value) for name, value in values.items()}


def _student(inputs: Node, start: str) -> Toy:
    """The network of the section `averages`, in the state of that name."""
    return Toy(Node({"arch": inputs["arch"], "state": inputs["live_states"][_number(start)]}, inputs.path))


SECTIONS: dict[str, Callable[[Node, Node, dict[str, Any], Result], None]] = {
    "averages.wang_sampler": sampler,
    "averages": averages,
    "schedules": schedules,
}
"""What replays an entry of the reference file, or those of a section."""


def replay_of(path: str) -> Callable[[Node, Node, dict[str, Any], Result], None] | None:
    """What replays the entry at `path`; None for the entries of methods."""
    return SECTIONS.get(path) or SECTIONS.get(path.partition(".")[0])
