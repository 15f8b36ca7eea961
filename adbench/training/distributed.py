"""One training on several devices (experimental): the processes that torchrun starts, each with a part of every batch.

All ranks hold the same weights and take the same optimiser steps. Gradients are summed over the ranks, and batch-norm
in training mode uses the statistics of all ranks' images. So a student does not depend on the number of devices, except
for rounding and for noise (of attacks, of dropout), of which each rank has a stream of its own. Rank 0 is the lead: it
plans, writes the cell's folder, validates and evaluates, and tells the others which training comes next.
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
from torch.overrides import TorchFunctionMode

from adbench.errors import UserError
from adbench.models.precision import single

PATIENCE = timedelta(minutes=10)
"""A rank that keeps the others waiting for so long in the middle of a batch has failed."""
SILENCE = timedelta(days=365)
"""The lead may be busy with something else, as an evaluation, for so long."""
ENDED = "adbench: another process of this training ended; the same command goes on from the last epoch"

logger = logging.getLogger("adbench")


class Ranks:
    """A process among those that share a training. This class is a single process, which shares with nobody."""

    rank, size = 0, 1

    @property
    def first(self) -> bool:
        """Whether this process is the lead."""
        return self.rank == 0

    @property
    def stream(self) -> tuple[int, ...]:
        """What distinguishes this rank's own random streams in their names: nothing for the first rank."""
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

    def total(self, values: Tensor) -> Tensor:
        """The sum over the ranks of each of values, which all have in one shape; detached."""
        return values.detach()

    def extremes(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """The smallest and the largest of all ranks' values, detached; the numbers of values may differ."""
        return values.detach().amin(), values.detach().amax()

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over the ranks."""

    def gathered(self, value: Any) -> list[Any]:
        """Each rank's value, by rank."""
        return [value]

    def whole_batch(self) -> AbstractContextManager[None]:
        """Context in which every batch-norm in training mode uses the statistics of all ranks' images."""
        return nullcontext()

    def together(self) -> AbstractContextManager[list[Any]]:
        """Context whose body succeeds on every rank, or raises on every rank. All ranks have to enter it.

        Its list holds, afterwards, what the body appended to it on any rank.
        """
        return nullcontext([])

    def lead(self, work: Any) -> None:
        """Announce the next work to the other ranks."""

    def wait_for_lead(self, do: Callable[[Any], None]) -> None:
        """Call `do` with each work that the lead announces, until it leaves."""


class Parted(SystemExit):
    """Ends this process because another one of its training ended; nothing failed here."""


class Lost(Exception):
    """Another rank ended, or did not take part in a collective in time."""


class Torchrun(Ranks):
    """One of several processes. They exchange tensors through their devices, and objects through the CPU."""

    def __init__(self, device: torch.device) -> None:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
        self.rank, self.size, self.device = dist.get_rank(), dist.get_world_size(), device
        objects = dist.new_group(backend="gloo", timeout=SILENCE)
        assert isinstance(objects, dist.ProcessGroup)
        self._objects = objects
        self._lost = False

    def mean(self, values: Tensor) -> Tensor:
        wide = values.detach().to(self.device, torch.float64)
        sums = torch.stack([wide.sum(), wide.new_full((), wide.numel())])
        _add_up(sums)
        return (sums[0] / sums[1]).to(values)

    def total(self, values: Tensor) -> Tensor:
        wide = values.detach().to(self.device, torch.float64, copy=True)
        _add_up(wide)
        return wide.to(values)

    def extremes(self, values: Tensor) -> tuple[Tensor, Tensor]:
        wide = values.detach().to(self.device, torch.float64)
        both = torch.stack([-wide.amin(), wide.amax()])
        _all(dist.all_reduce, both, dist.ReduceOp.MAX)
        return (-both[0]).to(values), both[1].to(values)

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        if not (parts := list(tensors)):
            return
        flat = torch.cat([tensor.flatten() for tensor in parts])
        _add_up(flat)
        for tensor, total in zip(parts, torch.split(flat, [tensor.numel() for tensor in parts]), strict=True):
            tensor.copy_(total.view_as(tensor))

    def gathered(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * self.size
        _all(dist.all_gather_object, values, value, group=self._objects)
        return values

    def whole_batch(self) -> AbstractContextManager[None]:
        return _WholeBatch()

    @contextmanager
    def together(self) -> Iterator[list[Any]]:
        failure: Exception | None = None
        values: list[Any] = []
        try:
            yield values
        except Exception as error:
            failure = error
        try:
            values[:] = self._agreed(failure, values)
        finally:
            del failure  # with its traceback it would keep this frame, and all that is on the device

    def _agreed(self, failure: Exception | None, values: list[Any]) -> list[Any]:
        """All ranks' values. Raises this rank's failure, or else a UserError with another rank's."""
        lost = isinstance(failure, Lost)
        message = (str(failure) or type(failure).__name__) if failure and not lost else None
        if message and not self.first and not isinstance(failure, UserError):
            logger.error("rank %d", self.rank, exc_info=failure)
        try:
            every = self.gathered((message, lost, values))
        except Lost as gone:
            if not message:
                raise Parted(ENDED) from gone  # nothing failed here
            logger.error("rank %d: %s", self.rank, message)  # nobody else can
            raise failure from gone  # type: ignore[misc]
        self._lost = any(lost for _, lost, _ in every)
        if message:
            raise failure  # type: ignore[misc]
        for rank, (message, _, _) in enumerate(every):
            if message:
                raise UserError(f"rank {rank}: {message}")
        if lost:
            raise Parted(ENDED) from failure
        return [value for _, _, values in every for value in values]

    def lead(self, work: Any) -> None:
        if self._lost:  # where one collective was given up, no other works
            raise Parted(ENDED)
        self._broadcast(work)

    def wait_for_lead(self, do: Callable[[Any], None]) -> None:
        while (work := self._broadcast(None)) is not None:
            do(work)

    def leave(self) -> None:
        """End the sharing."""
        if self.first:
            self._broadcast(None)
        dist.destroy_process_group()

    def _broadcast(self, work: Any) -> Any:
        """The first rank's work, on all ranks."""
        values = [work]
        try:
            _all(dist.broadcast_object_list, values, src=0, group=self._objects)
        except Lost as lost:
            raise Parted(ENDED) from lost
        return values[0]


ALONE = Ranks()


def _all(collective: Callable[..., Any], *args: Any, **extra: Any) -> None:
    """A collective, in which every rank has to take part. Raises Lost where one does not."""
    try:
        collective(*args, **extra)
    except RuntimeError as error:
        raise Lost(str(error)) from error


def _add_up(values: Tensor) -> None:
    _all(dist.all_reduce, values)


def world_size() -> int:
    """The number of processes that torchrun started, this one included; 1 without torchrun."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def local_size() -> int:
    """The number of these processes on this machine."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if world_size() > 1 else 1


def local(device: str) -> str:
    """This process's device: of several processes on a machine, each has a GPU of its own."""
    if world_size() == 1 or device == "cpu":
        return device
    if device != "cuda":
        raise UserError(
            f"device '{device}': torchrun's processes have a GPU each; write --device cuda, or leave it out"
        )
    return f"cuda:{os.environ['LOCAL_RANK']}"


@contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """This process's ranks. When the lead leaves, with an error or without, the others' `wait_for_lead` ends."""
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


class _WholeBatch(TorchFunctionMode):
    """`_batch_norm` in place of torch's in this process, within the context.

    It reaches every network: the student, a copy of it, one of the method's own. torch.nn.SyncBatchNorm would have to
    replace the modules of each, and knows no CPU.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return (_batch_norm if func is F.batch_norm else func)(*args, **kwargs or {})


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
        return F.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
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
