"""One network's training: batches, attack, loss, update; checkpoints, log and resumption.

The loop does not know which method it trains. A run killed at any moment goes on from its last completed epoch,
and on a CPU with the same number of threads it ends in the same bits as an uninterrupted one: everything random
is a function of (seed, name, epoch), and everything else is in the state that each epoch leaves behind.
"""

from __future__ import annotations

import contextlib
import io
import json
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
from adbench.attacks.linf import Start, ascend, attacking
from adbench.config import Train
from adbench.data import Dataset, Split
from adbench.data.batches import augment, batches, epoch_order, to_float
from adbench.errors import UserError
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
        self.teachers = {need: Teacher(network.to(device)) for need, network in teachers.items()}
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
        )
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
        self._prepare_method()
        self._resume()
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
        attack_noise = generator(self.seed, "attack", self.epoch, device=self.device)
        offsets = generator(self.seed, "augment", self.epoch)
        order = epoch_order(len(self.labels), generator(self.seed, "order", self.epoch))
        logged: dict[str, list[Tensor]] = {}
        losses: list[Tensor] = []
        parts = batches(order, self.config.batch_size)
        for number, index in enumerate(parts, 1):
            self.iteration += 1
            losses.append(self._update(self._step(index, attack_noise, offsets, logged)))
            on_batch(self.epoch, number, len(parts))
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
        }

    @property
    def lr(self) -> float:
        rate: float = self.optimiser.param_groups[0]["lr"]
        return rate

    def _step(
        self,
        index: Tensor,
        noise: torch.Generator,
        offsets: torch.Generator,
        logged: dict[str, list[Tensor]],
    ) -> Step:
        index = index.to(self.device)
        for teacher in self.teachers.values():
            teacher.forget()
        return Step(
            x=to_float(augment(self.images[index], offsets, self.pad, self.flip)),
            y=self.labels[index],
            student=Net(self.student),
            epoch=self.epoch,
            epochs=self.config.epochs,
            iteration=self.iteration,
            lr=self.lr,
            threat=self.attack,
            generator=noise,
            teachers=self.teachers,
            logged=logged,
        )

    def _update(self, step: Step) -> Tensor:
        """One optimiser step; returns the batch's mean loss."""
        self.student.train()
        x_adv = self.method.attack(step)
        loss = self.method.loss(step, x_adv)
        if said := complaint(loss, step.y):
            raise UserError(f"method '{self.method.label}': {said}")
        mean = loss.mean()
        self.optimiser.zero_grad(set_to_none=True)
        mean.backward()  # type: ignore[no-untyped-call]
        gradients = [p.grad for p in self.student.parameters() if p.grad is not None]
        if not torch.isfinite(mean + torch.nn.utils.get_total_norm(gradients)):
            raise self._failure(step, x_adv, loss.detach())
        if self.config.grad_clip is not None:
            torch.nn.utils.clip_grad_norm_(self.student.parameters(), self.config.grad_clip)
        self.optimiser.step()
        return mean.detach()

    def _failure(self, step: Step, x_adv: Tensor, loss: Tensor) -> UserError:
        """What to say of a loss or gradient that is not finite. The batch and all that met it are saved first."""
        parameters = dict(self.student.named_parameters())
        terms = {name: values[-1].item() for name, values in step.logged.items()}
        wrong = {
            "weights since the last update": [n for n, p in parameters.items() if not torch.isfinite(p).all()],
            "adversarial examples": [f"{_not_finite(x_adv)} of {len(x_adv)}"] if _not_finite(x_adv) else [],
            "terms": [f"{name} = {value}" for name, value in terms.items() if not math.isfinite(value)],
            "losses": [f"{_not_finite(loss)} of {len(loss)} examples"] if _not_finite(loss) else [],
            "gradients": [n for n, p in parameters.items() if p.grad is not None and not torch.isfinite(p.grad).all()],
        }
        told = "; ".join(f"{what}: {_first(found)}" for what, found in wrong.items() if found)
        state = {
            "x": step.x, "y": step.y, "x_adv": x_adv, "loss": loss, "terms": terms, "epoch": self.epoch,
            "iteration": self.iteration, "lr": self.lr, "student": self.student.state_dict(),
            "optimiser": self.optimiser.state_dict(), "method": self.method.state_dict(),
        }  # fmt: skip
        path = self.folder / FAILURE
        self.folder.mkdir(parents=True, exist_ok=True)
        _write_torch(path, state)
        return UserError(
            f"method '{self.method.label}': the loss is {loss.mean().item():.3g} in epoch {self.epoch + 1}, iteration "
            f"{self.iteration}; not finite: {told or 'gradient norm'}. Batch, network and states are in "
            f"'{path}'. Try a smaller train.lr or set train.grad_clip"
        )

    def _validate(self) -> tuple[float, float]:
        """Accuracy on the held-out split: clean, and under PGD from one uniform start that is always the same."""
        right = robust = 0
        noise = generator(self.seed, "validation", device=self.device)
        with attacking(self.student):
            for images, labels in _parts(self.val, self.config.batch_size):
                x = to_float(images)
                with torch.no_grad():
                    right += _correct(self.student, x, labels)
                x_adv = ascend(
                    x,
                    lambda z, labels=labels: cross_entropy(self.student(z), labels),  # type: ignore[misc]
                    eps=self.validation.eps,
                    step=self.validation.step,
                    steps=self.validation.steps,
                    start=Start.UNIFORM,
                    generator=noise,
                )
                with torch.no_grad():
                    robust += _correct(self.student, x_adv, labels)
        return right / len(self.val), robust / len(self.val)

    def _prepare_method(self) -> None:
        torch.manual_seed(derive(self.seed, "method"))
        unused = generator(self.seed, "setup", device=self.device)
        first = torch.arange(min(2, len(self.labels)))
        self.method.setup(self._step(first, unused, generator(self.seed, "setup"), {}))

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


def _not_finite(values: Tensor) -> int:
    """How many examples have a value that is not finite."""
    return int((~torch.isfinite(values)).reshape(len(values), -1).any(dim=1).sum())


def _first(names: list[str]) -> str:
    """Up to three names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


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
