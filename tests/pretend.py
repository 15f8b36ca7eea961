"""A pretended GPU: what adbench computes there is computed on the processor, under a GPU's rules.

Each tensor has its storage's place, the processor or the GPU. `Tensor.device` tells it, arguments that name a device
set it, and an operation on both raises what CUDA would. Where the processor would wait for the GPU is counted. It
shows tensors, generators and states on the wrong device and needless waiting, on machines without a GPU. It does not
show what only the real thing has: its kernels, its memory, its speed.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch._dynamo  # before torch is changed under its feet
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

GPU, HERE = torch.device("cuda", 0), torch.device("cpu")

_aten = torch.ops.aten
MOVES = {_aten._to_copy, _aten.copy_, _aten._copy_from}
"""May have an operand on either device."""
INDEXED = {_aten.index, _aten.index_put_, _aten.index_put, _aten._index_put_impl_, _aten._unsafe_index}
"""Take indices from the processor for a tensor on the GPU."""
WAITS = {_aten._local_scalar_dense, _aten.nonzero, _aten.equal, _aten.masked_select, _aten.unique_dim, _aten._unique2}
"""Give the processor a number, or a shape that depends on values."""
NUMBERS = {
    _aten.index_put_,
    _aten.index_put,
    _aten._index_put_impl_,
    _aten.fill_,
    _aten.masked_fill_,
    _aten.masked_fill,
}
"""Take a number (0-dim) from the processor, as pointwise operations do; all others refuse it."""


PROPERTIES: dict[Any, Callable[[torch.device], Any]] = {
    Tensor.device: lambda device: device,
    Tensor.is_cuda: lambda device: device == GPU,
    Tensor.is_cpu: lambda device: device == HERE,
}


class Places:
    """Which storages are on the GPU, and how often the processor waited for it."""

    def __init__(self) -> None:
        self._there: dict[int, StorageWeakRef] = {}
        self.waits: Counter[str] = Counter()
        self.operations = 0

    def of(self, tensor: Tensor) -> torch.device:
        return GPU if tensor.untyped_storage()._cdata in self._there else HERE

    def put(self, tensor: Tensor, device: torch.device) -> None:
        storage = tensor.untyped_storage()
        if device == GPU:
            # The weak reference keeps the address from being used again.
            self._there.setdefault(storage._cdata, StorageWeakRef(storage))
            if len(self._there) % 4096 == 0:
                self._there = {key: ref for key, ref in self._there.items() if not ref.expired()}
        else:
            self._there.pop(storage._cdata, None)

    def wait(self) -> None:
        """Count one, under the place in adbench or methods that caused it."""
        for frame in reversed(traceback.extract_stack()):
            if "/adbench/" in frame.filename or "/methods/" in frame.filename:
                self.waits[f"{frame.filename.rsplit('/', 1)[1]}:{frame.name}"] += 1
                return
        self.waits["elsewhere"] += 1


class _Generator(torch.Generator):
    """A generator that is where it was asked for."""

    place = HERE

    def __new__(cls, device: Any = "cpu") -> _Generator:
        made = super().__new__(cls)
        made.place = GPU if torch.device(device).type == "cuda" else HERE
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.place


class _Operations(TorchDispatchMode):
    """Where the operands of every operation are, and its results."""

    def __init__(self, places: Places) -> None:
        super().__init__()
        self.places = places
        self.target: torch.device | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet, places = func.overloadpacket, self.places
        operands = [leaf for leaf in tree_iter((args, kwargs)) if isinstance(leaf, Tensor)]
        if packet in INDEXED:
            operands = [args[0], *(leaf for leaf in tree_iter((args[2:], kwargs)) if isinstance(leaf, Tensor))]
        there = any(places.of(operand) == GPU for operand in operands)
        numbers = torch.Tag.pointwise in func.tags or packet in NUMBERS
        here = [o for o in operands if places.of(o) == HERE and not (numbers and o.dim() == 0)]
        if there and here and packet not in MOVES:
            raise RuntimeError(f"{func}: expected all tensors on the GPU, found {tuple(here[0].shape)} on the CPU")
        target = self.target if self.target is not None and (not operands or packet in MOVES) else None
        result_place = target or (GPU if there else HERE)
        places.operations += there
        if there and (packet in WAITS or (packet in INDEXED and self._by_mask(args))):
            places.wait()
        if packet is _aten.copy_:
            if places.of(args[0]) != places.of(args[1]) and args[1].dim() and places.of(args[0]) == HERE:
                places.wait()
            return func(*args, **kwargs)
        result = func(*args, **kwargs)
        if packet is _aten._to_copy and there and result_place == HERE:
            places.wait()
        for leaf in tree_iter(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in {
                operand.untyped_storage()._cdata for operand in operands
            }:
                places.put(leaf, result_place)
        return result

    @staticmethod
    def _by_mask(args: Any) -> bool:
        return any(isinstance(leaf, Tensor) and leaf.dtype == torch.bool for leaf in tree_iter(args[1]))


class _Calls(TorchFunctionMode):
    """Devices in arguments and in `Tensor.device`."""

    def __init__(self, operations: _Operations) -> None:
        super().__init__()
        self.operations = operations
        self.places = operations.places

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        places = self.places
        name = getattr(func, "__name__", "")
        if func is torch.device or name == "_parse_to":  # the latter of Module.to, which goes on with Tensor.to
            return func(*args, **kwargs)
        if name == "__get__" and func.__self__ in PROPERTIES:
            return PROPERTIES[func.__self__](places.of(args[0]))
        if name in ("numpy", "__array__") and places.of(args[0]) == GPU:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        if name == "tolist" and places.of(args[0]) == GPU:
            places.wait()
        if name == "__deepcopy__":
            waits = places.waits.copy()
            result = func(*args, **kwargs)
            places.put(result, places.of(args[0]))
            places.waits = waits  # a storage's copy stays where it is
            return result
        if func is Tensor.cuda:
            func, args = Tensor.to, (args[0], GPU)
        if func is Tensor.cpu:
            func, args = Tensor.to, (args[0], HERE)
        if func is Tensor.to and len(args) > 1 and isinstance(args[1], Tensor):
            # Like another tensor: its type and place.
            args = (args[0], places.of(args[1]), args[1].dtype, *args[2:])
        target, args, kwargs = self._device(func, args, kwargs)
        before, self.operations.target = self.operations.target, target
        try:
            if func is Tensor.to and target is not None and places.of(args[0]) != target:
                # A copy, also where the processor's `to` would give back its operand.
                kwargs = {**kwargs, "copy": True}
            result = func(*args, **kwargs)
        finally:
            self.operations.target = before
        if func is torch.tensor or (func is torch.as_tensor and not isinstance(args[0], Tensor)):
            places.put(result, target or HERE)
        for generator in (leaf for leaf in (*args, *kwargs.values()) if isinstance(leaf, _Generator)):
            if generator.device != places.of(result):
                raise RuntimeError(f"{name}: expected a generator for {places.of(result)}, got {generator.device}")
        return result

    def _device(self, func: Any, args: Any, kwargs: Any) -> tuple[torch.device | None, Any, Any]:
        """The device that a call names, and the call as it is made on the processor."""
        named: list[torch.device] = []

        def plain(leaf: Any) -> Any:
            if isinstance(leaf, torch.device):
                named.append(GPU if leaf.type == "cuda" else leaf)
                return HERE
            return leaf

        if func is Tensor.to and len(args) > 1 and isinstance(args[1], str):
            args = (args[0], torch.device(args[1]), *args[2:])
        if isinstance(kwargs.get("device"), str):
            kwargs = {**kwargs, "device": torch.device(kwargs["device"])}
        args, kwargs = tree_map(plain, args), tree_map(plain, kwargs)
        return (named[0] if named else None), args, kwargs


def _on(device: Any, loaded: Any) -> Any:
    return tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, loaded)


@contextmanager
def gpu() -> Iterator[Places]:
    """Pretend that there is one GPU; gives where things are and how often the processor waited."""
    places = Places()
    operations = _Operations(places)
    load, autocast = torch.load, torch.autocast

    def loaded(*args: Any, map_location: Any = None, **kwargs: Any) -> Any:
        return _on(map_location or HERE, load(*args, map_location="cpu", **kwargs))

    group = torch.optim.Optimizer._group_tensors_by_device_and_dtype

    def grouped(tensors: Any, *args: Any, **kwargs: Any) -> Any:
        found = group(tensors, *args, **kwargs)
        return {(places.of(tensors[0][0]), dtype): value for (_, dtype), value in found.items()}

    stream = torch.Generator()
    replaced: dict[str, Callable[..., Any]] = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda _: None,
        "synchronize": lambda *_: None,
        "empty_cache": lambda: None,
        "reset_peak_memory_stats": lambda *_: None,
        "max_memory_allocated": lambda *_: 1,
        "get_device_name": lambda *_: "pretended",
        "is_bf16_supported": lambda *_, **__: True,
        "get_rng_state": lambda *_: stream.get_state(),
        "set_rng_state": lambda state, *_: stream.set_state(state),
        "manual_seed": lambda seed: stream.manual_seed(seed),
        "manual_seed_all": lambda seed: stream.manual_seed(seed),
    }
    with ExitStack() as stack:
        for name, function in replaced.items():
            stack.enter_context(patch.object(torch.cuda, name, function))
        stack.enter_context(patch.object(torch, "Generator", _Generator))
        stack.enter_context(patch.object(torch.optim.Optimizer, "_group_tensors_by_device_and_dtype", grouped))
        stack.enter_context(patch.object(torch.nn.utils.clip_grad, "_group_tensors_by_device_and_dtype", grouped))
        stack.enter_context(patch.object(torch, "load", loaded))
        stack.enter_context(
            patch.object(torch, "autocast", lambda _, *args, **kwargs: autocast("cpu", *args, **kwargs))
        )
        stack.enter_context(operations)
        stack.enter_context(_Calls(operations))
        yield places
