"""The networks of a method's own that the training loop trains together with the student (`Method.parts`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from adbench.errors import UserError


@dataclass(frozen=True)
class Part:
    """A network of a method's own and the optimiser of its parameters, at whose rates it stays."""

    module: nn.Module
    optimiser: torch.optim.Optimizer


@dataclass(frozen=True)
class Parts:
    """A method's parts by name. Those without an optimiser of their own are trained by the student's."""

    modules: dict[str, nn.Module] = field(default_factory=dict)
    optimisers: dict[str, torch.optim.Optimizer] = field(default_factory=dict)

    @classmethod
    def of(cls, declared: Mapping[str, nn.Module | Part], like: Tensor, others: Iterable[nn.Module]) -> Parts:
        """What a method declares, moved to the device and the type of a tensor. others: networks that it may not hold.

        Raises UserError for what the loop cannot train.
        """
        if not isinstance(declared, Mapping):
            raise UserError(f"parts() gave a {type(declared).__name__}, expected networks by name")
        parts = cls()
        taken = {id(parameter): "student or teacher" for other in others for parameter in other.parameters()}
        for name, part in declared.items():
            module = part.module if isinstance(part, Part) else part
            if not isinstance(module, nn.Module):
                raise UserError(
                    f"parts() gave a {type(module).__name__} as '{name}', expected a torch.nn.Module or Part"
                )
            parts.modules[name] = module.to(like.device, like.dtype)
            own = [parameter for parameter in module.parameters() if parameter.requires_grad]
            if not own:
                raise UserError(f"part '{name}' has no parameter that learns; keep it out of parts()")
            if shared := [taken[id(parameter)] for parameter in module.parameters() if id(parameter) in taken]:
                raise UserError(f"part '{name}' holds parameters of the {shared[0]}; give it a copy")
            taken |= dict.fromkeys(map(id, module.parameters()), f"part '{name}'")
            if isinstance(part, Part):
                trained = {id(p) for group in part.optimiser.param_groups for p in group["params"]}
                if trained != set(map(id, own)):
                    raise UserError(f"the optimiser of part '{name}' is not one of that part's parameters")
                parts.optimisers[name] = part.optimiser
        return parts

    @property
    def joint(self) -> list[nn.Module]:
        """Those that the student's optimiser trains."""
        return [module for name, module in self.modules.items() if name not in self.optimisers]

    def parameters(self) -> list[nn.Parameter]:
        """Of all parts."""
        return [parameter for module in self.modules.values() for parameter in module.parameters()]

    def begin(self) -> None:
        """Before an iteration: in training mode, without gradients."""
        for module in self.modules.values():
            module.train()
            module.zero_grad(set_to_none=True)

    def update(self) -> None:
        """A step of each optimiser of their own."""
        for optimiser in self.optimisers.values():
            optimiser.step()

    def state(self) -> dict[str, Any]:
        """Weights, and the state of the optimisers of their own."""
        return {
            name: {"module": module.state_dict()}
            | ({"optimiser": self.optimisers[name].state_dict()} if name in self.optimisers else {})
            for name, module in self.modules.items()
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""
        for name, module in self.modules.items():
            module.load_state_dict(state[name]["module"])
            if name in self.optimisers:
                self.optimisers[name].load_state_dict(state[name]["optimiser"])
