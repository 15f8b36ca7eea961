"""Feature maps inside a network, by the name of the module that puts them out: its stages."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from adbench.errors import UserError

Shape = tuple[int, int, int]


class Kept:
    """A forward hook that keeps a module's output under a name."""

    def __init__(self, name: str, outputs: dict[str, Any]) -> None:
        self.name, self.outputs = name, outputs

    def __call__(self, _: nn.Module, __: Any, output: Any) -> None:
        self.outputs.pop(self.name, None)  # so that the order is that in which they end
        self.outputs[self.name] = output


class Every(Kept):
    """Keeps all outputs of a module, in a list."""

    def __call__(self, _: nn.Module, __: Any, output: Any) -> None:
        self.outputs.setdefault(self.name, []).append(output)


@contextmanager
def kept(network: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The outputs of the modules of these names, of each the last one, in all forward passes within the context."""
    outputs: dict[str, Any] = {}
    handles = [network.get_submodule(name).register_forward_hook(Kept(name, outputs)) for name in names]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def stages(network: nn.Module, x: Tensor) -> dict[str, Shape]:
    """The stages of a network by name, each with the shape (K, H, W) of its map, in the order in which they end.

    x: images (B, C, H, W), which are run once through the network, in its present mode. Left out is an output that a
    later layer writes over.
    """
    with kept(network, [name for name, _ in network.named_modules() if name]) as outputs:
        versions: dict[str, int] = {}
        handles = [
            module.register_forward_hook(lambda _, __, output, name=name: versions.update({name: _version(output)}))
            for name, module in network.named_modules()
            if name
        ]
        try:
            network(x)
        finally:
            for handle in handles:
                handle.remove()
    return {
        name: (output.shape[1], output.shape[2], output.shape[3])
        for name, output in outputs.items()
        if isinstance(output, Tensor) and output.ndim == 4 and output._version == versions[name]
    }


def levels(known: Mapping[str, Shape]) -> list[str]:
    """Of each resolution the stage that ends last, from the first resolution to the last."""
    return list({shape[1:]: name for name, shape in known.items()}.values())


def named(known: Mapping[str, Shape], stage: int | str) -> str:
    """The name of a stage that is given by name or by its level (-1: that of the last resolution).

    Raises UserError where the network has no such stage.
    """
    by_level = levels(known)
    number = int(stage) if str(stage).lstrip("-").isdigit() and str(stage) not in known else None
    if number is not None and -len(by_level) <= number < len(by_level):
        return by_level[number]
    # Around a module from elsewhere there is another one.
    if stage and (found := [name for name in known if stage in (name, name.partition(".")[2])]):
        return found[0] if stage not in known else str(stage)
    near = [f"did you mean '{name}'? " for name in difflib.get_close_matches(str(stage), known, n=1)]
    raise UserError(
        f"the network has no stage '{stage}'; {''.join(near)}give one of {', '.join(by_level)}, a module inside them, "
        f"or a level: 0 to {len(by_level) - 1}, or -1 for the last"
    )


def _version(output: Any) -> int:
    return output._version if isinstance(output, Tensor) else 0
