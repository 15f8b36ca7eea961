"""A small convolutional network for tiny data on a CPU."""

from __future__ import annotations

from torch import Tensor, nn

from adbench.models.network import Network, PerChannel


class SmallCNN(Network):
    """Three 3x3 convolutions of W, 2W and 2W channels, each with BN and ReLU; the second halves H and W.

    The last map is (B, 2 W, H / 2, W / 2).
    """

    def __init__(
        self, width: int, *, classes: int, channels: int = 3, mean: PerChannel = None, std: PerChannel = None
    ) -> None:
        super().__init__(channels=channels, mean=mean, std=std)
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
        )
        self.linear = nn.Linear(2 * width, classes)

    @property
    def classifier(self) -> nn.Linear:
        return self.linear

    def features(self, x: Tensor) -> Tensor:
        maps: Tensor = self.body(x)
        return maps


def cnn_16(*, classes: int, channels: int, mean: PerChannel, std: PerChannel) -> Network:
    """Three-layer CNN for tiny data, 16 channels wide (15 k parameters)"""
    return SmallCNN(16, classes=classes, channels=channels, mean=mean, std=std)


def cnn_32(*, classes: int, channels: int, mean: PerChannel, std: PerChannel) -> Network:
    """Three-layer CNN for tiny data, 32 channels wide (57 k parameters)"""
    return SmallCNN(32, classes=classes, channels=channels, mean=mean, std=std)
