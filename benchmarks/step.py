"""A whole training step of each method: adbench against the published codes' way of writing it, in one run.

    python benchmarks/step.py --methods pgd-at,rslad,adaad --teacher teacher.pt --data cifar10.npz
    python benchmarks/step.py --device cuda --batch 256 --teacher-arch wrn-34-10          # untrained: time alone

Every way takes one step in turn, so that whatever else the machine does meets all of them, and each in a process of its
own, so that none has what another does to a process (adbench keeps freed memory); times are medians. `plain`
is benchmarks/plain.py: float32, layer by layer, with torch's defaults (so that convolutions on a GPU run in TF32).
`naive` is the same under bfloat16 autocast, channels last, compiled.
`exact`, `auto` and `bfloat16` are adbench by its train.precision. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from datetime import date
from fractions import Fraction
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import plain
import torch
from torch import Tensor

from adbench.data import Dataset, Split, Threat
from adbench.experiment.config import Train
from adbench.models import build
from adbench.models.precision import multiplies_bfloat16
from adbench.registry import PAPER
from adbench.training.configured import configured
from adbench.training.step import Ball, Need
from adbench.training.trainer import Trainer
from adbench.weights.checkpoint import load

WAYS = ("plain", "naive", "exact", "auto", "bfloat16")


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the benchmarks of training share."""
    parser.add_argument("--methods", default="all", help="comma-separated; all: the paper's ten")
    parser.add_argument("--student", default="rn18")
    parser.add_argument("--teacher-arch", default="wrn-10-2")
    parser.add_argument("--teacher", type=Path, help="its weights; without them it is untrained, which costs as much")
    parser.add_argument("--data", type=Path, help=".npz with x_train and y_train; without it, random images")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=5, help="steps timed of each way, after one that warms up")


def methods(asked: str) -> tuple[str, ...]:
    return PAPER if asked == "all" else tuple(asked.split(","))


class Bench:
    """One student, its teachers and a batch, to be trained on in several ways."""

    def __init__(self, args: argparse.Namespace) -> None:
        torch.manual_seed(0)
        self.args, self.device = args, torch.device(args.device)
        shape = (args.batch, 3, 32, 32)
        if args.data:
            with np.load(args.data) as file:
                images = torch.from_numpy(file["x_train"][: args.batch]).permute(0, 3, 1, 2).contiguous()
                labels = torch.from_numpy(file["y_train"][: args.batch]).long()
        else:
            images, labels = torch.randint(256, shape, dtype=torch.uint8), torch.randint(args.classes, shape[:1])
        self.split = Split(images, labels)
        self.student = self.built(args.student)
        self.teacher, self.natural = (self.built(args.teacher_arch).eval().requires_grad_(False) for _ in range(2))
        if args.teacher:
            load(self.teacher, args.teacher)
        self.student(images[:16].to(self.device) / 255)  # statistics that are not those of an untrained network

    def built(self, name: str) -> Any:
        return build(name, classes=self.args.classes).to(self.device)

    def plain(self, method: str, *, naive: bool = False) -> Callable[[], Tensor]:
        """A step as benchmarks/plain.py writes it."""
        torch.backends.cudnn.allow_tf32 = True
        torch.manual_seed(0)
        nets = plain.Nets(copy.deepcopy(self.student), self.teacher, self.natural, plain.Policy(self.built("rn18")))
        nets.policy.to(self.device).eval()
        optimiser = torch.optim.SGD(nets.student.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)
        x, y = self.split.images.to(self.device), self.split.labels.to(self.device)
        if not naive:
            return lambda: plain.step(method, nets, optimiser, x, y)
        for net in (nets.student, nets.teacher, nets.natural, nets.policy):
            net.to(memory_format=torch.channels_last)
            net.compile(dynamic=False)

        def step() -> Tensor:
            with torch.autocast(self.device.type, torch.bfloat16):
                return plain.step(method, nets, optimiser, x, y)

        return step

    def trainer(self, method: str, precision: str = "auto", **config: Any) -> Trainer:
        """adbench's own, with the batch as its training set."""
        plugin = configured(method, {})
        teachers = {Need.TEACHER: self.teacher, Need.NATURAL_TEACHER: self.natural}
        names = tuple(map(str, range(self.args.classes)))
        threat = Threat(Fraction(8, 255), Fraction(2, 255))
        data = Dataset("benchmark", *3 * (self.split,), self.args.classes, names, threat, 4, True, "", (0, 0, 0))
        return Trainer(
            method=plugin,
            student=copy.deepcopy(self.student),
            teachers={need: copy.deepcopy(teachers[need]) for need in plugin.needed()},
            dataset=data,
            attack=Ball(plain.EPS, plain.ETA, plain.STEPS),
            validation=Ball(plain.EPS, plain.ETA, plain.STEPS),
            config=Train(epochs=1000, batch_size=self.args.batch, lr=0.01, precision=precision, **config),
            seed=0,
            folder=Path("unused"),
            device=self.device,
        )

    def ours(self, method: str, precision: str, **config: Any) -> Callable[[], Tensor]:
        """A step of the trainer; not one in which LAS-AT's policy learns, as in `plain`."""
        torch.backends.cudnn.allow_tf32 = False  # as in a run
        trainer = self.trainer(method, precision, **config)
        trainer.set_up()
        noise = torch.Generator(device=self.device).manual_seed(0)
        ((index, crops),) = trainer.batches()
        trainer.iteration = 1
        return lambda: trainer.iterate(index, crops, noise, {})

    def way(self, method: str, name: str) -> Callable[[], Tensor]:
        """A step of a method in one of WAYS."""
        made: dict[str, Callable[[], Callable[[], Tensor]]] = {
            "plain": lambda: self.plain(method),
            "naive": lambda: self.plain(method, naive=True),
            "exact": lambda: self.ours(method, "float32"),
            "auto": lambda: self.ours(method, "auto"),
            "bfloat16": lambda: self.ours(method, "bfloat16"),
        }
        return made[name]()


def steps_on_request(args: argparse.Namespace, way: str, pipe: Connection) -> None:
    """In a process of a way's own: of each method that is named, a step each time that None comes; then an answer."""
    bench = Bench(args)
    for asked in iter(pipe.recv, ""):
        if asked is not None:
            work = bench.way(asked, way)
        else:
            seconds(work, bench.device)
        pipe.send(True)


class Apart:
    """A way in a process of its own; called, it takes a step of the method that was last prepared."""

    def __init__(self, args: argparse.Namespace, way: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=steps_on_request, args=(args, way, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def prepare(self, method: str) -> None:
        self._ask(method)

    def __call__(self) -> None:
        self._ask(None)

    def end(self) -> None:
        self.pipe.send("")
        self.process.join()

    def _ask(self, asked: str | None) -> None:
        self.pipe.send(asked)
        self.pipe.recv()


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    begun = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun


def in_turn(works: Mapping[str, Callable[[], Any]], device: torch.device, rounds: int) -> dict[str, float]:
    """The median seconds of each of several works, taken in turn; the first time does not count."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            spent = seconds(work, device)
            if number:
                taken[name].append(spent)
        if len(works) > 1:
            print(
                f"round {number}:",
                *(f"{name} {values[-1]:.3f}" for name, values in taken.items() if values),
                file=sys.stderr,
            )
    return {name: statistics.median(values) for name, values in taken.items()}


def table(head: list[str], rows: list[list[str]]) -> None:
    print("| " + " | ".join(head) + " |\n| --- |" + " ---: |" * (len(head) - 1))
    for row in rows:
        print("| " + " | ".join(row) + " |", flush=True)


def heading(args: argparse.Namespace) -> None:
    """The command, the date and where it ran."""
    device = torch.device(args.device)
    where = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else f"{cpu()}, {torch.get_num_threads()} threads"
    )
    print(f"`python {' '.join(sys.argv)}`\n\n{date.today()}, {where}, torch {torch.__version__}\n", flush=True)


def cpu() -> str:
    """The processor's name, and whether it has arithmetic for bfloat16."""
    name = torch.cpu.get_capabilities().get("cpu_name", "CPU")
    return f"{name}, {'with' if multiplies_bfloat16(torch.device('cpu')) else 'without'} bfloat16"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments(parser)
    parser.add_argument("--ways", default="plain,auto", help=f"of {', '.join(WAYS)}")
    args = parser.parse_args()
    heading(args)
    ways = tuple(args.ways.split(","))
    works = {way: Apart(args, way) for way in ways}
    rows = []
    for method in methods(args.methods):
        for work in works.values():
            work.prepare(method)
        found = in_turn(works, torch.device("cpu"), args.rounds)
        first = found[ways[0]]
        rows.append(
            [method, *(f"{found[way]:.3f}" for way in ways), *(f"{first / found[way]:.2f}x" for way in ways[1:])]
        )
        print(" ".join(rows[-1]), file=sys.stderr, flush=True)
    for work in works.values():
        work.end()
    table(["method", *(f"{way} (s)" for way in ways), *(f"{ways[0]} / {way}" for way in ways[1:])], rows)


if __name__ == "__main__":
    main()
