"""Adversarial examples on disk: small, and with the verdict that was recorded.

An x' is stored as its difference to the test image, in whole steps of 1/255 where every pixel lies on that grid, else
in float16; what is read back is projected into the ball and [0, 1]. Where that changes the verdict, the x' is stored
as it was, in float32. Reading needs the test images, which are not stored.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adbench.data.batches import to_float
from adbench.errors import UserError
from adbench.models.verdict import Verdict
from adbench.system import files

# What float32 leaves open: a margin below this share of the gap to the third logit can fall on either side of zero on
# another processor or in another batch, and one below this share of the two logits themselves is lost in their digits.
# A logit that has no part in the margin has no part in this either.
UNDECIDED = 1e-4
DIGITS = 16 * 2.0**-23

# Rounding of x - eps and x + eps in float32.
SLACK = 1e-6

Verdicts = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From images to whether the network is right, and where float32 leaves that open: (N,) booleans each."""


def verdicts(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Whether logits (N, K) are right for labels y (N,), and where float32 leaves it open."""
    true = logits.gather(1, y[:, None]).squeeze(1)
    others = logits.scatter(1, y[:, None], -torch.inf)
    other = others.amax(1)
    open_to = DIGITS * torch.maximum(true.abs(), other.abs())
    if logits.shape[1] > 2:
        gap = torch.maximum(true, other) - others.topk(2, dim=1).values[:, 1]
        open_to = torch.maximum(open_to, UNDECIDED * gap)
    verdict = Verdict.of(logits, y)
    return verdict.right, ((true - other).abs() <= open_to) & ~verdict.unfinite


def pack(images: Tensor, x_adv: Tensor, right: Tensor, eps: Fraction, judge: Verdicts) -> dict[str, NDArray[Any]]:
    """x' (N, C, H, W) on the uint8 images (N, C, H, W), as arrays for `unpack`.

    right: (N,) the recorded verdicts; judge: gives them anew. Raises RuntimeError where an x' stored in full does not
    have its verdict, or lies outside the ball.
    """
    images, x_adv, right = images.cpu(), x_adv.detach().float().cpu(), right.cpu()
    steps = (255 * x_adv).round()
    if ((steps / 255 - x_adv).abs() <= SLACK).all():
        delta = (steps - images).numpy().astype(np.int16)
        if np.abs(delta).max(initial=0) <= 127:
            delta = delta.astype(np.int8)
    else:
        delta = (x_adv - to_float(images)).numpy().astype(np.float16)
    none: dict[str, NDArray[Any]] = {
        "delta": delta,
        "exact_index": np.zeros(0, np.int64),
        "exact": np.zeros((0, *x_adv.shape[1:]), np.float32),
    }
    correct, unclear = judge(unpack(images, none, eps))
    index = ((correct.cpu() != right) | unclear.cpu()).nonzero().squeeze(1)
    arrays = none | {"exact_index": index.numpy(), "exact": x_adv[index].numpy()}
    read = unpack(images, arrays, eps)
    correct, unclear = judge(read)
    wrong = ((correct.cpu() != right) & ~unclear.cpu()) | outside(images, read, eps)
    if wrong.any():
        raise RuntimeError(f"the stored x' of image {int(wrong.nonzero()[0])} does not have its verdict")
    return arrays


def unpack(images: Tensor, arrays: dict[str, NDArray[Any]], eps: Fraction) -> Tensor:
    """The x' (N, C, H, W), float32 on the CPU, of uint8 images (N, C, H, W) that were attacked with radius eps."""
    delta, x = torch.from_numpy(arrays["delta"]), to_float(images.cpu())
    if delta.is_floating_point():
        x_adv = (x + delta.float()).clamp(x - float(eps), x + float(eps)).clamp(0, 1)
    else:
        x_adv = (images.cpu().int() + delta.int()) / 255
    x_adv[torch.from_numpy(arrays["exact_index"])] = torch.from_numpy(arrays["exact"])
    return x_adv


def outside(images: Tensor, x_adv: Tensor, eps: Fraction) -> Tensor:
    """Which x' (N, C, H, W) lie outside the ball around the uint8 images or outside [0, 1], or are no numbers: (N,)."""
    inside = (x_adv - to_float(images.cpu())).abs().flatten(1).amax(1) <= float(eps) + SLACK
    inside &= (x_adv.flatten(1).amin(1) >= 0) & (x_adv.flatten(1).amax(1) <= 1)
    return ~inside


def read(path: Path, images: Tensor) -> dict[str, NDArray[Any]]:
    """The packed x' of `images`. Raises UserError for a file that is missing, damaged, or made for other images."""
    try:
        with np.load(io.BytesIO(files.content(path)), allow_pickle=False) as content:
            arrays = {name: content[name] for name in ("delta", "exact_index", "exact")}
            if not all(isinstance(array, np.ndarray) for array in arrays.values()):
                raise ValueError("its members are no arrays")
    except Exception as error:  # a damaged zip can make numpy raise anything
        raise UserError(f"'{path}' cannot be read as adversarial examples ({error})") from error
    index, shape = arrays["exact_index"], tuple(images.shape)
    fits = arrays["delta"].shape == shape and arrays["delta"].dtype in (np.int8, np.int16, np.float16)
    fits &= index.dtype == np.int64 and index.ndim == 1 and arrays["exact"].shape == (len(index), *shape[1:])
    fits &= arrays["exact"].dtype == np.float32
    if not fits or ((index < 0) | (index >= shape[0])).any():
        raise UserError(f"'{path}' does not hold adversarial examples of {shape[0]} images of shape {shape[1:]}")
    return arrays
