"""How a network is run: in which precision, and in which form while only its input's gradient is asked for.

A training step runs the student forward and back a dozen times, and all but the last of these want the gradient of
the input alone, from a network that holds still. `Lean` is a network in that form. AutoAttack's fast search runs on
the same form, in bfloat16.
"""

from __future__ import annotations

import copy
import ctypes
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils.flop_counter import FlopCounterMode

from adbench.models import Network

Precision = Literal["float32", "bfloat16"]
F = TypeVar("F", bound=Callable[..., Any])

LEAST_WORK = 10_000_000
"""Multiply-adds of one image from which on the lean form is chosen: a smaller network's time is not in its layers."""

PART = 64
"""Images that a CPU is given at a time, so that their activations fit its caches; in bfloat16 twice as many."""


def multiply_adds(network: nn.Module, image_shape: tuple[int, ...]) -> int:
    """Of one forward pass of one image (C, H, W), in convolutions and matrix products; evaluation mode."""
    device = next(network.parameters()).device
    was_training = network.training
    network.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, *image_shape, device=device))
    network.train(was_training)
    return int(counter.get_total_flops()) // 2


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device has arithmetic for bfloat16; where it has none, torch's emulation is twenty times slower."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    can = torch.cpu.get_capabilities()
    return bool(can.get("amx_bf16") or can.get("avx512_bf16"))


@cache
def keep_freed_memory() -> bool:
    """Let this process keep what it frees, for what it allocates next: whether its C library (glibc) can.

    By default glibc hands a large block back when it is freed and asks the kernel for another, whose pages are empty
    and cost a fault each: a fifth of a small network's time on a CPU (docs/performance.md).
    """
    trim_threshold, mmap_threshold = -1, -3  # malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return False
    # Before 2.35 no threshold above 32 MiB is accepted.
    blocks = mallopt(mmap_threshold, 1 << 30) or mallopt(mmap_threshold, 1 << 25)
    return bool(blocks and mallopt(trim_threshold, (1 << 31) - 1))


@dataclass(frozen=True)
class Engine:
    """How the networks of one training are run.

    precision: of convolutions and matrix products (weights and all that is not one stay in float32, and so does all
    that a method computes from logits and feature maps). lean: attacks see `Lean` networks; without it every layer
    runs as it is written. compiled: by torch.compile, each shape of a batch by itself.
    """

    precision: Precision = "float32"
    lean: bool = False
    compiled: bool = False

    @classmethod
    def chosen(cls, asked: str, network: nn.Module, image_shape: tuple[int, ...], *, compiled: bool = False) -> Engine:
        """The engine for `train.precision`: "float32" runs every layer as written, "bfloat16" is fast and narrow.

        "auto" is the fast form in float32, but for networks below LEAST_WORK; bfloat16 has to be asked for until
        students trained both ways have been compared (docs/performance.md). It depends on nothing but the network.
        """
        if asked == "float32" or (asked == "auto" and multiply_adds(network, image_shape) < LEAST_WORK):
            return cls(compiled=compiled)
        return cls("bfloat16" if asked == "bfloat16" else "float32", lean=True, compiled=compiled)

    def prepared(self, function: F) -> F:
        """A network's function as this engine runs it."""
        if not self.compiled:
            return function
        compiled: F = torch.compile(function, dynamic=False)  # type: ignore[assignment]
        return compiled

    @property
    def dtype(self) -> torch.dtype:
        """Of convolutions and matrix products."""
        return torch.bfloat16 if self.precision == "bfloat16" else torch.float32

    def autocast(self, device: torch.device) -> torch.autocast:
        """The context in which networks run."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bfloat16")

    def layout(self, device: torch.device) -> torch.memory_format:
        """Of a network that learns: channels last is faster on a GPU where layers need not run as they are written.

        On a CPU torch's batch-norm in training mode loses up to three digits in that layout.
        """
        return torch.channels_last if self.lean and device.type == "cuda" else torch.contiguous_format


AS_WRITTEN = Engine()


class Lean(nn.Module):
    """A frozen copy of a network in evaluation mode, for outputs and their gradient in the input.

    A batch-norm that nothing but a convolution feeds is folded into that convolution, which is exact but for
    rounding; weights of convolutions and matrix products are held in the precision they run in, but for the layer that
    gives the logits, which is next to no work and runs in float32: divergences of nearly equal outputs are lost in
    logits of eight bits. Maps are channels last. `follow` takes over the weights and statistics that the original has
    by then.

    Called with images (B, C, H, W) it returns what the original returns; `forward_features` likewise.
    """

    def __init__(self, network: nn.Module, engine: Engine) -> None:
        super().__init__()
        self.engine = engine
        if not any(weights.is_cuda for weights in network.parameters()):
            keep_freed_memory()
        original = _Outputs(network) if isinstance(network, Network) else network
        body = copy.deepcopy(original).eval().requires_grad_(False)
        pairs, self.body = _without_batch_norm(body)
        _untie(self.body)
        self._folded: list[tuple[Any, Any, Any]] = [
            (self.body.get_submodule(conv), original.get_submodule(conv), original.get_submodule(norm))
            for conv, norm in pairs
        ]
        if engine.precision == "bfloat16":
            if (last := _classifier(self.body)) is not None:
                last.__class__ = _Single
            for module in self.body.modules():
                # Autocast would convert these weights anew in every pass.
                if type(module) in (nn.Conv2d, nn.Linear):
                    module.to(engine.dtype)
        self.body.to(memory_format=torch.channels_last)
        inside = {id(tensor) for mine, _, _ in self._folded for tensor in mine.parameters()}
        self._kept = [
            (tensor, theirs)
            for name, tensor in (*self.body.named_parameters(), *self.body.named_buffers())
            if id(tensor) not in inside and (theirs := _attribute(original, name)) is not None
        ]
        self._outputs = engine.prepared(self.body.__call__)
        self.follow()

    @torch.no_grad()
    def follow(self) -> None:
        """Take over the original's weights and statistics."""
        for mine, conv, norm in self._folded:
            weight, bias = fuse_conv_bn_weights(
                conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            )
            mine.weight.copy_(weight)
            mine.bias.copy_(bias)
        for tensor, theirs in self._kept:
            tensor.copy_(theirs)

    def forward(self, x: Tensor) -> Tensor:
        return _joined([outputs[0] for outputs in self._parts(x)])

    def forward_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of a `Network`: logits (B, classes) and the last feature map (B, K, H', W'), both in float32 or better."""
        logits, maps = zip(*self._parts(x), strict=True)
        return _joined(logits), _joined(maps)

    def _parts(self, x: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """The outputs for each part of the images, in the precision they come in."""
        size = PART * 4 // self.engine.dtype.itemsize if x.device.type == "cpu" else max(1, len(x))
        for part in torch.split(x, size):
            with self.engine.autocast(x.device):
                outputs = self._outputs(_ChannelsLast.apply(part))
            yield outputs if isinstance(outputs, tuple) else (outputs,)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """A batch of its parts, in float32 or better."""
    return single(parts[0] if len(parts) == 1 else torch.cat(tuple(parts)))


def single(values: Tensor) -> Tensor:
    """In float32 or better, so that no divergence, rank or map is computed in half precision."""
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


class _ChannelsLast(torch.autograd.Function):
    """An input in channels-last layout, whose gradient comes back contiguous."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last)

    @staticmethod
    def backward(_: Any, grad: Tensor) -> Tensor:
        return grad.contiguous()


class _Single(nn.Linear):
    """A linear layer in the precision of its weights, also under autocast."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.to(self.weight.dtype))


class _Outputs(nn.Module):
    """A network whose forward pass gives logits and the last feature map."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.network.forward_features(x)


def _untie(network: nn.Module) -> None:
    """Give each module tensors of its own where several share one (tied weights), since each is changed by itself."""
    seen: set[int] = set()
    for module in network.modules():
        tables: list[dict[str, Any]] = [module._parameters, module._buffers]
        for own in tables:
            for name, tensor in own.items():
                if id(tensor) in seen:
                    own[name] = copy.deepcopy(tensor)
                seen.add(id(own[name]))


def _attribute(network: nn.Module, name: str) -> Tensor | None:
    """The network's tensor of that name, which may be one of several; None for a constant that tracing has made."""
    path, _, last = name.rpartition(".")
    found: Tensor | None = getattr(network.get_submodule(path), last, None)
    return found


def _without_batch_norm(network: nn.Module) -> tuple[list[tuple[str, str]], nn.Module]:
    """The network with every batch-norm taken out that follows a convolution and nothing else, and these pairs.

    network: in evaluation mode; its convolutions are changed. The names are those of convolution and batch-norm; what
    cannot be traced (a forward pass that depends on values) stays as it is.
    """
    try:
        traced = fx.symbolic_trace(network)
    except Exception:  # whatever a third party's forward pass does to the tracer
        return [], network
    modules = dict(traced.named_modules())
    calls = Counter(node.target for node in traced.graph.nodes if node.op == "call_module")
    read = {str(node.target).rpartition(".")[0] for node in traced.graph.nodes if node.op == "get_attr"}
    pairs = []
    for node in list(traced.graph.nodes):
        if node.op != "call_module" or not (node.args and isinstance(node.args[0], fx.Node)):
            continue
        norm, before = modules[node.target], node.args[0]
        if before.op != "call_module" or len(before.users) > 1:
            continue
        conv = modules[before.target]
        statistics = type(norm) is nn.BatchNorm2d and norm.running_mean is not None
        alone = calls[node.target] == calls[before.target] == 1 and before.target not in read
        if type(conv) is nn.Conv2d and statistics and alone and not _hooked(conv) and not _hooked(norm):
            if conv.bias is None:
                conv.bias = nn.Parameter(conv.weight.new_zeros(conv.out_channels), requires_grad=False)
            node.replace_all_uses_with(before)
            traced.graph.erase_node(node)
            pairs.append((str(before.target), str(node.target)))
    traced.delete_all_unused_submodules()
    traced.recompile()
    return pairs, traced


def _hooked(module: nn.Module) -> bool:
    """Whether hooks change what it computes (on its output, or on its weight before)."""
    return bool(module._forward_pre_hooks or module._forward_hooks)


def _classifier(body: nn.Module) -> nn.Linear | None:
    """The linear layer whose output are the logits, where the network could be traced."""
    if not isinstance(body, fx.GraphModule):
        return None
    (result,) = next(node for node in body.graph.nodes if node.op == "output").args
    logits = result[0] if isinstance(result, tuple) else result
    if not isinstance(logits, fx.Node) or logits.op != "call_module":
        return None
    layer = body.get_submodule(str(logits.target))
    return layer if type(layer) is nn.Linear else None
