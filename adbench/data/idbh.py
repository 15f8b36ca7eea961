"""The two parts of IDBH (Li & Spratling, ICLR 2023) that move and hide pixels of whole batches: CropShift and erasing.

CropShift keeps a smaller window of the image and puts it anywhere, on black. Erasing makes a rectangle black (Zhong et
al., AAAI 2020), as torchvision's RandomErasing draws it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from adbench.data.batches import FINE
from adbench.data.policies import policy
from adbench.errors import UserError

TRIES = 10
"""Rectangles that are drawn for an image until one fits."""
RATIO = (0.3, 3.3)
"""Of a rectangle's height and width."""


@dataclass(frozen=True)
class Strength:
    """most: lines that CropShift takes off, height and width together. probability: of erasing. area: shares of the
    image that a rectangle takes."""

    most: int
    probability: float
    area: tuple[float, float]


STRENGTHS = {
    "weak": Strength(10, 0.5, (0.02, 0.33)),
    "strong": Strength(10, 1.0, (0.02, 0.33)),
    "svhn": Strength(8, 1.0, (0.02, 0.5)),
}
"""Of the authors' code, by the names of its versions."""

SHIFT, BOX = 6, 4
"""Rows of the numbers that are drawn for an image, of either part."""


def check(policies: Iterable[str], shape: tuple[int, int, int]) -> None:
    """Raise UserError where one of the policies is IDBH and CropShift could take images (C, H, W) whole."""
    strength = next((STRENGTHS[one.variant] for one in map(policy, policies) if one.name == "idbh"), None)
    if strength and (side := min(shape[1:])) <= strength.most:
        raise UserError(
            f"train.augment: idbh takes up to {strength.most} lines off an image, and these have {side}; resize them "
            "(data.resize), or leave it out"
        )


def draw_shifts(count: int, chance: torch.Generator, strength: Strength, shape: tuple[int, int, int]) -> Tensor:
    """What CropShift does with each image: the window's top and left in it, top and left afterwards, height, width;
    (SHIFT, count). shape: (C, H, W)."""
    lots = torch.randint(FINE, (SHIFT, count), generator=chance)
    taken = _up_to(lots[0], torch.tensor(strength.most))
    columns = _up_to(lots[1], taken)
    rows = taken - columns
    places = [_up_to(lots[2 + i], (rows, columns)[i % 2]) for i in range(4)]
    return torch.stack([*places, shape[1] - rows, shape[2] - columns])


def draw_boxes(count: int, chance: torch.Generator, strength: Strength, shape: tuple[int, int, int]) -> Tensor:
    """The rectangle that is erased of each image, empty where there is none: top, bottom, left, right; (BOX, count)."""
    _, height, width = shape
    sizes = torch.randint(FINE, (2, TRIES, count), generator=chance).double() / FINE
    lots = torch.randint(FINE, (3, count), generator=chance)
    low, high = strength.area
    area = height * width * (low + (high - low) * sizes[0])
    ratio = torch.exp(math.log(RATIO[0]) + (math.log(RATIO[1]) - math.log(RATIO[0])) * sizes[1])
    tall, wide = (area * ratio).sqrt().round().long(), (area / ratio).sqrt().round().long()
    fits = (tall < height) & (wide < width)
    first = fits.int().argmax(dim=0, keepdim=True)
    tall, wide = tall.gather(0, first)[0], wide.gather(0, first)[0]
    taken = fits.any(dim=0) & (lots[0] < strength.probability * FINE)
    top, left = _up_to(lots[1], (height - tall).clamp(min=0)), _up_to(lots[2], (width - wide).clamp(min=0))
    return torch.stack([top, top + tall, left, left + wide]) * taken


def shifted(images: Tensor, drawn: Tensor) -> Tensor:
    """Images uint8 (B, C, H, W) after CropShift; drawn: (SHIFT, B)."""
    _, channels, height, width = images.shape
    from_top, from_left, top, left, tall, wide = drawn[:, :, None]
    rows = torch.arange(height, device=images.device) - top
    columns = torch.arange(width, device=images.device) - left
    inside = ((rows >= 0) & (rows < tall))[:, :, None] & ((columns >= 0) & (columns < wide))[:, None]
    rows, columns = (rows + from_top).clamp(0, height - 1), (columns + from_left).clamp(0, width - 1)
    pixels = (rows[:, :, None] * width + columns[:, None]).flatten(1)
    moved = images.flatten(2).gather(2, pixels[:, None].expand(-1, channels, -1)).view(images.shape)
    return moved.masked_fill(~inside[:, None], 0)


def _up_to(lot: Tensor, largest: Tensor) -> Tensor:
    """Whole numbers from 0 to `largest`, each as likely, of lots below FINE."""
    return lot * (largest + 1) // FINE
