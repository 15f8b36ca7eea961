"""Augmentation beyond crops and mirroring, by name: what `train.augment` takes.  No torch."""

from __future__ import annotations

import re
from dataclasses import dataclass

from adbench.errors import UserError, unknown

VARIANTS = {"autoaugment": ("cifar10", "imagenet", "svhn"), "idbh": ("weak", "strong", "svhn")}
"""The tables of AutoAugment's paper, and the versions of IDBH's code; of each the first is the usual one."""


@dataclass(frozen=True)
class Parameter:
    """A number that a policy takes: its name, default (None: it depends on the images) and bounds."""

    name: str
    default: float | None
    low: float
    high: float
    whole: bool = False

    def read(self, text: str) -> float:
        """The number in `text`. Raises ValueError for another."""
        value = int(text) if self.whole else float(text)
        if not self.low <= value <= self.high:
            raise ValueError
        return value

    def __str__(self) -> str:
        return f"{self.name} {'a whole number ' if self.whole else ''}from {self.low:g} to {self.high:g}"


_SHARE = Parameter("probability", 1.0, 0.0, 1.0)
KNOWN = {
    "idbh": (),
    "autoaugment": (),
    "randaugment": (Parameter("operations", 2, 1, 14, whole=True), Parameter("magnitude", 9, 0, 30, whole=True)),
    "cutout": (Parameter("side", None, 1, 10_000, whole=True),),
    "cutmix": (Parameter("alpha", 1.0, 0.01, 100), _SHARE),
    "mixup": (Parameter("alpha", 1.0, 0.01, 100), _SHARE),
}
"""What each policy takes, in the order in which they are applied."""
MIXING = ("cutmix", "mixup")
"""Policies that mix images and so their labels."""


@dataclass(frozen=True)
class AugmentPolicy:
    """A policy with its numbers, in the order of `KNOWN`; None where that depends on the images.

    variant: one of `VARIANTS`.
    """

    name: str
    numbers: tuple[float | None, ...] = ()
    variant: str = ""

    def __str__(self) -> str:
        """Its one spelling: what is left at its default is not written."""
        words = [self.variant] if self.variant not in ("", *VARIANTS.get(self.name, ())[:1]) else []
        defaults = [parameter.default for parameter in KNOWN[self.name]]
        if list(self.numbers) != defaults:
            words = [f"{number:g}" for number in self.numbers if number is not None]
        return f"{self.name}({','.join(words)})" if words else self.name


def policy(text: str) -> AugmentPolicy:
    """The policy that a user writes: "cutout", "cutout(16)", "randaugment(2,14)", "autoaugment(svhn)", "idbh(strong)".

    Raises UserError for a name or a number that there is not.
    """
    match = re.fullmatch(r"\s*([a-z]+)\s*(?:\(([^()]*)\))?\s*", text)
    name = match[1] if match else text
    if match is None or name not in KNOWN:
        raise unknown("augmentation", name, list(KNOWN), "cutout(16), cutmix, mixup(0.2), randaugment(2,14)")
    words = [word.strip() for word in match[2].split(",")] if match[2] and match[2].strip() else []
    if name in VARIANTS:
        variant = words[0] if words else VARIANTS[name][0]
        if len(words) > 1 or variant not in VARIANTS[name]:
            raise UserError(f"'{text}': {name} takes one of {', '.join(VARIANTS[name])}")
        return AugmentPolicy(name, variant=variant)
    parameters = KNOWN[name]
    try:
        if len(words) > len(parameters):
            raise ValueError
        numbers = [parameter.read(word) for parameter, word in zip(parameters, words, strict=False)]
    except ValueError:
        raise UserError(f"'{text}': {name} takes {', '.join(map(str, parameters))}") from None
    return AugmentPolicy(name, (*numbers, *(parameter.default for parameter in parameters[len(words) :])))


def spelt(text: str) -> str:
    """A policy in its one spelling. Raises UserError as `policy`."""
    return str(policy(text))


def in_order(texts: tuple[str, ...]) -> tuple[str, ...]:
    """Policies in the order in which they are applied, whatever the list's."""
    return tuple(sorted(texts, key=lambda text: list(KNOWN).index(policy(text).name)))


def mixing(texts: tuple[str, ...]) -> list[str]:
    """Those of the policies that mix labels."""
    return [text for text in texts if policy(text).name in MIXING]
