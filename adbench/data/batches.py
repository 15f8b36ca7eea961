"""From a split's uint8 images to training batches: order, augmentation, floats."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

FINE = 2**20
"""Weights and probabilities are drawn as whole numbers below this."""


def to_float(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 images (B, C, H, W) as contiguous floats in [0, 1], same shape and device."""
    return images.to(dtype, memory_format=torch.contiguous_format).div_(255)


def draw_crops(count: int, generator: torch.Generator, pad: int, flip: bool) -> Tensor:
    """Random crops of zero-padded images, and mirroring of half of them if `flip`: top, left, mirrored, (3, count).

    pad: pixels added on every side, so offsets are 0..2 pad. generator: on the CPU, whatever the images' device: the
    same seed then crops alike everywhere.
    """
    offsets = torch.randint(2 * pad + 1, (2, count), generator=generator)
    mirrored = torch.randint(2 if flip else 1, (1, count), generator=generator)
    return torch.cat([offsets, mirrored])


def cropped(images: Tensor, crops: Tensor, pad: int) -> Tensor:
    """Images uint8 (B, C, H, W) after their crops (3, B) from `draw_crops`, on the same device; shape and type stay."""
    _, channels, height, width = images.shape
    top, left, mirror = crops[:, :, None]  # (B, 1) each
    rows = top + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device)
    columns = left + torch.where(mirror.bool(), width - 1 - columns, columns)
    padded_width = width + 2 * pad
    # Where each pixel comes from, counted through one padded plane: (B, H W).
    pixels = (rows[:, :, None] * padded_width + columns[:, None, :]).flatten(1)
    padded = F.pad(images, (pad, pad, pad, pad)).flatten(2)
    return padded.gather(2, pixels[:, None].expand(-1, channels, -1)).view(images.shape)


def epoch_order(n: int, generator: torch.Generator) -> Tensor:
    """A random permutation of 0..n-1, int64 (n,), on the CPU like its generator."""
    return torch.randperm(n, generator=generator)


def batches(order: Tensor, size: int) -> list[Tensor]:
    """Cut an epoch's order (n,) into training batches of `size` (>= 2) indices; the last may be shorter.

    A last batch of one single image is dropped: batch norm cannot train on it.  Not for evaluation, which
    must see every image.
    """
    return [order[start : start + size] for start in range(0, len(order) - 1, size)]


def per_epoch(n: int, size: int, *, filled: bool = False) -> int:
    """The number of `batches` of n images; filled: of such whose last is filled up with extra images."""
    return len(range(0, n if filled else n - 1, size))


def mixed_batches(
    own: int, extra: int, size: int, share: float, count: int, order: torch.Generator, drawn: torch.Generator
) -> list[Tensor]:
    """`count` batches of `size` indices (size,): images 0..own-1, and extra ones, which are counted from `own` on.

    A `share` of each batch is extra images, rounded down and drawn with replacement from `drawn`.  The others are the
    next of a permutation by `order`; its last piece may be shorter and is filled up with extra images, and then comes
    another permutation.  So Wang et al. (ICML 2023) have it.  The two kinds are shuffled, since a part of a batch
    should be like the whole.
    """
    most = size - int(size * share)
    rest = torch.empty(0, dtype=torch.long)
    found = []
    for _ in range(count):
        if not len(rest):
            rest = epoch_order(own, order)
        taken, rest = rest[:most], rest[most:]
        batch = torch.cat([taken, own + torch.randint(extra, (size - len(taken),), generator=drawn)])
        found.append(batch[torch.randperm(size, generator=drawn)])
    return found
