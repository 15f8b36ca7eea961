"""The base class of every architecture: what it offers to methods, attacks and evaluation."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from adbench.errors import UserError

PerChannel = tuple[float, ...] | None


class Network(nn.Module):
    """A classifier of images x (B, C, H, W) in [0, 1] whose last feature map can be seen.

    An architecture implements `features` and `classifier`. Its logits are the classifier's values at the mean
    of that map over H and W, so that a class activation map averages to the logit without its bias
    (Zhou et al., CVPR 2016).

    mean, std: per channel; if given, x is normalised inside the network, so that attacks stay in [0, 1].
    They are not part of the state dict, whose keys remain those of published checkpoints.

    Inside a block, layers may write into each other's outputs, so hooks belong on blocks.
    """

    ignored_keys: ClassVar[tuple[str, ...]] = ()
    """Prefixes of keys that published files hold without using them."""

    mean: Tensor | None
    std: Tensor | None

    def __init__(self, *, channels: int, mean: PerChannel = None, std: PerChannel = None) -> None:
        """Raises UserError unless mean and std are both absent or hold one number a channel, of images in [0, 1], std
        positive."""
        super().__init__()
        if (mean is None) != (std is None):
            raise UserError("a normalisation needs both mean and std; give the other one too, or neither")
        for name, values in (("mean", mean), ("std", std)):
            if values is not None and len(values) != channels:
                raise UserError(f"{name} has {len(values)} numbers, but the images have {channels} channels")
            if values is not None and not all(math.isfinite(value) for value in values):
                raise UserError(f"{name} is {list(values)}; it has to be numbers")
            if values is not None and max(values) > 1:
                meant = ", ".join(f"{value / 255:.4g}" for value in values)
                raise UserError(f"{name} is {list(values)}, but images are in [0, 1]; did you mean {meant}?")
        if std is not None and min(std) <= 0:
            raise UserError(f"std has to be positive in every channel, not {list(std)}")
        self.register_buffer("mean", _image(mean), persistent=False)
        self.register_buffer("std", _image(std), persistent=False)

    @property
    def shows_features(self) -> bool:
        """Whether `forward_features` gives the last feature map; of networks from elsewhere it may not be known."""
        return True

    @property
    def classifier(self) -> nn.Linear:
        """The head: weight (classes, K), bias (classes,)."""
        raise NotImplementedError

    def features(self, x: Tensor) -> Tensor:
        """The last feature map (B, K, H', W') of normalised images, after the final BN and activation."""
        raise NotImplementedError

    def forward_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, classes) and the last feature map (B, K, H', W'), exactly as it is average-pooled."""
        if self.mean is not None and self.std is not None:
            x = (x - self.mean) / self.std
        maps = self.features(x)
        logits: Tensor = self.classifier(maps.mean(dim=(2, 3)))
        return logits, maps

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes)."""
        return self.forward_features(x)[0]


def _image(values: PerChannel) -> Tensor | None:
    return None if values is None else torch.tensor(values).view(1, -1, 1, 1)
