"""AutoAttack as its authors' package runs it, and by adbench (its default, and --exact), side by side in one run.

    python benchmarks/autoattack.py teacher.pt cifar10.npz --arch wrn-10-2 --first 0 --images 256

Prints seconds, survivors and every image whose verdict differs. Nothing else should run on the machine. With --doubts,
instead: what bfloat16 alone misses, how near the boundary that was, and what a second search within it would cost.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyautoattack
import torch
from torch import Tensor

from adbench.attacks import autoattack
from adbench.data import Split, Threat
from adbench.evaluation.evaluator import Evaluator, evaluate
from adbench.models import Network, build
from adbench.weights.checkpoint import load

EPS = Fraction(8, 255)


def plain(network: Network, split: Split, device: torch.device, seed: int) -> Tensor:
    """Which images survive AutoAttack standard, called as its README says: one batch, nothing of adbench."""
    x, y = split.images.to(device).float() / 255, split.labels.to(device)
    adversary = pyautoattack.AutoAttack(
        network, norm="Linf", eps=float(EPS), version="standard", seed=seed, device=device
    )
    x_adv, _ = adversary.run_standard_evaluation(x, y, batch_size=len(x))
    with torch.no_grad():
        return (network(x_adv).argmax(1) == y).cpu()


def ours(network: Network, split: Split, device: torch.device, seed: int, search: str) -> Tensor:
    """The same verdicts from adbench, in one shard. search: fast (the default, where bfloat16 is faster) or exact."""
    evaluator = Evaluator(
        network,
        split,
        Threat(EPS, EPS / 4),
        seed=seed,
        batch_size=256,
        device=device,
        search=search,
        shard=len(split.labels),
    )
    found = evaluate(evaluator, ("aa",))["aa"]
    print(f"search: {found.definition['search']}")
    return found.right


def doubts(network: Network, split: Split, device: torch.device, seed: int, first: int) -> None:
    """What a fast search leaves standing and an exact one breaks, and how close (`autoattack.probe`) it was."""
    x, y = split.images.to(device).float() / 255, split.labels.to(device)
    with torch.no_grad():
        places = (network(x).argmax(1) == y).nonzero().squeeze(1)
    x, y, places = x[places], y[places], places + first
    fast, exact = (autoattack.attack(network, x, y, EPS, seed=seed, search=search) for search in ("fast", "exact"))
    left = ~fast.broken
    close, _ = autoattack.probe(network, x[left], y[left], EPS)
    missed = exact.broken[left]
    print(
        f"{len(x)} classified right; {int(left.sum())} survive bfloat16, {int((~exact.broken).sum())} float32; "
        f"broken by bfloat16's x' alone: {places[fast.broken & ~exact.broken].tolist()}; missed by bfloat16: "
        f"{dict(zip(places[left][missed].tolist(), close[missed].tolist(), strict=True))}"
    )
    for limit in (0.02, 0.05, 0.1, 0.2):
        beyond = int((missed & (close > limit)).sum())
        print(f"within {limit}: {int((close <= limit).sum())} searched again, {beyond} missed")


def main() -> None:
    """Time the ways asked for and compare their verdicts with the first one's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("data", help=".npz with x_test (N, H, W, C) and y_test")
    parser.add_argument("--arch", default="wrn-10-2")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--ways", default="plain,default", help="of plain, default, exact")
    parser.add_argument("--doubts", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    asked = parser.parse_args()

    device = torch.device(asked.device)
    with np.load(asked.data) as arrays:
        part = slice(asked.first, asked.first + asked.images)
        images = torch.from_numpy(arrays["x_test"][part]).permute(0, 3, 1, 2).contiguous()
        split = Split(images, torch.from_numpy(arrays["y_test"][part]).long())
    network = build(asked.arch, classes=int(split.labels.max()) + 1)
    load(network, asked.checkpoint)
    network.to(device).eval().requires_grad_(False)
    ways: dict[str, Callable[[], Tensor]] = {
        "plain": lambda: plain(network, split, device, 0),
        "default": lambda: ours(network, split, device, 0, "fast"),
        "exact": lambda: ours(network, split, device, 0, "exact"),
    }
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"torch {torch.__version__}, pyautoattack {version('pyautoattack')}, {name}")
    if asked.doubts:
        doubts(network, split, device, 0, asked.first)
        return
    first: tuple[float, Tensor] | None = None
    for way in asked.ways.split(","):
        begun = time.perf_counter()
        survives = ways[way]()
        seconds = time.perf_counter() - begun
        first = first or (seconds, survives)
        places = torch.arange(asked.first, asked.first + len(survives))
        missed, extra = places[survives & ~first[1]].tolist(), places[~survives & first[1]].tolist()
        print(
            f"{way:7} {seconds:7.1f} s  {first[0] / seconds:5.2f}x  {int(survives.sum())} of {len(survives)} survive; "
            f"only here: {missed}, only in the first way: {extra}",
            flush=True,
        )


if __name__ == "__main__":
    main()
