"""The optimiser of a recipe, its schedule, and the momentum of batch-norm's statistics."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from adbench.experiment.config import Train
from adbench.training import schedule

NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.modules.instancenorm._InstanceNorm)
BETA2 = 0.999
"""AdamW's second beta."""


def optimiser(network: nn.Module, train: Train, device: torch.device) -> torch.optim.Optimizer:
    """SGD or AdamW on the network's parameters. On a GPU fused, which is what heeds `found_inf`."""
    decaying, fused = list(groups(network, train)), device.type == "cuda" or None
    if train.optimiser == "adamw":
        return torch.optim.AdamW(
            decaying, train.lr, betas=(train.momentum, BETA2), weight_decay=train.weight_decay, fused=fused
        )
    return torch.optim.SGD(
        decaying,
        train.lr,
        momentum=train.momentum,
        nesterov=train.nesterov,
        weight_decay=train.weight_decay,
        fused=fused,
    )


def groups(network: nn.Module, train: Train) -> Iterator[dict[str, Any]]:
    """The network's parameters in groups, by whether they decay (`train.decay`, `train.decay_norm`)."""
    parameters = list(network.parameters())
    if train.decay == "kernels":
        still = {id(p) for p in parameters if p.ndim <= 1}
    elif not train.decay_norm:
        still = {id(p) for module in network.modules() if isinstance(module, NORMS) for p in module.parameters()}
    else:
        still = set()
    yield {"params": [p for p in parameters if id(p) not in still]}
    if still:
        yield {"params": [p for p in parameters if id(p) in still], "weight_decay": 0.0}


def set_rates(optimiser: torch.optim.Optimizer, train: Train, epoch: int, batch: int, batches: int) -> None:
    """Give the optimiser the learning rate and momentum of an iteration (see `schedule.rate`)."""
    lr = schedule.rate(train, epoch, batch, batches)
    momentum = schedule.momentum(train, epoch, batch, batches)
    for group in optimiser.param_groups:
        group["lr"] = lr
        if "betas" in group:
            group["betas"] = (momentum, group["betas"][1])
        else:
            group["momentum"] = momentum


def set_bn_momentum(network: nn.Module, train: Train, iteration: int) -> None:
    """Give batch-norm its momentum in an iteration (from 1): 1 in the first, so that the statistics begin with the
    data's, as published codes do that have 0.01 afterwards."""
    if train.bn_momentum is not None:
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = 1.0 if iteration == 1 else train.bn_momentum
