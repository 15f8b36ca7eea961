"""Augmentation of whole batches on their device, from numbers that were drawn before.

Everything random is drawn for an epoch at once, on the CPU, as whole numbers: one column an image. So a part of a
batch (a micro-batch, a rank's share) is augmented as the whole batch is, and a resumed epoch as an uninterrupted one.
The operations of AutoAugment and RandAugment are torchvision's; they are applied to all images of a batch that have
the same one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import ModuleType

import torch
from torch import Tensor

from adbench.data import idbh
from adbench.data.batches import FINE, cropped, draw_crops
from adbench.data.policies import AugmentPolicy

CROP = 3
"""Rows of a crop among the numbers drawn."""

Generators = Callable[..., torch.Generator]
"""Gives the random stream of a name."""


class Augmentation:
    """What is drawn for each image, and what is made of it.

    policies: in their order (`in_order`).  shape: of an image, (C, H, W).  pad, flip: of the crops (`draw_crops`).
    """

    def __init__(self, policies: Sequence[AugmentPolicy], shape: tuple[int, int, int], pad: int, flip: bool) -> None:
        # IDBH has a crop of its own in the crop's place, and mirrors alike.
        self.idbh = next((idbh.STRENGTHS[policy.variant] for policy in policies if policy.name == "idbh"), None)
        self.shape, self.pad, self.flip = shape, 0 if self.idbh else pad, flip
        self.cutout = next((policy for policy in policies if policy.name == "cutout"), None)
        self.automatic = [policy for policy in policies if policy.name in ("idbh", "autoaugment", "randaugment")]
        self.mixing = [policy for policy in policies if policy.name in ("cutmix", "mixup")]
        self.actions = [_operations().actions(policy, shape) for policy in self.automatic]
        self.alone = CROP + sum(_stages(policy) for policy in self.automatic) + 2 * (self.cutout is not None)
        self.alone += (idbh.SHIFT + idbh.BOX) * (self.idbh is not None)
        """Rows of the numbers that an image has without a partner."""

    def draw(self, index: Sequence[Tensor], streams: Generators) -> Tensor:
        """The numbers of a sequence of batches of `index` (B,): (rows, images), int64, on the CPU.

        streams: gives the generator of each policy's name; that of no name is the crops'.
        """
        sizes = [len(part) for part in index]
        total = sum(sizes)
        offsets = streams()
        rows = [torch.cat([draw_crops(size, offsets, self.pad, self.flip) for size in sizes], dim=1)]
        if self.idbh:
            rows.append(idbh.draw_shifts(total, streams("idbh", "shift"), self.idbh, self.shape))
            rows.append(idbh.draw_boxes(total, streams("idbh", "erase"), self.idbh, self.shape))
        for policy, table in zip(self.automatic, self.actions, strict=True):
            rows.append(_drawn_actions(policy, table, total, streams(policy.name)))
        if self.cutout:
            chance = streams("cutout")
            rows += [torch.randint(side, (1, total), generator=chance) for side in self.shape[1:]]
        alone = torch.cat(rows)
        if not self.mixing:
            return alone
        partners = []
        chance = streams("mix")
        for part, own in zip(index, torch.split(alone, sizes, dim=1), strict=True):
            partner = torch.randperm(len(part), generator=chance)
            weights = self._weights(len(part), chance)
            partners.append(torch.cat([part[partner][None], own[:, partner], weights]))
        return torch.cat([alone, torch.cat(partners, dim=1)])

    def _weights(self, size: int, chance: torch.Generator) -> Tensor:
        """How a batch is mixed: the image's weight outside a box, and the box in which it has none; (5, size)."""
        from scipy.special import betaincinv  # takes its time

        which, taken, shade, *centre = torch.randint(FINE, (5,), generator=chance).tolist()
        policy = self.mixing[which % len(self.mixing)]
        alpha, probability = policy.numbers
        assert alpha is not None
        assert probability is not None
        weight = float(betaincinv(alpha, alpha, (shade + 0.5) / FINE))
        drawn = [FINE, 0, 0, 0, 0]
        if taken < probability * FINE and policy.name == "mixup":
            drawn = [round(weight * FINE), 0, 0, 0, 0]
        elif taken < probability * FINE:
            edges = []
            for side, place in zip(self.shape[1:], centre, strict=True):
                middle, half = place * side // FINE, int(side * math.sqrt(1 - weight)) // 2
                edges.append((max(middle - half, 0), min(middle + half, side)))
            (top, bottom), (left, right) = edges
            drawn = [FINE, top, bottom, left, right]
        return torch.tensor(drawn)[:, None].expand(-1, size)

    def apply(self, images: Tensor, drawn: Tensor) -> Tensor:
        """Images uint8 (B, C, H, W), each augmented by its column of `drawn` (rows, B), without a partner."""
        images = cropped(images, drawn[:CROP], self.pad)
        row = CROP
        erased = None
        if self.idbh and row < len(drawn):
            images = idbh.shifted(images, drawn[row : row + idbh.SHIFT])
            row += idbh.SHIFT
            top, bottom, left, right = drawn[row : row + idbh.BOX]
            erased = _box(top, bottom, left, right, self.shape)
            row += idbh.BOX
        for policy, table in zip(self.automatic, self.actions, strict=True):
            for _ in range(_stages(policy)):
                if row < len(drawn):
                    images = _acted(images, drawn[row], table)
                row += 1
            if policy.name == "idbh" and erased is not None:
                images = images.masked_fill(erased, 0)
        if self.cutout and row < len(drawn):
            images = images.masked_fill(self._hidden(drawn[row : row + 2]), 0)
        return images

    def _hidden(self, centre: Tensor) -> Tensor:
        """Where cutout's squares lie, (B, 1, H, W). centre: (2, B)."""
        assert self.cutout is not None
        _, height, width = self.shape
        side = int(self.cutout.numbers[0] or min(height, width) // 2)
        first = centre - side // 2
        return _box(first[0], first[0] + side, first[1], first[1] + side, self.shape)

    def mixed(self, x: Tensor, partner: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """Images x (B, C, H, W) with their partners' by `drawn` (5, B), and the weight of x in the labels, (B,)."""
        weight = (drawn[0] / FINE).to(x.dtype)
        _, top, bottom, left, right = drawn
        box = _box(top, bottom, left, right, self.shape)
        share = weight * (1 - box.flatten(1).to(x.dtype).mean(1))
        own = weight.view(-1, 1, 1, 1)
        return torch.where(box, partner, own * x + (1 - own) * partner), share


def _box(top: Tensor, bottom: Tensor, left: Tensor, right: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Which pixels lie in a box an image, its edges (B,) each: (B, 1, H, W)."""
    rows, columns = (torch.arange(side, device=top.device) for side in shape[1:])
    inside = (rows >= top[:, None]) & (rows < bottom[:, None])
    beside = (columns >= left[:, None]) & (columns < right[:, None])
    return (inside[:, :, None] & beside[:, None, :])[:, None]


def _acted(images: Tensor, codes: Tensor, table: Sequence[tuple[str, float]]) -> Tensor:
    """Each image after its action: `codes` (B,) count into the table."""
    numbers = codes.tolist()
    images = images.clone()
    for code in sorted(set(numbers)):
        name, magnitude = table[code]
        if name != "Identity":
            these = torch.tensor([i for i, number in enumerate(numbers) if number == code], device=images.device)
            images[these] = _operations().acted(images[these], name, magnitude)
    return images


def _drawn_actions(
    policy: AugmentPolicy, table: Sequence[tuple[str, float]], count: int, chance: torch.Generator
) -> Tensor:
    """What each of `count` images goes through: (stages, count), places in the policy's `actions`."""
    if policy.name == "idbh":
        sizes, weights = torch.tensor(_operations().idbh_counts(policy.variant)).T
        which = torch.bucketize(torch.randint(int(weights.sum()), (1, count), generator=chance), weights.cumsum(0) - 1)
        within = torch.randint(FINE, (1, count), generator=chance) * sizes[which] // FINE
        places: Tensor = (sizes.cumsum(0) - sizes)[which] + within
        return places
    if policy.name == "randaugment":
        return torch.randint(len(table), (_stages(policy), count), generator=chance)
    pairs = _operations().published(policy.variant)
    which = torch.randint(len(pairs), (count,), generator=chance)
    sign = torch.randint(2, (2, count), generator=chance)
    lot = torch.randint(FINE, (2, count), generator=chance)
    odds = torch.tensor([[probability for _, probability, _ in pair] for pair in pairs], dtype=torch.float64)
    taken = lot < odds[which].T * FINE
    place = 1 + 4 * which + torch.tensor([[0], [2]]) + sign
    return torch.where(taken, place, 0)


def _stages(policy: AugmentPolicy) -> int:
    """The number of operations that an image goes through."""
    return {"autoaugment": 2, "idbh": 1}.get(policy.name) or int(policy.numbers[0] or 0)


def _operations() -> ModuleType:
    """Imported where it is asked for: torchvision's transforms take seconds."""
    from adbench.data import operations

    return operations
