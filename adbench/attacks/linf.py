"""Projected sign gradient ascent in the L-infinity ball: the one kernel of training and evaluation.

PGD (Madry et al., ICLR 2018), FGSM (Goodfellow et al., ICLR 2015), MI-FGSM (Dong et al., CVPR 2018), C&W-infinity and
the inner maximisation of every method of adversarial distillation are this loop with another objective, start, step
count or momentum.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Any, Self

import torch
from torch import Tensor, nn

from adbench.errors import UserError

Objective = Callable[[Tensor], Tensor]


class Start(StrEnum):
    """Where the ascent begins."""

    CLEAN = "clean"  # x itself
    UNIFORM = "uniform"  # x + U(-eps, eps), clamped to [0, 1] (Madry, RSLAD's evaluation, LAS-AT)
    UNIFORM_UNCLAMPED = "uniform-unclamped"  # the same, first gradient taken outside [0, 1] (ARD, IAD)
    GAUSS = "gauss"  # x + 0.001 N(0, 1), not clamped before the first step (TRADES, RSLAD, MTARD, AdaAD)


class Recorded(torch.Generator):
    """A generator that hands out given draws, of each kind in turn and again from the first: for replays.

    draws: by kind, tensors with a row for each image of the largest batch: "gauss", N(0, 1); "unit", U(-1, 1);
    "choice", indices, or U(0, 1) that choose them.
    """

    def __new__(cls, draws: dict[str, list[Tensor]]) -> Self:
        recorded = super().__new__(cls)
        recorded.draws = {kind: itertools.cycle(tensors) for kind, tensors in draws.items()}
        return recorded

    draws: dict[str, Iterator[Tensor]]

    def next(self, kind: str, size: int) -> Tensor:
        """The next draw for `size` images. Raises UserError where there is none of the kind."""
        if kind not in self.draws:
            raise UserError(f"there is no recorded noise of the kind '{kind}', which the method draws")
        return next(self.draws[kind])[:size]


def start_point(x: Tensor, start: Start, eps: float | Tensor, generator: torch.Generator | None) -> Tensor:
    """The first iterate for images x (B, C, H, W); the noise is drawn where `generator` lives."""
    if start is Start.CLEAN:
        return x
    if start is Start.GAUSS:
        return x + 0.001 * gauss_noise(x, generator)
    x_start = x + per_example(eps, x) * unit_noise(x, generator)
    return x_start.clamp(0, 1) if start is Start.UNIFORM else x_start


def gauss_noise(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """N(0, 1), shaped like x."""
    if isinstance(generator, Recorded):
        return generator.next("gauss", len(x))
    device = x.device if generator is None else generator.device
    return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=device).to(x.device)


def unit_noise(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """U(-1, 1), shaped like x."""
    if isinstance(generator, Recorded):
        return generator.next("unit", len(x))
    device = x.device if generator is None else generator.device
    return (2 * torch.rand(x.shape, generator=generator, dtype=x.dtype, device=device) - 1).to(x.device)


def choice(p: Tensor, generator: torch.Generator | None) -> Tensor:
    """One index of each row of probabilities p (B, n), drawn by them: (B,)."""
    if isinstance(generator, Recorded):
        drawn = generator.next("choice", len(p))
        return (p.cumsum(1)[:, :-1] < drawn[:, None]).sum(1) if drawn.is_floating_point() else drawn
    return torch.multinomial(p, 1, generator=generator).squeeze(1)


def per_example(value: float | Tensor, x: Tensor) -> float | Tensor:
    """A (B,) tensor shaped to broadcast over images x; a number as it is."""
    return value.to(x)[:, None, None, None] if isinstance(value, Tensor) else value


def ascend(
    x: Tensor,
    objective: Objective,
    *,
    eps: float | Tensor,
    step: float | Tensor,
    steps: int | Tensor,
    start: Start | Tensor = Start.CLEAN,
    generator: torch.Generator | None = None,
    decay: float = 0.0,
) -> Tensor:
    """Maximise `objective` over the ball of radius `eps` around x, inside [0, 1], by signed gradient steps.

    x: images (B, C, H, W) in [0, 1]. objective: maps a candidate to one value an example, (B,), or to their sum;
    it is summed, so no example's step depends on the batch size. eps, step: numbers or (B,) tensors in image
    units; steps: a number, or (B,) integers after which an example stops moving. start: a kind, or the first
    iterate itself. decay: of the sum of past gradients, each divided by its mean absolute value, whose sign is
    followed (MI-FGSM's mu); 0 follows the gradient alone. Returns x' (B, C, H, W), detached, in the ball and in [0, 1].

    Gradients are taken with respect to the input alone, so parameter gradients stay as they were.
    Raises ValueError for images outside [0, 1] instead of clipping them silently.
    """
    if x.numel() and (x.amin() < 0 or x.amax() > 1):
        raise ValueError("ascend needs images in [0, 1]; normalisation belongs inside the network")
    x_start = start if isinstance(start, Tensor) else start_point(x, start, eps, generator)
    return climb(x, objective, x_start, eps=eps, step=step, steps=steps, decay=decay)


def climb(
    x: Tensor,
    objective: Objective,
    x_start: Tensor,
    *,
    eps: float | Tensor,
    step: float | Tensor,
    steps: int | Tensor,
    decay: float = 0.0,
) -> Tensor:
    """`ascend` from the first iterate `x_start`, without the check of images that makes a GPU wait."""
    x = x.detach()
    eps, step_size = per_example(eps, x), per_example(step, x)
    low, high = x - eps, x + eps
    x_adv = x_start.detach()
    momentum = torch.zeros_like(x)
    for done in range(int(steps.max()) if isinstance(steps, Tensor) else steps):
        x_adv.requires_grad_(True)
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(objective(x_adv).sum(), x_adv)
        if decay:
            momentum = decay * momentum + gradient / gradient.abs().mean(dim=(1, 2, 3), keepdim=True).clamp_min(1e-30)
            gradient = momentum
        x_next = (x_adv.detach() + step_size * gradient.sign()).clamp(low, high).clamp(0, 1)
        if isinstance(steps, Tensor):
            x_next = torch.where((steps > done)[:, None, None, None], x_next, x_adv.detach())
        x_adv = x_next
    # Two ways out of the ball are left: the rounding of x - eps and x + eps, and a start that never moved.
    return x_adv.detach().clamp(low, high).clamp(0, 1)


NOT_FOLLOWED = "a gradient that is no number, which the attack does not follow"
"""What a flag says of images on which `usable` changed something."""


def usable(x: Tensor, on_nan: Callable[[Tensor], object]) -> Tensor:
    """Images x (B, C, H, W), whose gradient is 0 where it would be NaN: an attack stays in place, and x' in the ball.

    on_nan: called in each backward pass with (B,) booleans, where that happens.
    """

    def followed(gradient: Tensor) -> Tensor:
        on_nan(gradient.isnan().flatten(1).any(1))
        return gradient.nan_to_num(nan=0.0)

    if x.requires_grad:
        x.register_hook(followed)  # type: ignore[no-untyped-call]
    return x


@contextmanager
def attacking(network: nn.Module, *, training: bool = False, moving: bool = True) -> Iterator[None]:
    """Context in which a network is under attack: evaluation mode (or training mode) and frozen parameters.

    moving: whether running statistics move in training mode; if not, batch-norm uses the batch's and leaves its own.
    Modes and `requires_grad` of every parameter are as before on leaving, also after an error.
    """
    fixed = training and not moving
    running: list[Any] = [m for m in network.modules() if fixed and getattr(m, "track_running_stats", False)]
    modes = {module: module.training for module in network.modules()}
    flags = {parameter: parameter.requires_grad for parameter in network.parameters()}
    try:
        network.train(training)
        network.requires_grad_(False)
        for module in running:
            module.track_running_stats = False
        yield
    finally:
        for module in running:
            module.track_running_stats = True
        for module, mode in modes.items():
            module.training = mode
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
