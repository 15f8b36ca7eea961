"""The format of reference values: tables that know their path, small networks, and how a value is compared."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from adbench.errors import UserError
from adbench.models import Network

RELATIVE = 1e-9
"""Largest relative error |value - expected| / (|expected| + 0.001) of everything else."""


class Node(dict[str, Any]):
    """A table of the reference file that knows its path, for errors that name what is missing."""

    def __init__(self, content: dict[str, Any], path: str) -> None:
        super().__init__({k: _node(v, f"{path}.{k}" if path else k) for k, v in content.items()})
        self.path = path

    def __missing__(self, key: str) -> Any:
        raise UserError(f"the reference's {self.path or 'top level'} has no '{key}'")


def _node(value: Any, path: str) -> Any:
    if isinstance(value, dict):
        return Node(value, path)
    return [_node(item, f"{path}[{i}]") for i, item in enumerate(value)] if isinstance(value, list) else value


def tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@dataclass
class Result:
    """One entry's outcome. wrong: the names of the values that differ; skipped: why there was no replay."""

    name: str
    absolute: float = 0.0
    relative: float = 0.0
    wrong: list[str] = field(default_factory=list)
    skipped: str = ""
    compared: int = 0

    @property
    def passed(self) -> bool:
        return not self.wrong and not self.skipped

    def __str__(self) -> str:
        errors = f"abs {self.absolute:.1e}  rel {self.relative:.1e}  {'; '.join(dict.fromkeys(self.wrong))}"
        word = "skip" if self.skipped else "FAIL" if self.wrong else "pass"
        return f"{word}  {self.name:40}  {self.skipped or errors}".rstrip()

    def compare(self, what: str, value: Any, expected: Any, absolute: float | None = None) -> None:
        """A tensor, or a table of them by name: equal to RELATIVE, or to an `absolute` error."""
        if isinstance(expected, dict):
            for key, part in expected.items():
                self.compare(f"{what} {key}", value[key], part, absolute)
            return
        value, expected = torch.as_tensor(value, dtype=torch.float64).detach(), tensor(expected)
        if expected.ndim and not value.ndim:  # a number that is logged: the mean over examples
            expected = expected.mean()
        if value.shape != expected.shape:
            self.wrong.append(f"{what} has shape {tuple(value.shape)}, expected {tuple(expected.shape)}")
        elif expected.numel():
            self.compared += 1
            # NaN is infinitely wrong: a comparison with it must not pass.
            error = (value - expected).abs().nan_to_num(nan=torch.inf)
            largest, relative = error.max().item(), (error / (expected.abs() + 1e-3)).max().item()
            self.absolute, self.relative = max(self.absolute, largest), max(self.relative, relative)
            if relative > RELATIVE if absolute is None else largest > absolute:
                self.wrong.append(what)


class Toy(Network):
    """A reference's small network, from its description ("Conv2d(3,4,3,p=1) BN ReLU ... Linear(6,10)") and state."""

    def __init__(self, entry: Node) -> None:
        super().__init__(channels=3)
        body, _, head = str(entry["arch"]).partition("[feature map]")
        self.heads = re.findall(r"Linear\((\d+),\s*(\d+)\) ?(\w*)", head)
        if not self.heads:
            raise UserError(f"{entry.path}.arch: '{entry['arch']}' does not end in a feature map and Linear(K,C)")
        self.order: list[str] = []
        channels = number = 0
        for conv, word in re.findall(r"Conv2d\(([^)]*)\)|(\S+)", body):
            layer: nn.Module = nn.BatchNorm2d(channels) if word == "BN" else nn.ReLU()
            if conv:
                options = {name: int(size) for name, size in re.findall(r"(\w)=(\d+)", conv)}
                inputs, channels, kernel = map(int, conv.split(",")[:3])
                layer = nn.Conv2d(inputs, channels, kernel, options.get("s", 1), options.get("p", 0))
                number += 1
            elif word not in ("BN", "ReLU"):
                raise UserError(f"{entry.path}.arch: unknown layer '{word}'; known are Conv2d(...), BN and ReLU")
            self.order.append(f"{word.lower() or 'conv'}{number}")
            self.add_module(self.order[-1], layer)
        for inputs, outputs, name in self.heads:
            self.add_module(f"head_{name}" if name else "fc", nn.Linear(int(inputs), int(outputs)))
        self.double()
        tracked = {name: count for name, count in self.state_dict().items() if name.endswith("num_batches_tracked")}
        try:
            self.load_state_dict(tracked | {name: tensor(values) for name, values in entry["state"].items()})
        except RuntimeError as error:
            raise UserError(f"{entry.path}: state and arch do not fit: {error}") from error

    @property
    def classifier(self) -> nn.Linear:
        assert isinstance(self.fc, nn.Linear)
        return self.fc

    def features(self, x: Tensor) -> Tensor:
        for name in self.order:
            x = self.get_submodule(name)(x)
        return x

    def forward(self, x: Tensor) -> Any:
        """Logits (B, C), or each head's by name (LAS-AT's policy)."""
        pooled = self.features(x).mean(dim=(2, 3))
        heads = {name: self.get_submodule(f"head_{name}")(pooled) for *_, name in self.heads if name}
        return heads or self.classifier(pooled)
