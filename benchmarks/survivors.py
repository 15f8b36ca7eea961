"""How often survivors of honest records fall anew, and how surely false ones are found (docs/evaluation.md).

    python benchmarks/survivors.py --attack pgd20 --honest 100 --forged 20

A small CNN is trained adversarially on synthetic images (8 x 8, ten classes), and judged on 1,000 (--images). The
honest record is judged with many seeds of `--survivors 200`, then with 3 points of false survivors, images that the
attack breaks. AutoAttack (--attack aa) takes a minute a seed and more.
"""

from __future__ import annotations

import argparse
from fractions import Fraction
from functools import partial
from typing import Any

import torch
from torch import Tensor

from adbench.attacks.linf import Start, ascend
from adbench.data import Split, Threat
from adbench.evaluation.evaluator import Evaluator, evaluate
from adbench.losses import cross_entropy
from adbench.models import Network, build
from adbench.verification.reattack import Anew

FALSE, DRAWN = 0.03, 200


def loss(network: Network, y: Tensor, x: Tensor) -> Tensor:
    """Cross-entropies (B,)."""
    return cross_entropy(network(x), y)


def problem(eps: float, images: int) -> tuple[Network, Split]:
    """A network that stands on about a quarter of up to 1,000 images, and these."""
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(1)
    centres = 0.3 + 0.4 * torch.rand(10, 1, 8, 8, generator=generator)
    y = torch.arange(3000) % 10
    x = (centres[y] + 0.3 * torch.randn(3000, 1, 8, 8, generator=generator)).clamp(0, 1)
    network = build("cnn-8", classes=10, channels=1)
    optimiser = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9)
    for step in range(300):
        index = torch.randint(0, 2000, (64,), generator=generator)
        network.eval()
        x_adv = ascend(
            x[index],
            partial(loss, network, y[index]),
            eps=eps,
            step=eps / 3,
            steps=5,
            start=Start.UNIFORM,
            generator=generator,
        )
        network.train()
        optimiser.zero_grad()
        loss(network, y[index], x_adv).mean().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if step == 200:
            optimiser.param_groups[0]["lr"] = 0.005
    return network.eval(), Split((255 * x[2000:]).round().to(torch.uint8), y[2000:]).first(images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--attack", default="pgd20")
    parser.add_argument("--eps", type=Fraction, default=Fraction(16, 255))
    parser.add_argument("--honest", type=int, default=100)
    parser.add_argument("--forged", type=int, default=20)
    parser.add_argument("--images", type=int, default=1000)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    network, test = problem(float(asked.eps), asked.images)
    threat = Threat(asked.eps, asked.eps / 4)
    settings: dict[str, Any] = {"search": "exact", "shard": 200, "start": Start.UNIFORM}
    evaluator = Evaluator(network, test, threat, seed=0, batch_size=250, device=torch.device("cpu"), **settings)
    right = evaluate(evaluator, (asked.attack,))[asked.attack].right
    broken = (evaluator.right.cpu() & ~right).nonzero().squeeze(1)
    print(
        f"{asked.attack}, eps {asked.eps}: clean {int(evaluator.right.sum())}, robust {int(right.sum())} of {len(test)}"
    )
    false = round(FALSE * len(test))
    inflated = right.clone()
    inflated[broken[torch.randperm(len(broken), generator=torch.Generator().manual_seed(3))[:false]]] = True
    for kind, verdicts, seeds in (("honest", right, asked.honest), (f"{false} false", inflated, asked.forged)):
        found = [
            Anew(network, test, threat, evaluator, settings, len(test), {}, seed).of(asked.attack, verdicts, DRAWN)
            for seed in range(seeds)
        ]
        if found:
            drawn, fell = sum(one.drawn for one in found), sum(one.fell for one in found)
            passed = sum(one.holds for one in found)
            print(
                f"{kind}: {passed} of {seeds} seeds pass; {fell} of {drawn} drawn survivors fell anew "
                f"({100 * fell / drawn:.2f}%), false {sum(one.false for one in found)}",
                flush=True,
            )


if __name__ == "__main__":
    main()
