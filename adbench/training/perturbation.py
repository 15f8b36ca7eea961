"""Adversarial weight perturbation: a batch is learnt from at weights that are moved to make its loss larger.

The form of Wu et al. (NeurIPS 2020) perturbs every kernel by gamma of its own norm, spares batch-norm's statistics the
first pass, and updates from the perturbed weights. That of ADR (Wu et al., ICLR 2024) perturbs every parameter, spares
the statistics the second pass, and restores the weights before the update.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from adbench.experiment.config import Train

T = TypeVar("T")

ORIGINAL, RESTORE_FIRST = "original", "restore-first"
TINY = 1e-20
"""Keeps a gradient of norm 0 from dividing by it (authors' code)."""


class Perturbation:
    """Adds v to the weights w of a network for a batch, and takes it away again, whatever happens in between."""

    def __init__(self, network: nn.Module, train: Train) -> None:
        self.network, self.gamma, self.form = network, train.awp, train.awp_form
        self.first = round(train.awp_start * train.epochs)
        self._weights: dict[str, Tensor] = {}  # w, as long as the network is at w + v
        self._added: dict[str, Tensor] = {}  # v

    def due(self, epoch: int) -> bool:
        """Whether the weights are perturbed in an epoch, counted from 0."""
        return self.gamma > 0 and epoch >= self.first

    @contextmanager
    def around(
        self,
        batch: Iterable[T],
        rehearse: Callable[[Sequence[T]], dict[str, Tensor]],
        epoch: int,
        modules: Sequence[nn.Module],
    ) -> Iterator[Iterable[T]]:
        """Context in which the network is at w + v, and that leaves it at w, or at what `update` made of it.

        batch: its parts, which are all attacked before the first pass. rehearse: that pass, which gives the loss's
        gradients by parameter. modules: all that this pass runs. Where no perturbation is due, nothing happens.
        """
        if not self.due(epoch):
            yield batch
            return
        whole = list(batch)
        statistics = [(buffer, buffer.clone()) for module in modules for buffer in module.buffers()]
        try:
            gradients = rehearse(whole)
        finally:
            if self.form == ORIGINAL:
                for buffer, before in statistics:
                    buffer.copy_(before)
        with _still(modules if self.form == RESTORE_FIRST else ()):
            try:
                self._add(gradients)
                yield whole
            finally:
                self.restore()

    @contextmanager
    def update(self, failed: Tensor) -> Iterator[None]:
        """Context for the optimiser's step. failed: not 0 where that changes nothing."""
        if self.form == RESTORE_FIRST:
            self.restore()
        yield
        with torch.no_grad():
            for name, p in self._perturbed():
                p.copy_(torch.where(failed > 0, self._weights[name], p - self._added[name]))
        self._forget()

    @torch.no_grad()
    def restore(self) -> None:
        """Put the weights back to w, bit for bit."""
        for name, p in self._perturbed():
            p.copy_(self._weights[name])
        self._forget()

    @torch.no_grad()
    def _add(self, gradients: dict[str, Tensor]) -> None:
        """v = gamma ||w|| g / ||g||, by whole tensors."""
        for name, p in self.network.named_parameters():
            if name in gradients and (self.form == RESTORE_FIRST or ("weight" in name and p.ndim > 1)):
                g = gradients[name]
                self._weights[name] = p.detach().clone()
                self._added[name] = self.gamma * p.norm() / (g.norm() + TINY) * g
                p.add_(self._added[name])

    def _perturbed(self) -> list[tuple[str, nn.Parameter]]:
        if not self._weights:
            return []
        return [(name, p) for name, p in self.network.named_parameters() if name in self._weights]

    def _forget(self) -> None:
        self._weights, self._added = {}, {}


@contextmanager
def _still(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Context in which batch-norm uses a batch's statistics, and its running ones stay."""
    norms = [m for module in modules for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    before = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.momentum = 0.0
        yield
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum
