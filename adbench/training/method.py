"""The contract between the training loop and a method of adversarial training or distillation.

A method is a class with typed hyperparameters and two functions: how the student is attacked during training,
and what it minimises. Everything it may see of the run is a `Step`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from adbench.attacks.linf import Objective, Start, attacking, climb, start_point
from adbench.errors import UserError
from adbench.losses import Classes, wide
from adbench.models import Network
from adbench.models.precision import AS_WRITTEN, Lean, Precision, single
from adbench.training.distributed import ALONE, Ranks


class Need(Enum):
    """What a method cannot do without."""

    TEACHER = "a robust teacher"
    NATURAL_TEACHER = "a naturally trained teacher"


class Mode(StrEnum):
    """Batch-norm mode of the student while it is attacked in training."""

    EVAL = "eval"
    TRAIN = "train"


def hyper(default: Any, *, doc: str, **bounds: Any) -> Any:
    """A hyperparameter: its default, one line on what it is and where the default comes from, and its bounds.

    bounds: pydantic's `ge`, `gt`, `le`, `lt`.
    """
    return Field(default, description=doc, **bounds)


ATTACK_BN = hyper(Mode.EVAL, doc="batch-norm mode of the student under attack (recipe: eval for all)")


@dataclass(frozen=True)
class Passes:
    """What one training iteration costs, in runs of a network over the batch: forward and backward, or forward only."""

    student: float = 0
    student_forward: float = 0
    teacher: float = 0
    teacher_forward: float = 0
    natural_forward: float = 0
    own: float = 0
    """Of networks of the method's own: forward and backward passes together."""

    @property
    def total(self) -> float:
        """Forward and backward passes together, each counting one, of whatever network."""
        both = 2 * (self.student + self.teacher)
        return both + self.student_forward + self.teacher_forward + self.natural_forward + self.own


class Net:
    """A network as a method sees it: call it for logits, ask it for features; both in float32 or better."""

    def __init__(self, module: Network, precision: Precision = AS_WRITTEN) -> None:
        self.module = module
        self.precision = precision
        self._lean: Lean | None = None
        self._held = False

    def __call__(self, x: Tensor) -> Tensor:
        """Logits (B, C) of images x (B, C, H, W) in [0, 1]."""
        return self._run(x, features=False)[0]

    def features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, C) and the last feature map (B, K, H, W), from one forward pass."""
        logits, maps = self._run(x, features=True)
        assert maps is not None
        return logits, maps

    @property
    def weight(self) -> Tensor:
        """The classifier's weight, (C, K)."""
        return self.module.classifier.weight

    def observe(self, x: Tensor) -> None:
        """A forward pass for the batch-norm statistics alone.

        Published codes run the clean batch even where its loss has weight zero, and that changes the student.
        """
        with torch.no_grad():
            self._run(x, features=False)

    def run_in(self, precision: Precision) -> None:
        """Run the network in another precision from now on."""
        self.precision, self._lean, self._held = precision, None, False

    @contextmanager
    def still(self, *, training: bool = False, exact: bool = False) -> Iterator[None]:
        """The network as an attack sees it: frozen, and in evaluation mode unless `training`.

        exact: in float32, whatever the network's precision.
        """
        before = self._held, self.precision
        with attacking(self.module, training=training):
            try:
                if exact and self.precision.arithmetic != "float32":
                    self.precision = AS_WRITTEN
                self._held = self.precision.lean and not training
                if self._held:
                    self._refresh()
                yield
            finally:
                self._held, self.precision = before

    def _refresh(self) -> None:
        """Bring the lean copy up to date."""
        if self._lean is None or self._lean.precision != self.precision:
            self._lean = Lean(self.module, self.precision)
        else:
            self._lean.refresh()

    def _run(self, x: Tensor, *, features: bool) -> tuple[Tensor, Tensor | None]:
        if self._held:
            assert self._lean is not None
            return self._lean.forward_features(x) if features else (self._lean(x), None)
        with self.precision.autocast(x.device):
            logits, maps = self.module.forward_features(x) if features else (self.module(x), None)
        return single(logits), None if maps is None else single(maps)


class Teacher(Net):
    """A frozen network in evaluation mode. Outputs at inputs without gradient are computed once a batch.

    At inputs that require gradient the graph runs through to the input (AdaAD's and SmaraAD's attacks).
    """

    def __init__(self, module: Network, precision: Precision = AS_WRITTEN) -> None:
        super().__init__(module.eval().requires_grad_(False), precision)
        self._seen: dict[int, tuple[Tensor, Tensor, Tensor | None]] = {}

    def forget(self) -> None:
        """Drop the remembered outputs (the batch is over)."""
        self._seen.clear()

    def _run(self, x: Tensor, *, features: bool) -> tuple[Tensor, Tensor | None]:
        if self.precision.lean and not self._held:
            self._refresh()  # once: its weights never change
            self._held = True
        if x.requires_grad:
            return super()._run(x, features=features)
        known = self._seen.get(id(x))
        if known is None or (features and known[2] is None):
            with torch.no_grad():
                logits, maps = super()._run(x, features=features)
            # x itself is kept too: as long as it lives, its id belongs to no other tensor.
            known = self._seen[id(x)] = (x, logits, maps)
        return known[1], known[2]


@dataclass(frozen=True)
class Ball:
    """The threat model as numbers: radius and step in image units, and the number of steps in training."""

    eps: float
    step: float
    steps: int


@dataclass
class Step:
    """One training iteration, and all that a method may see of it.

    x: images (B, C, H, W) in [0, 1]; y: labels (B,). epoch counts from 0 to epochs - 1, iteration from 1 over
    the whole run. generator: the run's stream of attack randomness. The student is in training mode in `loss`;
    `ascend` and `still` put it into the mode of an attack and back. Where several devices share a training, x is this
    one's part of the batch (or micro-batch), a `share` of all parts; `mean` and `backward` are for what depends on the
    whole of it.
    """

    x: Tensor
    y: Tensor
    student: Net
    epoch: int
    epochs: int
    iteration: int
    lr: float
    threat: Ball
    generator: torch.Generator
    teachers: dict[Need, Teacher] = field(default_factory=dict)
    logged: dict[str, list[Tensor]] = field(default_factory=dict)
    ranks: Ranks = ALONE
    share: float = 1.0

    @property
    def teacher(self) -> Teacher:
        """The robust teacher."""
        return self._needed(Need.TEACHER)

    @property
    def natural_teacher(self) -> Teacher:
        """The naturally trained teacher."""
        return self._needed(Need.NATURAL_TEACHER)

    def _needed(self, need: Need) -> Teacher:
        if need not in self.teachers:
            raise UserError(
                f"the method asks for {need.value} that it does not declare; add Need.{need.name} to `needs`"
            )
        return self.teachers[need]

    def still(self, bn: Mode = Mode.EVAL, *, exact: bool = False) -> AbstractContextManager[None]:
        """The student as an attack sees it: parameters frozen, batch-norm in mode `bn`.

        exact: in float32, for differences that half precision would drown.
        """
        return self.student.still(training=bn is Mode.TRAIN, exact=exact)

    def ascend(
        self,
        objective: Objective,
        *,
        start: Start | Tensor,
        bn: Mode = Mode.EVAL,
        eps: Tensor | None = None,
        step: Tensor | None = None,
        steps: Tensor | None = None,
        exact_first: bool = False,
    ) -> Tensor:
        """The inner maximisation: `adbench.attacks.linf.ascend` at this step's x, student, threat and generator.

        eps, step, steps: (B,) tensors where a method has its own for every example (LAS-AT). exact_first: the first
        gradient is taken in float32, because it is a small difference of nearly equal outputs (TRADES).
        """
        if self.ranks.size > 1 and bn is Mode.TRAIN and steps is not None:
            raise UserError("several devices cannot share an attack in training mode whose steps differ by image")
        radius = self.threat.eps if eps is None else eps
        begun = start if isinstance(start, Tensor) else start_point(self.x, start, radius, self.generator)
        first = exact_first

        def staged(x: Tensor) -> Tensor:
            nonlocal first
            if not first:
                return objective(x)
            first = False
            with self.still(bn, exact=True):
                return objective(x)

        with self.still(bn):
            return climb(
                self.x,
                staged,
                begun,
                eps=radius,
                step=self.threat.step if step is None else step,
                steps=self.threat.steps if steps is None else steps,
            )

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the whole batch of one value an example, (B,); a number, detached.

        For what a method remembers of a batch, so that it is the same on every device (MTARD's weights).
        """
        return self.ranks.mean(values)

    def backward(self, loss: Tensor, network: nn.Module) -> None:
        """Give `network`, which has no gradients yet, those of `loss`, a mean over examples: over the whole batch's.

        For networks of the method's own (LAS-AT's policy). The student's gradients are the training loop's affair.
        """
        # Before and not after the backward pass, since batch-norm carries gradients from device to device.
        (loss * self.share).backward()  # type: ignore[no-untyped-call]
        self.ranks.add_up(p.grad for p in network.parameters() if p.grad is not None)

    def term(self, name: str, values: Tensor) -> Tensor:
        """Log a term of the loss, (B,), and return it; a term that is not finite is named when training stops."""
        self.log(name, values)
        return values

    def log(self, name: str, value: Tensor | float) -> None:
        """Note a number; the epoch's mean of it goes into the run's log under `name`."""
        self.logged.setdefault(name, []).append(wide(value, self.x.device).detach().mean())


class Method(BaseModel):
    """How a student is attacked during training, and what it minimises.

    Subclasses declare hyperparameters as `name: type = hyper(default, doc=...)` (each has a default), a `label` for
    tables, their `needs`, and implement `attack` and `loss`. Unknown or out-of-range hyperparameters are refused.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    label: ClassVar[str]
    needs: ClassVar[frozenset[Need]] = frozenset()
    selects: ClassVar[Literal["val_robust", "val_clean"]] = "val_robust"
    """Which accuracy on the held-out split chooses the best epoch."""
    separable: ClassVar[bool] = True
    """Whether an example's loss depends on that example alone, batch-norm aside."""
    divisible: ClassVar[bool] = True
    """Whether a batch may go through in parts, each attacked and differentiated by itself."""
    shares: ClassVar[bool] = False
    """Whether devices may share its batches although it is not divisible, because it asks `Step.mean` and
    `Step.backward` for the whole."""

    def needed(self) -> frozenset[Need]:
        """The teachers this configuration of the method needs; `needs`, unless a hyperparameter decides."""
        return self.needs

    def attack(self, step: Step) -> Tensor:
        """Training examples x' (B, C, H, W) in [0, 1], detached; called before `loss` with the same step."""
        raise NotImplementedError

    def loss(self, step: Step, x_adv: Tensor) -> Tensor:
        """One value an example, (B,), differentiable in the student's parameters."""
        raise NotImplementedError

    @property
    def shareable(self) -> bool:
        """Whether several devices may share a batch, each with a part."""
        return self.divisible or self.shares

    def reach(self) -> float:
        """How far training examples may lie from their images, in eps; above 1 leaves the threat model."""
        return 1.0

    def passes(self, steps: int) -> Passes:
        """Cost of one iteration with `steps` attack steps, for the plan.

        The default is plain adversarial training with one clean and one adversarial pass, and one pass of
        each teacher at both.
        """
        return Passes(
            student=steps + 2,
            teacher_forward=2 * (Need.TEACHER in self.needed()),
            natural_forward=2 * (Need.NATURAL_TEACHER in self.needed()),
        )

    def setup(self, step: Step) -> None:
        """Called before training starts or goes on, with a step like those to come (two images of the training set).

        For methods with networks or state of their own; `load_state_dict` follows where training goes on.
        """

    def on_lr_change(self, factor: float) -> None:
        """Called when the schedule multiplies the learning rate by `factor`."""

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs: tensors, numbers, strings, and lists and dictionaries of them."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave; `setup` was called before."""


def complaint(loss: Any, y: Tensor) -> str | None:
    """What is wrong with the form of a loss for labels y (B,): it has to be one value an example."""
    if isinstance(loss, Tensor) and loss.shape == y.shape:
        return None
    has = f"has shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"is a {type(loss).__name__}"
    return f"loss {has}, expected one value an example, {tuple(y.shape)}; reduce over everything but the batch"


Reduction = Classes | Literal["auto"]


def reduction_for(choice: Reduction, logits: Tensor, many: Classes) -> Classes:
    """The authors' reduction over classes where `choice` is "auto": their mean with up to 10 classes, else `many`."""
    if choice != "auto":
        return choice
    return Classes.MEAN if logits.shape[1] <= 10 else many
