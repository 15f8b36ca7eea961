"""Networks from elsewhere: a user's own module from a file, or one of timm's, under the contract of adbench."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from adbench.errors import UserError
from adbench.models.network import Network, PerChannel
from adbench.models.stages import Every

CLASSES, CHANNELS = ("classes", "num_classes", "n_classes"), ("channels", "in_channels", "in_chans")
"""What a factory may call the numbers of classes and of the images' channels."""

Found = tuple[nn.Linear | None, nn.Module, int, bool]


def made(
    factory: Callable[..., Any], name: str, *, classes: int, channels: int, mean: PerChannel, std: PerChannel
) -> nn.Module:
    """The module of a factory, which is given what it takes of the numbers of classes and channels, mean and std.

    Raises UserError where it fails, or returns something else.
    """
    known: dict[str, Any] = dict.fromkeys(CLASSES, classes) | dict.fromkeys(CHANNELS, channels)
    known |= {"mean": mean, "std": std}
    try:
        taken = [word for word in known if word in inspect.signature(factory).parameters]
        module = factory(**{word: known[word] for word in taken})
    except Exception as error:
        raise UserError(
            f"the network '{name}' cannot be built ({type(error).__name__}: {error}); its factory may take "
            f"{CLASSES[0]} and {CHANNELS[0]}, and nothing else without a default"
        ) from error
    if not isinstance(module, nn.Module):
        raise UserError(f"the network '{name}' is a {type(module).__name__}; its factory has to return a module")
    return module


def of_timm(name: str, *, classes: int, channels: int) -> nn.Module:
    """The architecture "timm:NAME", without weights. Raises UserError where timm cannot build it."""
    timm: Any = importlib.import_module("timm")
    try:
        module: nn.Module = timm.create_model(
            name.partition(":")[2], pretrained=False, num_classes=classes, in_chans=channels
        )
    except Exception as error:
        raise UserError(f"timm cannot build '{name}' ({_short(error)}); see timm.list_models()") from error
    return module


class Foreign(Network):
    """A module that gives logits (B, classes) for images in [0, 1] (B, channels, H, W). Its keys are the module's own.

    Its head and its last feature map are those that the module names, as submodules, in `adbench_head` and
    `adbench_map`; else they are found by watching a forward pass: the linear layer whose outputs are the logits, and
    the largest map whose mean over H and W (after a ReLU, if need be) is that layer's input.
    """

    def __init__(
        self,
        module: nn.Module,
        name: str,
        *,
        classes: int,
        channels: int,
        mean: PerChannel = None,
        std: PerChannel = None,
    ) -> None:
        super().__init__(channels=channels, mean=mean, std=std)
        self.module = module
        self._name, self._classes, self._shape = name, classes, (channels, 32, 32)
        self._checked = False
        self._found: Found | None = None

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The module's."""
        return self.module.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The module's."""
        return self.module.load_state_dict(*args, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        """Raises UserError for images that the module cannot take, and for outputs that are no logits."""
        if not self._checked and not isinstance(x, fx.Proxy):
            return self._first(x)
        logits: Tensor = self.module(self._normalised(x))
        return logits

    def _first(self, x: Tensor) -> Tensor:
        try:
            logits = self.module(self._normalised(x))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise UserError(
                f"the network '{self._name}' cannot take images of shape {tuple(x.shape[1:])} ({_short(error)}); "
                "images come as (B, C, H, W) in [0, 1]"
            ) from error
        if not isinstance(logits, Tensor) or logits.shape != (len(x), self._classes):
            gives = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
            raise UserError(
                f"the network '{self._name}' gives {gives} for {len(x)} images; expected logits, ({len(x)}, "
                f"{self._classes}): have its factory take `{CLASSES[0]}`"
            )
        self._checked, self._shape = True, (x.shape[1], x.shape[2], x.shape[3])
        return logits

    def _normalised(self, x: Tensor) -> Tensor:
        return x if self.mean is None or self.std is None else (x - self.mean) / self.std

    @property
    def shows_features(self) -> bool:
        return self._seen() is not None

    @property
    def classifier(self) -> nn.Linear:
        """Raises UserError where no linear layer gives the logits."""
        if (head := self._named("adbench_head") or (self._seen() or (None,))[0]) is None:
            linear = [m for m in self.module.modules() if isinstance(m, nn.Linear) and m.out_features == self._classes]
            head = linear[-1] if linear else None
        if not isinstance(head, nn.Linear):
            raise UserError(
                f"the network '{self._name}' has no linear layer that gives its logits, which this method needs; name "
                "it in an attribute `adbench_head` of the module, or choose a method that needs logits only"
            )
        return head

    def forward_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Raises UserError where there is no map that is average-pooled into a linear head."""
        if (found := self._seen()) is None:
            raise UserError(
                f"the network '{self._name}' has no feature map that is average-pooled into a linear head, which this "
                "method needs; name one in an attribute `adbench_map` of the module, or choose a method that needs "
                "logits only"
            )
        _, source, call, rectify = found
        outputs: dict[str, Any] = {}
        handle = source.register_forward_hook(Every("maps", outputs))
        try:
            logits = self.forward(x)
        finally:
            handle.remove()
        last = outputs["maps"][call]
        return logits, F.relu(last) if rectify else last

    def _named(self, attribute: str) -> nn.Module | None:
        name = getattr(self.module, attribute, None)
        try:
            return None if name is None else self.module.get_submodule(str(name))
        except AttributeError as error:
            raise UserError(f"the network '{self._name}' has no submodule '{name}' ({attribute})") from error

    def _seen(self) -> Found | None:
        """Head and map, looked for once."""
        if self._found is None and not hasattr(self, "_looked"):
            self._looked = True
            modes = {module: module.training for module in self.modules()}
            weight = next(self.module.parameters())
            x = torch.rand(2, *self._shape, generator=torch.Generator().manual_seed(0)).to(weight)
            try:
                self._found = find_features(self.module.eval(), x)
            except Exception:  # images of another size than the module takes, if it has not seen any
                del self._looked
            finally:
                for module, mode in modes.items():
                    module.training = mode
        own = self._named("adbench_map")
        return self._found if own is None else (self._found[0] if self._found else None, own, -1, False)


@torch.no_grad()
def find_features(model: nn.Module, x: Tensor) -> Found | None:
    """The linear head, the module that puts out the last feature map, at which of its calls, and whether a ReLU comes
    after it.

    model: in evaluation mode. x: a few random images. None where there is no such map.
    """
    maps: list[tuple[nn.Module, int, Tensor]] = []
    heads: list[tuple[nn.Linear, Tensor, Tensor]] = []
    calls: dict[nn.Module, int] = {}

    def watch(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        call = calls[module] = calls.get(module, -1) + 1
        if isinstance(module, nn.Linear) and inputs[0].ndim == 2:
            heads.append((module, inputs[0], output))
        if isinstance(output, Tensor) and output.ndim == 4:
            maps.append((module, call, output))

    handles = [module.register_forward_hook(watch) for module in model.modules()]
    try:
        logits = model(x)
    finally:
        for handle in handles:
            handle.remove()
    if not heads or not _close(heads[-1][2], logits):
        return None
    head, pooled, _ = heads[-1]
    fitting = [
        (out.shape[2] * out.shape[3], i, (head, module, call, rectify))
        for i, (module, call, out) in enumerate(maps)
        for rectify in (False, True)
        if _close((F.relu(out) if rectify else out).mean(dim=(2, 3)), pooled)
    ]
    return max(fitting, key=lambda fit: fit[:2])[2] if fitting else None


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:160]}"


def _close(a: Tensor, b: Tensor) -> bool:
    # Within 1e-4, and within 1e-4 of the scale where values are small, so that zeros prove nothing.
    return a.shape == b.shape and bool((a - b).abs().max() < 1e-4 * b.abs().max().clamp(max=1))
