"""A training step as a method sees it: the batch, the student, its teachers, and the attack kernel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from enum import Enum, StrEnum

import torch
from torch import Tensor, nn

from adbench.attacks.linf import Objective, Start, attacking, climb, start_point
from adbench.errors import UserError
from adbench.losses import wide
from adbench.models.ensemble import WITHOUT, Ensemble, mean_logits
from adbench.models.network import Network
from adbench.models.precision import AS_WRITTEN, Lean, Precision, single
from adbench.models.stages import Shape, kept, named
from adbench.models.stages import stages as stages_of
from adbench.training.distributed import ALONE, Ranks

SELECTIONS = ("val_robust", "val_clean", "val_mean", "val_robust_worst")
"""What may choose the best epoch, on the held-out split: robust accuracy, clean accuracy, the mean of the two, or the
robust accuracy of the class where it is lowest."""

GUIDANCE = ("teacher_accuracy_adv", "teacher_entropy_adv")
"""What the robust teacher says of the student's x': the share on which it is right, and the mean entropy of its
probabilities in nats."""

COLUMNS = ("epoch", "lr", "loss", "seconds", "images_per_second", *SELECTIONS, "micro_batch", *GUIDANCE)
"""What the trainer writes into every line of a log, beside the numbers that a method logs."""


class Need(Enum):
    """A kind of teacher that a method may declare in `needs`."""

    TEACHER = "a robust teacher"
    NATURAL_TEACHER = "a naturally trained teacher"


class Mode(StrEnum):
    """Batch-norm mode of the student while it is attacked in training."""

    EVAL = "eval"
    TRAIN = "train"
    BATCH = "batch"
    """The batch's own statistics as in training, but the running ones stay as they are (Wang et al., ICML 2023)."""


class Net:
    """A network as a method sees it: call it for logits, ask it for features; both in float32 or better.

    Example: `logits = step.student(x)`, `logits, maps = step.student.features(x)`.
    """

    def __init__(self, module: Network, precision: Precision = AS_WRITTEN) -> None:
        self.module = module
        self.precision = precision
        self._lean: Lean | None = None
        self._attacked = False
        self._known: dict[str, Shape] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Logits (B, C) of images x (B, C, H, W) in [0, 1]."""
        return self._run(x)[0]

    def features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, C) and the last feature map (B, K, H, W), from one forward pass."""
        logits, maps, _ = self._run(x, features=True)
        assert maps is not None
        return logits, maps

    def stages(self, x: Tensor, *stages: int | str) -> tuple[Tensor, dict[int | str, Tensor]]:
        """Logits (B, C) and the feature maps (B, K, H, W) of stages inside the network, from one forward pass.

        A stage is a module by its name ("layer2"; `adbench info ARCHITECTURE` lists them) or a level, which every
        network has: 0 for the last map of its first resolution, -1 for that of its last, -2 for that before. Raises
        UserError where the network has no such stage.

        Example: `logits, maps = step.teacher.stages(step.x, -2)`, and `maps[-2]` is the map.
        """
        known = self._stages(x)
        names = [named(known, stage) for stage in stages]
        logits, _, maps = self._run(x, stages=tuple(dict.fromkeys(names)))
        return logits, {stage: maps[name] for stage, name in zip(stages, names, strict=True)}

    @property
    def weight(self) -> Tensor:
        """The classifier's weight, (C, K)."""
        return self.module.classifier.weight

    def observe(self, x: Tensor) -> None:
        """Run images x (B, C, H, W) through the network for its batch-norm statistics alone.

        Published codes run the clean batch even where its loss has weight zero, and that changes the student.
        """
        with torch.no_grad():
            self._run(x)

    def run_in(self, precision: Precision) -> None:
        """Run the network in another precision from now on."""
        self.precision, self._lean, self._attacked = precision, None, False

    @contextmanager
    def still(self, bn: Mode = Mode.EVAL, *, exact: bool = False) -> Iterator[None]:
        """The network as an attack sees it: frozen, with batch-norm in mode `bn`.

        exact: in float32, whatever the network's precision.
        """
        before = self._attacked, self.precision
        training = bn is not Mode.EVAL
        frozen = attacking(self.module, training=training, moving=bn is Mode.TRAIN)
        with frozen, (AS_WRITTEN if exact else self.precision).convolutions():
            try:
                if exact and self.precision.arithmetic != "float32":
                    self.precision = AS_WRITTEN
                self._attacked = self.precision.lean and not training
                if self._attacked:
                    self._refresh()
                yield
            finally:
                self._attacked, self.precision = before

    def shape(self, x: Tensor, stage: int | str) -> Shape:
        """The shape (K, H, W) of a stage's map for images like x, which leave no trace in the network."""
        known = self._stages(x)
        return known[named(known, stage)]

    def _stages(self, x: Tensor) -> dict[str, Shape]:
        if self._known is None:
            with attacking(self.module):
                self._known = stages_of(self.module, x[:1].detach())
        return self._known

    def _refresh(self, *stages: str) -> None:
        """Bring the lean copy up to date, with these stages beside those that were asked for before."""
        before = self._lean.stages if self._lean else ()
        wanted = tuple(dict.fromkeys((*before, *stages)))
        if self._lean is None or (self._lean.precision, before) != (self.precision, wanted):
            self._lean = Lean(self.module, self.precision, wanted)
        else:
            self._lean.refresh()

    def _run(
        self, x: Tensor, *, features: bool = False, stages: tuple[str, ...] = ()
    ) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
        """Logits, the last feature map if `features`, and the maps of stages."""
        if self._attacked:
            assert self._lean is not None
            if not set(stages) <= set(self._lean.stages):
                self._refresh(*stages)
            if stages:
                logits, inside = self._lean.forward_stages(x)
                return logits, None, inside
            return (*self._lean.forward_features(x), {}) if features else (self._lean(x), None, {})
        with self.precision.autocast(x.device), kept(self.module, stages) as outputs:
            logits, maps = self.module.forward_features(x) if features else (self.module(x), None)
        named_maps = {name: single(outputs[name]) for name in stages}
        return single(logits), None if maps is None else single(maps), named_maps


class Teacher(Net):
    """A frozen network in evaluation mode. Outputs at inputs without gradient are computed once a batch.

    At inputs that require gradient the graph runs through to the input (AdaAD's and SmaraAD's attacks).
    """

    def __init__(self, module: Network, precision: Precision = AS_WRITTEN) -> None:
        super().__init__(module.eval().requires_grad_(False), precision)
        self._outputs: dict[int, tuple[Tensor, Tensor, Tensor | None, dict[str, Tensor]]] = {}

    @staticmethod
    def of(module: Network, precision: Precision = AS_WRITTEN) -> Teacher:
        """A network as a teacher, an ensemble as one whose members can be asked."""
        return EnsembleTeacher(module, precision) if isinstance(module, Ensemble) else Teacher(module, precision)

    @property
    def members(self) -> tuple[Teacher, ...]:
        """The teachers that it consists of: of an ensemble its members, else itself alone."""
        return (self,)

    def forget(self) -> None:
        """Drop the stored outputs (the batch is over)."""
        self._outputs.clear()

    def known(self, x: Tensor) -> Tensor | None:
        """Its logits (B, C) at x where this batch has computed them, else None."""
        outputs = self._outputs.get(id(x))
        return None if outputs is None else outputs[1]

    def _run(
        self, x: Tensor, *, features: bool = False, stages: tuple[str, ...] = ()
    ) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
        if self.precision.lean and not self._attacked:
            self._refresh()  # once: its weights never change
            self._attacked = True
        if x.requires_grad:
            return super()._run(x, features=features, stages=stages)
        outputs = self._outputs.get(id(x))
        if outputs is None or (features and outputs[2] is None) or not set(stages) <= outputs[3].keys():
            _, _, last, others = outputs or (x, None, None, {})
            with torch.no_grad():
                logits, maps, inside = super()._run(x, features=features, stages=stages)
            # x itself is stored too: as long as it lives, its id belongs to no other tensor.
            outputs = self._outputs[id(x)] = (x, logits, last if maps is None else maps, others | inside)
        return outputs[1], outputs[2], outputs[3]


class EnsembleTeacher(Teacher):
    """Several teachers as one: its logits are the mean of theirs, and what a member has computed is not computed again.

    module: an `Ensemble`.
    """

    def __init__(self, module: Ensemble, precision: Precision = AS_WRITTEN) -> None:
        super().__init__(module, precision)
        self._members = tuple(Teacher(member, precision) for member in module.members)

    @property
    def members(self) -> tuple[Teacher, ...]:
        return self._members

    def forget(self) -> None:
        super().forget()
        for member in self._members:
            member.forget()

    def known(self, x: Tensor) -> Tensor | None:
        found = [logits for member in self._members if (logits := member.known(x)) is not None]
        return mean_logits(found) if len(found) == len(self._members) else None

    def run_in(self, precision: Precision) -> None:
        super().run_in(precision)
        for member in self._members:
            member.run_in(precision)

    @contextmanager
    def still(self, bn: Mode = Mode.EVAL, *, exact: bool = False) -> Iterator[None]:
        with super().still(bn, exact=exact), ExitStack() as stack:
            for member in self._members:
                stack.enter_context(member.still(bn, exact=exact))
            yield

    def _stages(self, x: Tensor) -> dict[str, Shape]:
        """Raises UserError: a stage is one network's."""
        raise UserError(WITHOUT.format("stages"))

    def _run(
        self, x: Tensor, *, features: bool = False, stages: tuple[str, ...] = ()
    ) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
        if features or stages:
            return super()._run(x, features=features, stages=stages)
        return mean_logits([member(x) for member in self._members]), None, {}


@dataclass(frozen=True)
class Ball:
    """An L-infinity ball and how an attack crosses it: `eps` and step size in image units, number of steps."""

    eps: float
    step: float
    steps: int


@dataclass
class Step:
    """One training iteration: all that a method's `attack` and `loss` see.

    x: images (B, C, H, W) in [0, 1]. y: labels (B,). epoch: from 0 to epochs - 1. iteration: from 1, over the whole
    training, to iterations. lr: the learning rate. index: which of the training images these are, (B,); extra
    ones are counted on. threat: eps,
    step size and number of steps of the training attack. generator: the training's stream of attack randomness.
    student, teacher, natural_teacher: networks, see `Net`. parts: the method's own, which the loop trains.

    rehearsal: this call of `loss` comes before the one that counts, at the same x' (adversarial weight perturbation):
    it gives the same loss, and no state of the method moves.

    The student is in training mode in `loss`; `ascend` and `still` put it into the mode of an attack and back. Where
    several devices share a training, x is this device's part of the batch, a `share` of it; `mean`, `total`, `extremes`
    and `backward` are for what depends on the whole batch. copies: how many devices have the same part, since the batch
    has fewer images than there are devices.

    soft: the probabilities of classes (B, C) where `train.augment` mixes images; y is then the label of each image's
    first part. Only a method that declares `soft_labels` meets them, in `target`.
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
    index: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    iterations: int = 0
    copies: int = 1
    rehearsal: bool = False
    parts: dict[str, nn.Module] = field(default_factory=dict)
    soft: Tensor | None = None

    @property
    def target(self) -> Tensor:
        """What `cross_entropy` compares with: y, or where images are mixed the probabilities of classes (B, C)."""
        return self.y if self.soft is None else self.soft

    @property
    def teacher(self) -> Teacher:
        """The robust teacher; of several, its `members` are each of them."""
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
        """Context in which the student is under attack: parameters frozen, batch-norm in mode `bn`.

        exact: in float32, for differences that are lost in half precision.
        """
        return self.student.still(bn, exact=exact)

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
        """The inner maximisation: x' (B, C, H, W) by signed gradient ascent on `objective` in the threat model's ball.

        objective: maps x' to one value an example, (B,). start: a `Start`, or the first iterate. bn: batch-norm mode of
        the student meanwhile. eps, step, steps: radius, step size and number of steps, as (B,) tensors where a method
        has its own for every example (LAS-AT). exact_first: the first gradient is taken in float32, because it is a
        small difference of nearly equal outputs (TRADES). Returns x' detached, in the ball and in [0, 1].

        Raises UserError for an attack on batch statistics with `steps` where several devices share the training.

        Example: `step.ascend(lambda x: cross_entropy(step.student(x), step.y), start=Start.UNIFORM)`.
        """
        if self.ranks.size > 1 and bn is not Mode.EVAL and steps is not None:
            raise UserError("several devices cannot share an attack on batch statistics whose steps differ by image")
        size = self.threat.eps if eps is None else eps
        x_start = start if isinstance(start, Tensor) else start_point(self.x, start, size, self.generator)
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
                x_start,
                eps=size,
                step=self.threat.step if step is None else step,
                steps=self.threat.steps if steps is None else steps,
            )

    def mean(self, values: Tensor) -> Tensor:
        """The mean of values (B,) over the whole batch, on all devices: a scalar tensor, detached.

        For state that a method keeps from batch to batch, which has to be the same on every device (MTARD's weights).
        """
        return self.ranks.mean(values)

    def total(self, values: Tensor) -> Tensor:
        """The sum over all devices of each number in values, which have the same shape on every device; detached.

        For what a method adds up over its part of the batch, as numbers of images by class, (C,). Each image counts
        once.
        """
        total = self.ranks.total(values)
        return total if self.copies == 1 else (total.double() / self.copies).to(values.dtype)

    def extremes(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """The smallest and the largest of values (B,) over the whole batch, on all devices: two scalars, detached."""
        return self.ranks.extremes(values)

    def backward(self, loss: Tensor, network: nn.Module) -> None:
        """Backpropagate `loss`, a mean over examples, into `network`, which has no gradients yet: over the whole batch.

        For networks of the method's own (LAS-AT's policy). The training loop backpropagates the student's loss.
        """
        # Before and not after the backward pass, since batch-norm carries gradients from device to device.
        (loss * self.share).backward()  # type: ignore[no-untyped-call]
        self.ranks.add_up(p.grad for p in network.parameters() if p.grad is not None)

    def term(self, name: str, values: Tensor) -> Tensor:
        """Log a term of the loss, (B,), and return it; named where training stops at a loss that is not finite."""
        self.log(name, values)
        return values

    def log(self, name: str, value: Tensor | float) -> None:
        """Log a number, or the mean of a tensor; its mean over the epoch goes into log.jsonl under `name`.

        Raises UserError for a name that is a column of every log.
        """
        if name in COLUMNS:
            raise UserError(f"the method logs '{name}', which is a column of every log; give it another name")
        self.logged.setdefault(name, []).append(wide(value, self.x.device).detach().mean())
