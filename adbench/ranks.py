"""One training on several devices: the processes that torchrun starts, each with a part of every batch.

All of them hold the same weights and take the same optimiser steps. Gradients are summed up over the ranks, and
batch-norm in training mode uses the statistics of the whole batch, so that a student does not depend on the number of
devices but for rounding and the noise of its attacks, whose streams are each rank's own. Rank 0 leads: it plans,
writes all files, validates and evaluates; the others hear from it which training comes next.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from adbench.errors import UserError

PATIENCE = timedelta(minutes=10)
"""A rank that keeps the others waiting for so long in the middle of a batch has failed."""
EVALUATION = timedelta(days=365)
"""And the leader may be busy with something else for so long."""


class Ranks:
    """A process among those that share a training. This class is one that is alone; there is nothing to share."""

    rank, size = 0, 1

    @property
    def first(self) -> bool:
        """Whether this process leads."""
        return self.rank == 0

    @property
    def own(self) -> tuple[int, ...]:
        """What a random stream's name ends in that each rank has for itself: nothing for the first."""
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

    def whole_batch(self) -> AbstractContextManager[None]:
        """Within, every batch-norm in training mode uses the statistics of all ranks' images."""
        return nullcontext()

    def together(self) -> AbstractContextManager[None]:
        """What is within succeeds on every rank, or raises on every rank. All of them have to come here."""
        return nullcontext()

    def lead(self, work: Any) -> None:
        """Tell the other ranks what comes next."""

    def follow(self, do: Callable[[Any], None]) -> None:
        """Do what the first rank says, until it leaves."""


class Torchrun(Ranks):
    """One of several processes, which talk through torch.distributed."""

    def __init__(self, device: torch.device) -> None:
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=PATIENCE)
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        # Words go by the CPU, and may be long in coming.
        words = dist.new_group(backend="gloo", timeout=EVALUATION)
        assert isinstance(words, dist.ProcessGroup)
        self._words = words

    def mean(self, values: Tensor) -> Tensor:
        values = values.detach()
        sums = torch.stack([values.double().sum(), values.new_full((), values.numel(), dtype=torch.float64)])
        dist.all_reduce(sums)
        return (sums[0] / sums[1]).to(values.dtype)

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        found = list(tensors)
        together = torch.cat([tensor.flatten() for tensor in found])
        dist.all_reduce(together)
        for tensor, total in zip(found, torch.split(together, [tensor.numel() for tensor in found]), strict=True):
            tensor.copy_(total.view_as(tensor))

    def whole_batch(self) -> AbstractContextManager[None]:
        return _WholeBatch()

    @contextmanager
    def together(self) -> Iterator[None]:
        mine: Exception | None = None
        try:
            yield
        except Exception as error:
            mine = error
        words: list[Any] = [None] * self.size
        try:
            dist.all_gather_object(words, mine and (str(mine) or type(mine).__name__), group=self._words)
        except RuntimeError as error:  # no failure of what was done here, so none to record
            raise SystemExit("adbench: another process of this training ended; the same command goes on") from error
        if mine:
            raise mine
        for rank, said in enumerate(words):
            if said is not None:
                raise UserError(f"rank {rank}: {said}")

    def lead(self, work: Any) -> None:
        dist.broadcast_object_list([work], src=0, group=self._words)

    def follow(self, do: Callable[[Any], None]) -> None:
        while True:
            said: list[Any] = [None]
            dist.broadcast_object_list(said, src=0, group=self._words)
            if said[0] is None:
                return
            do(said[0])

    def leave(self) -> None:
        """The end of what the ranks have in common."""
        if self.first:
            self.lead(None)
        dist.destroy_process_group()


ALONE = Ranks()


def by_torchrun() -> int:
    """With how many others torchrun started this process, itself included; 1 without torchrun."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def neighbours() -> int:
    """How many of them are on this machine."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if by_torchrun() > 1 else 1


def local(device: str) -> str:
    """This process's device, where torchrun started several on a machine and "cuda" leaves open which."""
    return f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" and by_torchrun() > 1 else device


@contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """This process's ranks. When the first leaves, with an error or without, the others' `follow` ends."""
    if by_torchrun() == 1:
        yield ALONE
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    ranks = Torchrun(device)
    try:
        yield ranks
    except Exception:
        ranks.leave()
        raise
    ranks.leave()  # not where the process is asked to end: nobody may be there to hear it


class _Sum(torch.autograd.Function):
    """The sum over the ranks of values that each has; so is the gradient."""

    @staticmethod
    def forward(_: Any, values: Tensor) -> Tensor:
        total = values.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        total: Tensor = _Sum.apply(gradient)
        return total


class _WholeBatch(TorchFunctionMode):
    """Whichever network it is in: the student, a copy of it, one of the method's own.

    torch.nn.SyncBatchNorm would have to replace the modules of each, and knows no CPU.
    """

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        if func is F.batch_norm:
            return _batch_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _batch_norm(
    x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
    bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """torch.nn.functional.batch_norm of x (B, C, ...), with all ranks' images where it is training."""
    if not training:
        return F.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
    values = x if x.dtype in (torch.float32, torch.float64) else x.float()
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
