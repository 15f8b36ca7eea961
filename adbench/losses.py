"""The mathematics of adversarial distillation: pure functions of tensors, one value per example.

Shapes: B examples, C classes, feature maps (B, K, H, W). Every loss returns (B,) and is differentiable in its
tensor arguments; the mean over the batch is the caller's. "KL(S, T)" is the field's KL(teacher || student).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from enum import StrEnum
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

RANKED_AT_ONCE = 100 * 100


class Classes(StrEnum):
    """How a KL divergence is reduced over classes; published codes differ by these factors."""

    SUM = "sum"  # the KL divergence itself; averaged over the batch this is PyTorch's `batchmean`
    MEAN = "mean"  # divided by C, as `nn.KLDivLoss()` and `torch.mean` give
    MEAN_X10 = "mean_x10"  # ten times MEAN: keeps 100 classes at the scale of 10 (RSLAD, MTARD on CIFAR-100)


Reduction = Classes | Literal["auto"]


def reduction_for(choice: Reduction, logits: Tensor, many: Classes) -> Classes:
    """The authors' reduction over classes where `choice` is "auto": their mean with up to 10 classes, else `many`."""
    if choice != "auto":
        return choice
    return Classes.MEAN if logits.shape[1] <= 10 else many


def cross_entropy(logits: Tensor, y: Tensor, true_mass: float = 1.0) -> Tensor:
    """Cross-entropy of logits (B, C) with labels y (B,), or with probabilities of classes y (B, C): (B,).

    `true_mass` below 1 smooths the label: that much on y, the rest spread evenly over the other classes.
    """
    if true_mass == 1.0:
        return F.cross_entropy(logits, y, reduction="none")
    log_p = F.log_softmax(logits, dim=1)
    own = log_p.gather(1, y[:, None]).squeeze(1) if y.ndim == 1 else (y * log_p).sum(dim=1)
    others = (log_p.sum(dim=1) - own) / (logits.shape[1] - 1)
    return -(true_mass * own + (1 - true_mass) * others)


def wide(values: Tensor | float, device: torch.device) -> Tensor:
    """Numbers on `device` in float64, or in float32 where it has nothing wider (Apple's GPUs)."""
    return torch.as_tensor(values, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)


def kl(
    student: Tensor, teacher: Tensor, classes: Classes = Classes.SUM, tau: float = 1.0, floor: float = 0.0
) -> Tensor:
    """KL(softmax(teacher / tau) || softmax(student / tau)) of logits (B, C): (B,).

    Gradient flows into both arguments; detach what must not learn. There is no factor tau^2. floor: added to the
    teacher's probability inside its logarithm, as RSLAD's and MTARD's code does; it moves the value, not the
    gradient in the student.
    """
    log_s = F.log_softmax(student / tau, dim=1)
    log_t = F.log_softmax(teacher / tau, dim=1)
    p_t = log_t.exp()
    entropy_term = (p_t + floor).log() if floor else log_t
    total = (p_t * (entropy_term - log_s)).sum(dim=1)
    if classes is Classes.SUM:
        return total
    return total * ((10 if classes is Classes.MEAN_X10 else 1) / student.shape[1])


def soft_cross_entropy(student: Tensor, teacher: Tensor, tau: float = 1.0) -> Tensor:
    """-sum_c softmax(teacher / tau)[c] log softmax(student / tau)[c] of logits (B, C): (B,).

    `kl` plus the teacher's entropy: the same gradient in the student, another value. There is no factor tau^2.
    """
    return -(F.softmax(teacher / tau, dim=1) * F.log_softmax(student / tau, dim=1)).sum(dim=1)


def true_class_first(logits: Tensor, y: Tensor) -> Tensor:
    """Logits (B, C) in which those of y (B,) and of the largest class are exchanged, where that is not y (DGAD).

    Each row keeps its values; no class has a larger one than y. A tie is left as it is.
    """
    largest = logits.argmax(dim=1, keepdim=True)
    own, most = logits.gather(1, y[:, None]), logits.gather(1, largest)
    exchanged = logits.scatter(1, largest, own).scatter(1, y[:, None], most)
    return torch.where(own < most, exchanged, logits)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """C&W's margin max_{j != y} z_j - z_y (Carlini & Wagner, S&P 2017) of logits (B, C): (B,).

    Positive exactly where the prediction is wrong.
    """
    others = logits.scatter(1, y[:, None], -math.inf)
    return others.amax(dim=1) - logits.gather(1, y[:, None]).squeeze(1)


def true_class_probability(logits: Tensor, y: Tensor) -> Tensor:
    """softmax(logits)[y], (B,), in [0, 1]."""
    return F.softmax(logits, dim=1).gather(1, y[:, None]).squeeze(1)


def entropy(logits: Tensor) -> Tensor:
    """Entropy of softmax(logits) in nats, of logits (B, C): (B,)."""
    log_p = F.log_softmax(logits, dim=1)
    return -(log_p.exp() * log_p).sum(dim=1)


def entropy_weight(logits: Tensor) -> Tensor:
    """1 - H(p) / log C clamped to [0, 1], p = softmax(logits) (SmaraAD, Sec. 3.4): (B,). 1 is certain."""
    return (1 - entropy(logits) / math.log(logits.shape[1])).clamp(0, 1)


def renyi_entropy(logits: Tensor, order: float = 1.0) -> Tensor:
    """Renyi's entropy of softmax(logits) in nats; of order 1 Shannon's: (B,), with SAAD's 1e-12 in the logarithm."""
    p = F.softmax(logits, dim=1)
    if order == 1:
        return -(p * (p + 1e-12).log()).sum(dim=1)
    return (p.pow(order).sum(dim=1) + 1e-12).log() / (1 - order)


def soft_rank(u: Tensor, gamma: float) -> Tensor:
    """Differentiable descending ranks of each row (SmaraAD, Eq. 4).

    u: (B, n), any real values. Returns (B, n): about 0.5 for the largest entry, n - 0.5 for the smallest;
    ties share their mean rank. Exact as gamma -> infinity. Computed in float32 or better.

    The B n^2 pairs are held at once up to n = 100; beyond, no more than B RANKED_AT_ONCE of them.
    """
    u = u if u.dtype == torch.float64 else u.float()
    if u.shape[1] ** 2 <= RANKED_AT_ONCE:
        # r_i = sum_j sigmoid(gamma (u_j - u_i)); torch.sigmoid stays finite in value and gradient at gamma 1000.
        return torch.sigmoid(gamma * (u[:, None, :] - u[:, :, None])).sum(dim=2)
    ranks: Tensor = _RanksInParts.apply(u, gamma)
    return ranks


class _RanksInParts(torch.autograd.Function):
    """`soft_rank` for many classes: no more than B RANKED_AT_ONCE pairs at a time, forward and back."""

    @staticmethod
    def pairs(u: Tensor, gamma: float) -> Iterator[tuple[slice, Tensor]]:
        """sigmoid(gamma (u_j - u_i)), (B, part, n), for some i and all j."""
        n = u.shape[1]
        part = max(1, RANKED_AT_ONCE // n)
        for begin in range(0, n, part):
            some = slice(begin, min(begin + part, n))
            yield some, torch.sigmoid(gamma * (u[:, None, :] - u[:, some, None]))

    @staticmethod
    def forward(ctx: Any, u: Tensor, gamma: float) -> Tensor:
        ctx.save_for_backward(u)
        ctx.gamma = gamma
        return torch.cat([above.sum(dim=2) for _, above in _RanksInParts.pairs(u, gamma)], dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        # d r_i / d u_k = gamma s_ik - [i = k] gamma sum_j s_ij with s the sigmoid's slope, which is symmetric.
        (u,) = ctx.saved_tensors
        gradient = torch.zeros_like(u)
        for some, above in _RanksInParts.pairs(u, ctx.gamma):
            slope = above.mul_(1 - above)
            gradient[:, some] = ctx.gamma * (torch.einsum("bij,bj->bi", slope, grad) - slope.sum(dim=2) * grad[:, some])
        return gradient, None


def hard_rank(u: Tensor) -> Tensor:
    """The limit of `soft_rank` as gamma -> infinity: exact descending ranks, (B, n) to (B, n); no gradient."""
    ordered = u.sort(dim=1).values
    # Entries at most as large, and strictly smaller; those that are equal (itself too) count one half each.
    below_or_equal = torch.searchsorted(ordered, u.contiguous(), right=True)
    below = torch.searchsorted(ordered, u.contiguous())
    ranks = u.shape[1] - 0.5 * (below_or_equal + below)
    return ranks.to(torch.float64 if u.dtype == torch.float64 else torch.float32)


def spearman(ranks_u: Tensor, ranks_v: Tensor) -> Tensor:
    """Spearman's correlation of two rankings (SmaraAD, Eq. 2-3).

    ranks_u, ranks_v: (B, n), n >= 2, from `soft_rank` or `hard_rank`. Returns (B,): 1 for equal rankings, -1 for
    opposite ones (soft ranks of close entries give values between).
    """
    n = ranks_u.shape[1]
    return 1 - 6 * (ranks_u - ranks_v).square().sum(dim=1) / (n * (n * n - 1))


def cam(features: Tensor, weight: Tensor, classes: Tensor) -> Tensor:
    """Class activation maps (SmaraAD, Eq. 6): the features weighted by the classifier's row of one class each.

    features: (B, K, H, W), what is average-pooled; weight: (C, K); classes: (B,). Returns (B, H, W), whose
    spatial mean is the class's logit less its bias.
    """
    return torch.einsum("bkhw,bk->bhw", features, weight[classes])


class CamNorm(StrEnum):
    """What is done to an attribution map before two of them are compared."""

    MINMAX = "minmax"  # to [0, 1], gradient through minimum and maximum
    L2 = "l2"  # to unit Euclidean norm
    NONE = "none"  # Eq. 7 read literally; diverges under the paper's learning rate


def normalise_map(maps: Tensor, size: tuple[int, int], norm: CamNorm, relu: bool = False) -> Tensor:
    """G of SmaraAD's Eq. 7: attribution maps (B, H, W) resized bilinearly to `size` and normalised, per map."""
    if tuple(maps.shape[1:]) != size:
        maps = F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    if relu:
        maps = maps.relu()
    if norm is CamNorm.MINMAX:
        low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
        return (maps - low) / (high - low + 1e-7)
    if norm is CamNorm.L2:
        # The tiny term keeps the gradient of an all-zero map finite.
        length: Tensor = torch.linalg.vector_norm(maps, dim=(1, 2), keepdim=True)
        return maps / (length + 1e-7)
    return maps


def alignment(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Attribution region alignment (SmaraAD, Eq. 7): mean squared difference of two maps (B, H, W): (B,)."""
    return (student_map - teacher_map).square().mean(dim=(1, 2))
