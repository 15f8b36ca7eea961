"""Losses against independent implementations: scipy, numpy, finite differences, closed forms."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F

from adbench import losses
from adbench.losses import CamNorm, Classes

KL_FACTORS = {Classes.SUM: 1, Classes.MEAN: 1 / 7, Classes.MEAN_X10: 10 / 7}


@pytest.fixture
def logits() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(2 * torch.randn(5, 7, generator=generator, dtype=torch.float64) for _ in range(2))  # type: ignore[return-value]


@pytest.mark.parametrize("tau", [0.5, 1.0, 30.0])
@pytest.mark.parametrize("classes", list(Classes))
def test_kl_is_scipys_relative_entropy_of_teacher_and_student(logits, tau: float, classes: Classes) -> None:
    s, t = logits
    p_t, p_s = (scipy.special.softmax(z.numpy() / tau, axis=1) for z in (t, s))
    expected = scipy.stats.entropy(p_t, p_s, axis=1) * KL_FACTORS[classes]
    np.testing.assert_allclose(losses.kl(s, t, classes, tau).numpy(), expected, rtol=1e-10)


def test_the_floor_of_kl_moves_its_value_and_not_the_students_gradient(logits) -> None:
    s, t = logits
    s = s.clone().requires_grad_()
    plain, floored = losses.kl(s, t), losses.kl(s, t, floor=1e-5)
    assert (plain - floored).abs().min() > 1e-6
    gradients = [torch.autograd.grad(v.sum(), s, retain_graph=True)[0] for v in (plain, floored)]
    torch.testing.assert_close(*gradients)


def test_kl_of_saturated_logits_is_finite_in_value_and_gradient() -> None:
    s = torch.tensor([[200.0, -200.0, 0.0]], requires_grad=True)
    value = losses.kl(s, -s.detach())
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert torch.isfinite(s.grad).all()


def test_smoothed_cross_entropy_puts_the_stated_mass_on_the_label(logits) -> None:
    z, y = logits[0], torch.tensor([0, 3, 6, 1, 2])
    target = torch.full((5, 7), 0.3 / 6, dtype=torch.float64)
    target[range(5), y] = 0.7
    expected = -(target * F.log_softmax(z, 1)).sum(1)
    torch.testing.assert_close(losses.cross_entropy(z, y, 0.7), expected)
    torch.testing.assert_close(losses.cross_entropy(z, y), F.cross_entropy(z, y, reduction="none"))


def test_the_margin_is_positive_exactly_where_the_prediction_is_wrong(logits) -> None:
    z, y = logits[0], torch.tensor([0, 3, 6, 1, 2])
    assert torch.equal(losses.margin(z, y) > 0, z.argmax(1) != y)


@pytest.mark.parametrize("n", [3, 10, 100])
def test_hard_ranks_and_their_correlation_are_scipys(n: int) -> None:
    u, v = np.random.default_rng(n).normal(size=(2, 4, n))
    u[:, 0] = u[:, 1] if n > 3 else u[:, 0]  # ties share their mean rank
    ranks = losses.hard_rank(torch.from_numpy(u))
    np.testing.assert_allclose(ranks.numpy() + 0.5, scipy.stats.rankdata(-u, axis=1))
    if n == 3:
        rho = losses.spearman(ranks, losses.hard_rank(torch.from_numpy(v)))
        expected = [scipy.stats.spearmanr(a, b).statistic for a, b in zip(u, v, strict=True)]
        np.testing.assert_allclose(rho.numpy(), expected, atol=1e-12)


def test_soft_ranks_become_hard_ranks_as_gamma_grows(logits) -> None:
    torch.testing.assert_close(losses.soft_rank(logits[0], 1e6), losses.hard_rank(logits[0]), rtol=0, atol=1e-9)


def test_soft_ranks_of_gamma_1000_have_finite_float32_gradients_equal_to_float64s() -> None:
    z = torch.tensor([[3.0, 3.0, 3.0, 3.0], [90.0, 0.0, 1.0, 1.001]])
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for dtype in (torch.float32, torch.float64):
            u = z.to(dtype).requires_grad_()
            ranks = losses.soft_rank(u.softmax(1), 1000.0)
            (gradient,) = torch.autograd.grad((ranks * torch.arange(4.0).to(dtype)).sum(), u)
            found.append(gradient.double())
    assert torch.isfinite(found[0]).all()
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


def test_soft_ranks_of_half_precision_are_computed_in_float32() -> None:
    u = torch.tensor([[0.900, 0.902, 0.1]], dtype=torch.bfloat16)
    assert losses.soft_rank(u, 1000.0).dtype == torch.float32


def test_the_entropy_weight_is_one_when_certain_and_zero_when_uniform() -> None:
    weights = losses.entropy_weight(torch.tensor([[1000.0, 0, 0, 0], [1.0, 1, 1, 1]]))
    torch.testing.assert_close(weights, torch.tensor([1.0, 0.0]))
    z = torch.tensor([[math.log(3), 0.0]], dtype=torch.float64)  # p = 3/4, 1/4
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(2)
    torch.testing.assert_close(losses.entropy_weight(z).item(), 1 - entropy)


def test_an_activation_map_averages_to_the_logit_without_its_bias() -> None:
    generator = torch.Generator().manual_seed(1)
    features = torch.rand(3, 6, 4, 5, generator=generator)
    head = torch.nn.Linear(6, 9)
    classes = torch.tensor([0, 8, 4])
    maps = losses.cam(features, head.weight, classes)
    logits = head(features.mean((2, 3)))
    expected = logits.gather(1, classes[:, None])[:, 0] - head.bias[classes]
    torch.testing.assert_close(maps.mean((1, 2)), expected)


def test_normalised_maps_have_the_stated_range_norm_and_size() -> None:
    maps = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(2))
    scaled = losses.normalise_map(maps, (8, 8), CamNorm.MINMAX)
    assert scaled.shape == (3, 8, 8)
    torch.testing.assert_close(scaled.amin((1, 2)), torch.zeros(3))
    torch.testing.assert_close(scaled.amax((1, 2)), torch.ones(3), rtol=0, atol=1e-5)
    unit = losses.normalise_map(maps, (4, 4), CamNorm.L2)
    torch.testing.assert_close(unit.flatten(1).norm(dim=1), torch.ones(3))
    assert torch.equal(losses.normalise_map(maps, (4, 4), CamNorm.NONE), maps)
    assert (losses.normalise_map(maps, (4, 4), CamNorm.NONE, relu=True) >= 0).all()


@pytest.mark.parametrize("norm", list(CamNorm))
def test_a_map_without_any_attribution_has_a_finite_gradient(norm: CamNorm) -> None:
    maps = torch.zeros(2, 4, 4, requires_grad=True)
    losses.alignment(losses.normalise_map(maps, (4, 4), norm), torch.ones(2, 4, 4)).sum().backward()
    assert torch.isfinite(maps.grad).all()
