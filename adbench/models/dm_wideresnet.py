"""Wide residual networks as DeepMind builds them: the architecture of many of the most robust public models."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from adbench.models.network import Network, PerChannel
from adbench.models.wideresnet import groups


class Block(nn.Module):
    """BN-SiLU-conv twice and a shortcut: (B, K_in, H, W) -> (B, K_out, H / stride, W / stride), H and W even."""

    def __init__(self, k_in: int, k_out: int, stride: int) -> None:
        super().__init__()
        self.batchnorm_0 = nn.BatchNorm2d(k_in)
        self.conv_0 = nn.Conv2d(k_in, k_out, 3, stride, bias=False)
        self.batchnorm_1 = nn.BatchNorm2d(k_out)
        self.conv_1 = nn.Conv2d(k_out, k_out, 3, padding=1, bias=False)
        self.shortcut = None if k_in == k_out else nn.Conv2d(k_in, k_out, 1, stride, bias=False)
        # "Same" padding, of which TensorFlow puts the odd pixel to the right and below.
        self._padding = (1, 1, 1, 1) if stride == 1 else (0, 1, 0, 1)

    def forward(self, x: Tensor) -> Tensor:
        activated = F.silu(self.batchnorm_0(x))
        # Only a projecting shortcut starts after the activation; an identity carries x itself.
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        out = self.conv_0(F.pad(activated, self._padding))
        total: Tensor = self.conv_1(F.silu(self.batchnorm_1(out)))
        return total.add_(shortcut)


class DeepMindWideResNet(Network):
    """WideResNet-D-K with SiLU (Gowal et al., arXiv:2010.03593), otherwise as `wideresnet.WideResNet`.

    depth: 6n + 4; width: the factor K on 16-32-64 channels. The last map is (B, 64 K, H / 4, W / 4).
    Keys are those of DeepMind and RobustBench: init_conv, layer.N.block.M.{batchnorm_0,conv_0,batchnorm_1,conv_1,
    shortcut}, batchnorm, logits; their files leave the normalisation to whoever builds the network.
    Raises UserError for another depth.
    """

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
        self.init_conv = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.layer = nn.Sequential(*groups(depth, width, "block", Block))
        self.batchnorm = nn.BatchNorm2d(64 * width)
        self.logits = nn.Linear(64 * width, classes)

    @property
    def classifier(self) -> nn.Linear:
        return self.logits

    def features(self, x: Tensor) -> Tensor:
        return F.silu(self.batchnorm(self.layer(self.init_conv(x))))
