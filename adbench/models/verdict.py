"""Whether a network is right on an image: the one rule of validation, evaluation, attacks and analyses."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

COUNTED = "counted as wrong"
"""How a flag begins that says why images are wrong on which no other class is ahead."""

_FLAG = re.compile(rf"{COUNTED}: (\d+) images? (.*)")


@dataclass(frozen=True)
class Verdict:
    """On B images, (B,) booleans each.

    right: the label's logit is above every other one, and all are finite. unfinite: some logit is NaN or infinite, so
    that none is above the others. tied: the label's logit equals the largest of the others, so that no class is first.
    """

    right: Tensor
    unfinite: Tensor
    tied: Tensor

    @classmethod
    def of(cls, logits: Tensor, y: Tensor) -> Verdict:
        """Of logits (B, classes) for labels y (B,)."""
        finite = logits.isfinite().all(1)
        own, others = logits.gather(1, y[:, None]).squeeze(1), logits.scatter(1, y[:, None], -torch.inf)
        highest = others.amax(1)
        return cls((own > highest) & finite, ~finite, (own == highest) & finite)

    def flags(self) -> list[str]:
        """What a record says of the images that are wrong without another class ahead."""
        why = {"with logits that are not finite": self.unfinite, "whose label ties with another class": self.tied}
        return [_flag(int(images.sum()), reason) for reason, images in why.items() if images.any()]


def right(logits: Tensor, y: Tensor) -> Tensor:
    """Where logits (B, classes) are right for labels y (B,): (B,) booleans."""
    return Verdict.of(logits, y).right


def predicted(logits: Tensor, y: Tensor) -> Tensor:
    """The predicted classes (B,) by logits (B, classes): the label y (B,) just where they are right."""
    return torch.where(right(logits, y), y, logits.scatter(1, y[:, None], -torch.inf).argmax(1))


def summed(flags: Iterable[str]) -> list[str]:
    """The flags of several parts of a test set as those of the whole: each once, images that were counted added up."""
    counts: Counter[str] = Counter()
    others: dict[str, None] = {}
    for flag in flags:
        if match := _FLAG.fullmatch(flag):
            counts[match[2]] += int(match[1])
        else:
            others[flag] = None
    return [*others, *(_flag(count, reason) for reason, count in counts.items())]


def _flag(count: int, reason: str) -> str:
    return f"{COUNTED}: {count} image{'s' if count != 1 else ''} {reason}"
