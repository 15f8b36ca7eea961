"""Reference values of trainings, for `adbench golden`: schedules, averages, perturbed weights."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, PrivateAttr
from torch import Tensor

from adbench.attacks.linf import Recorded, Start
from adbench.data import Dataset, Split, Threat, parse_fraction
from adbench.data.extra import Extra
from adbench.data.training_images import TrainingImages
from adbench.experiment.config import Train, validated
from adbench.losses import cross_entropy, kl
from adbench.models import Network
from adbench.plugins.reference import Node, Result, Toy, tensor
from adbench.training import schedule
from adbench.training.average import RE_ESTIMATED, Average
from adbench.training.configured import configured
from adbench.training.method import Method
from adbench.training.step import Ball, Mode, Step
from adbench.training.trainer import Trainer

THREAT = Threat(Fraction(8, 255), Fraction(2, 255))
RATES = 2e-15
"""Largest relative error of a learning rate or momentum: their values are written with 16 digits."""

FINE = 100
"""Iterations an epoch, for entries whose time is a number of epochs with two decimals."""

PIXELS = 1e-12
"""Largest absolute error of an adversarial example's pixels."""

RECIPE = {"max_lr": "lr", "gamma": "awp", "rho": "awp", "decay": "average_decay", "rate": "average_decay"}
RECIPE |= {name: name for name in ("lr", "epochs", "lr_min", "momentum", "weight_decay", "nesterov")}
"""Parameters of entries by their names here."""


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
    first = int(found[1]) if (found := re.search(r"from (\d)", unit)) else 0
    others = {name: _function(where) for name, where in rule.get("rates", {}).items()}
    for at, *expected in entry["values"]:
        if unit == "t":
            batches = FINE
            epoch, batch = divmod(round(at * FINE) - 1, FINE)
        elif unit.startswith("iteration"):
            batches = entry["params"].get("steps_per_epoch") or entry["params"]["iterations_per_epoch"]
            epoch, batch = divmod(at, batches)
        else:
            batches, epoch, batch = 1, at - first, 0
        values = {"momentum": schedule.momentum(train, epoch, batch, batches)}
        values |= {name: of(epoch, train.epochs) for name, of in others.items()}
        for name, due in zip(entry["columns"][1:], expected, strict=True):
            value = values.get(name, schedule.rate(train, epoch, batch, batches))
            result.compare(f"{name} at {unit} {at}", value, due, RATES * abs(due))


def _function(where: str) -> Callable[..., float]:
    """Of "ciard.teacher_rate": that function of the method as it is by default."""
    method, _, name = where.partition(".")
    found: Callable[..., float] = getattr(configured(method, {}), name)
    return found


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
        if average.statistics in RE_ESTIMATED:
            average.estimate(batches)
        result.compare(f"sample {number}", average.network.state_dict(), expected)
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


class PublishedMethod(Method):
    """A method as a published code runs it, with passes that no method here has."""

    label = "published"
    params: dict[str, Any] = Field(default_factory=dict)
    _weights: dict[str, Tensor] = PrivateAttr(default_factory=dict)
    _added: dict[str, Tensor] = PrivateAttr(default_factory=dict)
    _average: Network | None = PrivateAttr(None)

    def note(self, step: Step) -> None:
        """Keep what was added to the weights since the iteration began."""
        if not step.rehearsal:
            parameters = step.student.module.named_parameters()
            self._added = {name: p.detach() - self._weights[name] for name, p in parameters}


class PublishedAT(PublishedMethod):
    """AT-AWP: attacked in training mode; x' runs once more before the first pass, x once after the update."""

    def attack(self, step: Step) -> Tensor:
        x_adv = step.ascend(lambda x: cross_entropy(step.student(x), step.y), start=Start.UNIFORM, bn=Mode.TRAIN)
        step.student.observe(x_adv)
        return x_adv

    def loss(self, step: Step, x_adv: Tensor) -> Tensor:
        self.note(step)
        return cross_entropy(step.student(x_adv), step.y)


class PublishedTRADES(PublishedMethod):
    """TRADES-AWP: in the loss x' comes first, and x twice after it."""

    def attack(self, step: Step) -> Tensor:
        with step.still():
            clean = step.student(step.x).detach()
        return step.ascend(lambda x: kl(step.student(x), clean), start=Start.GAUSS)

    def loss(self, step: Step, x_adv: Tensor) -> Tensor:
        self.note(step)
        consistency = kl(step.student(x_adv), step.student(step.x))
        return cross_entropy(step.student(step.x), step.y) + float(self.params["beta"]) * consistency


class PublishedADR(PublishedMethod):
    """ADR with AWP: labels softened by the average, attacked in training mode. The loss that it states is the first
    pass's."""

    _rehearsed: Tensor | None = PrivateAttr(None)

    def labels(self, step: Step) -> Tensor:
        """Soft labels (B, classes): the average's where it does not contradict y much, by how far training is."""
        given = self.params
        done = (given["first_step_index"] + step.iteration - 1) / (given["epochs"] * given["iterations_per_epoch"])
        fall = 0.5 * (1 + math.cos(math.pi * done))
        tau = given["tau_low"] + (given["tau_high"] - given["tau_low"]) * fall
        most = given["lambda_high"] + (given["lambda_low"] - given["lambda_high"]) * fall
        assert self._average is not None
        with torch.no_grad():
            p = (self._average(step.x) / tau).softmax(1)
        hard = F.one_hot(step.y, p.shape[1]).to(p)
        share = (most - (p.amax(1) - (p * hard).sum(1))).clamp(0, 1)[:, None]
        soft: Tensor = share * p + (1 - share) * hard
        return soft

    def attack(self, step: Step) -> Tensor:
        soft = self.labels(step)
        return step.ascend(lambda x: _soft(step.student(x), soft), start=Start.UNIFORM, bn=Mode.TRAIN)

    def loss(self, step: Step, x_adv: Tensor) -> Tensor:
        self.note(step)
        values = _soft(step.student(x_adv), self.labels(step))
        if step.rehearsal:
            self._rehearsed = values.detach().mean()
        return values


def _soft(logits: Tensor, labels: Tensor) -> Tensor:
    return -(labels * logits.log_softmax(1)).sum(1)


PUBLISHED = {"at": PublishedAT, "trades": PublishedTRADES, "adr": PublishedADR}


def perturbed(file: Node, entry: Node, rule: dict[str, Any], result: Result) -> None:
    """Two iterations with perturbed weights: x', v, loss, and every state afterwards."""
    first, second = file["attack_inputs"], file["awp"]["inputs"]
    images = torch.tensor([*first["x_uint8"], *second["x_uint8_second"]], dtype=torch.uint8)
    split = Split(images, torch.tensor([*first["labels"], *second["labels_second"]]))
    size = len(first["labels"])
    method = PUBLISHED[rule["published"]](params=dict(entry["params"]))
    eps, step = (float(parse_fraction(str(first[key]))) for key in ("eps", "step"))
    trainer = Trainer(
        method=method,
        student=Toy(file["nets"][entry["network"]]),
        teachers={},
        dataset=Dataset("", split, split, split, 0, (), THREAT, 0, False, "", (0, 0, 0)),
        attack=Ball(eps, step, int(first["steps"])),
        validation=Ball(eps, step, 1),
        config=recipe(entry, rule).model_copy(update={"batch_size": size, "precision": "float32"}),
        seed=0,
        folder=Path(),
        device=torch.device("cpu"),
    )
    if trainer.average:
        trainer.average.network.load_state_dict(Toy(file["nets"]["peer_bn"]).state_dict())
        method._average = trainer.average.network
    trainer.set_up()
    for number, block in enumerate(entry["iterations"]):
        inputs, ending = (second, "_second") if number else (first, "")
        noise = {kind: [tensor(inputs[f"noise_{kind}{ending}"])] for kind in ("gauss", "unit")}
        method._weights = {name: p.detach().clone() for name, p in trainer.student.named_parameters()}
        trainer.iteration = number + 1
        index = torch.arange(number * size, (number + 1) * size)
        loss, (part,) = trainer.train_step(index, torch.zeros(3, size, dtype=torch.long), Recorded(noise))
        values: dict[str, Any] = {"loss": loss, "robust_loss": loss, "v": method._added}
        if isinstance(method, PublishedADR):
            values["loss"] = method._rehearsed
        if "clean_loss_after_the_step" in block:
            clean = cross_entropy(part.step.student(part.step.x), part.step.y)
            values["clean_loss_after_the_step"] = clean.mean()
        values |= {"state_after": trainer.student.state_dict()}
        values |= {"ema_after": trainer.average.network.state_dict()} if trainer.average else {}
        if "x_adv" in block:
            result.compare("x_adv", part.x_adv, block["x_adv"], PIXELS)
        for key in block.keys() - {"x_adv", "min_abs_nonzero_grad"}:
            result.compare(f"{key} {number + 1}", values[key], block[key])


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
    "awp": perturbed,
    "schedules": schedules,
}
"""What replays an entry of the reference file, or those of a section."""


def replay_of(path: str) -> Callable[[Node, Node, dict[str, Any], Result], None] | None:
    """What replays the entry at `path`; None for the entries of methods."""
    return SECTIONS.get(path) or SECTIONS.get(path.partition(".")[0])
