"""The parts of a training run: loader, attack steps, evaluation; and how much of the device's matrix rate they reach.

    python benchmarks/parts.py --teacher teacher.pt --data cifar10.npz

The rate is measured: square matrix products, the best of several. `loader` compares adbench's (uint8 on the device,
whole batches) with torchvision's transforms in a DataLoader of as many workers as there are threads.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import torch
from step import Bench, arguments, heading, in_turn, table
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from adbench.attacks.named import gradient_attack
from adbench.data.batches import cropped, draw_crops, to_float
from adbench.losses import cross_entropy
from adbench.models.flops import multiply_adds
from adbench.models.precision import Lean, Precision

SIDES = {"cpu": 2048, "cuda": 8192}
LOADED = 20
"""Batches that are loaded in a round."""


class Pictures(Dataset[tuple[Any, int]]):
    """Images one by one through transforms, as the published codes load them."""

    def __init__(self, images: torch.Tensor, count: int) -> None:
        crop = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        self.transform = transforms.Compose([transforms.ToPILImage(), *crop])
        self.images, self.count = images, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(self.images[index % len(self.images)]), 0


def rate(device: torch.device, dtype: torch.dtype, rounds: int, side: int | None = None) -> float:
    """Multiply-adds a second, in square matrices large enough for the device (or of so many rows)."""
    side = side or SIDES[device.type]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return side**3 / in_turn({"": lambda: a @ b}, device, rounds)[""]


def loaders(bench: Bench) -> dict[str, Callable[[], Any]]:
    batch, images = bench.args.batch, bench.split.images.to(bench.device)
    workers = torch.get_num_threads()
    published = DataLoader(Pictures(bench.split.images, LOADED * batch), batch_size=batch, num_workers=workers)
    generator = torch.Generator().manual_seed(0)

    def ours() -> None:
        crops = draw_crops(LOADED * batch, generator, 4, True).to(bench.device)
        for crop in crops.split(batch, dim=1):
            to_float(cropped(images, crop, 4))

    def theirs() -> None:
        for x, _ in published:
            x.to(bench.device)

    return {"torchvision": theirs, "adbench": ours}


def ascents(bench: Bench, name: str) -> dict[str, Callable[[], Any]]:
    """One gradient in the input, of the network as written and of its lean forms."""
    network = copy.deepcopy(getattr(bench, name)).eval().requires_grad_(False)
    forms = {"as written": network, "lean, float32": Lean(network, Precision("float32", lean=True))}
    if bench.args.half:
        forms["lean, bfloat16"] = Lean(network, Precision("bfloat16", lean=True))
    x, y = to_float(bench.split.images.to(bench.device)), bench.split.labels.to(bench.device)

    def gradient(form: Any) -> None:
        z = x.clone().requires_grad_()
        torch.autograd.grad(cross_entropy(form(z), y).sum(), z)

    return {label: lambda form=form: gradient(form) for label, form in forms.items()}  # type: ignore[misc]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments(parser)
    parser.add_argument("--half", action="store_true", help="also bfloat16 (slow where the device has to emulate it)")
    args = parser.parse_args()
    heading(args)
    bench = Bench(args)
    dtypes = [torch.float32, *([torch.bfloat16] if args.half else [])]
    rates = {dtype: rate(bench.device, dtype, args.rounds) for dtype in dtypes}
    print("; ".join(f"{dtype}: {value / 1e9:.0f} G multiply-adds a second" for dtype, value in rates.items()), "\n")
    rows = []
    for label, seconds in in_turn(loaders(bench), bench.device, args.rounds).items():
        rows.append([f"loader: {label}", f"{LOADED * args.batch / seconds:,.0f} images/s", ""])
    for name, architecture in (("student", args.student), ("teacher", args.teacher_arch)):
        work = 2 * args.batch * multiply_adds(getattr(bench, name), (3, 32, 32))
        for label, seconds in in_turn(ascents(bench, name), bench.device, args.rounds).items():
            share = work / seconds / rates[torch.bfloat16 if "bfloat16" in label else torch.float32]
            rows.append([f"attack step: {architecture}, {label}", f"{1 / seconds:.2f} steps/s", f"{100 * share:.0f}%"])
    pgd = gradient_attack("pgd20", Fraction(8, 255), Fraction(2, 255))
    x, y = to_float(bench.split.images.to(bench.device)), bench.split.labels.to(bench.device)
    index = torch.arange(len(y), device=bench.device)
    judged = {"": lambda: pgd(bench.teacher, x, y, index, 0, 0)}
    rows.append(
        ["evaluation: PGD-20, teacher", f"{len(y) / in_turn(judged, bench.device, args.rounds)['']:.1f} images/s", ""]
    )
    table(["part", "rate", "of the matrix rate"], rows)


if __name__ == "__main__":
    main()
