"""Does the fast form compute what float32, layer by layer, computes? On real images and real networks.

    python benchmarks/equivalence.py --teacher teacher.pt --data cifar10.npz --batch 16
    python benchmarks/equivalence.py --teacher teacher.pt --data cifar10.npz --train 3 --student cnn-16 --methods trades

First form: each method's attack gradient (at its start, and at a random point of the ball), loss and gradient in the
weights, by the lean form in float32 and in bfloat16, against float32 as written. The gradients' relative error is
|g - g32| / |g32|; a sign attack sees the share of equal signs. The student is trained naturally for a few steps first.
With --train SEEDS: a short recipe trained each way, and the robust accuracy of the outcomes.

A CPU that does not multiply bfloat16 matrices has it done by float32 products of bfloat16 operands, the result rounded
to bfloat16: the arithmetic of the hardware that has them, much faster than PyTorch's own fallback.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import sys
import tempfile
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from step import Bench, arguments, heading, methods, table
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from adbench.attacks.linf import Start, ascend, start_point
from adbench.data import Dataset, Split, Threat
from adbench.data.batches import to_float
from adbench.experiment.config import Train
from adbench.losses import cross_entropy
from adbench.models import build
from adbench.models.precision import AS_WRITTEN, Precision, multiplies_bfloat16
from adbench.training.configured import configured
from adbench.training.step import Ball, Mode, Need, Net, Step, Teacher
from adbench.training.trainer import Trainer

BALL = Ball(8 / 255, 2 / 255, 10)
PRECISIONS = {"float32": Precision("float32", lean=True), "bfloat16": Precision("bfloat16", lean=True)}


class Products(TorchDispatchMode):
    """bfloat16 convolutions and matrix products by float32 ones, whose results are rounded."""

    NAMES = frozenset({"aten::convolution", "aten::convolution_backward", "aten::mm", "aten::addmm"})

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = [x for x in args if isinstance(x, Tensor)]
        if func._schema.name not in self.NAMES or all(x.dtype != torch.bfloat16 for x in found):
            return func(*args, **(kwargs or {}))
        wide = tree_map_only(Tensor, lambda x: x.float(), args)
        return tree_map_only(Tensor, lambda x: x.bfloat16(), func(*wide, **(kwargs or {})))


@dataclass
class Probe(Step):
    """A step whose attack takes gradients at two points and goes nowhere."""

    gradients: list[Tensor] = field(default_factory=list)

    def ascend(
        self, objective: Any, *, start: Any, bn: Mode = Mode.EVAL, exact_first: bool = False, **_: Any
    ) -> Tensor:
        begun = start if isinstance(start, Tensor) else start_point(self.x, start, BALL.eps, self.generator)
        inside = start_point(self.x, Start.UNIFORM, BALL.eps, self.generator)
        for point, exact in ((begun, exact_first), (inside, False)):
            z = point.detach().clone().requires_grad_()
            with self.still(bn), self.still(bn, exact=exact), torch.enable_grad():
                value = objective(z).sum()
            self.gradients.append(torch.autograd.grad(value, z)[0])
        return inside.detach()


def probed(bench: Bench, method: str, precision: Precision) -> tuple[list[Tensor], Tensor, Tensor]:
    """Attack gradients at both points, losses, and the gradient in the weights as one vector."""
    torch.manual_seed(0)
    plugin = configured(method, {})
    nets = {Need.TEACHER: bench.teacher, Need.NATURAL_TEACHER: bench.natural}
    student = copy.deepcopy(bench.student).train()
    step = Probe(
        x=to_float(bench.split.images.to(bench.device)),
        y=bench.split.labels.to(bench.device),
        student=Net(student, precision),
        epoch=9,
        epochs=10,
        iteration=1,
        lr=0.1,
        threat=BALL,
        generator=torch.Generator(bench.device).manual_seed(0),
        teachers={need: Teacher(copy.deepcopy(nets[need]), precision) for need in plugin.needed()},
    )
    plugin.setup(step)
    step.generator.manual_seed(1)
    loss = plugin.loss(step, plugin.attack(step))
    loss.mean().backward()
    weights = torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])
    return step.gradients, loss.detach(), weights


def apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def same_signs(one: Tensor, other: Tensor) -> float:
    return float((one.sign() == other.sign()).double().mean())


def gradients(args: argparse.Namespace) -> None:
    bench = Bench(args)
    settle(bench, args)
    rows = []
    for method in methods(args.methods):
        exact = probed(bench, method, AS_WRITTEN)
        for name, precision in PRECISIONS.items():
            found = probed(bench, method, precision)
            row = [method, name]
            for mine, theirs in zip(found[0], exact[0], strict=True):
                row += [f"{apart(mine, theirs):.1e}", f"{100 * same_signs(mine, theirs):.2f}%"]
            row += [f"{apart(found[1], exact[1]):.1e}", f"{apart(found[2], exact[2]):.1e}"]
            rows.append(row)
            print(" ".join(row), file=sys.stderr, flush=True)
    table(
        [
            "method",
            "precision",
            "start: error",
            "equal signs",
            "in the ball: error",
            "equal signs",
            "loss: error",
            "weights' gradient: error",
        ],
        rows,
    )


def settle(bench: Bench, args: argparse.Namespace) -> None:
    """Some steps of natural training, so that the student is not a random function."""
    with np.load(args.data) as data:
        images, labels = torch.from_numpy(data["x_train"]), torch.from_numpy(data["y_train"]).long()
    optimiser = torch.optim.SGD(bench.student.parameters(), 0.02, momentum=0.9)
    for begin in range(0, 32 * args.settle, 32):
        x = to_float(images[begin : begin + 32].permute(0, 3, 1, 2)).to(bench.device)
        loss = F.cross_entropy(bench.student(x), labels[begin : begin + 32].to(bench.device))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def short_recipe(args: argparse.Namespace) -> None:
    """Train each method in every way that is asked for with every seed, and attack the outcomes in float32."""
    with np.load(args.data) as data:
        x, y, x_test, y_test = (torch.from_numpy(data[key]) for key in ("x_train", "y_train", "x_test", "y_test"))
    train, val = (
        Split(x[a:b].permute(0, 3, 1, 2).contiguous(), y[a:b].long()) for a, b in ((0, args.images), (49_900, 50_000))
    )
    test = Split(x_test[:1000].permute(0, 3, 1, 2).contiguous(), y_test[:1000].long())
    threat = Threat(Fraction(8, 255), Fraction(2, 255))
    dataset = Dataset("cifar10", train, val, test, 10, tuple(map(str, range(10))), threat, 4, True, "", (0, 0, 0))
    bench = Bench(args)
    rows = []
    for method in methods(args.methods):
        found: dict[str, list[tuple[float, float]]] = {}
        for precision in args.precisions:
            for seed in range(args.train):
                accuracy = outcome(bench, args, method, dataset, precision, seed)
                found.setdefault(precision, []).append(accuracy)
                print(method, precision, seed, *accuracy, file=sys.stderr, flush=True)
        for number, what in enumerate(("clean", "PGD-10")):
            ways = {precision: [each[number] for each in seeds] for precision, seeds in found.items()}
            first, *others = ways.values()
            apart = [[b - a for a, b in zip(first, other, strict=True)] for other in others]
            rows.append([method, what, *map(spelt, ways.values()), *map(spelt, apart)])
    minus = [f"{other} - {args.precisions[0]}, seed by seed" for other in args.precisions[1:]]
    table(["method", "accuracy (%)", *args.precisions, *minus], rows)


def outcome(
    bench: Bench, args: argparse.Namespace, method: str, dataset: Dataset, precision: str, seed: int
) -> tuple[float, float]:
    """Clean and robust accuracy (%) on 1,000 test images after a short training."""
    torch.manual_seed(seed)
    plugin = configured(method, {"gamma": 10.0} if method.startswith("smaraad") else {})
    nets = {Need.TEACHER: bench.teacher, Need.NATURAL_TEACHER: bench.natural}
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            method=plugin,
            student=build(args.student, classes=10),
            dataset=dataset,
            seed=seed,
            folder=Path(folder),
            teachers={need: copy.deepcopy(nets[need]) for need in plugin.needed()},
            attack=replace(BALL, steps=args.steps),
            validation=BALL,
            device=bench.device,
            config=Train(epochs=args.epochs, batch_size=args.batch, precision=precision, val_every=args.epochs),
        )
        trainer.run(lambda _: None, lambda *_: None)
    with Net(trainer.student).still():
        x, y = to_float(dataset.test.images.to(bench.device)), dataset.test.labels.to(bench.device)
        noise = torch.Generator(bench.device).manual_seed(0)
        x_adv = ascend(
            x,
            lambda z: cross_entropy(trainer.student(z), y),
            eps=BALL.eps,
            step=BALL.step,
            steps=BALL.steps,
            start=Start.UNIFORM,
            generator=noise,
        )
        return tuple(100 * float((trainer.student(z).argmax(1) == y).double().mean()) for z in (x, x_adv))  # type: ignore[return-value]


def spelt(values: list[float]) -> str:
    """Mean and the 95% Student-t interval of the mean over seeds."""
    if len(values) < 2:
        return f"{values[0]:.1f}"
    from scipy.stats import t

    half = t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.mean(values):.1f} ± {half:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments(parser)
    parser.add_argument(
        "--settle", type=int, default=20, help="steps of natural training before gradients are compared"
    )
    parser.add_argument("--train", type=int, metavar="SEEDS", help="train both ways with so many seeds")
    parser.add_argument("--images", type=int, default=1024, help="training images of that")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5, help="of its inner ascent")
    parser.add_argument(
        "--precisions",
        type=lambda names: names.split(","),
        default=["float32", "auto", "bfloat16"],
        metavar="NAMES",
        help="ways of that, compared with the first; auto is the lean form in float32 from cnn-32 on",
    )
    args = parser.parse_args()
    heading(args)
    with nullcontext() if multiplies_bfloat16(torch.device(args.device)) else Products():
        short_recipe(args) if args.train else gradients(args)


if __name__ == "__main__":
    main()
