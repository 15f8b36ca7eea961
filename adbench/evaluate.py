"""From a network to per-image outcomes under named attacks, and from outcomes to figures.

It does not know how the network was trained. An image that is misclassified as it is counts as broken under every
attack (the image itself lies in the ball) and is not attacked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from adbench import __version__
from adbench.attacks import autoattack
from adbench.attacks.linf import Start
from adbench.attacks.named import GradientAttack, gradient_attack
from adbench.data import Split, Threat
from adbench.data.batches import to_float
from adbench.models import Network
from adbench.stats import wilson


@dataclass
class Outcome:
    """How one network fared under one attack on the first n test images.

    right: (n,) booleans, True where the prediction stayed right. definition: exactly what was run.
    """

    right: Tensor
    definition: dict[str, Any]
    seconds: float
    flags: list[str] = field(default_factory=list)

    def metric(self) -> dict[str, Any]:
        """The figure and its interval over test images, as a record states them."""
        correct, n = int(self.right.sum()), len(self.right)
        return {
            "value": correct / n,
            "correct": correct,
            "n": n,
            "ci_test": list(wilson(correct, n)),
            "seconds": self.seconds,
            "attack": self.definition,
            "flags": self.flags,
        }


OnAttack = Callable[[str, Outcome], None]


class Evaluator:
    """One network before the attacks. Outcomes arrive one by one, so that none is lost when the next fails."""

    def __init__(
        self,
        network: Network,
        test: Split,
        threat: Threat,
        *,
        seed: int,
        batch_size: int,
        device: torch.device,
        start: Start = Start.UNIFORM,
        search: str = "exact",
        shard: int = 200,
    ) -> None:
        """threat: its step is that of PGD and C&W, as `start` is theirs. search: AutoAttack's, exact or fast
        (where this device is faster in bfloat16); shard: how many images it attacks at a time.
        """
        self.network = network.to(device).eval()
        self.x = to_float(test.images.to(device))
        self.y = test.labels.to(device)
        self.threat, self.seed, self.batch_size = threat, seed, batch_size
        self.start, self.search, self.shard_size = start, search, shard
        begun = time.perf_counter()
        self.predicted = self._predict(self.x)
        self.right = self.predicted == self.y
        self.clean = Outcome(
            self.right.cpu(),
            {"name": "clean", "implementation": f"adbench {__version__}"},
            time.perf_counter() - begun,
        )

    def under(self, name: str, images: int) -> Outcome:
        """The outcome under gradient attack `name` on the first `images` test images."""
        begun = time.perf_counter()
        index = self.right[:images].nonzero().squeeze(1)
        right = torch.zeros(images, dtype=torch.bool, device=self.x.device)
        attack = gradient_attack(name, self.threat.eps, self.threat.step, self.start)
        right[index] = self._against(attack, self.network, index)
        return Outcome(right.cpu(), attack.definition(self.seed), time.perf_counter() - begun)

    def shard(self, name: str, first: int, last: int) -> Outcome:
        """The outcome under AutoAttack `name` on the test images from `first` to `last - 1`, one shard."""
        begun = time.perf_counter()
        index = first + self.right[first:last].nonzero().squeeze(1)
        right = torch.zeros(last - first, dtype=torch.bool, device=self.x.device)
        if self.search == "fast" and not autoattack.faster(self.network, self.x):
            self.search = "exact"
        classes = self._predict_logits(self.x[:1]).shape[1]
        definition = autoattack.definition(name, self.threat.eps, classes, self.seed, self.search, self.shard_size)
        right[index - first], flags = autoattack.survivors(
            self.network, self.x[index], self.y[index], self.threat.eps,
            seed=self.seed, name=name, search=self.search,
        )  # fmt: skip
        return Outcome(right.cpu(), definition, time.perf_counter() - begun, flags)

    def transferred(self, name: str, proxy_name: str, proxy: Network, images: int) -> Outcome:
        """The outcome under examples that attack `name` crafts on `proxy`, a network on the same device."""
        begun = time.perf_counter()
        attack = gradient_attack(name, self.threat.eps, self.threat.step, self.start)
        index = self.right[:images].nonzero().squeeze(1)
        right = torch.zeros(images, dtype=torch.bool, device=self.x.device)
        right[index] = self._against(attack, proxy, index)
        definition = attack.definition(self.seed) | {"proxy": proxy_name}
        return Outcome(right.cpu(), definition, time.perf_counter() - begun)

    def _against(self, attack: GradientAttack, target: Network, index: Tensor) -> Tensor:
        """Whether the evaluated network is still right at every x' crafted on `target`, for the images at `index`."""
        right = torch.ones(len(index), dtype=torch.bool, device=self.x.device)
        for restart in range(attack.restarts):
            for part in torch.split(right.nonzero().squeeze(1), self.batch_size):
                places = index[part]
                x_adv = attack(target, self.x[places], self.y[places], places, self.seed, restart)
                right[part] = self._predict(x_adv) == self.y[places]
        return right

    @torch.no_grad()
    def _predict_logits(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits

    def _predict(self, x: Tensor) -> Tensor:
        return torch.cat([self._predict_logits(part).argmax(dim=1) for part in torch.split(x, self.batch_size)])


def evaluate(
    evaluator: Evaluator,
    attacks: tuple[str, ...],
    *,
    aa_images: int | None = None,
    proxies: Mapping[str, Network] | None = None,
    transfer_attacks: tuple[str, ...] = (),
    known: Mapping[str, Outcome] | None = None,
    on_attack: OnAttack | None = None,
) -> dict[str, Outcome]:
    """All outcomes of one network by metric name: clean, the attacks, and `transfer:<proxy>:<attack>`.

    aa_images: how many of the images AutoAttack sees (the first ones; all by default). known: outcomes of an
    interrupted evaluation, which are not computed again. on_attack is called with every new one, and with every
    shard of AutoAttack ("aa, images 200 to 399").
    """
    known = known or {}
    outcomes: dict[str, Outcome] = {"clean": evaluator.clean}
    n = len(evaluator.y)
    jobs: dict[str, Callable[[], Outcome]] = {}
    for name in attacks:
        if name in autoattack.VERSIONS:
            count = min(n, aa_images or n)
            jobs[name] = lambda name=name, count=count: _by_shards(evaluator, name, count, known, on_attack)  # type: ignore[misc]
        else:
            jobs[name] = lambda name=name: evaluator.under(name, n)  # type: ignore[misc]
    for proxy_name, proxy in (proxies or {}).items():
        for name in transfer_attacks:
            jobs[f"transfer:{proxy_name}:{name}"] = (
                lambda name=name, label=proxy_name, proxy=proxy: evaluator.transferred(name, label, proxy, n)  # type: ignore[misc]
            )
    for name, job in jobs.items():
        if name in known:
            outcomes[name] = known[name]
            continue
        outcomes[name] = job()
        if on_attack:
            on_attack(name, outcomes[name])
    return outcomes


def _by_shards(
    evaluator: Evaluator, name: str, count: int, known: Mapping[str, Outcome], on_attack: OnAttack | None
) -> Outcome:
    """The outcome under AutoAttack on the first `count` images, each shard finished by itself."""
    shards = []
    for first in range(0, count, evaluator.shard_size):
        last = min(first + evaluator.shard_size, count)
        label = f"{name}, images {first} to {last - 1}"
        if label in known:
            shards.append(known[label])
            continue
        shards.append(evaluator.shard(name, first, last))
        if on_attack:
            on_attack(label, shards[-1])
    return Outcome(
        torch.cat([shard.right for shard in shards]),
        shards[0].definition,
        sum(shard.seconds for shard in shards),
        list(dict.fromkeys(flag for shard in shards for flag in shard.flags)),
    )
