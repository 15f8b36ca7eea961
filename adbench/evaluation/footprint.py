"""What a network takes where it is used: arithmetic, bytes, and the time from one image to its logits."""

from __future__ import annotations

import statistics
import time
from itertools import chain

import torch
from torch import nn

from adbench.models.flops import multiply_adds, synchronize
from adbench.results.fields import Footprint

WARM_UP, MOST, SECONDS = 3, 100, 0.5
"""Runs that are not counted, and at most so many that are, or so many seconds of them."""


def weight_bytes(network: nn.Module) -> int:
    """Bytes of its parameters and buffers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in chain(network.parameters(), network.buffers()))


@torch.no_grad()
def footprint(network: nn.Module, image_shape: tuple[int, ...]) -> Footprint:
    """Of a network in evaluation mode, on its device, with images (C, H, W); it draws no random number."""
    device = next(chain(network.parameters(), network.buffers())).device
    x = torch.full((1, *image_shape), 0.5, device=device)

    def once() -> float:
        begun = time.perf_counter()
        network(x)
        synchronize(device)
        return time.perf_counter() - begun

    for _ in range(WARM_UP):
        once()
    taken = [once()]
    while len(taken) < MOST and sum(taken) < SECONDS:
        taken.append(once())
    return Footprint(
        multiply_adds(network, image_shape) or None, weight_bytes(network), statistics.median(taken), len(taken)
    )
