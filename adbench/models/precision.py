"""How a network is run: in which precision, and in which form where only the gradient with respect to its input counts.

A training step runs the student forward and back a dozen times. All passes except for the last belong to the attack:
they need no gradient of the weights, which do not change meanwhile. `Lean` is a network in a form for such passes.
AutoAttack's fast search runs on the same form, in bfloat16.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from adbench.models.flops import multiply_adds
from adbench.models.network import Network
from adbench.models.stages import Kept, kept
from adbench.system.machine import keep_freed_memory

Arithmetic = Literal["float32", "tf32", "bfloat16"]

LEAST_WORK = 10_000_000
"""Multiply-adds of one image from which on the lean form is chosen: a smaller network's time is not in its layers."""

PART = 64
"""Images that a CPU is given at a time, so that their activations fit its caches; in bfloat16 twice as many."""


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device has arithmetic for bfloat16; where it has none, torch's emulation is twenty times slower."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    can = torch.cpu.get_capabilities()
    return bool(can.get("amx_bf16") or can.get("avx512_bf16"))


@dataclass(frozen=True)
class Precision:
    """How the networks of one training are run.

    arithmetic: of convolutions, and with bfloat16 of matrix products too. Weights, all other layers, and what a method
    computes from logits and feature maps stay in float32. lean: attacks see `Lean` networks; without it every layer
    runs as it is written.
    """

    arithmetic: Arithmetic = "float32"
    lean: bool = False

    @classmethod
    def chosen(cls, setting: str, network: nn.Module, image_shape: tuple[int, ...], device: torch.device) -> Precision:
        """From `train.precision`: "float32" runs every layer as written, "bfloat16" the lean form in bfloat16.

        "auto" is the lean form, except for networks below LEAST_WORK, with the convolutions that torch has by default:
        in TF32 on a GPU, where float32 takes four to seven times as long (docs/performance.md), in float32 on a CPU.
        bfloat16 is never automatic until students trained both ways have been compared.
        """
        if setting == "float32":
            return cls()
        if setting == "bfloat16":
            return cls("bfloat16", lean=True)
        return cls("tf32" if device.type == "cuda" else "float32", multiply_adds(network, image_shape) >= LEAST_WORK)

    @property
    def dtype(self) -> torch.dtype:
        """Of convolutions and matrix products."""
        return torch.bfloat16 if self.arithmetic == "bfloat16" else torch.float32

    def autocast(self, device: torch.device) -> torch.autocast:
        """The context in which networks run."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.arithmetic == "bfloat16")

    @contextmanager
    def convolutions(self) -> Iterator[None]:
        """Within, convolutions on a GPU may round their operands to TF32 if this is the arithmetic, else they may not.

        Unlike `autocast` it covers the backward pass as well, and belongs around both.
        """
        before = torch.backends.cudnn.allow_tf32
        torch.backends.cudnn.allow_tf32 = self.arithmetic == "tf32"
        try:
            yield
        finally:
            torch.backends.cudnn.allow_tf32 = before

    def layout(self, device: torch.device) -> torch.memory_format:
        """The memory format of a network that learns: in the lean form channels last on a GPU, where it is faster.

        On a CPU torch's batch-norm in training mode loses up to three digits in that layout.
        """
        return torch.channels_last if self.lean and device.type == "cuda" else torch.contiguous_format


AS_WRITTEN = Precision()


class Lean(nn.Module):
    """A frozen copy of a network in evaluation mode, for outputs and their gradient with respect to the input.

    A batch-norm that only a convolution feeds is folded into that convolution, which is exact except for rounding.
    Weights of convolutions and matrix products are stored in the precision they run in. The layer that gives the logits
    is next to no work and stays in float32: divergences of nearly equal outputs are lost in logits of eight bits. Maps
    are channels last. `refresh` copies the weights and statistics that the original has by then.

    Called with images (B, C, H, W) it returns what the original returns; `forward_features` likewise, where the
    original has it. stages: modules whose outputs `forward_stages` gives.
    """

    def __init__(self, network: nn.Module, precision: Precision, stages: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.precision, self.stages = precision, stages
        if not any(weights.is_cuda for weights in network.parameters()):
            keep_freed_memory()
        original = _Outputs(network, stages) if isinstance(network, Network) or stages else network
        body = copy.deepcopy(original).eval().requires_grad_(False)
        pairs, self.body = _without_batch_norm(body)
        _untie(self.body)
        self._folded: list[tuple[Any, Any, Any]] = [
            (self.body.get_submodule(conv), original.get_submodule(conv), original.get_submodule(norm))
            for conv, norm in pairs
        ]
        if precision.arithmetic == "bfloat16":
            if (last := _classifier(self.body)) is not None:
                last.__class__ = _Single
            for module in self.body.modules():
                # Autocast would convert these weights anew in every pass.
                if type(module) in (nn.Conv2d, nn.Linear):
                    module.to(precision.dtype)
        self.body.to(memory_format=torch.channels_last)
        inside = {id(tensor) for mine, _, _ in self._folded for tensor in mine.parameters()}
        self._copied = [
            (tensor, theirs)
            for name, tensor in (*self.body.named_parameters(), *self.body.named_buffers())
            if id(tensor) not in inside and (theirs := _attribute(original, name)) is not None
        ]
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the original's weights and statistics."""
        for mine, conv, norm in self._folded:
            weight, bias = fuse_conv_bn_weights(
                conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            )
            mine.weight.copy_(weight)
            mine.bias.copy_(bias)
        for tensor, theirs in self._copied:
            tensor.copy_(theirs)

    def forward(self, x: Tensor) -> Tensor:
        return _joined([outputs[0] for outputs in self._parts(x)])

    def forward_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, classes) and the last feature map (B, K, H', W') of a `Network`, both in float32 or better."""
        logits, maps, *_ = zip(*self._parts(x), strict=True)
        return _joined(logits), _joined(maps)

    def forward_stages(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits (B, classes) and the map of each stage, by name, all in float32 or better."""
        logits, *outputs = zip(*self._parts(x), strict=True)
        maps = outputs[len(outputs) - len(self.stages) :]
        return _joined(logits), {name: _joined(parts) for name, parts in zip(self.stages, maps, strict=True)}

    def _parts(self, x: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """The outputs for each part of the images, in the precision they come in."""
        size = PART * 4 // self.precision.dtype.itemsize if x.device.type == "cpu" else max(1, len(x))
        for part in torch.split(x, size):
            with self.precision.autocast(x.device):
                outputs = self.body(_ChannelsLast.apply(part))
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
    """A network whose forward pass gives logits, the last feature map where the network shows it, and stages."""

    def __init__(self, network: nn.Module, stages: tuple[str, ...]) -> None:
        super().__init__()
        self.network, self.stages = network, stages
        # Asked for here, since it may take a forward pass, which must not be traced.
        self.shown = isinstance(network, Network) and network.shows_features

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        with kept(self.network, self.stages) as maps:
            outputs = self.network.forward_features(x) if self.shown else (self.network(x),)  # type: ignore[operator]
        return (*outputs, *(maps[name] for name in self.stages))


class _Tracer(fx.Tracer):
    """A tracer that lets the outputs of single layers be kept too."""

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        output = super().call_module(m, forward, args, kwargs)
        if self.is_leaf_module(m, self.path_of_module(m)):
            for hook in m._forward_hooks.values():
                if isinstance(hook, Kept):
                    hook(m, args, output)
        return output


def _untie(network: nn.Module) -> None:
    """Give each module tensors of its own where several share one (tied weights), since each is changed by itself."""
    owned: set[int] = set()
    for module in network.modules():
        tables: list[dict[str, Any]] = [module._parameters, module._buffers]
        for own in tables:
            for name, tensor in own.items():
                if id(tensor) in owned:
                    own[name] = copy.deepcopy(tensor)
                owned.add(id(own[name]))


def _attribute(network: nn.Module, name: str) -> Tensor | None:
    """The network's tensor of that name, which may be one of several; None for a constant that tracing has made."""
    path, _, last = name.rpartition(".")
    tensor: Tensor | None = getattr(network.get_submodule(path), last, None)
    return tensor


def _without_batch_norm(network: nn.Module) -> tuple[list[tuple[str, str]], nn.Module]:
    """The pairs of a convolution and the batch-norm that it alone feeds, by name, and the network without the latter.

    network: in evaluation mode; its convolutions are changed. A network that cannot be traced (its forward pass depends
    on values) stays as it is, and there are no pairs.
    """
    try:
        traced = fx.GraphModule(network, _Tracer().trace(network))
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
