"""One training on several devices: the processes that torchrun starts, each with a part of every batch.

All of them hold the same weights and take the same optimiser steps. Gradients are summed up over the ranks, and
batch-norm in training mode uses the statistics of all ranks' images, so that a student does not depend on the number
of devices but for rounding and noise (of attacks, of dropout), whose streams are each rank's own. Rank 0 leads: it
plans, keeps the cell's folder, validates and evaluates; the others hear from it which training comes next.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from adbench.errors import UserError
from adbench.models.precision import single

PATIENCE = timedelta(minutes=10)
"""A rank that keeps the others waiting for so long in the middle of a batch has failed."""
SILENCE = timedelta(days=365)
"""The leader may be busy with something else, as an evaluation, for so long."""
ENDED = "adbench: another process of this training ended; the same command goes on from the last epoch"

logger = logging.getLogger("adbench")


class Ranks:
    """A process among those that share a training. This class is one that is alone; there is nothing to share."""

    rank, size = 0, 1

    @property
    def first(self) -> bool:
        """Whether this process leads."""
        return self.rank == 0

    @property
    def stream(self) -> tuple[int, ...]:
        """What the names of random streams end in that each rank has for itself: nothing for the first."""
        return (self.rank,) if self.rank else ()

    def part(self, count: int) -> tuple[slice, int]:
        """This rank's part of a batch of `count` images, and how many all parts have together.

        Of a batch with fewer images than there are ranks, all get the whole.
        """
        if count < self.size:
            return slice(0, count), count * self.size
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size), count

    def mean(self, values: Tensor) -> Tensor:
        """The mean of all ranks' values, detached, in their type; the numbers of values may differ."""
        return values.detach().mean()

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over the ranks."""

    def gathered(self, word: Any) -> list[Any]:
        """What each rank says, by rank."""
        return [word]

    def whole_batch(self) -> AbstractContextManager[None]:
        """Within, every batch-norm in training mode uses the statistics of all ranks' images."""
        return nullcontext()

    def together(self) -> AbstractContextManager[list[Any]]:
        """What is within succeeds on every rank, or raises on every rank. All of them have to come here.

        What a rank appends to the list, it holds afterwards of every rank.
        """
        return nullcontext([])

    def lead(self, work: Any) -> None:
        """Tell the other ranks what comes next."""

    def follow(self, do: Callable[[Any], None]) -> None:
        """Do what the first rank says, until it leaves."""


class Parted(SystemExit):
    """Ends this process because another of its training has ended: no failure of what was done here."""


class Lost(Exception):
    """Another rank has ended, or did not come to where this one waited for it."""


class Torchrun(Ranks):
    """One of several processes, which talk through torch.distributed: of tensors by their device, else by the CPU."""

    def __init__(self, device: torch.device) -> None:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
        self.rank, self.size, self.device = dist.get_rank(), dist.get_world_size(), device
        words = dist.new_group(backend="gloo", timeout=SILENCE)
        assert isinstance(words, dist.ProcessGroup)
        self._words = words
        self._lost = False

    def mean(self, values: Tensor) -> Tensor:
        wide = values.detach().to(self.device, torch.float64)
        sums = torch.stack([wide.sum(), wide.new_full((), wide.numel())])
        _add_up(sums)
        return (sums[0] / sums[1]).to(values)

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        if not (found := list(tensors)):
            return
        flat = torch.cat([tensor.flatten() for tensor in found])
        _add_up(flat)
        for tensor, total in zip(found, torch.split(flat, [tensor.numel() for tensor in found]), strict=True):
            tensor.copy_(total.view_as(tensor))

    def gathered(self, word: Any) -> list[Any]:
        words: list[Any] = [None] * self.size
        _all(dist.all_gather_object, words, word, group=self._words)
        return words

    @contextmanager
    def whole_batch(self) -> Iterator[None]:
        # Whichever network it is in: the student, a copy of it, one of the method's own. torch.nn.SyncBatchNorm would
        # have to replace the modules of each, and knows no CPU.
        F.batch_norm = _batch_norm  # type: ignore[assignment]
        try:
            yield
        finally:
            F.batch_norm = _alone

    @contextmanager
    def together(self) -> Iterator[list[Any]]:
        mine: Exception | None = None
        words: list[Any] = []
        try:
            yield words
        except Exception as error:
            mine = error
        try:
            words[:] = self._agreed(mine, words)
        finally:
            del mine  # with its traceback it would keep this frame, and all that is on the device

    def _agreed(self, mine: Exception | None, words: list[Any]) -> list[Any]:
        """All ranks' words. Raises what this rank met, or else a UserError that says what another did."""
        lost = isinstance(mine, Lost)
        said = (str(mine) or type(mine).__name__) if mine and not lost else None
        if said and not self.first and not isinstance(mine, UserError):
            logger.error("rank %d", self.rank, exc_info=mine)
        try:
            heard = self.gathered((said, lost, words))
        except Lost as gone:
            if not said:
                raise Parted(ENDED) from gone  # no failure of what was done here
            logger.error("rank %d: %s", self.rank, said)  # nobody else can
            raise mine from gone  # type: ignore[misc]
        self._lost = any(lost for _, lost, _ in heard)
        if said:
            raise mine  # type: ignore[misc]
        for rank, (theirs, _, _) in enumerate(heard):
            if theirs:
                raise UserError(f"rank {rank}: {theirs}")
        if lost:
            raise Parted(ENDED) from mine
        return [word for _, _, theirs in heard for word in theirs]

    def lead(self, work: Any) -> None:
        if self._lost:  # where one collective was given up, no other works
            raise Parted(ENDED)
        self._heard(work)

    def follow(self, do: Callable[[Any], None]) -> None:
        while (said := self._heard(None)) is not None:
            do(said)

    def leave(self) -> None:
        """The end of what the ranks have in common."""
        if self.first:
            self._heard(None)
        dist.destroy_process_group()

    def _heard(self, work: Any) -> Any:
        """What the first rank says, on all."""
        said = [work]
        try:
            _all(dist.broadcast_object_list, said, src=0, group=self._words)
        except Lost as lost:
            raise Parted(ENDED) from lost
        return said[0]


ALONE = Ranks()


def _all(collective: Callable[..., Any], *args: Any, **extra: Any) -> None:
    """What every rank has to take part in. Raises Lost where one does not."""
    try:
        collective(*args, **extra)
    except RuntimeError as error:
        raise Lost(str(error)) from error


def _add_up(values: Tensor) -> None:
    _all(dist.all_reduce, values)


def world_size() -> int:
    """How many processes torchrun started, this one included; 1 without torchrun."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def local_size() -> int:
    """How many of them are on this machine."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if world_size() > 1 else 1


def local(device: str) -> str:
    """This process's device: of several on a machine, each has a GPU of its own."""
    if world_size() == 1 or device == "cpu":
        return device
    if device != "cuda":
        raise UserError(
            f"device '{device}': torchrun's processes have a GPU each; write --device cuda, or leave it out"
        )
    return f"cuda:{os.environ['LOCAL_RANK']}"


@contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """This process's ranks. When the first leaves, with an error or without, the others' `follow` ends."""
    if world_size() == 1:
        yield ALONE
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    ranks = Torchrun(device)
    try:
        yield ranks
    except Exception:
        with suppress(Exception, SystemExit):
            ranks.leave()
        raise
    ranks.leave()  # not where the process is asked to end: nobody may be there to hear it


class _Sum(torch.autograd.Function):
    """The sum over the ranks of values that each has; so is the gradient."""

    @staticmethod
    def forward(_: Any, values: Tensor) -> Tensor:
        total = values.clone(memory_format=torch.contiguous_format)
        _add_up(total)
        return total

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        total: Tensor = _Sum.apply(gradient)
        return total


_alone = F.batch_norm


def _batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """torch.nn.functional.batch_norm of x (B, C, ...), with all ranks' images where it is training."""
    if not training:
        return _alone(x, running_mean, running_var, weight, bias, False, momentum, eps)
    values = single(x)
    rest = [dim for dim in range(x.dim()) if dim != 1]
    column = [-1 if dim == 1 else 1 for dim in range(x.dim())]
    here = values.new_full((1,), x.numel() // x.shape[1])
    sums = _Sum.apply(torch.cat([values.sum(rest), here]))
    mean, count = sums[:-1] / sums[-1], sums[-1].detach()
    centred = values - mean.view(column)
    # In two passes, since a difference of large squares would leave little of a small variance.
    variance = _Sum.apply(centred.square().sum(rest)) / count
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean, momentum)
            running_var.lerp_(variance * count / (count - 1), momentum)
    scale = (variance + eps).rsqrt()
    if weight is not None:
        scale = scale * weight
    out: Tensor = centred * scale.view(column)
    if bias is not None:
        out = out + bias.view(column)
    return out.to(x.dtype)
