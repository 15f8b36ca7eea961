"""How a training step's time and memory grow with classes, batch, student and teacher.

    python benchmarks/growth.py classes --methods smaraad,rslad
    python benchmarks/growth.py memory --teacher-arch wrn-34-10 --methods smaraad --batch 256
    python benchmarks/growth.py batch|student|teacher --methods pgd-at,adaad

`memory` counts the bytes that autograd keeps in one step on two and on four images, and so on any number: also where
the batch itself would not fit. On a GPU it measures the peak of the whole batch besides.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from step import Bench, arguments, heading, in_turn, methods, table
from torch import Tensor

GROWING: dict[str, tuple[str, list[Any]]] = {
    "classes": ("classes", [10, 100, 1000]),
    "batch": ("batch", [16, 64, 256]),
    "student": ("student", ["cnn-16", "mn-v2", "rn18"]),
    "teacher": ("teacher_arch", ["wrn-10-2", "wrn-28-10", "wrn-34-10"]),
}
COUNTED = (2, 4)
"""Batches on which memory is counted; it is linear in their size."""


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
        self.kept, self.tensor, self.address = kept, tensor, tensor.untyped_storage().data_ptr()
        kept.count(self.address, tensor.untyped_storage().nbytes())

    def __del__(self) -> None:
        self.kept.live.pop(self.address, None)


def held(args: argparse.Namespace, method: str, precision: str, batch: int) -> tuple[int, int]:
    """The most that autograd holds in a step with one attack step, and all weights with their states, in bytes."""
    bench = Bench(argparse.Namespace(**(vars(args) | {"batch": batch})))
    trainer = bench.trainer(method, precision)
    trainer.attack = replace(trainer.attack, steps=1)
    trainer.prepare()
    ((index, crops),) = trainer.batches()
    trainer.iteration = 1
    kept = Kept()
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, kept.unpack):
        trainer.iterate(index, crops, torch.Generator(bench.device), {})
    copy = 0 if precision == "float32" else 2  # the lean form's
    student = sum(p.numel() for p in trainer.student.parameters()) * (3 * 4 + copy)  # weight, gradient, momentum
    teachers = sum(p.numel() for net in trainer.teachers.values() for p in net.module.parameters()) * (4 + copy)
    return kept.most, student + teachers


def memory(args: argparse.Namespace) -> None:
    """Of activations at the batch, of weights with their copies, gradients and momentum, and of both."""
    rows = []
    for method in methods(args.methods):
        for precision in ("float32", "bfloat16"):
            (low, weights), (high, _) = (held(args, method, precision, batch) for batch in COUNTED)
            activations = low + (high - low) / (COUNTED[1] - COUNTED[0]) * (args.batch - COUNTED[0])
            rows.append(
                [method, precision, *(f"{n / 2**30:.1f}" for n in (activations, weights, activations + weights))]
            )
            print(" ".join(rows[-1]), file=sys.stderr, flush=True)
    table([f"GiB at batch {args.batch}", "precision", "held by autograd", "weights and their states", "sum"], rows)
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
