"""ResNet-18 for 32x32 images."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from adbench.models.network import Network, PerChannel


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: (B, K_in, H, W) -> (B, K_out, H / stride, W / stride)."""

    def __init__(self, k_in: int, k_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(k_in, k_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(k_out)
        self.conv2 = nn.Conv2d(k_out, k_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(k_out)
        self.shortcut = nn.Sequential()
        if stride != 1 or k_in != k_out:
            self.shortcut = nn.Sequential(nn.Conv2d(k_in, k_out, 1, stride, bias=False), nn.BatchNorm2d(k_out))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        total: Tensor = self.bn2(self.conv2(out))
        return F.relu(total.add_(self.shortcut(x)), inplace=True)


class ResNet18(Network):
    """ResNet-18 (He et al., CVPR 2016) with a 3x3 stride-1 stem and no max-pooling.

    The last map is (B, 512, H / 8, W / 8). Keys are those of the checkpoints of RSLAD and AdaAD:
    conv1, bn1, layer1..4.N.{conv1,bn1,conv2,bn2,shortcut.0,shortcut.1}, linear.
    """

    def __init__(self, *, classes: int, channels: int = 3, mean: PerChannel = None, std: PerChannel = None) -> None:
        super().__init__(channels=channels, mean=mean, std=std)
        self.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = nn.Sequential(BasicBlock(64, 64, 1), BasicBlock(64, 64, 1))
        self.layer2 = nn.Sequential(BasicBlock(64, 128, 2), BasicBlock(128, 128, 1))
        self.layer3 = nn.Sequential(BasicBlock(128, 256, 2), BasicBlock(256, 256, 1))
        self.layer4 = nn.Sequential(BasicBlock(256, 512, 2), BasicBlock(512, 512, 1))
        self.linear = nn.Linear(512, classes)

    @property
    def classifier(self) -> nn.Linear:
        return self.linear

    def features(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        maps: Tensor = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        return maps


def rn18(*, classes: int, channels: int, mean: PerChannel, std: PerChannel) -> Network:
    """ResNet-18 with a 3x3 stem (11.2 M parameters)"""
    return ResNet18(classes=classes, channels=channels, mean=mean, std=std)
