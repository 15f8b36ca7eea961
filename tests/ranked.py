"""Trainings in float64 and without randomness, shared by however many processes torchrun starts.

    torchrun --standalone --nproc-per-node 2 tests/ranked.py OUT METHOD/WAY ...

WAY: "written", every layer as it is; "lean", the lean form; "parts", in micro-batches of 12 images; "moving",
with batch-norm in training mode under attack; "perturbed" and "restored", with perturbed weights and an average;
"mixed", with images of two sources besides, mixed. Each rank leaves OUT/<method>-<way>-<rank>.pt. Noise is a function
of the image, so that an image meets the same on whatever rank it is.
"""

from __future__ import annotations

import json
import sys
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from adbench.methods.las_at import LASAT
from adbench.methods.pgd_at import PGDAT
from torch import Tensor, nn

from adbench.attacks import linf
from adbench.data import load
from adbench.experiment.config import Train
from adbench.losses import cross_entropy
from adbench.models import build
from adbench.models.precision import Precision
from adbench.training import distributed, trainer
from adbench.training.configured import configured
from adbench.training.parts import Part
from adbench.training.step import Ball, Need, Step

HYPER: dict[str, dict[str, Any]] = {
    "las-at": {"policy": "cnn-4", "interval": 1, "policy_lr": 0.1},
    "iad": {"begin_frac": 0.5},
    "smaraad": {"gamma": 10.0},
    "smaraad-pp": {"gamma": 10.0},
    "lbgat": {"natural": "cnn-4"},
    "ciard": {"teacher_lr": 0.05, "extra_forwards": "authors"},
}
DIFFERING = ("seconds", "images_per_second")
RECIPES: dict[str, dict[str, Any]] = {
    "parts": {"micro_batch": 12},
    "perturbed": {"awp": 0.05, "average": "swa", "schedule": "cosine", "per": "iteration"},
    "mixed": {
        "awp": 0.05,
        "average": "swa",
        "schedule": "cosine",
        "augment": ["randaugment", "cutout(3)", "cutmix", "mixup"],
    },
    "restored": {"awp": 0.05, "awp_form": "restore-first", "average": "ema", "average_decay": 0.9, "micro_batch": 12},
}
BATCH, IMAGES = 32, 38
"""A batch of which three ranks have 10, 11 and 11 images, and one of six."""


def without_randomness() -> None:
    """Noise from the image's own pixels; of LAS-AT's strategies the likeliest."""

    def noise(x: Tensor, _: Any) -> Tensor:
        return torch.sin(997 * x + torch.arange(x[0].numel(), dtype=x.dtype).view(x[0].shape))

    def likeliest(_: LASAT, logits: dict[str, Tensor], __: Any) -> dict[str, Tensor]:
        return {name: head.argmax(dim=1) for name, head in logits.items()}

    linf.gauss_noise = linf.unit_noise = noise
    LASAT.sample = likeliest  # type: ignore[method-assign]


def more_images(way: str, folder: Path) -> dict[str, Any]:
    """A second source of images, for the way of training that has one."""
    if way != "mixed":
        return {}
    draw = np.random.default_rng(0)
    path = folder.with_suffix(".npz")
    np.savez(path, image=draw.integers(0, 256, (40, 8, 8), dtype=np.uint8), label=np.arange(40) % 10)
    return {"extra": str(path), "extra_share": 0.5}


def trained(name: str, way: str, mine: distributed.Ranks, folder: Path) -> dict[str, Any]:
    """What a training of two epochs leaves on this rank."""
    torch.manual_seed(0)
    method = configured(name, HYPER.get(name, {}) | ({"attack_bn": "train"} if way == "moving" else {}))
    dataset = load("digits", folder, train_images=IMAGES, val_images=16, test_images=16, **more_images(way, folder))
    student, *teachers = (build("cnn-4", classes=10, channels=1) for _ in range(3))
    it = trainer.Trainer(
        method=method,
        student=student,
        teachers={need: net for need, net in zip(Need, teachers, strict=True) if need in method.needed()},
        dataset=dataset,
        attack=Ball(0.1, 0.03, 2),
        validation=Ball(0.1, 0.03, 1),
        config=Train(epochs=2, batch_size=BATCH, lr=0.05, **RECIPES.get(way, {})),
        seed=0,
        folder=folder,
        device=torch.device("cpu"),
        ranks=mine,
    )
    if way == "lean":
        it.precision = Precision(lean=True)
    entries: list[dict[str, Any]] = []
    summary = it.run(entries.append, lambda *_: None)
    return {
        "weights": it.student.state_dict(),
        "method": method.state_dict(),
        "parts": it.parts.state(),
        "judged": it.judged.state_dict(),
        "log": [{key: value for key, value in entry.items() if key not in DIFFERING} for entry in entries],
        "devices": summary.devices,
        "files": sorted(path.name for path in folder.iterdir()),
    }


def main(out: Path, wanted: list[str]) -> None:
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    without_randomness()
    with distributed.joined(torch.device("cpu")) as mine:
        for name in wanted:
            method, way = name.split("/")
            with tempfile.TemporaryDirectory() as folder:
                found = trained(method, way, mine, Path(folder))
            torch.save(found, out / f"{method}-{way}-{mine.rank}.pt")
        if not mine.first:
            mine.wait_for_lead(print)  # ends when the first rank leaves


class Counting(PGDAT):
    """Remembers, of every batch, how many images there are of each class, and the extremes of their indices.

    Without noise, and with networks of its own after the student's.
    """

    def attack(self, step: Step) -> Tensor:
        return step.x

    def parts(self, _: Step) -> dict[str, Any]:
        norm = nn.BatchNorm1d(10)
        return {"head": nn.Linear(10, 10), "norm": Part(norm, torch.optim.Adam(norm.parameters(), 0.01))}

    def loss(self, step: Step, x_adv: Tensor) -> Tensor:
        total = step.total(torch.bincount(step.y, minlength=10))
        least, most = step.extremes(step.index)
        SEEN.append([step.iteration, step.iterations, *total.tolist(), least.item(), most.item()])
        return cross_entropy(step.parts["norm"](step.parts["head"](step.student(x_adv))), step.y)


SEEN: list[list[int]] = []


def counted(out: Path) -> None:
    """What `Counting` remembers and learns on this rank in two epochs whose last batch has two images."""
    torch.set_default_dtype(torch.float64)
    with distributed.joined(torch.device("cpu")) as mine:
        it = trainer.Trainer(
            method=Counting(),
            student=build("cnn-4", classes=10, channels=1),
            teachers={},
            dataset=load("digits", out, train_images=26, val_images=16, test_images=16),
            attack=Ball(0.1, 0.03, 1),
            validation=Ball(0.1, 0.03, 1),
            config=Train(epochs=2, batch_size=12),
            seed=0,
            folder=out / "cell",
            device=torch.device("cpu"),
            ranks=mine,
        )
        it.run(lambda _: None, lambda *_: None)
        (out / f"{mine.rank}.json").write_text(json.dumps(SEEN))
        # Without running variances: that of a batch with copies is corrected for the number of all of them.
        torch.save([[*net.parameters()] for net in (it.student, *it.parts.modules.values())], out / f"{mine.rank}.pt")
        if not mine.first:
            mine.wait_for_lead(print)


class OneSided(PGDAT):
    """Fails on one device alone, while the other waits for its gradients."""

    def loss(self, step: Step, x_adv: Tensor) -> Tensor:
        if step.ranks.rank == 1:
            raise ValueError("no such luck")
        return super().loss(step, x_adv)


def one_sided(folder: Path) -> None:
    """A training that fails on one rank; then the first begins another, and the second asks for it."""
    distributed.PATIENCE = timedelta(seconds=2)
    device = torch.device("cpu")
    with distributed.joined(device) as mine:
        it = trainer.Trainer(
            method=OneSided(),
            student=build("cnn-4", classes=10, channels=1),
            teachers={},
            dataset=load("digits", folder, train_images=64, val_images=16, test_images=16),
            attack=Ball(0.1, 0.03, 1),
            validation=Ball(0.1, 0.03, 1),
            config=Train(epochs=1, batch_size=32),
            seed=0,
            folder=folder,
            device=device,
            ranks=mine,
        )
        try:
            it.run(lambda _: None, lambda *_: None)
        except Exception as error:
            print(f"[{mine.rank}] {type(error).__name__}: {error}", flush=True)
        if mine.first:
            mine.lead("another training")
        else:
            mine.wait_for_lead(lambda work: print(f"begun: {work}"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
