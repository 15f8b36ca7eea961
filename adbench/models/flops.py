"""The arithmetic of a network, counted, and the rate at which a device does it, measured."""

from __future__ import annotations

import time
from functools import cache

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from adbench.models.factory import build


def multiply_adds(network: nn.Module, image_shape: tuple[int, ...]) -> int:
    """Multiply-adds of a forward pass of one image (C, H, W), in convolutions and matrix products; evaluation mode."""
    device = next(network.parameters()).device
    was_training = network.training
    network.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, *image_shape, device=device))
    network.train(was_training)
    return int(counter.get_total_flops()) // 2


@cache
def multiply_adds_of(architecture: str, classes: int, image_shape: tuple[int, int, int]) -> int:
    """`multiply_adds` of an architecture by name; no weights are drawn and nothing is computed."""
    with torch.device("meta"):
        network = build(architecture, classes=classes, channels=image_shape[0])
    return multiply_adds(network, image_shape)


@cache
def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Multiply-adds a second of the device in square matrix products of `dtype`: the best of several.

    The measure of what a device can do at best; a network of convolutions comes near it and does not reach it.
    """
    size, seconds = (8192, 0.5) if device.type == "cuda" else (1024, 0.2)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    torch.mm(a, b)  # the first one chooses an algorithm
    taken: list[float] = []
    while len(taken) < 3 or sum(taken) < seconds:
        synchronize(device)
        begun = time.perf_counter()
        torch.mm(a, b)
        synchronize(device)
        taken.append(time.perf_counter() - begun)
    return float(size) ** 3 / min(taken)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
