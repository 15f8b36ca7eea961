"""How a training step's time and memory grow with classes, batch, student and teacher.

    python benchmarks/growth.py classes --methods smaraad,rslad
    python benchmarks/growth.py memory --teacher-arch wrn-34-10 --methods smaraad --batch 256
    python benchmarks/growth.py batch|student|teacher --methods pgd-at,adaad

`memory` counts the bytes that autograd keeps in one step, without computing it. On a GPU it measures the peak besides.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import torch
from step import Bench, arguments, heading, in_turn, methods, table
from torch import Tensor
from torch._subclasses import FakeTensorMode

from adbench.models import build, count_parameters
from adbench.training.configured import configured
from adbench.training.step import Ball, Net, Step, Teacher

GROWING: dict[str, tuple[str, list[Any]]] = {
    "classes": ("classes", [10, 100, 1000]),
    "batch": ("batch", [16, 64, 256]),
    "student": ("student", ["cnn-16", "mn-v2", "rn18"]),
    "teacher": ("teacher_arch", ["wrn-10-2", "wrn-28-10", "wrn-34-10"]),
}


def grow(args: argparse.Namespace) -> None:
    name, values = GROWING[args.what]
    benches = {value: Bench(argparse.Namespace(**(vars(args) | {name: value}))) for value in values}
    rows = []
    for method in methods(args.methods):
        works: dict[str, Callable[[], Any]] = {str(v): bench.ours(method, "auto") for v, bench in benches.items()}
        found = in_turn(works, torch.device(args.device), args.rounds)
        first = found[str(values[0])]
        rows.append([method, *(f"{seconds:.3f} ({seconds / first:.2f}x)" for seconds in found.values())])
        print(" ".join(rows[-1]), file=sys.stderr, flush=True)
    table([f"seconds a step, {args.what}", *map(str, values)], rows)


class Kept:
    """Counts the bytes that autograd holds at a time, each storage once."""

    def __init__(self) -> None:
        self.live: dict[int, int] = {}
        self.most = 0

    def pack(self, tensor: Tensor) -> _Held:
        return _Held(self, tensor)

    @staticmethod
    def unpack(held: _Held) -> Tensor:
        return held.tensor

    def count(self, address: int, size: int) -> None:
        self.live[address] = size
        self.most = max(self.most, sum(self.live.values()))


class _Held:
    """A tensor that autograd keeps; it is counted until it is dropped."""

    def __init__(self, kept: Kept, tensor: Tensor) -> None:
        self.kept, self.tensor, self.address = kept, tensor, tensor.untyped_storage()._cdata
        kept.count(self.address, tensor.untyped_storage().nbytes())

    def __del__(self) -> None:
        self.kept.live.pop(self.address, None)


def held(args: argparse.Namespace, method: str) -> tuple[int, int]:
    """The most that autograd holds in a step with one attack step, and all weights with their states, in bytes.

    On tensors that have a shape and no content: nothing is computed, so any batch and network can be asked for. Every
    layer in float32 and as written; the lean form in bfloat16 needs about half.
    """
    kept, plugin = Kept(), configured(method, {})
    with FakeTensorMode(), torch.autograd.graph.saved_tensors_hooks(kept.pack, kept.unpack):
        student = Net(build(args.student, classes=args.classes).train())
        teachers = {need: Teacher(build(args.teacher_arch, classes=args.classes)) for need in plugin.needed()}
        step = Step(
            x=torch.rand(args.batch, 3, 32, 32),
            y=torch.zeros(args.batch, dtype=torch.long),
            student=student,
            epoch=9,
            epochs=10,
            iteration=1,
            lr=0.1,
            threat=Ball(8 / 255, 2 / 255, 1),
            generator=torch.Generator(),
            teachers=teachers,
        )
        plugin.setup(step)
        plugin.loss(step, plugin.attack(step)).mean().backward()
    weights = 3 * count_parameters(student.module)  # with gradient and momentum
    weights += sum(count_parameters(net.module) for net in teachers.values())
    return kept.most, 4 * weights


def memory(args: argparse.Namespace) -> None:
    """What autograd keeps, weights with gradients and momentum, and both."""
    rows = []
    for method in methods(args.methods):
        activations, weights = held(args, method)
        parts = (activations, weights, activations + weights)
        rows.append([method, *(f"{n / 2**30:.1f}" for n in parts)])
    table([f"GiB at batch {args.batch}, float32", "held by autograd", "weights and their states", "sum"], rows)
    if torch.device(args.device).type == "cuda":
        for method in methods(args.methods):
            work = Bench(args).ours(method, "auto")
            torch.cuda.reset_peak_memory_stats()
            work()
            print(f"\nmeasured, {method}: {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*GROWING, "memory"])
    arguments(parser)
    args = parser.parse_args()
    heading(args)
    memory(args) if args.what == "memory" else grow(args)


if __name__ == "__main__":
    main()
