"""Training steps as the published codes write them: float32, layer by layer, PyTorch and nothing else.

What adbench is measured against. The inner ascent takes gradients with `autograd.grad` in all of them, also where a
published code calls `backward` and so differentiates in the weights too: the faster habit is the fairer rival.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS, ETA, STEPS, GAMMA = 8 / 255, 2 / 255, 10, 1000.0


@dataclass
class Nets:
    """The networks of a step; the teachers frozen and in evaluation mode."""

    student: Any
    teacher: Any
    natural: Any
    policy: Any


def ascent(nets: Nets, x: Tensor, z: Tensor, objective: Callable[[Tensor], Tensor]) -> Tensor:
    """PGD on the student in evaluation mode from z, by the sum of an objective."""
    nets.student.eval()
    for _ in range(STEPS):
        z = z.detach().requires_grad_()
        (grad,) = torch.autograd.grad(objective(z), z)
        z = torch.min(torch.max(z + ETA * grad.sign(), x - EPS), x + EPS).clamp(0, 1)
    nets.student.train()
    return z.detach()


def near(x: Tensor) -> Tensor:
    return x + 0.001 * torch.randn_like(x)


def within(x: Tensor) -> Tensor:
    return (x + torch.empty_like(x).uniform_(-EPS, EPS)).clamp(0, 1)


def kl(student: Tensor, teacher: Tensor, tau: float = 1.0) -> Tensor:
    return F.kl_div(F.log_softmax(student / tau, 1), F.softmax(teacher / tau, 1), reduction="sum")


def pgd_at(nets: Nets, x: Tensor, y: Tensor) -> Tensor:
    x_adv = ascent(nets, x, within(x), lambda z: F.cross_entropy(nets.student(z), y))
    return F.cross_entropy(nets.student(x_adv), y)


def trades(nets: Nets, x: Tensor, y: Tensor) -> Tensor:
    x_adv = ascent(nets, x, near(x), lambda z: kl(nets.student(z), nets.student(x)))
    clean = nets.student(x)
    return F.cross_entropy(clean, y) + 6 / len(x) * kl(nets.student(x_adv), nets.student(x))


def las_at(nets: Nets, x: Tensor, y: Tensor) -> Tensor:
    """Without the update of the policy, which comes every twentieth time."""
    with torch.no_grad():
        heads = nets.policy(x)
    chosen = [torch.multinomial(head.softmax(1), 1).squeeze(1) for head in heads]
    radius, steps, eta = (chosen[0] + 3) / 255, chosen[1] + 3, (chosen[2] + 1) / 255
    radius, eta = radius[:, None, None, None], eta[:, None, None, None]
    nets.student.eval()
    z = within(x)
    for done in range(int(steps.max())):
        z = z.detach().requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(nets.student(z), y), z)
        moved = torch.min(torch.max(z + eta * grad.sign(), x - radius), x + radius).clamp(0, 1)
        z = torch.where((steps > done)[:, None, None, None], moved, z)
    nets.student.train()
    return F.cross_entropy(nets.student(z.detach()), y, label_smoothing=0.3)


def ard(nets: Nets, x: Tensor, y: Tensor) -> Tensor:
    x_adv = ascent(nets, x, within(x), lambda z: F.cross_entropy(nets.student(z), y))
    with torch.no_grad():
        target = nets.teacher(x)
    loss = 900 * kl(nets.student(x_adv), target, 30.0) / target.numel()
    nets.student(x)  # the clean term has weight zero and moves the batch-norm statistics
    return loss


def iad(nets: Nets, x: Tensor, y: Tensor) -> Tensor:
    x_adv = ascent(nets, x, within(x), lambda z: F.cross_entropy(nets.student(z), y))
    with torch.no_grad():
        target, reached = nets.teacher(x), nets.teacher(x_adv)
    trust = reached.softmax(1).gather(1, y[:, None]).squeeze(1) ** 0.1
    adversarial, clean = nets.student(x_adv), nets.student(x)
    itself = F.kl_div(F.log_softmax(adversarial, 1), F.softmax(clean, 1), reduction="none").sum(1)
    return kl(adversarial, target) / len(x) + ((1 - trust) * itself).mean()


def rslad(nets: Nets, x: Tensor, _: Tensor) -> Tensor:
    with torch.no_grad():
        target = nets.teacher(x)
    x_adv = ascent(nets, x, near(x), lambda z: kl(nets.student(z), target))
    return (5 * kl(nets.student(x_adv), target) + kl(nets.student(x), target)) / 6 / target.numel()


def mtard(nets: Nets, x: Tensor, y: Tensor) -> Tensor:
    x_adv = ascent(nets, x, near(x), lambda z: F.cross_entropy(nets.student(z), y))
    with torch.no_grad():
        robust, natural = nets.teacher(x_adv), nets.natural(x)
    robust_loss = kl(nets.student(x_adv), robust) / robust.numel()
    natural_loss = kl(nets.student(x), natural) / natural.numel()
    ratio = robust_loss.item() / natural_loss.item()
    return (robust_loss + ratio * natural_loss) / (1 + ratio)


def adaad(nets: Nets, x: Tensor, _: Tensor) -> Tensor:
    x_adv = ascent(nets, x, near(x), lambda z: kl(nets.student(z), nets.teacher(z)))
    with torch.no_grad():
        target = nets.teacher(x_adv)
    loss = kl(nets.student(x_adv), target) / target.numel()
    nets.student(x)
    return loss


def ranks(logits: Tensor) -> Tensor:
    p = logits.softmax(1)
    return torch.sigmoid(GAMMA * (p[:, None, :] - p[:, :, None])).sum(2)


def rho(one: Tensor, other: Tensor) -> Tensor:
    n = one.shape[1]
    return 1 - 6 * (ranks(one) - ranks(other)).square().sum(1) / (n * (n * n - 1))


def region(net: Any, maps: Tensor, y: Tensor, size: int) -> Tensor:
    cam = (maps * net.classifier.weight[y][:, :, None, None]).sum(1)
    cam = F.interpolate(cam[:, None], size=(size, size), mode="bilinear")[:, 0]
    low, high = cam.amin((1, 2), keepdim=True), cam.amax((1, 2), keepdim=True)
    return (cam - low) / (high - low + 1e-7)


def apart(nets: Nets, student: Tensor, teacher: Tensor, y: Tensor) -> Tensor:
    size = max(student.shape[2], teacher.shape[2])
    difference = region(nets.student, student, y, size) - region(nets.teacher, teacher, y, size)
    return difference.square().mean((1, 2))


def guided(nets: Nets, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """SmaraAD's examples, Eq. 9 at them, and both networks' logits there."""

    def difference(z: Tensor) -> Tensor:
        student, here = nets.student.forward_features(z)
        teacher, there = nets.teacher.forward_features(z)
        return kl(student, teacher) + apart(nets, here, there, y).sum()

    x_adv = ascent(nets, x, near(x), difference)
    with torch.no_grad():
        teacher, there = nets.teacher.forward_features(x_adv)
    student, here = nets.student.forward_features(x_adv)
    return x_adv, 2 - rho(teacher, student) + apart(nets, here, there, y), student, teacher


def smaraad(nets: Nets, x: Tensor, y: Tensor) -> Tensor:
    _, loss, _, _ = guided(nets, x, y)
    nets.student(x)
    return loss.mean()


def smaraad_pp(nets: Nets, x: Tensor, y: Tensor) -> Tensor:
    _, loss, student, teacher = guided(nets, x, y)
    clean = nets.student(x)
    p = teacher.softmax(1)
    trust = p.gather(1, y[:, None]).squeeze(1) ** 0.1
    certainty = 1 + (p * F.log_softmax(teacher, 1)).sum(1) / math.log(p.shape[1])
    alone = F.cross_entropy(clean, y, reduction="none") - rho(clean, student)
    return (trust * certainty * loss + (1 - trust) * alone).mean()


class Policy(nn.Module):
    """LAS-AT's strategy network around a body of the student's kind."""

    def __init__(self, body: Any) -> None:
        super().__init__()
        self.body = body
        self.heads = nn.ModuleList(nn.Linear(body.classifier.in_features, n) for n in (13, 12, 5))

    def forward(self, x: Tensor) -> list[Tensor]:
        pooled = self.body.forward_features(x)[1].mean((2, 3))
        return [head(pooled) for head in self.heads]


METHODS: dict[str, Callable[[Nets, Tensor, Tensor], Tensor]] = {
    "pgd-at": pgd_at,
    "trades": trades,
    "las-at": las_at,
    "ard": ard,
    "iad": iad,
    "rslad": rslad,
    "mtard": mtard,
    "adaad": adaad,
    "smaraad": smaraad,
    "smaraad-pp": smaraad_pp,
}


def step(name: str, nets: Nets, optimiser: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Tensor:
    """One training step of a method, from uint8 images to updated weights; returns the loss."""
    images = F.pad(x.float() / 255, (4, 4, 4, 4))
    crops = []
    for image in images:  # one by one, as a data loader's transforms do
        top, left = (int(v) for v in torch.randint(9, (2,)))
        crop = image[:, top : top + 32, left : left + 32]
        crops.append(crop.flip(2) if torch.rand(()) < 0.5 else crop)
    loss = METHODS[name](nets, torch.stack(crops), y)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    return loss.detach()
