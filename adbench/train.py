"""One network's training: batches, attack, loss, update; checkpoints, log and resumption.

The loop does not know which method it trains. A run killed at any moment goes on from its last completed epoch,
and on a CPU with the same number of threads it ends in the same bits as an uninterrupted one: everything random
is a function of (seed, name, epoch), and everything else is in the state that each epoch leaves behind.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import logging
import math
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adbench import checkpoint, files
from adbench.attacks.linf import Start, ascend
from adbench.config import Train
from adbench.data import Dataset, Split
from adbench.data.batches import batches, cropped, draw_crops, epoch_order, to_float
from adbench.engine import Engine, Precision
from adbench.errors import UserError
from adbench.finite import LOOK_EVERY, Taken, Watch, saved, told
from adbench.losses import cross_entropy
from adbench.method import Ball, Method, Need, Net, Step, Teacher, complaint
from adbench.models import Network
from adbench.seeding import derive, generator

LAST, BEST, LOG, SUMMARY, RESUME, FAILURE = (
    "last.safetensors",
    "best.safetensors",
    "log.jsonl",
    "training.json",
    "resume.pt",
    "failure.pt",
)

logger = logging.getLogger("adbench")

OnEpoch = Callable[[dict[str, Any]], None]
OnBatch = Callable[[int, int, int], None]


@dataclass(frozen=True)
class Summary:
    """What a finished training leaves to say; `training.json`."""

    epochs: int
    best_epoch: int
    best_val_robust: float
    seconds: float
    images_per_second: float
    peak_memory_bytes: int
    precision: Precision = "float32"
    micro_batch: int | None = None


def finished(folder: Path) -> Summary | None:
    """The summary of a training that ended in `folder`, or None."""
    try:
        return Summary(**json.loads((folder / SUMMARY).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, TypeError) as error:
        raise UserError(f"'{folder / SUMMARY}' is damaged ({error}); delete its folder to train again") from error


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
    ) -> None:
        self.method = method
        self.student = student.to(device)
        self.engine = Engine.chosen(config.precision, student, dataset.image_shape, device, compiled=config.compile)
        self.net = Net(self.student, self.engine)
        self.teachers = {need: Teacher(network.to(device), self.engine) for need, network in teachers.items()}
        self.images = dataset.train.images.to(device)
        self.labels = dataset.train.labels.to(device)
        self.pad, self.flip = dataset.pad, dataset.flip
        self.val = dataset.val.to(device)
        self.attack, self.validation = attack, validation
        self.config, self.seed, self.folder, self.device = config, seed, folder, device
        self.optimiser = torch.optim.SGD(
            self.student.parameters(),
            config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            fused=device.type == "cuda" or None,
        )
        self.watch = Watch(self.optimiser, device, LOOK_EVERY if device.type == "cuda" else 1)
        self.micro_batch = config.micro_batch
        self.epoch = 0
        self.iteration = 0
        self.seconds = 0.0
        self.peak = 0
        self.best: tuple[float, float, int] = (-1.0, 0.0, 0)  # score, robust accuracy, epoch

    def run(self, on_epoch: OnEpoch, on_batch: OnBatch) -> Summary:
        """Train to the end, from the beginning or from where an earlier run was killed.

        on_epoch gets each epoch's log entry; on_batch (epoch, batch, batches). Returns the summary, which is on
        disk too. Raises UserError for a loss or gradient that is not finite, naming where, and saves the batch.
        """
        reset_peak_memory(self.device)
        self.prepare()
        self._resume()
        self._run_by(self.engine)
        while self.epoch < self.config.epochs:
            entry = self._epoch(on_batch)
            self._save(entry)
            on_epoch(entry)
        summary = Summary(
            epochs=self.epoch,
            best_epoch=self.best[2],
            best_val_robust=self.best[1],
            seconds=self.seconds,
            images_per_second=self.epoch * len(self.labels) / max(self.seconds, 1e-9),
            peak_memory_bytes=self.peak,
            precision=self.engine.precision,
            micro_batch=self.micro_batch,
        )
        checkpoint.save_weights(self.folder / LAST, self.student, {"epoch": str(self.epoch)})
        files.write_json(self.folder / SUMMARY, summary.__dict__)
        for passing in (RESUME, FAILURE):
            (self.folder / passing).unlink(missing_ok=True)
        return summary

    def _epoch(self, on_batch: OnBatch) -> dict[str, Any]:
        begun = time.perf_counter()
        # For layers with randomness of their own (dropout): a stream that depends on the epoch alone.
        torch.manual_seed(derive(self.seed, "layers", self.epoch))
        noise = generator(self.seed, "attack", self.epoch, device=self.device)
        logged: dict[str, list[Tensor]] = {}
        losses: list[Tensor] = []
        parts = self.batches()
        for number, (index, crops) in enumerate(parts, 1):
            self.iteration += 1
            losses.append(self.iterate(index, crops, noise, logged))
            on_batch(self.epoch, number, len(parts))
        self._stop_if_failed(now=True)
        entry: dict[str, Any] = {
            "epoch": self.epoch + 1,
            "lr": self.lr,
            "loss": torch.stack(losses).mean().item(),
            **{name: torch.stack(values).mean().item() for name, values in logged.items()},
        }
        trained = time.perf_counter() - begun
        self.epoch += 1
        drops = self.config.drops().count(self.epoch)
        if drops:
            factor = self.config.lr_factor**drops
            for group in self.optimiser.param_groups:
                group["lr"] *= factor
            self.method.on_lr_change(factor)
        due = self.epoch % self.config.val_every == 0 or self.epoch == self.config.epochs
        clean, robust = self._validate() if due else (None, None)
        self.seconds += time.perf_counter() - begun
        self.peak = max(self.peak, peak_memory(self.device))
        return entry | {
            "seconds": trained,
            "images_per_second": len(self.labels) / trained,
            "val_clean": clean,
            "val_robust": robust,
            **({"micro_batch": self.micro_batch} if self.micro_batch else {}),
        }

    @property
    def lr(self) -> float:
        rate: float = self.optimiser.param_groups[0]["lr"]
        return rate

    def batches(self) -> list[tuple[Tensor, Tensor]]:
        """The epoch's batches: which images (B,), and their crops (3, B). On the device at once, not one by one."""
        order = epoch_order(len(self.labels), generator(self.seed, "order", self.epoch))
        offsets = generator(self.seed, "augment", self.epoch)
        indices = batches(order, self.config.batch_size)
        sizes = [len(index) for index in indices]
        crops = torch.cat([draw_crops(size, offsets, self.pad, self.flip) for size in sizes], dim=1)
        index = torch.cat(indices).to(self.device)
        return list(zip(torch.split(index, sizes), torch.split(crops.to(self.device), sizes, dim=1), strict=True))

    def _step(self, index: Tensor, crops: Tensor, noise: torch.Generator) -> Step:
        for teacher in self.teachers.values():
            teacher.forget()
        return Step(
            x=to_float(cropped(self.images[index], crops, self.pad)),
            y=self.labels[index],
            student=self.net,
            epoch=self.epoch,
            epochs=self.config.epochs,
            iteration=self.iteration,
            lr=self.lr,
            threat=self.attack,
            generator=noise,
            teachers=self.teachers,
        )

    def iterate(self, index: Tensor, crops: Tensor, noise: torch.Generator, logged: dict[str, list[Tensor]]) -> Tensor:
        """One optimiser step on one batch, in micro-batches that fit the memory; returns the batch's mean loss."""
        while True:
            begun = noise.get_state()
            try:
                parts = self._gradients(index, crops, noise)
                break
            except torch.OutOfMemoryError as error:
                # The batch is taken again with the same noise. Batch-norm statistics may have moved once more.
                self._halve(len(index), error)
                noise.set_state(begun)
        loss = self._update(parts)
        for part in parts:
            for name, values in part.step.logged.items():
                logged.setdefault(name, []).extend(values)
        return loss

    def _halve(self, batch: int, error: Exception) -> None:
        """Smaller micro-batches from now on. Raises UserError where there are none."""
        size = min(self.micro_batch or batch, batch) // 2
        if size < 2 or not self.method.divisible:
            why = "one image at a time" if size < 2 else "and the method needs its batches whole"
            raise UserError(
                f"method '{self.method.label}': out of memory with a batch of {batch} ({why}); lower train.batch_size"
            ) from error
        self.micro_batch = size
        self.optimiser.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        logger.warning("out of memory: micro-batches of %d from epoch %d on", size, self.epoch + 1)

    def _gradients(self, index: Tensor, crops: Tensor, noise: torch.Generator) -> list[Taken]:
        """The gradient of the batch's mean loss, summed up over its micro-batches."""
        self.student.train()
        self.optimiser.zero_grad(set_to_none=True)
        count = math.ceil(len(index) / (self.micro_batch or len(index)))
        taken = []
        for part, crop in zip(index.tensor_split(count), crops.tensor_split(count, dim=1), strict=True):
            step = self._step(part, crop, noise)
            x_adv = self.method.attack(step)
            taken.append(Taken(step, x_adv, self._backward(step, x_adv, len(index))))
        return taken

    def _backward(self, step: Step, x_adv: Tensor, batch: int) -> Tensor:
        """Add a part's share of the gradient of the mean over `batch` images; returns its losses, (B,)."""
        loss = self.method.loss(step, x_adv)
        if said := complaint(loss, step.y):
            raise UserError(f"method '{self.method.label}': {said}")
        (loss.sum() / batch).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _update(self, parts: list[Taken]) -> Tensor:
        """The optimiser's step; returns the batch's mean loss."""
        mean = torch.cat([part.loss for part in parts]).mean()
        parameters = [p for p in self.student.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        self.watch.note(parts, mean + norm)
        self._stop_if_failed()
        if self.config.grad_clip is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.config.grad_clip, norm)
        self.optimiser.step()
        return mean

    def _stop_if_failed(self, *, now: bool = False) -> None:
        """Raise UserError for a loss or gradient that is not finite, with the batch and all that met it saved."""
        parts = self.watch.failure(now=now)
        if parts is None:
            return
        if self.watch.every > 1:  # later batches have been through since; the weights are still those it met
            self.optimiser.zero_grad(set_to_none=True)
            for part in parts:
                self._backward(part.step, part.x_adv, sum(len(p.loss) for p in parts))
        wrong, terms = told(parts, self.student)
        state = saved(parts) | {
            "terms": terms, "epoch": self.epoch, "student": self.student.state_dict(),
            "optimiser": self.optimiser.state_dict(), "method": self.method.state_dict(),
        }  # fmt: skip
        path = self.folder / FAILURE
        self.folder.mkdir(parents=True, exist_ok=True)
        _write_torch(path, state)
        raise UserError(
            f"method '{self.method.label}': the loss is {state['loss'].mean().item():.3g} in epoch {self.epoch + 1}, "
            f"iteration {state['iteration']}; not finite: {wrong or 'gradient norm'}. Batch, network and states are in "
            f"'{path}'. Try a smaller train.lr or set train.grad_clip"
        )

    def _run_by(self, engine: Engine) -> None:
        """Run all networks by `engine`; a training that goes on keeps the one it began with."""
        self.engine = engine
        self.student.to(memory_format=engine.layout())
        for net in (self.net, *self.teachers.values()):
            net.run_by(engine)

    def _validate(self) -> tuple[float, float]:
        """Accuracy on the held-out split: clean, and under PGD from one uniform start that is always the same."""
        right = robust = 0
        noise = generator(self.seed, "validation", device=self.device)
        with self.net.still():
            for images, labels in _parts(self.val, self.config.batch_size):
                x = to_float(images)
                x_adv = ascend(
                    x,
                    lambda z, labels=labels: cross_entropy(self.net(z), labels),  # type: ignore[misc]
                    eps=self.validation.eps,
                    step=self.validation.step,
                    steps=self.validation.steps,
                    start=Start.UNIFORM,
                    generator=noise,
                )
                # In float32, whatever the precision of the search.
                with torch.no_grad():
                    right += _correct(self.student, x, labels)
                    robust += _correct(self.student, x_adv, labels)
        return right / len(self.val), robust / len(self.val)

    def prepare(self) -> None:
        """Set the method up, and all networks for their engine."""
        self._run_by(self.engine)
        torch.manual_seed(derive(self.seed, "method"))
        unused = generator(self.seed, "setup", device=self.device)
        count = min(2, len(self.labels))
        crops = draw_crops(count, generator(self.seed, "setup"), self.pad, self.flip).to(self.device)
        self.method.setup(self._step(torch.arange(count, device=self.device), crops, unused))

    def _save(self, entry: dict[str, Any]) -> None:
        """Make one more epoch count. The log is cut to the state on resumption, so the state is written last."""
        self.folder.mkdir(parents=True, exist_ok=True)
        score = entry[self.method.selects]
        if score is not None and score > self.best[0]:
            self.best = (score, entry["val_robust"], self.epoch)
            checkpoint.save_weights(self.folder / BEST, self.student, {"epoch": str(self.epoch)})
        lines = [*_log_lines(self.folder / LOG)[: self.epoch - 1], json.dumps(entry)]
        files.write_text(self.folder / LOG, "\n".join(lines) + "\n")
        state = {
            "epoch": self.epoch,
            "iteration": self.iteration,
            "seconds": self.seconds,
            "peak": self.peak,
            "best": list(self.best),
            "micro_batch": self.micro_batch,
            "engine": dataclasses.asdict(self.engine),
            "student": self.student.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "method": self.method.state_dict(),
        }
        _write_torch(self.folder / RESUME, state)

    def _resume(self) -> None:
        path = self.folder / RESUME
        if not path.is_file():
            return
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            self.student.load_state_dict(state["student"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.method.load_state_dict(state["method"])
            self.epoch, self.iteration = state["epoch"], state["iteration"]
            self.peak = state["peak"]
            self.seconds, self.best = state["seconds"], (state["best"][0], state["best"][1], state["best"][2])
            # A training goes on in the precision it began in, on whatever device.
            self.engine, self.micro_batch = Engine(**state.get("engine", {})), state.get("micro_batch")
        except Exception as error:
            raise UserError(
                f"'{path}' cannot be resumed ({type(error).__name__}: {error}); delete it to start the cell over"
            ) from error


def _write_torch(path: Path, state: dict[str, Any]) -> None:
    # By way of memory: on a full disk torch.save itself ends in an error that does not say so.
    content = io.BytesIO()
    torch.save(state, content)

    def write(temporary: Path) -> None:
        temporary.write_bytes(content.getbuffer())

    files.write_atomic(path, write)


def _log_lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def _parts(split: Split, size: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(torch.split(split.images, size), torch.split(split.labels, size), strict=True))


def _correct(network: Network, x: Tensor, y: Tensor) -> int:
    return int((network(x).argmax(dim=1) == y).sum())


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
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
