"""The training loop: `Trainer.train_step` is the life of a batch; around it epochs, validation, log and resumption.

The loop does not know which method it trains. A killed training is resumed from its last completed epoch, and on a CPU
with the same number of threads it ends in the same bits as an uninterrupted one: everything random is a function of
(seed, name, epoch), and everything else is in the state that is written after each epoch. A training that is asked to
end (SIGTERM) writes a state in the middle of its epoch, with the position of its random streams. Several processes that
share a training (`adbench.training.distributed`) are resumed from their last whole epoch.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adbench.attacks.linf import Start, ascend
from adbench.data import Dataset, Split
from adbench.data.batches import to_float
from adbench.data.training_images import TrainingImages
from adbench.errors import UserError
from adbench.experiment.config import Train
from adbench.losses import cross_entropy, entropy, wide
from adbench.models import Network
from adbench.models.precision import AS_WRITTEN, Precision
from adbench.models.verdict import right
from adbench.results import document, layout
from adbench.results.summary import Summary
from adbench.seeding import derive, generator
from adbench.system import files, machine, signals
from adbench.training import resume
from adbench.training.average import RE_ESTIMATED, Average
from adbench.training.distributed import ALONE, Ranks
from adbench.training.method import Method, form_error
from adbench.training.nonfinite import LOOK_EVERY, BatchPart, Watch, contents, diagnosis
from adbench.training.optimiser import groups, optimiser, set_bn_momentum, set_rates
from adbench.training.parts import Parts
from adbench.training.perturbation import Perturbation
from adbench.training.schedule import drop
from adbench.training.step import GUIDANCE, SELECTIONS, Ball, Need, Net, Step, Teacher
from adbench.weights import checkpoint
from adbench.weights.file_reader import state_sha256

logger = logging.getLogger("adbench")

OnEpoch = Callable[[dict[str, Any]], None]
OnBatch = Callable[[int, int, int], None]


def check_sharing(method: Method, config: Train, devices: int) -> None:
    """Raise UserError where several devices cannot share the training of a method."""
    if devices > 1 and not method.shareable:
        raise UserError(
            f"method '{method.label}' needs its batches whole, so that devices cannot share them; start adbench "
            "without torchrun"
        )
    if devices > (least := min(config.batch_size, config.micro_batch or config.batch_size)):
        raise UserError(
            f"{devices} devices cannot share {least} images; have torchrun start fewer, or raise "
            f"train.{'micro_batch' if config.micro_batch else 'batch_size'}"
        )


class Trainer:
    """One training run in one folder."""

    def __init__(
        self,
        *,
        method: Method,
        student: Network,
        teachers: dict[Need, Network],
        dataset: Dataset,
        attack: Ball,
        validation: Ball,
        config: Train,
        seed: int,
        folder: Path,
        device: torch.device,
        ranks: Ranks = ALONE,
        identity: str = "",
    ) -> None:
        """identity: of what is trained; a state of another training in the folder is refused."""
        self.ranks = ranks
        self.method = method
        self.student = student.to(device)
        self.precision = Precision.chosen(config.precision, student, dataset.image_shape, device)
        self.net = Net(self.student, self.precision)
        self.teachers = {need: Teacher.of(network.to(device), self.precision) for need, network in teachers.items()}
        self.source = TrainingImages(dataset, device, config.augment)
        self.val = dataset.val.to(device)
        self.class_names = dataset.class_names
        self.attack, self.validation = attack, validation
        self.config, self.seed, self.folder, self.device = config, seed, folder, device
        self.identity = identity
        self.optimiser = optimiser(self.student, config, device)
        self.parts = Parts()
        self.per_epoch = self.source.epoch_batches(config.batch_size)
        self.average = Average(self.student, config, self.per_epoch) if config.average != "none" else None
        self.perturbation = Perturbation(self.student, config)
        self.watch = Watch(self.optimiser, device, LOOK_EVERY if device.type == "cuda" else 1)
        self.micro_batch = config.micro_batch
        self.epoch = 0
        self.iteration = 0
        self.seconds = 0.0
        self.trained = 0.0  # seconds without the validation
        self.peak = 0
        self.best: tuple[float, float, int] = (-1.0, 0.0, 0)  # score, robust accuracy, epoch
        self.best_weights: dict[str, Tensor] = {}
        self.notes: list[str] = []
        self.store = resume.Store(folder)
        self.under_way: resume.Epoch | None = None

    def run(self, on_epoch: OnEpoch, on_batch: OnBatch, on_note: Callable[[str], None] | None = None) -> Summary:
        """Train to the end, from the beginning or from where an earlier run was killed.

        on_epoch: called with each epoch's log entry. on_batch: with epoch, batch and number of batches. on_note: with a
        sentence on each damaged state. Returns the summary, which is on disk too. Raises UserError for a loss or
        gradient that is not finite, names it, and saves the batch; Stopped where the process was asked to end, with the
        state on disk.
        """
        with signals.deferred():
            return self._run(on_epoch, on_batch, on_note)

    def _run(self, on_epoch: OnEpoch, on_batch: OnBatch, on_note: Callable[[str], None] | None) -> Summary:
        reset_peak_memory(self.device)
        with self.ranks.together() as states:
            self.set_up()
            for note in self._resume():
                self.notes.append(note)
                if on_note:
                    on_note(note)
            self._run_in(self.precision)
            states.append((self.epoch, self.iteration))
        if len(set(states)) > 1:
            epochs = ", ".join(str(epoch) for epoch, _ in states)
            raise UserError(f"the processes of this training find different states in '{self.folder}': epochs {epochs}")
        while self.epoch < self.config.epochs:
            with self.ranks.together():
                entry = self._epoch(on_batch)
                self._save(entry)
                on_epoch(entry)
            signals.stop_if_requested()
        with self.ranks.together():
            return self._finish()

    def _finish(self) -> Summary:
        """Write weights and summary, and remove the states; returns the summary."""
        summary = Summary(
            epochs=self.epoch,
            best_epoch=self.best[2],
            best_val_robust=self.best[1],
            seconds=self.seconds,
            images_per_second=self.epoch * self.source.epoch_images / max(self.trained, 1e-9),
            peak_memory_bytes=self.peak,
            precision=self.precision.arithmetic,
            micro_batch=self.micro_batch,
            devices=self.ranks.size,
            weights={"best": state_sha256(self.best_weights), "last": checkpoint.weights_sha256(self.judged)},
            notes=self.notes,
        )
        if not self.ranks.first:
            return summary
        classes = {"class_names": json.dumps(self.class_names)}
        checkpoint.save_state(self.folder / layout.BEST, self.best_weights, {"epoch": str(self.best[2]), **classes})
        checkpoint.save_weights(self.folder / layout.LAST, self.judged, {"epoch": str(self.epoch), **classes})
        document.write(self.folder / layout.SUMMARY, summary.__dict__)
        for failure in self.folder.glob(layout.FAILURE.format("*")):
            failure.unlink()
        self.store.clear()
        return summary

    def _epoch(self, on_batch: OnBatch) -> dict[str, Any]:
        now = self.under_way or resume.Epoch.started(self.seed, self.epoch, self.device, self.ranks.stream)
        self.under_way = None
        begun = time.perf_counter() - now.seconds
        with self.ranks.whole_batch():
            self._batches(now, begun, on_batch)
        entry: dict[str, Any] = {
            "epoch": self.epoch + 1,
            "lr": self.lr,
            "loss": torch.stack(now.losses).mean().item(),
            **self._finite(self._means(now.logged)),
        }
        trained = time.perf_counter() - begun
        self.trained += trained
        self.epoch += 1
        if (factor := drop(self.config, self.epoch)) != 1:
            self.method.on_lr_change(factor)
        if self.average:
            self.average.after_epoch(self.student, self.epoch)
        due = self.epoch % self.config.val_every == 0 or self.epoch == self.config.epochs
        found: dict[str, float] = self._validate() if due and self.ranks.first else {}
        self.seconds += time.perf_counter() - begun
        self.peak = max(self.peak, peak_memory(self.device))
        return entry | {
            "seconds": trained,
            "images_per_second": self.source.epoch_images / trained,
            **{name: found.get(name) for name in dict.fromkeys(["val_clean", "val_robust", str(self.method.selects)])},
            **({"micro_batch": self.micro_batch} if self.micro_batch else {}),
        }

    def _batches(self, now: resume.Epoch, begun: float, on_batch: OnBatch) -> None:
        """Train on the remaining batches of an epoch that began at `begun`."""
        parts = self.batches()
        for index, crops in parts[now.batch :]:
            self.iteration += 1
            set_rates(self.optimiser, self.config, self.epoch, now.batch, len(parts))
            set_bn_momentum(self.student, self.config, self.iteration)
            now.losses.append(self.iterate(index, crops, now.noise, now.logged))
            now.batch += 1
            on_batch(self.epoch, now.batch, len(parts))
            if signals.stop_requested():
                if self.ranks.size == 1:  # of several, others may be at another batch
                    self._stop_if_failed(now=True)
                    now.seconds = time.perf_counter() - begun
                    self._write_state(now)
                signals.stop_if_requested()
        self._stop_if_failed(now=True)

    def _means(self, logged: dict[str, list[Tensor]]) -> dict[str, float]:
        """An epoch's mean of each number that the method logged, over all ranks."""
        sums = {name: (torch.stack(values).sum().item(), len(values)) for name, values in logged.items()}
        every = self.ranks.gathered(sums)
        names = dict.fromkeys(name for sums in every for name in sums)
        pairs = {name: [sums[name] for sums in every if name in sums] for name in names}
        return {name: math.fsum(s for s, _ in pair) / sum(n for _, n in pair) for name, pair in pairs.items()}

    def _finite(self, means: dict[str, float]) -> dict[str, float | None]:
        """The numbers for JSON: None for one that is not finite, with a note for the summary."""
        for name, value in means.items():
            note = f"'{name}', which the method logs, is not finite in some epochs: null in {layout.LOG}"
            if not math.isfinite(value) and note not in self.notes:
                self.notes.append(note)
        return {name: value if math.isfinite(value) else None for name, value in means.items()}

    @property
    def lr(self) -> float:
        rate: float = self.optimiser.param_groups[0]["lr"]
        return rate

    @property
    def judged(self) -> Network:
        """The network that is validated, chosen and saved: the average where there is one by now."""
        return self.average.network if self.average and self.average.begun else self.student

    def batches(self, *purpose: str) -> list[tuple[Tensor, Tensor]]:
        """The epoch's batches: which images (B,), and what was drawn for their augmentation (rows, B).

        purpose: of batches that are not trained on, which have random streams of their own.
        """
        return self.source.epoch(self.config.batch_size, self.seed, self.epoch, *purpose)

    def iterate(self, index: Tensor, crops: Tensor, noise: torch.Generator, logged: dict[str, list[Tensor]]) -> Tensor:
        """`train_step`, taken again in smaller micro-batches where memory runs out; returns the batch's mean loss.

        logged: what the method logs is added to it.
        """
        before = noise.get_state()
        while True:
            try:
                with self.precision.convolutions():
                    loss, parts = self.train_step(index, crops, noise)
                break
            except torch.OutOfMemoryError:
                pass  # all that the failed pass held is free only outside this block
            # The batch is taken again with the same noise. Batch-norm statistics may have moved once more.
            self._halve(len(index))
            noise.set_state(before)
        for part in parts:
            # So that the mean over the ranks is the batch's, also where their parts differ by an image.
            weight = self.ranks.size * part.step.share
            for name, values in (part.step.logged | self._guidance(part)).items():
                logged.setdefault(name, []).extend(weight * value for value in values)
        return loss

    def _guidance(self, part: BatchPart) -> dict[str, list[Tensor]]:
        """GUIDANCE, of all batches where the method asks its teacher at x', else of an epoch's last whole one.

        Neither draws from the training's random streams nor changes a network.
        """
        step = part.step
        if Need.TEACHER not in self.teachers:
            return {}
        logits = step.teacher.known(part.x_adv)
        if logits is None:
            # The last batch may have few images.
            if (step.iteration - 1) % self.per_epoch != max(self.per_epoch - 2, 0):
                return {}
            gpus = [self.device] if self.device.type == "cuda" else []
            with torch.random.fork_rng(gpus), self.precision.convolutions():
                logits = step.teacher(part.x_adv)
        # Of mixed images, the predicted class's share.
        mixed = None if step.soft is None else step.soft.gather(1, logits.argmax(dim=1, keepdim=True))
        values = (right(logits, step.y) if mixed is None else mixed, entropy(logits))
        return {name: [wide(value, self.device).mean()] for name, value in zip(GUIDANCE, values, strict=True)}

    def train_step(self, index: Tensor, crops: Tensor, noise: torch.Generator) -> tuple[Tensor, list[BatchPart]]:
        """The life of a batch: attack, loss, backward pass, update. Returns its mean loss and its parts.

        index: (B,) training images; crops: (rows, B) what was drawn for them; noise: the stream of the attack.
        """
        self.student.train()
        self.optimiser.zero_grad(set_to_none=True)
        self.parts.begin()
        attacked = ((step, images, self.method.attack(step)) for step, images in self._steps(index, crops, noise))
        modules = [self.student, *self.parts.modules.values()]
        with self.perturbation.around(attacked, self._rehearse, self.epoch, modules) as batch:
            parts = [self._differentiated(*each) for each in batch]
            parameters = [p for module in modules for p in module.parameters() if p.grad is not None]
            gradients = [p.grad for p in parameters if p.grad is not None]
            self.ranks.add_up(gradients)
            mean = self.ranks.mean(torch.cat([part.loss for part in parts]))
            norm = torch.nn.utils.get_total_norm(gradients)
            self.watch.note(parts, mean + norm)
            self._stop_if_failed()
            if self.config.grad_clip is not None:
                torch.nn.utils.clip_grads_with_norm_(parameters, self.config.grad_clip, norm)
            self._update()
        if self.average:
            self.average.after_update(self.student, self.iteration)
        return mean, parts

    def _differentiated(self, step: Step, images: int, x_adv: Tensor) -> BatchPart:
        """A part of the batch after its backward pass. images: what its summed loss is divided by."""
        loss = self.method.loss(step, x_adv)
        if error := form_error(loss, step.y):
            raise UserError(f"method '{self.method.label}': {error}")
        (loss.sum() / images).backward()  # type: ignore[no-untyped-call]
        return BatchPart(step, x_adv, loss.detach())

    def _rehearse(self, batch: Sequence[tuple[Step, int, Tensor]]) -> dict[str, Tensor]:
        """The gradients of a batch's loss in the student's parameters, of which nothing else is left."""
        for step, images, x_adv in batch:
            self._differentiated(replace(step, rehearsal=True, logged={}), images, x_adv)
        gradients = {name: p.grad for name, p in self.student.named_parameters() if p.grad is not None}
        self.ranks.add_up(gradients.values())
        self.optimiser.zero_grad(set_to_none=True)
        self.parts.begin()
        return gradients

    def _update(self) -> None:
        """The optimiser's step. Raises UserError where memory runs out in it: some weights may have moved already."""
        try:
            with self.perturbation.update(self.watch.failed):
                self.optimiser.step()
            self.parts.update()
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"method '{self.method.label}': out of memory in the optimiser's step; lower train.batch_size"
            ) from error

    def _steps(self, index: Tensor, crops: Tensor, noise: torch.Generator) -> Iterator[tuple[Step, int]]:
        """This rank's part of each micro-batch, and the number of images that its summed loss is divided by."""
        count = math.ceil(len(index) / (self.micro_batch or len(index)))
        for part, crop in zip(index.tensor_split(count), crops.tensor_split(count, dim=1), strict=True):
            own, together = self.ranks.part(len(part))
            step = self._step(part[own], crop[:, own], noise, share=(own.stop - own.start) / together)
            # Where every rank has the whole micro-batch, each of its images counts as often as there are ranks.
            step.copies = together // len(part)
            yield step, len(index) * step.copies

    def _step(self, index: Tensor, crops: Tensor, noise: torch.Generator, share: float = 1.0) -> Step:
        for teacher in self.teachers.values():
            teacher.forget()
        x, y, soft = self.source.examples(index, crops, self.net.weight.dtype)
        return Step(
            x=x,
            y=y,
            soft=soft,
            student=self.net,
            epoch=self.epoch,
            epochs=self.config.epochs,
            iteration=self.iteration,
            lr=self.lr,
            threat=self.attack,
            generator=noise,
            teachers=self.teachers,
            ranks=self.ranks,
            share=share,
            index=index.to(self.device),
            parts=self.parts.modules,
            iterations=self.config.epochs * self.per_epoch,
        )

    def _halve(self, batch: int) -> None:
        """Halve the micro-batches from now on. Raises UserError where that is impossible."""
        if self.ranks.size > 1:  # the others may be waiting in the middle of a pass by now
            remedy = "set train.micro_batch, or " if self.method.divisible else ""
            raise UserError(
                f"method '{self.method.label}': out of memory with a batch of {batch} on {self.ranks.size} devices; "
                f"{remedy}have torchrun start more"
            )
        size = min(self.micro_batch or batch, batch) // 2
        if size < 2 or not self.method.divisible:
            why = "one image at a time" if size < 2 else "and the method needs its batches whole"
            raise UserError(
                f"method '{self.method.label}': out of memory with a batch of {batch} ({why}); lower train.batch_size"
            )
        self.micro_batch = size
        self.optimiser.zero_grad(set_to_none=True)
        for teacher in self.teachers.values():
            teacher.forget()
        torch.cuda.empty_cache()
        logger.warning("out of memory: micro-batches of %d from epoch %d on", size, self.epoch + 1)

    def _stop_if_failed(self, *, now: bool = False) -> None:
        """Raise UserError for a loss or gradient that is not finite, with the batch and all that met it saved."""
        parts = self.watch.failure(now=now)
        if parts is None:
            return
        self.perturbation.restore()
        if self.watch.every > 1:  # later batches have been through since; the weights are still those it met
            self.optimiser.zero_grad(set_to_none=True)
            self.parts.begin()
            images = sum(len(part.loss) for part in parts)
            for part in parts:
                (self.method.loss(part.step, part.x_adv).sum() / images).backward()  # type: ignore[no-untyped-call]
        wrong, terms = diagnosis(parts, self.student)
        content = contents(parts) | {
            "terms": terms,
            "epoch": self.epoch,
            "student": self.student.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "method": self.method.state_dict(),
            "parts": self.parts.state(),
        }
        path = self.folder / layout.FAILURE.format("".join(f"-{rank}" for rank in self.ranks.stream))
        self.folder.mkdir(parents=True, exist_ok=True)
        files.write_bytes(path, checkpoint.serialised(content))
        every = self.ranks.gathered((content["loss"].mean().item(), wrong, str(path)))
        loss, wrong, path = min(every, key=lambda failure: (math.isfinite(failure[0]), not failure[1]))
        raise UserError(
            f"method '{self.method.label}': the loss is {loss:.3g} in epoch {self.epoch + 1}, "
            f"iteration {content['iteration']}; not finite: {wrong or 'gradient norm'}. Batch, network and states are "
            f"in '{path}'. Try a smaller train.lr or set train.grad_clip"
        )

    def _run_in(self, precision: Precision) -> None:
        """Run all networks in `precision`; a training that goes on keeps the one it began with."""
        self.precision = precision
        self.student.to(memory_format=precision.layout(self.device))
        for net in (self.net, *self.teachers.values()):
            net.run_in(precision)

    def _validate(self) -> dict[str, float]:
        """SELECTIONS on the held-out split, under PGD from one uniform start that is always the same."""
        if self.average and self.average.begun:
            self._estimate(self.average)
            net = Net(self.average.network, self.precision)
            return held_out(net, self.val, self.validation, self.config.batch_size, self.seed)
        return held_out(self.net, self.val, self.validation, self.config.batch_size, self.seed)

    def _estimate(self, average: Average) -> None:
        """Take the average's batch-norm statistics anew where the recipe says so, from clean training images."""
        if average.statistics in RE_ESTIMATED:
            torch.manual_seed(derive(self.seed, "average", "layers", self.epoch))
            with AS_WRITTEN.convolutions():
                batches, dtype = self.batches("average"), self.net.weight.dtype
                average.estimate(self.source.examples(index, drawn, dtype)[0] for index, drawn in batches)

    def set_up(self) -> None:
        """Set up the method, and all networks in their precision."""
        self._run_in(self.precision)
        torch.manual_seed(derive(self.seed, "method"))
        unused = generator(self.seed, "setup", device=self.device)
        count = min(2, len(self.source.labels))
        crops = self.source.crops(count, generator(self.seed, "setup"))
        step = self._step(torch.arange(count, device=self.device), crops, unused)
        self.method.setup(step)
        networks = (self.student, *(teacher.module for teacher in self.teachers.values()))
        self.parts = Parts.of(self.method.parts(step), self.net.weight, networks)
        for group in (group for module in self.parts.joint for group in groups(module, self.config)):
            self.optimiser.add_param_group(group)
        self.watch.guard(self.parts.optimisers.values())

    def _save(self, entry: dict[str, Any]) -> None:
        """Write log and state after an epoch. The log is cut to the state on resumption, so the state comes last."""
        if not self.ranks.first:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        score = entry[self.method.selects]
        if self.epoch >= self.config.judged_from and score is not None and score > self.best[0]:
            self.best = (score, entry["val_robust"], self.epoch)
            self.best_weights = _copy(self.judged.state_dict())
        lines = [*_log_lines(self.folder / layout.LOG)[: self.epoch - 1], json.dumps(entry, allow_nan=False)]
        files.write_text(self.folder / layout.LOG, "\n".join(lines) + "\n")
        self._write_state(None)

    def _write_state(self, now: resume.Epoch | None) -> None:
        """Write the state, after an epoch or in the middle of one."""
        state = {
            "identity": self.identity,
            "epoch": self.epoch,
            "iteration": self.iteration,
            "seconds": self.seconds,
            "trained": self.trained,
            "peak": self.peak,
            "best": list(self.best),
            "micro_batch": self.micro_batch,
            "devices": self.ranks.size,
            "engine": {"precision": self.precision.arithmetic, "lean": self.precision.lean},
            # Where they are the network's of today, once is enough.
            "best_weights": {} if self.best[2] == self.epoch and now is None else self.best_weights,
            "notes": self.notes,
            "student": self.student.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "method": self.method.state_dict(),
            "parts": self.parts.state(),
            "average": self.average and self.average.state_dict(),
            "under_way": now and now.state(self.device),
        }
        self.store.save(state, self.epoch, now.batch if now else 0)

    def _resume(self) -> list[str]:
        """Restore the state on disk, if there is one; returns a sentence on each damaged one."""
        try:
            state, notes = self.store.load(self.device)
            if state is None:
                return notes
            if state.get("identity", self.identity) != self.identity:
                raise ValueError("it is another training's")
            self.student.load_state_dict(state["student"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.method.load_state_dict(state["method"])
            self.parts.load(state.get("parts", {}))
            self.epoch, self.iteration = state["epoch"], state["iteration"]
            self.peak, self.notes, self.trained = state["peak"], state["notes"], state["trained"]
            self.seconds, self.best = state["seconds"], (state["best"][0], state["best"][1], state["best"][2])
            if self.average:
                self.average.load_state_dict(state["average"])
            self.best_weights = _copy(state["best_weights"] or self.judged.state_dict())
            if state["under_way"]:
                self.under_way = resume.Epoch.restored(
                    state["under_way"], self.seed, self.epoch, self.device, self.ranks.stream
                )
            if (before := state.get("devices", 1)) != self.ranks.size:
                self.notes.append(f"devices: {before} up to epoch {self.epoch}, then {self.ranks.size}")
            # A training goes on in the precision it began in, on whatever device.
            self.precision = Precision(state["engine"]["precision"], state["engine"]["lean"])
            self.micro_batch = state["micro_batch"]
        except Exception as error:
            raise UserError(
                f"the state in '{self.folder}' cannot be resumed ({type(error).__name__}: {error}); delete "
                f"{' and '.join(layout.STATES)} there to start the cell over"
            ) from error
        return notes


def held_out(net: Net, val: Split, ball: Ball, batch_size: int, seed: int) -> dict[str, float]:
    """SELECTIONS on a split, under PGD in `ball` from one uniform start that is a function of the seed."""
    clean, robust = [], []
    noise = generator(seed, "validation", device=val.images.device)
    with net.still():
        for images, labels in _parts(val, batch_size):
            x = to_float(images, net.weight.dtype)
            x_adv = ascend(
                x,
                lambda z, labels=labels: cross_entropy(net(z), labels),  # type: ignore[misc]
                eps=ball.eps,
                step=ball.step,
                steps=ball.steps,
                start=Start.UNIFORM,
                generator=noise,
            )
            # In float32, whatever the precision of the search.
            with torch.no_grad(), AS_WRITTEN.convolutions():
                clean.append(right(net.module(x), labels))
                robust.append(right(net.module(x_adv), labels))
    unharmed = torch.cat(robust)
    accuracies = int(torch.cat(clean).sum()) / len(val), int(unharmed.sum()) / len(val)
    by_class = [unharmed[val.labels == label].double().mean().item() for label in set(val.labels.tolist())]
    return dict(zip(SELECTIONS, (*accuracies[::-1], sum(accuracies) / 2, min(by_class)), strict=True))


def _copy(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, and not changed by further training."""
    return {name: value.detach().to("cpu", copy=True) for name, value in weights.items()}


def _log_lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def _parts(split: Split, size: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(torch.split(split.images, size), torch.split(split.labels, size), strict=True))


def reset_peak_memory(device: torch.device) -> None:
    """Let `peak_memory` count from here."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):  # only Linux can; elsewhere the peak is the process's
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory(device: torch.device) -> int:
    """Largest memory since `reset_peak_memory`, in bytes: of tensors on a CUDA device, of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return machine.peak_memory()
