"""From an architecture's name to a network."""

from __future__ import annotations

from torch import nn

from adbench.errors import UserError
from adbench.models.cnn import SmallCNN
from adbench.models.dm_wideresnet import DeepMindWideResNet
from adbench.models.ensemble import Ensemble
from adbench.models.foreign import Foreign, made, of_timm
from adbench.models.names import TIMM, canonical, cnn_width, is_deepmind, together, wide_shape
from adbench.models.network import Network, PerChannel
from adbench.models.wideresnet import WideResNet
from adbench.registry import MODELS


def build(name: str, *, classes: int, channels: int = 3, mean: PerChannel = None, std: PerChannel = None) -> Network:
    """A freshly initialised network, by any spelling of its name.

    "FILE.py:NAME" is a user's own module, "timm:NAME" one of timm's, "A + B" an ensemble. Raises UserError for an
    unknown name, an impossible shape or normalisation, or a third-party factory that returns something else than a
    network.
    """
    name = canonical(name)
    if len(parts := together(name)) > 1:
        members = [build(one, classes=classes, channels=channels, mean=mean, std=std) for one in parts]
        return Ensemble(members, channels=channels)
    if name not in MODELS and (shape := wide_shape(name)):
        family = DeepMindWideResNet if is_deepmind(name) else WideResNet
        return family(*shape, classes=classes, channels=channels, mean=mean, std=std)
    if name not in MODELS and (width := cnn_width(name)):
        return SmallCNN(width, classes=classes, channels=channels, mean=mean, std=std)
    if name.startswith(TIMM) or MODELS.in_file(name):
        module = (
            of_timm(name, classes=classes, channels=channels)
            if name.startswith(TIMM)
            else made(MODELS.load(name), name, classes=classes, channels=channels, mean=mean, std=std)
        )
        if isinstance(module, Network):
            if mean is not None and module.mean is None:
                raise UserError(f"the network '{name}' does not normalise; have its factory take mean and std")
            return module
        return Foreign(module, name, classes=classes, channels=channels, mean=mean, std=std)
    network = MODELS.load(name)(classes=classes, channels=channels, mean=mean, std=std)
    if not isinstance(network, Network):
        raise UserError(
            f"the model '{name}' (from '{MODELS.source(name)}') is a {type(network).__name__}; "
            f"its factory has to return an adbench.models.Network"
        )
    return network


def count_parameters(network: nn.Module) -> int:
    """The number of parameters, trainable and frozen, without buffers."""
    return sum(p.numel() for p in network.parameters())
