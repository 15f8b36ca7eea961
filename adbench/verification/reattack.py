"""Networks attacked anew: whether what a record calls survivors survive.

An x' proves that an image can be broken; nothing proves that it cannot, so a false record has false survivors. `Anew`
draws some of each attack's survivors and attacks them with that attack under a seed that nobody could foresee. An
honest survivor may fall to another start too: where two or more do, they are attacked once more as recorded, and those
that hold count as survivors. What is left are images of which the record says what its own attack does not give:
of honest records `HONEST` of the survivors at most, by rounding and by AutoAttack's shards on other processors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adbench.attacks import autoattack
from adbench.data import Split, Threat
from adbench.evaluation.evaluator import Evaluator, evaluate
from adbench.evaluation.masking_rules import CHANCE, most
from adbench.models import Network
from adbench.seeding import derive

HONEST = 0.002
"""The share of an honest record's survivors that fall anew, at most: measured in docs/evaluation.md."""

REPEATED = 0.0005
"""The share of images that fare worse when the very attack of the record is repeated, at most: rounding alone."""

AS_MANY = 2
"""Where two survivors or more are false, but no more than the limit, so many times the images are drawn in addition."""

DEFAULT = 200
"""Survivors of each attack that `--survivors` draws."""


@dataclass(frozen=True)
class Reattacked:
    """How the drawn survivors of one attack fared: images drawn of how many, that fell, and as recorded too."""

    drawn: int
    survivors: int
    fell: int
    false: int

    @property
    def limit(self) -> int:
        return most(self.drawn, HONEST)

    @property
    def tells(self) -> bool:
        """Whether so many were drawn, or all of none, that a false record would be contradicted."""
        return not self.drawn or self.drawn > self.limit

    @property
    def holds(self) -> bool:
        return self.false <= self.limit

    def __str__(self) -> str:
        again = f", {self.false} of them under the recorded seed as well" if self.fell > 1 else ""
        return (
            f"of {self.drawn} of {self.survivors} survivors attacked anew, {self.fell} fell{again}; honest records "
            f"have at most {self.limit} (rate {100 * HONEST:g}%, error probability {CHANCE:g})"
        )


def judged(
    survivors: Tensor,
    count: int,
    generator: torch.Generator,
    fall: Callable[[Tensor], Tensor],
    false: Callable[[Tensor, int], int],
) -> Reattacked:
    """Draw `count` of the `survivors`, places (S,) in the test set; where that is not clear, `AS_MANY` times as many.

    fall: which of the places given it fall to the attack anew, (n,) booleans. false: how many of the places given it
    fall to the attack as recorded; it may stop counting beyond the number given.
    """
    order = survivors[torch.randperm(len(survivors), generator=generator)]
    drawn, fallen, wrong = 0, torch.zeros(0, dtype=torch.int64), 0
    for stage in (count, AS_MANY * count):
        part = order[drawn : drawn + stage]
        drawn += len(part)
        fallen = torch.cat([fallen, part[fall(part)]]) if len(part) else fallen
        wrong = len(fallen)
        if wrong > 1:
            wrong = false(fallen, most(drawn, HONEST))
        if wrong < 2 or wrong > most(drawn, HONEST):
            break
    return Reattacked(drawn, len(survivors), len(fallen), wrong)


@dataclass(frozen=True)
class Anew:
    """A network on its test images, attacked as its record says, but under another seed.

    as_recorded: the evaluation of the record. settings: how AutoAttack searches, for `Evaluator`. images: how many of
    the test images AutoAttack saw. proxies: those at hand, by name.
    """

    network: Network
    test: Split
    threat: Threat
    as_recorded: Evaluator
    settings: Mapping[str, Any]
    images: int
    proxies: Mapping[str, Network]
    seed: int

    def of(self, label: str, right: Tensor, count: int) -> Reattacked:
        """Judge `count` of the survivors of the attack `label`, which are at the places where `right` (n,) is True."""
        generator = torch.Generator().manual_seed(derive(self.seed, "survivors", label))
        return judged(
            right.nonzero().squeeze(1),
            count,
            generator,
            lambda places: self._fall(label, places),
            lambda places, limit: self._false(label, places, limit),
        )

    def _fall(self, label: str, places: Tensor) -> Tensor:
        device = self.as_recorded.x.device
        part = Split(self.test.images[places], self.test.labels[places])
        seed, size = derive(self.seed, "anew") % 2**31, self.as_recorded.batch_size
        evaluator = Evaluator(
            self.network, part, self.threat, seed=seed, batch_size=size, device=device, **self.settings
        )
        proxy, name = _parts(label)
        if proxy is None:
            outcomes = evaluate(evaluator, (name,))
        else:
            outcomes = evaluate(evaluator, (), proxies={proxy: self.proxies[proxy]}, transfer_attacks=(name,))
        return ~outcomes[label].right

    def _false(self, label: str, places: Tensor, limit: int) -> int:
        proxy, name = _parts(label)
        if name not in autoattack.VERSIONS:
            evaluator = self.as_recorded
            if proxy is None:
                return int((~evaluator.under(name, places).right).sum())
            return int((~evaluator.transferred(name, proxy, self.proxies[proxy], places).right).sum())
        return sum_up((self._broken_in_shard(name, shard, places) for shard in self._shards(places)), limit)

    def _shards(self, places: Tensor) -> Iterator[Tensor]:
        """The recorded shards that hold any of the places."""
        for shard in torch.split(torch.arange(self.images), self.as_recorded.shard_size):
            if torch.isin(shard, places).any():
                yield shard

    def _broken_in_shard(self, name: str, shard: Tensor, places: Tensor) -> int:
        outcome = self.as_recorded.shard(name, shard)
        # What a fast search leaves to a second one is not final; it fell anew.
        standing = outcome.right if outcome.doubtful is None else outcome.right & ~outcome.doubtful
        return int((torch.isin(shard, places) & ~standing).sum())


def sum_up(counts: Iterator[int], limit: int) -> int:
    """The sum of counts, as far as it takes to be beyond the limit."""
    total = 0
    for count in counts:
        total += count
        if total > limit:
            break
    return total


def _parts(label: str) -> tuple[str | None, str]:
    """The proxy, None where there is none, and the name of an attack that records call `label`."""
    if not label.startswith("transfer:"):
        return None, label
    proxy, _, name = label.removeprefix("transfer:").rpartition(":")
    return proxy, name


def needed(labels: Sequence[str]) -> set[str]:
    """The proxies of the attacks that records call so."""
    return {proxy for proxy, _ in map(_parts, labels) if proxy is not None}
