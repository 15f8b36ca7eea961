"""Several networks as one, whose logits are the mean of theirs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from adbench.errors import UserError
from adbench.models.network import Network

WITHOUT = (
    "an ensemble has no {} of its own, which this method needs; choose a single teacher or a method of logits, or ask "
    "each of `step.teacher.members`"
)


class Ensemble(Network):
    """Networks that are given the same images x (B, C, H, W) in [0, 1] and normalise them themselves.

    Its logits (B, classes) are the mean of its members' logits. It has no feature map and no classifier.
    """

    members: Sequence[Network]

    def __init__(self, members: Sequence[Network], *, channels: int) -> None:
        super().__init__(channels=channels)
        self.members = nn.ModuleList(members)  # type: ignore[assignment]

    @property
    def shows_features(self) -> bool:
        return False

    @property
    def classifier(self) -> nn.Linear:
        """Raises UserError."""
        raise UserError(WITHOUT.format("classifier"))

    def forward_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Raises UserError."""
        raise UserError(WITHOUT.format("feature map"))

    def forward(self, x: Tensor) -> Tensor:
        return mean_logits([member(x) for member in self.members])


def mean_logits(logits: Sequence[Tensor]) -> Tensor:
    """The mean of several networks' logits, (B, classes) each."""
    return torch.stack(tuple(logits)).mean(dim=0)
