"""The named attacks of the evaluation, each with the exact definition that goes into the record."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adbench import __version__
from adbench.attacks.linf import Start, ascend, attacking, usable
from adbench.data.threat import as_text, parse_fraction
from adbench.errors import UserError, printable
from adbench.experiment import attack_names
from adbench.losses import cross_entropy, margin

NAMES = ("fgsm", "mi-fgsm", "pgd20", "cw", "aa")


@dataclass(frozen=True)
class GradientAttack:
    """Projected sign ascent from one or several starts: FGSM, PGD, MI-FGSM and C&W-infinity differ in these fields."""

    name: str
    loss: str
    steps: int
    eps: Fraction
    step: Fraction
    start: Start
    restarts: int = 1
    decay: float = 0.0

    def definition(self, seed: int) -> dict[str, Any]:
        """What was run, for the record; eps and step as fractions of the image range."""
        return {
            "name": self.name,
            "implementation": f"adbench {__version__}",
            "loss": self.loss,
            "eps": as_text(self.eps),
            "step": as_text(self.step),
            "steps": self.steps,
            "start": self.start.value,
            "restarts": self.restarts,
            **({"decay": self.decay} if self.decay else {}),
            "seed": seed,
        }

    def __call__(
        self,
        network: nn.Module,
        x: Tensor,
        y: Tensor,
        index: Tensor,
        seed: int,
        restart: int = 0,
        nowhere: Tensor | None = None,
    ) -> Tensor:
        """x' (B, C, H, W) of one restart against `network` in evaluation mode, for images x in [0, 1], labels y (B,).

        index: (B,) places in the test set. An image's start depends on (seed, attack, index, restart) alone, so
        its verdict does not depend on the batch that it is in. Attacks that differ in their restarts alone begin
        with the same starts, those that differ in their radius with the same starts on its scale. nowhere: (B,)
        booleans, set where a gradient was NaN and so was not followed.
        """
        objective: Callable[[Tensor, Tensor], Tensor] = margin if self.loss == "margin" else cross_entropy
        start: Start | Tensor = self.start
        if self.start is not Start.CLEAN:
            stream = re.split("[x@]", self.name)[0]
            draw = noise(x, index, seed, stream, restart, self.start is Start.GAUSS)
            start = x + 0.001 * draw if self.start is Start.GAUSS else (x + float(self.eps) * draw).clamp(0, 1)
        unfollowed = torch.zeros_like(y, dtype=torch.bool) if nowhere is None else nowhere
        with attacking(network):
            return ascend(
                x,
                lambda z: objective(network(usable(z, unfollowed.logical_or_)), y),
                eps=float(self.eps),
                step=float(self.step),
                steps=self.steps,
                start=start,
                decay=self.decay,
            )


def noise(x: Tensor, index: Tensor, seed: int, name: str, restart: int = 0, gauss: bool = False) -> Tensor:
    """U(-1, 1), or N(0, 1), shaped like images x; row i is a function of (seed, name, restart, index[i])."""
    if not len(index):
        return torch.zeros_like(x)
    stream = int.from_bytes(name.encode()[:8].ljust(8, b"\0"), "big") ^ seed

    def row(place: int) -> np.ndarray[Any, np.dtype[np.float64]]:
        draw = np.random.Generator(np.random.Philox(key=[stream, place + (restart << 40)]))
        shape = tuple(x.shape[1:])
        return draw.normal(size=shape) if gauss else draw.uniform(-1, 1, shape)

    return torch.from_numpy(np.stack([row(place) for place in index.tolist()])).to(x)


def gradient_attack(name: str, eps: Fraction, step: Fraction, start: Start = Start.UNIFORM) -> GradientAttack:
    """The attack called `name` at a threat model's eps; step and start are those of PGD and C&W.

    fgsm: one step of size eps from the image (Goodfellow et al., ICLR 2015). pgdK: K steps on the
    cross-entropy (Madry et al., ICLR 2018). cw or cwK: 20 or K such steps on the margin max_{j != y} z_j - z_y
    (the field's C&W-infinity). pgdKxR and cwKxR: the worst of R restarts. mi-fgsm: 10 steps of eps / 10 from the
    image with momentum 1 (Dong et al., CVPR 2018). NAME@R: the attack NAME within R ("pgd20@4/255") in place of
    eps, its step in proportion. Raises UserError for another name, and for restarts from a start that is always
    the same.
    """
    if "@" in name:
        within = radius(name, eps)
        alone = name.partition("@")[0]
        if alone == "aa" or alone.startswith("aa-"):
            raise UserError(f"attack '{printable(name)}': AutoAttack's radius is the threat model's; set threat.eps")
        one = gradient_attack(alone, within, step * within / eps if eps else step, start)
        return replace(one, name=name)
    if name == "fgsm":
        return GradientAttack(name, "cross-entropy", 1, eps, eps, Start.CLEAN)
    if name == "mi-fgsm":
        return GradientAttack(name, "cross-entropy", 10, eps, eps / 10, Start.CLEAN, decay=1.0)
    if match := attack_names.ITERATED.fullmatch(name):
        kind, steps, restarts = match.groups()
        if kind == "cw" or steps:
            if int(restarts or 1) > 1 and start is Start.CLEAN:
                raise UserError(f"attack '{name}': restarts from the image itself are all the same; set eval.start")
            loss = "margin" if kind == "cw" else "cross-entropy"
            return GradientAttack(name, loss, int(steps or 20), eps, step, start, int(restarts or 1))
    raise attack_names.nobody_has(name)


def radius(name: str, eps: Fraction) -> Fraction:
    """How far the attack `name`, or its metric "transfer:<proxy>:<name>", may go: what it names, else the threat's eps.

    Raises UserError for what is no radius in (0, 1] as records write it.
    """
    _, at, text = name.rpartition(":")[2].partition("@")
    if not at:
        return eps
    try:
        size = parse_fraction(text)
    except UserError as error:
        raise UserError(f"attack '{printable(name)}': {error}") from error
    if not size or as_text(size) != text:
        raise UserError(
            f"attack '{printable(name)}': write the radius behind the @ as records do, as '4/255' or '0.05'"
        )
    return size
