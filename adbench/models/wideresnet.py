"""Wide residual networks, pre-activation."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from adbench.models.names import wide_name
from adbench.models.network import Network, PerChannel


class PreActivationBlock(nn.Module):
    """BN-ReLU-conv twice and a shortcut: (B, K_in, H, W) -> (B, K_out, H / stride, W / stride)."""

    def __init__(self, k_in: int, k_out: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(k_in)
        self.conv1 = nn.Conv2d(k_in, k_out, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(k_out)
        self.conv2 = nn.Conv2d(k_out, k_out, 3, padding=1, bias=False)
        self.convShortcut = None if k_in == k_out else nn.Conv2d(k_in, k_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x), inplace=True)
        # Only a projecting shortcut starts after the activation; an identity carries x itself.
        shortcut = x if self.convShortcut is None else self.convShortcut(activated)
        out = F.relu(self.bn2(self.conv1(activated)), inplace=True)
        total: Tensor = self.conv2(out)
        return total.add_(shortcut)


def groups(depth: int, width: int, name: str, block: Callable[[int, int, int], nn.Module]) -> list[nn.Sequential]:
    """The three groups of a WideResNet-D-K: blocks of one resolution each, under the field's extra name (a child).

    depth: 6n + 4; width: the factor K on 16-32-64 channels; block: of (K_in, K_out, stride).
    Raises UserError for another depth, and for a width that cannot be built.
    """
    wide_name(depth, width)
    channels = (16, 16 * width, 32 * width, 64 * width)
    made = []
    for k_in, k_out, stride in zip(channels, channels[1:], (1, 2, 2), strict=False):
        blocks = [block(k_in, k_out, stride), *(block(k_out, k_out, 1) for _ in range((depth - 4) // 6 - 1))]
        made.append(nn.Sequential(OrderedDict({name: nn.Sequential(*blocks)})))
    return made


class WideResNet(Network):
    """WideResNet-D-K (Zagoruyko & Komodakis, BMVC 2016), without dropout.

    depth: 6n + 4; width: the factor K on 16-32-64 channels. The last map is (B, 64 K, H / 4, W / 4).
    Keys are those of TRADES and RobustBench: conv1, block1..3.layer.N.{bn1,conv1,bn2,conv2,convShortcut},
    bn1, fc. Raises UserError for another depth.
    """

    # TRADES builds, and RSLAD's files store, a first group twice; the second copy is never run.
    ignored_keys: ClassVar[tuple[str, ...]] = ("sub_block1.",)

    def __init__(
        self,
        depth: int,
        width: int,
        *,
        classes: int,
        channels: int = 3,
        mean: PerChannel = None,
        std: PerChannel = None,
    ) -> None:
        super().__init__(channels=channels, mean=mean, std=std)
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.block1, self.block2, self.block3 = groups(depth, width, "layer", PreActivationBlock)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.fc = nn.Linear(64 * width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.out_channels * math.prod(module.kernel_size)
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        nn.init.zeros_(self.fc.bias)

    @property
    def classifier(self) -> nn.Linear:
        return self.fc

    def features(self, x: Tensor) -> Tensor:
        out = self.block3(self.block2(self.block1(self.conv1(x))))
        return F.relu(self.bn1(out), inplace=True)


def wrn_10_2(*, classes: int, channels: int, mean: PerChannel, std: PerChannel) -> Network:
    """WideResNet-10-2, a small one for a CPU (0.3 M parameters)"""
    return WideResNet(10, 2, classes=classes, channels=channels, mean=mean, std=std)


def wrn_28_10(*, classes: int, channels: int, mean: PerChannel, std: PerChannel) -> Network:
    """WideResNet-28-10 (36.5 M parameters)"""
    return WideResNet(28, 10, classes=classes, channels=channels, mean=mean, std=std)


def wrn_34_10(*, classes: int, channels: int, mean: PerChannel, std: PerChannel) -> Network:
    """WideResNet-34-10 (46.2 M parameters)"""
    return WideResNet(34, 10, classes=classes, channels=channels, mean=mean, std=std)


def wrn_34_20(*, classes: int, channels: int, mean: PerChannel, std: PerChannel) -> Network:
    """WideResNet-34-20 (184.5 M parameters)"""
    return WideResNet(34, 20, classes=classes, channels=channels, mean=mean, std=std)
