"""MobileNet-V2 for 32x32 images."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from adbench.models.network import Network, PerChannel

# Expansion, channels, blocks, stride of the first block. Strides are those for 32x32 images: the stem and the
# second stage keep the resolution that they halve on ImageNet.
STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class InvertedResidual(nn.Module):
    """Expand (1x1), filter each channel (3x3), project (1x1); a shortcut wherever the resolution stays."""

    def __init__(self, k_in: int, k_out: int, expansion: int, stride: int) -> None:
        super().__init__()
        wide = expansion * k_in
        self.conv1 = nn.Conv2d(k_in, wide, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(wide)
        self.conv2 = nn.Conv2d(wide, wide, 3, stride, padding=1, groups=wide, bias=False)
        self.bn2 = nn.BatchNorm2d(wide)
        self.conv3 = nn.Conv2d(wide, k_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(k_out)
        self.residual = stride == 1
        self.shortcut = nn.Sequential()
        if self.residual and k_in != k_out:
            self.shortcut = nn.Sequential(nn.Conv2d(k_in, k_out, 1, bias=False), nn.BatchNorm2d(k_out))

    def forward(self, x: Tensor) -> Tensor:
        expanded = F.relu(self.bn1(self.conv1(x)), inplace=True)
        filtered = F.relu(self.bn2(self.conv2(expanded)), inplace=True)
        out: Tensor = self.bn3(self.conv3(filtered))
        return out.add_(self.shortcut(x)) if self.residual else out


class MobileNetV2(Network):
    """MobileNet-V2 (Sandler et al., CVPR 2018) in the field's CIFAR form, with plain ReLUs.

    The last map is (B, 1280, H / 8, W / 8). Keys are those of the field's checkpoints:
    conv1, bn1, layers.N.{conv1,bn1,conv2,bn2,conv3,bn3,shortcut.0,shortcut.1}, conv2, bn2, linear.
    """

    def __init__(self, *, classes: int, channels: int = 3, mean: PerChannel = None, std: PerChannel = None) -> None:
        super().__init__(channels=channels, mean=mean, std=std)
        self.conv1 = nn.Conv2d(channels, 32, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        blocks: list[nn.Module] = []
        k_in = 32
        for expansion, k_out, count, first_stride in STAGES:
            for i in range(count):
                blocks.append(InvertedResidual(k_in, k_out, expansion, first_stride if i == 0 else 1))
                k_in = k_out
        self.layers = nn.Sequential(*blocks)
        self.conv2 = nn.Conv2d(k_in, 1280, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(1280)
        self.linear = nn.Linear(1280, classes)

    @property
    def classifier(self) -> nn.Linear:
        return self.linear

    def features(self, x: Tensor) -> Tensor:
        out = self.layers(F.relu(self.bn1(self.conv1(x))))
        return F.relu(self.bn2(self.conv2(out)))


def mn_v2(*, classes: int, channels: int, mean: PerChannel, std: PerChannel) -> Network:
    """MobileNet-V2 in its CIFAR form (2.3 M parameters)"""
    return MobileNetV2(classes=classes, channels=channels, mean=mean, std=std)
