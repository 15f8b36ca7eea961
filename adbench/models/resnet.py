"""Residual networks for 32x32 images: ResNet-18, ResNet-34, ResNet-56 and PreActResNet-18."""

from __future__ import annotations

from collections.abc import Callable

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
        changes = stride != 1 or k_in != k_out
        self.shortcut = self.projection(k_in, k_out, stride) if changes else nn.Sequential()

    @staticmethod
    def projection(k_in: int, k_out: int, stride: int) -> nn.Module:
        """The shortcut where number or size of the maps change."""
        return nn.Sequential(nn.Conv2d(k_in, k_out, 1, stride, bias=False), nn.BatchNorm2d(k_out))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        total: Tensor = self.bn2(self.conv2(out))
        return F.relu(total.add_(self.shortcut(x)), inplace=True)


class NarrowBlock(BasicBlock):
    """`BasicBlock` whose shortcut has no parameters."""

    @staticmethod
    def projection(k_in: int, k_out: int, stride: int) -> nn.Module:
        return Padding(k_out - k_in, stride)


class Padding(nn.Module):
    """Every `stride`-th pixel, and zeros for the channels that are `new`."""

    def __init__(self, new: int, stride: int) -> None:
        super().__init__()
        self.new, self.stride = new, stride

    def forward(self, x: Tensor) -> Tensor:
        before = self.new // 2
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.new - before))


class PreActResNetBlock(nn.Module):
    """BN-ReLU-conv twice and a shortcut: (B, K_in, H, W) -> (B, K_out, H / stride, W / stride)."""

    def __init__(self, k_in: int, k_out: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(k_in)
        self.conv1 = nn.Conv2d(k_in, k_out, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(k_out)
        self.conv2 = nn.Conv2d(k_out, k_out, 3, padding=1, bias=False)
        self.shortcut = None
        if stride != 1 or k_in != k_out:
            self.shortcut = nn.Sequential(nn.Conv2d(k_in, k_out, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x), inplace=True)
        # Only a projecting shortcut starts after the activation; an identity carries x itself.
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        total: Tensor = self.conv2(F.relu(self.bn2(self.conv1(activated)), inplace=True))
        return total.add_(shortcut)


def layer(block: Callable[[int, int, int], nn.Module], k_in: int, k_out: int, stride: int, count: int) -> nn.Sequential:
    """`count` blocks of one resolution, of which the first changes it."""
    return nn.Sequential(block(k_in, k_out, stride), *(block(k_out, k_out, 1) for _ in range(count - 1)))


class ResNet(Network):
    """ResNet (He et al., CVPR 2016) of basic blocks, with a 3x3 stride-1 stem and no max-pooling.

    blocks: their numbers in the four stages, 2, 2, 2, 2 in ResNet-18. The last map is (B, 512, H / 8, W / 8). Keys are
    those of the checkpoints of RSLAD and AdaAD:
    conv1, bn1, layer1..4.N.{conv1,bn1,conv2,bn2,shortcut.0,shortcut.1}, linear.
    """

    def __init__(
        self,
        blocks: tuple[int, int, int, int],
        *,
        classes: int,
        channels: int = 3,
        mean: PerChannel = None,
        std: PerChannel = None,
    ) -> None:
        super().__init__(channels=channels, mean=mean, std=std)
        self.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = layer(BasicBlock, 64, 64, 1, blocks[0])
        self.layer2 = layer(BasicBlock, 64, 128, 2, blocks[1])
        self.layer3 = layer(BasicBlock, 128, 256, 2, blocks[2])
        self.layer4 = layer(BasicBlock, 256, 512, 2, blocks[3])
        self.linear = nn.Linear(512, classes)

    @property
    def classifier(self) -> nn.Linear:
        return self.linear

    def features(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        maps: Tensor = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        return maps


class NarrowResNet(Network):
    """ResNet of 6n + 2 layers as He et al. have it for CIFAR (CVPR 2016, Sec. 4.2): 16, 32 and 64 channels, shortcuts
    without parameters.

    depth: 6n + 2. The last map is (B, 64, H / 4, W / 4). Keys: conv1, bn1, layer1..3.N.{conv1,bn1,conv2,bn2}, linear.
    """

    def __init__(
        self, depth: int, *, classes: int, channels: int = 3, mean: PerChannel = None, std: PerChannel = None
    ) -> None:
        super().__init__(channels=channels, mean=mean, std=std)
        count = (depth - 2) // 6
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = layer(NarrowBlock, 16, 16, 1, count)
        self.layer2 = layer(NarrowBlock, 16, 32, 2, count)
        self.layer3 = layer(NarrowBlock, 32, 64, 2, count)
        self.linear = nn.Linear(64, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    @property
    def classifier(self) -> nn.Linear:
        return self.linear

    def features(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        maps: Tensor = self.layer3(self.layer2(self.layer1(out)))
        return maps


class PreActResNet18(Network):
    """PreActResNet-18 (He et al., ECCV 2016) with a 3x3 stride-1 stem, and BN and ReLU before the pooling.

    The student of Rice et al. (ICML 2020), AWP and ADR. The last map is (B, 512, H / 8, W / 8). Keys are theirs:
    conv1, layer1..4.N.{bn1,conv1,bn2,conv2,shortcut.0}, bn, linear.
    """

    def __init__(self, *, classes: int, channels: int = 3, mean: PerChannel = None, std: PerChannel = None) -> None:
        super().__init__(channels=channels, mean=mean, std=std)
        self.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        self.layer1 = layer(PreActResNetBlock, 64, 64, 1, 2)
        self.layer2 = layer(PreActResNetBlock, 64, 128, 2, 2)
        self.layer3 = layer(PreActResNetBlock, 128, 256, 2, 2)
        self.layer4 = layer(PreActResNetBlock, 256, 512, 2, 2)
        self.bn = nn.BatchNorm2d(512)
        self.linear = nn.Linear(512, classes)

    @property
    def classifier(self) -> nn.Linear:
        return self.linear

    def features(self, x: Tensor) -> Tensor:
        out = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        return F.relu(self.bn(out), inplace=True)


def rn18(*, classes: int, channels: int, mean: PerChannel, std: PerChannel) -> Network:
    """ResNet-18 with a 3x3 stem (11.2 M parameters)"""
    return ResNet((2, 2, 2, 2), classes=classes, channels=channels, mean=mean, std=std)


def rn34(*, classes: int, channels: int, mean: PerChannel, std: PerChannel) -> Network:
    """ResNet-34 with a 3x3 stem (21.3 M parameters)"""
    return ResNet((3, 4, 6, 3), classes=classes, channels=channels, mean=mean, std=std)


def rn56(*, classes: int, channels: int, mean: PerChannel, std: PerChannel) -> Network:
    """ResNet-56 of 16, 32 and 64 channels, as for CIFAR (0.9 M parameters)"""
    return NarrowResNet(56, classes=classes, channels=channels, mean=mean, std=std)


def prn18(*, classes: int, channels: int, mean: PerChannel, std: PerChannel) -> Network:
    """PreActResNet-18 with a 3x3 stem (11.2 M parameters)"""
    return PreActResNet18(classes=classes, channels=channels, mean=mean, std=std)
