"""The operations of AutoAugment and RandAugment, by way of torchvision's; its transforms take seconds to import."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

from torch import Tensor
from torchvision.transforms import AutoAugment, AutoAugmentPolicy
from torchvision.transforms.v2 import functional as tv

from adbench.data.policies import AugmentPolicy

Action = tuple[str, float]
"""An operation and its magnitude, signed."""


def acted(images: Tensor, name: str, magnitude: float) -> Tensor:
    """An operation of AutoAugment on images uint8 (B, C, H, W), as torchvision has it: nearest pixels, black edges.

    magnitude: shears about the corner as tangents, skews about the centre in radians, shifts in pixels, angles in
    degrees, enhancements as the factor's distance from 1, bits that stay, a threshold.
    """
    moved: Tensor
    if name in ("ShearX", "ShearY", "SkewX", "SkewY"):
        about_corner = name.startswith("Shear")
        angle = math.degrees(math.atan(magnitude) if about_corner else magnitude)
        shear = [angle, 0.0] if name.endswith("X") else [0.0, angle]
        centre = [0.0, 0.0] if about_corner else None
        moved = tv.affine(images, angle=0.0, translate=[0, 0], scale=1.0, shear=shear, center=centre)
    elif name in ("TranslateX", "TranslateY"):
        by = [int(magnitude), 0] if name == "TranslateX" else [0, int(magnitude)]
        moved = tv.affine(images, angle=0.0, translate=by, scale=1.0, shear=[0.0, 0.0])
    elif name == "Rotate":
        moved = tv.rotate(images, magnitude)
    elif name in _ENHANCED:
        moved = _ENHANCED[name](images, 1.0 + magnitude)
    elif name == "Posterize":
        moved = tv.posterize(images, bits=int(magnitude))
    elif name == "Solarize":
        moved = tv.solarize(images, threshold=magnitude)
    else:
        moved = _PLAIN[name](images)
    return moved


_ENHANCED: dict[str, Callable[[Tensor, float], Tensor]] = {
    "Brightness": tv.adjust_brightness,
    "Color": tv.adjust_saturation,
    "Contrast": tv.adjust_contrast,
    "Sharpness": tv.adjust_sharpness,
}
_PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "Identity": Tensor.clone,
    "AutoContrast": tv.autocontrast,
    "Equalize": tv.equalize,
    "Invert": tv.invert,
}
_SIGNED = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", *_ENHANCED)
RANDOM = (
    *("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast"),
    *("Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize"),
)
"""RandAugment's operations, each as likely."""


def _magnitude(name: str, level: int, last: int, shape: tuple[int, int, int]) -> float:
    """An operation's magnitude at a level from 0 to `last`, in the ranges of AutoAugment's paper."""
    share = level / last
    if name.startswith("Shear"):
        return 0.3 * share
    if name.startswith("Translate"):
        return 150 / 331 * shape[2 if name.endswith("X") else 1] * share
    if name == "Rotate":
        return 30 * share
    if name in _ENHANCED:
        return 0.9 * share
    if name == "Posterize":
        return float(8 - round(4 * share))
    return 255 * (1 - share) if name == "Solarize" else 0.0


@lru_cache
def actions(policy: AugmentPolicy, shape: tuple[int, int, int]) -> tuple[Action, ...]:
    """All that a policy may do at a stage; the numbers drawn count into it.

    IDBH: its operations with all their magnitudes. RandAugment: its operations, twice: with the magnitude and with its
    negative where there is one. AutoAugment: nothing, then of each sub-policy the first operation with either sign and
    the second with either.
    """
    found: list[Action] = []
    if policy.name == "idbh":
        return tuple(action for part in _idbh(policy.variant) for action in part[0])
    if policy.name == "randaugment":
        level = int(policy.numbers[1] or 0)
        steps = [(name, _magnitude(name, level, 30, shape)) for name in RANDOM]
    else:
        found.append(("Identity", 0.0))
        steps = [
            (name, _magnitude(name, level or 0, 9, shape))
            for pair in published(policy.variant)
            for name, _, level in pair
        ]
    for name, magnitude in steps:
        found += [(name, magnitude), (name, -magnitude if name in _SIGNED else magnitude)]
    return tuple(found)


LEVELS = 20
"""Magnitudes that IDBH's operations have between their bounds; the authors' are any number between."""


def _idbh(variant: str) -> list[tuple[list[Action], int]]:
    """The operations of IDBH's ColorShape, each with all its magnitudes, and its weight in hundredths or eighths."""
    shapes = variant == "svhn"
    weights = (8, 8, 4, 8, 4, 8, 30, 30) if shapes else (1,) * 8
    shares = [(level + 0.5) / LEVELS for level in range(LEVELS)]

    def between(name: str, low: float, high: float) -> list[Action]:
        return [(name, low + (high - low) * share) for share in shares]

    skewed = [
        (name, sign * by) for name in ("SkewX", "SkewY") for sign in (1, -1) for _, by in between("", *SKEW[shapes])
    ]
    turned = [("Rotate", float(sign * by)) for sign in (1, -1) for by in range(1, 31 if shapes else 11)]
    parts = [
        *(between("Color", -0.9, 0.9), between("Brightness", -0.5, 0.9), between("Contrast", -0.5, 0.9)),
        *(between("Sharpness", -0.9, 0.9), [("AutoContrast", 0.0)], [("Equalize", 0.0)], skewed, turned),
    ]
    return list(zip(parts, weights, strict=True))


SKEW = {False: (0.05, 0.15), True: (0.05, 0.35)}
"""Angles of IDBH's shear in radians; True: where it is biased to shapes."""


def idbh_counts(variant: str) -> list[tuple[int, int]]:
    """Of each operation of IDBH's ColorShape, how many of its `actions` it has, and its weight."""
    return [(len(found), weight) for found, weight in _idbh(variant)]


def published(table: str) -> list[tuple[tuple[str, float, int | None], ...]]:
    """AutoAugment's sub-policies: two operations each, with probability and level."""
    policies: list[tuple[tuple[str, float, int | None], ...]] = AutoAugment(AutoAugmentPolicy(table)).policies
    return policies
