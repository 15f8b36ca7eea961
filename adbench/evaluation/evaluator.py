"""From a network to per-image outcomes under named attacks, and from outcomes to figures.

It does not know how the network was trained. An image that is misclassified without an attack counts as broken under
every attack (the image itself lies in the ball) and is not attacked. `models/verdict.py` defines "misclassified".
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
from adbench.attacks.linf import NOT_FOLLOWED, Start
from adbench.attacks.named import GradientAttack, gradient_attack
from adbench.data import Dataset, Split, Threat
from adbench.data.batches import to_float
from adbench.models import Network
from adbench.models.verdict import Verdict, predicted, summed
from adbench.results.stats import wilson


@dataclass
class Outcome:
    """The verdicts on one network under one attack on n test images.

    right: (n,) booleans, True where the prediction stayed right. definition: the attack, exactly. x_adv: (n, C, H, W)
    or None, the last x' of each image; the image where it was not attacked or AutoAttack failed. stored: the file
    of these x', and its SHA-256. doubtful: of a shard of AutoAttack's fast search, (n,) booleans, images that float32
    has to decide.
    """

    right: Tensor
    definition: dict[str, Any]
    seconds: float
    flags: list[str] = field(default_factory=list)
    x_adv: Tensor | None = None
    stored: dict[str, str] | None = None
    doubtful: Tensor | None = None

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
            **({"adversarial": self.stored} if self.stored else {}),
        }

    def entry(self, dataset: Dataset) -> dict[str, Any]:
        """What a record says of it: `metric`, and of each class how many images stayed right and how many it has."""
        labels = dataset.test.labels[: len(self.right)]
        counts = [
            [int(self.right[labels == label].sum()), int((labels == label).sum())] for label in range(dataset.classes)
        ]
        return self.metric() | {"per_class": counts}


OnAttack = Callable[[str, Outcome], None]


class Evaluator:
    """Attacks on one network. Outcomes arrive one by one, so that none is lost when the next fails."""

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
        keep: bool = False,
    ) -> None:
        """threat: its step is that of PGD and C&W, as `start` is theirs. search: AutoAttack's, exact or fast; shard:
        how many images it attacks at a time. keep: outcomes have their adversarial examples.
        """
        self.network = network.to(device).eval()
        self.x = to_float(test.images.to(device))
        self.y = test.labels.to(device)
        self.threat, self.seed, self.batch_size = threat, seed, batch_size
        self.start, self.search, self.shard_size, self.keep = start, search, shard, keep
        begun = time.perf_counter()
        logits = self.logits(self.x)
        self.predicted = predicted(logits, self.y)
        verdict = Verdict.of(logits, self.y)
        self.right = verdict.right
        self.clean = Outcome(
            self.right.cpu(),
            {"name": "clean", "implementation": f"adbench {__version__}"},
            time.perf_counter() - begun,
            verdict.flags(),
        )

    def under(self, name: str, images: int | Tensor) -> Outcome:
        """The outcome under gradient attack `name` on the first `images` test images, or on those at places (n,)."""
        attack = gradient_attack(name, self.threat.eps, self.threat.step, self.start)
        return self._attacked(attack, self.network, images, attack.definition(self.seed))

    def transferred(self, name: str, proxy_name: str, proxy: Network, images: int | Tensor) -> Outcome:
        """The outcome under examples that attack `name` crafts on `proxy`, a network on the same device."""
        attack = gradient_attack(name, self.threat.eps, self.threat.step, self.start)
        return self._attacked(attack, proxy, images, attack.definition(self.seed) | {"proxy": proxy_name})

    def _attacked(
        self, attack: GradientAttack, source: Network, images: int | Tensor, definition: dict[str, Any]
    ) -> Outcome:
        """How the evaluated network fares at every x' crafted on `source`."""
        begun = time.perf_counter()
        index = torch.arange(images) if isinstance(images, int) else images
        index = index.to(self.x.device)
        right = self.right[index]
        unfinite, tied, nowhere = (torch.zeros_like(right) for _ in range(3))
        examples = self.x[index] if self.keep else None
        for restart in range(attack.restarts):
            for part in torch.split(right.nonzero().squeeze(1), self.batch_size):
                places = index[part]
                stuck = torch.zeros_like(right[part])
                x_adv = attack(source, self.x[places], self.y[places], places, self.seed, restart, stuck)
                nowhere[part] |= stuck
                verdict = self.verdict(x_adv, self.y[places])
                right[part], unfinite[part], tied[part] = verdict.right, verdict.unfinite, verdict.tied
                if examples is not None:
                    examples[part] = x_adv
        flags = Verdict(right, unfinite, tied).flags()
        flags += [f"{int(nowhere.sum())} images with {NOT_FOLLOWED}"] if nowhere.any() else []
        return Outcome(right.cpu(), definition, time.perf_counter() - begun, flags, examples)

    def shard(self, name: str, index: Tensor, search: str | None = None) -> Outcome:
        """The outcome under AutoAttack `name` on the test images at `index` (n,), one shard, by the search asked for.

        After a fast search it is not final where it is doubtful.
        """
        begun = time.perf_counter()
        index, search = index.to(self.x.device), search or self.search
        right = self.right[index]
        attacked = index[right]
        result = autoattack.attack(
            self.network, self.x[attacked], self.y[attacked], self.threat.eps, seed=self.seed, name=name, search=search
        )
        survived, doubtful = torch.zeros_like(right), torch.zeros_like(right)
        survived[right], doubtful[right] = ~result.broken, result.doubtful
        examples = None
        if self.keep:
            examples = self.x[index]
            examples[right] = result.x_adv
        return Outcome(
            survived.cpu(),
            self.autoattack(name),
            time.perf_counter() - begun,
            result.flags,
            x_adv=examples,
            doubtful=doubtful.cpu(),
        )

    def autoattack(self, name: str) -> dict[str, Any]:
        """The definition of AutoAttack `name` as this evaluation runs it."""
        classes = self.logits(self.x[:1]).shape[1]
        return autoattack.definition(name, self.threat.eps, classes, self.seed, self.search, self.shard_size)

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of images x (B, C, H, W), a batch at a time."""
        return torch.cat([self.network(part) for part in torch.split(x, self.batch_size)])

    def verdict(self, x: Tensor, y: Tensor) -> Verdict:
        """Whether the network is right on images x (B, C, H, W) with labels y (B,)."""
        return Verdict.of(self.logits(x), y)


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
    known = _still_due(evaluator, known or {})
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


def _still_due(evaluator: Evaluator, known: Mapping[str, Outcome]) -> dict[str, Outcome]:
    """Known outcomes, except for AutoAttack's of another definition, left by another version of adbench."""

    def due(label: str, outcome: Outcome) -> bool:
        name = label.partition(",")[0]
        return name not in autoattack.VERSIONS or outcome.definition == evaluator.autoattack(name)

    return {label: outcome for label, outcome in known.items() if due(label, outcome)}


def _by_shards(
    evaluator: Evaluator, name: str, count: int, known: Mapping[str, Outcome], on_attack: OnAttack | None
) -> Outcome:
    """The outcome under AutoAttack on the first `count` images, shard by shard.

    The images that a fast search leaves doubtful, in all shards, are searched again in shards of their own.
    """

    def finished(label: str, index: Tensor, search: str | None = None) -> Outcome:
        if label in known:
            return known[label]
        outcome = evaluator.shard(name, index, search)
        if on_attack:
            on_attack(label, outcome)
        return outcome

    shards = [
        finished(f"{name}, images {int(index[0])} to {int(index[-1])}", index)
        for index in torch.split(torch.arange(count), evaluator.shard_size)
    ]
    right = torch.cat([shard.right for shard in shards])
    examples = torch.cat([shard.x_adv for shard in shards if shard.x_adv is not None]) if evaluator.keep else None
    doubtful = torch.cat([shard.doubtful for shard in shards if shard.doubtful is not None])
    several = max(1, evaluator.shard_size // autoattack.STARTS)
    again = torch.split(doubtful.nonzero().squeeze(1), several) if doubtful.any() else ()
    for number, index in enumerate(again, 1):
        shards.append(finished(f"{name}, doubtful images, part {number} of {len(again)}", index, "again"))
        right[index] = shards[-1].right
        if examples is not None and shards[-1].x_adv is not None:
            examples[index.to(examples.device)] = shards[-1].x_adv.to(examples.device)
    return Outcome(
        right,
        shards[0].definition,
        sum(shard.seconds for shard in shards),
        summed(flag for shard in shards for flag in shard.flags),
        examples,
    )
