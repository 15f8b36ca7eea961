"""The arithmetic of a network, counted, and how much of it a device can do, measured."""

from __future__ import annotations

import time
from functools import cache

import torch

from adbench.models import build
from adbench.training import lean_form


@cache
def multiply_adds(architecture: str, classes: int, image_shape: tuple[int, int, int]) -> int:
    """Multiply-adds of one forward pass of one image (C, H, W) through an architecture; nothing is computed."""
    with torch.device("meta"):
        network = build(architecture, classes=classes, channels=image_shape[0])
    return lean_form.multiply_adds(network, image_shape)


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
        _synchronize(device)
        begun = time.perf_counter()
        torch.mm(a, b)
        _synchronize(device)
        taken.append(time.perf_counter() - begun)
    return float(size) ** 3 / min(taken)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
