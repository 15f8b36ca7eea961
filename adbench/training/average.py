"""The average of a student's weights over its training, which is judged in the student's place.

swa: the plain mean of the weights after each epoch from a given one on (Izmailov et al., UAI 2018). ema: an exponential
average after every update (as in Gowal et al., 2020).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from adbench.experiment.config import Train
from adbench.models import Network

LIVE, AVERAGED = "live", "averaged"
BY_IMAGE, BY_BATCH = "re-estimated", "re-estimated-by-batch"
RE_ESTIMATED = (BY_IMAGE, BY_BATCH)


class Average:
    """An averaged network beside a student. batches: iterations an epoch."""

    def __init__(self, student: Network, train: Train, batches: int) -> None:
        self.kind, self.decay = train.average, train.average_decay
        self.statistics, self.first = train.statistics, train.judged_from
        self.copied = round(train.average_start * train.epochs) * batches
        """Iterations in which an exponential average is the student itself."""
        self.warmup = train.average_warmup * train.epochs * batches
        self.network = copy.deepcopy(student).requires_grad_(False).eval()
        self.samples = 0

    @property
    def begun(self) -> bool:
        """Whether there is something to judge: an average of one sample at least."""
        return self.kind == "ema" or self.samples > 0

    def after_update(self, student: Network, iteration: int) -> None:
        """Take the student's weights into an exponential average. iteration: of the update, from 1."""
        if self.kind == "ema":
            self._take(student, 1 - self.decay_at(iteration))

    def decay_at(self, iteration: int) -> float:
        """What the average keeps of itself: nothing until the warm-up ends, from where it rises from 0.1 to `decay`."""
        done = iteration - self.copied - self.warmup
        if self.warmup:
            return 0.0 if done < 0 else min(self.decay, (1 + done) / (10 + done))
        return 0.0 if iteration <= self.copied else self.decay

    def after_epoch(self, student: Network, epoch: int) -> None:
        """Take a sample of the student into a plain average, and its batch-norm statistics where they are to be live.
        epoch: how many are done."""
        if self.kind == "swa" and epoch >= self.first:
            self.samples += 1
            self._take(student, 1 / self.samples)
        if self.statistics == LIVE:
            for own, live in zip(self.network.buffers(), student.buffers(), strict=True):
                own.copy_(live)

    @torch.no_grad()
    def _take(self, student: Network, share: float) -> None:
        """Move the average towards the student by a share of the way; of counts whole numbers are kept."""
        values = [(self.network.parameters(), student.parameters())]
        if self.statistics == AVERAGED:
            values.append((self.network.buffers(), student.buffers()))  # type: ignore[arg-type]
        for own, live in ((a, b) for pair in values for a, b in zip(*pair, strict=True)):
            if own.is_floating_point():
                own.lerp_(live, share)
            else:
                own.copy_(((1 - share) * own.double() + share * live.double()).trunc())

    @torch.no_grad()
    def estimate(self, images: Iterable[Tensor]) -> None:
        """Take batch-norm's statistics anew, of one pass over batches of images (B, C, H, W) in [0, 1]: means of the
        batches' means and of their unbiased variances. A batch counts by its images, or each alike (by batch, as
        torch's `update_bn` has it, which counts the batches anew as well)."""
        alike = self.statistics == BY_BATCH
        norms = [m for m in self.network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        before = [norm.momentum for norm in norms]
        for norm in norms:
            if norm.running_mean is not None and norm.running_var is not None:
                norm.running_mean.zero_()
                norm.running_var.fill_(1)
            if alike and norm.num_batches_tracked is not None:
                norm.num_batches_tracked.zero_()
        self.network.train()
        seen = 0
        for x in images:
            weight = 1 if alike else len(x)
            seen += weight
            for norm in norms:
                norm.momentum = weight / seen
            self.network(x)
        self.network.eval()
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed training needs."""
        return {"network": self.network.state_dict(), "samples": self.samples}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.network.load_state_dict(state["network"])
        self.samples = state["samples"]
