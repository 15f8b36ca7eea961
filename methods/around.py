"""What a method around another one follows of it: teachers, flags, own networks, state."""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import PrivateAttr
from torch import Tensor, nn

from adbench import Method, Need, Part, Step, hyper


class Around(Method):
    """A method that adds to what its `base` does."""

    bases: ClassVar[dict[str, type[Method]]]
    """What `base`, which a subclass declares, may be. What a recipe sets of that method stands in `base_hyper`, too."""
    base: str
    base_hyper: dict[str, Any] = hyper({}, doc="the base's hyperparameters; else as the recipe has the base (own)")

    _base: Method = PrivateAttr()

    def model_post_init(self, _: Any) -> None:
        self._base = self.bases[self.base](**self.base_hyper)

    def settings(self) -> dict[str, Any]:
        default = type(self._base)().settings()
        own = {name: value for name, value in self._base.settings().items() if default.get(name) != value}
        return super().settings() | {"base_hyper": own}

    @property
    def separable(self) -> bool:  # type: ignore[override]
        return self._base.separable

    @property
    def divisible(self) -> bool:  # type: ignore[override]
        return self._base.divisible

    @property
    def shares(self) -> bool:  # type: ignore[override]
        return self._base.shares

    @property
    def rehearses(self) -> bool:  # type: ignore[override]
        return self._base.rehearsable

    def needed(self) -> frozenset[Need]:
        return self.needs | self._base.needed()

    def setup(self, step: Step) -> None:
        self._base.setup(step)

    def parts(self, step: Step) -> Mapping[str, nn.Module | Part]:
        return self._base.parts(step)

    def attack(self, step: Step) -> Tensor:
        return self._base.attack(step)

    def on_lr_change(self, factor: float) -> None:
        self._base.on_lr_change(factor)

    def state_dict(self) -> dict[str, Any]:
        return self._base.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._base.load_state_dict(state)
