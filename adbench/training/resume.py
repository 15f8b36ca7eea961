"""The state of an unfinished training: the last two states, in files with a checksum.

Each file begins with the SHA-256 of the rest. One that was cut short, or of which a bit flipped, is passed over for the
one before it, and the training repeats what lay between; it ends in the same bits.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adbench.results import layout
from adbench.seeding import derive, generator
from adbench.system import files
from adbench.weights import checkpoint

_MAGIC = b"adbench state 1 "


class Damaged(Exception):
    """A file that is not the state that was written; the message says how that is known."""


class Store:
    """The states of one training, in its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._last = len(layout.STATES) - 1

    def save(self, state: dict[str, Any], epoch: int, batch: int = 0) -> None:
        """Keep `state`, of `epoch` finished epochs and `batch` batches of the next, beside the one before.

        Raises UserError where it cannot be written; the state before stays.
        """
        turn = (self._last + 1) % len(layout.STATES)
        _write(self.folder / layout.STATES[turn], f"{epoch} {batch}\n".encode(), checkpoint.serialised(state))
        self._last = turn

    def load(self, device: torch.device) -> tuple[dict[str, Any] | None, list[str]]:
        """The furthest whole state, None where there is none, and a sentence on each damaged file."""
        whole: list[tuple[tuple[int, int], int, bytes]] = []
        damaged: list[str] = []
        for turn, name in enumerate(layout.STATES):
            path = self.folder / name
            try:
                if path.exists():
                    done, content = _read(path)
                    whole.append((done, turn, content))
            except (Damaged, OSError) as error:
                damaged.append(f"'{path}' is damaged ({error})")
        if not whole:
            return None, [f"{reason}; the training starts over" for reason in damaged]
        (epoch, batch), self._last, content = max(whole)
        where = f"epoch {epoch}" + (f" and {batch} batches" if batch else "")
        state = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
        return state, [f"{reason}; the training goes on from the state after {where}" for reason in damaged]

    def clear(self) -> None:
        """Remove the states of a finished training."""
        clear(self.folder)


def clear(folder: Path) -> None:
    """Remove the states in a training's folder."""
    for name in layout.STATES:
        (folder / name).unlink(missing_ok=True)


@dataclass
class Epoch:
    """An epoch under way: its stream of attack randomness, how many batches are done, and what they logged."""

    noise: torch.Generator
    batch: int = 0
    seconds: float = 0.0
    losses: list[Tensor] = field(default_factory=list)
    logged: dict[str, list[Tensor]] = field(default_factory=dict)

    @classmethod
    def started(cls, seed: int, epoch: int, device: torch.device, stream: tuple[int, ...] = ()) -> Epoch:
        """An epoch at its first batch. Its randomness depends on seed, epoch and rank (`Ranks.stream`) alone."""
        # For layers with randomness of their own (dropout).
        torch.manual_seed(derive(seed, "layers", epoch, *stream))
        return cls(generator(seed, "attack", epoch, *stream, device=device))

    @classmethod
    def restored(
        cls, state: dict[str, Any], seed: int, epoch: int, device: torch.device, stream: tuple[int, ...] = ()
    ) -> Epoch:
        """An epoch at the batch of `state`, which a single process wrote: its streams are the first rank's."""
        now = cls.started(seed, epoch, device, stream)
        if not stream:
            now.noise.set_state(state["noise"].cpu())
            torch.set_rng_state(state["layers"].cpu())
            if device.type == "cuda":
                torch.cuda.set_rng_state(state["device_layers"].cpu(), device)
        now.batch, now.seconds = state["batch"], state["seconds"]
        now.losses, now.logged = state["losses"], state["logged"]
        return now

    def state(self, device: torch.device) -> dict[str, Any]:
        """The state that the rest of the epoch needs."""
        return {
            "noise": self.noise.get_state(),
            "layers": torch.get_rng_state(),
            "device_layers": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
            "batch": self.batch,
            "seconds": self.seconds,
            "losses": self.losses,
            "logged": self.logged,
        }


def _write(path: Path, *body: bytes | memoryview) -> None:
    digest = hashlib.sha256()
    for piece in body:
        digest.update(piece)
    files.write_bytes(path, _MAGIC + digest.hexdigest().encode() + b"\n", *body)


def _read(path: Path) -> tuple[tuple[int, int], bytes]:
    """How far the state is, and the rest of it. Raises Damaged, or OSError where the disk does not give it out."""
    head, _, body = path.read_bytes().partition(b"\n")
    if not head.startswith(_MAGIC):
        raise Damaged("it does not begin as a state does")
    if hashlib.sha256(body).hexdigest().encode() != head.removeprefix(_MAGIC):
        raise Damaged("its content has another SHA-256 than it states")
    done, _, content = body.partition(b"\n")
    epoch, batch = map(int, done.split())
    return (epoch, batch), content
