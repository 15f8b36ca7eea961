"""What saturates, ties or grows: every loss stays finite, silent, and equal to its float64 self."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from adbench import losses
from adbench.losses import CamNorm, Classes
from adbench.training.configured import configured

SMARA: Any = configured("smaraad", {})
SOFTER: Any = configured("smaraad", {"gamma": 10.0})

OF_LOGITS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "cross-entropy": lambda s, _, y: losses.cross_entropy(s, y),
    "smoothed cross-entropy": lambda s, _, y: losses.cross_entropy(s, y, 0.7),
    "KL": lambda s, t, _: losses.kl(s, t),
    "KL at tau 30": lambda s, t, _: losses.kl(s, t, tau=30.0),
    "KL with floor, mean over classes": lambda s, t, _: losses.kl(s, t, Classes.MEAN, floor=1e-5),
    "KL, both sides learning": lambda s, *_: losses.kl(s, s.flip(1)),
    "margin": lambda s, _, y: losses.margin(s, y),
    "slack matching, gamma 1000": lambda s, t, _: SMARA.slack(s, t),
    "slack matching, gamma 10": lambda s, t, _: SOFTER.slack(s, t),
    "entropy weight": lambda s, *_: losses.entropy_weight(s),
    "true-class probability to the power 0.1": lambda s, t, y: losses.true_class_probability(t, y) ** 0.1 + 0 * s.sum(),
}


def logits(kind: str, images: int, classes: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(classes)
    s, t = (torch.randn(images, classes, generator=generator) for _ in range(2))
    if kind == "equal":
        return torch.zeros_like(s), torch.ones_like(t)
    if kind == "saturated":  # one class certain, and not the same for both
        return 1e4 * torch.eye(classes)[torch.arange(images) % classes], 1e4 * torch.eye(classes)[-1].expand_as(t)
    return s, t


@pytest.mark.parametrize(
    ("kind", "images", "classes"), [*product(("usual", "equal", "saturated"), (1, 7), (2, 10, 100))]
)
@pytest.mark.parametrize("name", OF_LOGITS)
def test_losses_of_logits_are_finite_silent_and_equal_to_float64s(
    name: str, kind: str, images: int, classes: int
) -> None:
    s, t = logits(kind, images, classes)
    y = torch.arange(images) % classes
    gradients = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for dtype in (torch.float32, torch.float64):
            z = s.to(dtype).requires_grad_()
            value = OF_LOGITS[name](z, t.to(dtype), y)
            assert value.shape == (images,)
            assert torch.isfinite(value).all()
            (gradient,) = torch.autograd.grad(value.sum(), z)
            assert torch.isfinite(gradient).all()
            gradients.append(gradient.double())
    single, double = gradients
    assert (single - double).abs().max() <= 1e-4 * max(1.0, double.abs().max().item())


@pytest.mark.parametrize("kind", ["usual", "constant", "zero"])
@pytest.mark.parametrize("norm", list(CamNorm))
def test_alignment_is_finite_silent_and_equal_to_float64s(norm: CamNorm, kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    maps, teacher = (torch.randn(3, 4, 4, generator=generator) for _ in range(2))
    maps = {"usual": maps, "constant": torch.full_like(maps, 0.3), "zero": torch.zeros_like(maps)}[kind]
    gradients = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for dtype in (torch.float32, torch.float64):
            m = maps.to(dtype).requires_grad_()
            aligned = losses.alignment(*(losses.normalise_map(n, (8, 8), norm) for n in (m, teacher.to(dtype))))
            (gradient,) = torch.autograd.grad(aligned.sum(), m)
            assert torch.isfinite(gradient).all()
            gradients.append(gradient.double())
    single, double = gradients
    assert (single - double).abs().max() <= 1e-4 * max(1.0, double.abs().max().item())


@pytest.mark.parametrize("n", [101, 1000])
def test_soft_ranks_in_parts_are_the_soft_ranks_with_their_gradient(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    u = torch.randn(3, n, generator=torch.Generator().manual_seed(n), dtype=torch.float64).softmax(1)
    weight = torch.linspace(-1, 1, n, dtype=torch.float64)
    found = []
    for at_once in (losses.RANKED_AT_ONCE, n * n):
        monkeypatch.setattr(losses, "RANKED_AT_ONCE", at_once)
        z = u.clone().requires_grad_()
        ranks = losses.soft_rank(z, 1000.0)
        found.append((ranks.detach(), torch.autograd.grad((ranks * weight).sum(), z)[0]))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-9, atol=1e-9)


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory can only be reset on Linux")
def test_slack_matching_of_a_thousand_classes_does_not_hold_all_pairs() -> None:
    held = 0

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal held
        held += tensor.numel() * tensor.element_size()
        return tensor

    s, t = torch.randn(128, 1000, requires_grad=True), torch.randn(128, 1000)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        SMARA.slack(s, t).sum().backward()
    pairs = 128 * 1000 * 1000 * 4
    assert 0 < held < pairs / 2
