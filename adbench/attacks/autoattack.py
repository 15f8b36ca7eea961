"""AutoAttack (Croce & Hein, ICML 2020) by its authors' own code, behind one adapter.

"exact" is the authors' package on the network as it is written, in float32. Where it is asked for, a fast search runs
in bfloat16; what counts is float32. An image is broken only if the x' that was found lies in the ball and in [0, 1] and
is misclassified by the network in float32; what one attack has not broken in float32, the next one goes on with.
Survivors near the boundary are named, to be searched again in float32 (`attack` says which).
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from importlib.metadata import version
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from adbench import FAST_SEARCH
from adbench.attacks import targets
from adbench.attacks.hyperplane import nearest_in_box
from adbench.attacks.linf import ascend, attacking
from adbench.data.threat import as_text
from adbench.engine import Engine, Lean
from adbench.errors import UserError
from adbench.losses import margin

VERSIONS = {"aa": "standard", "aa-plus": "plus", "aa-rand": "rand"}
"""Names of the attack, and what its authors call these versions."""

SEARCHES = {
    "exact": "authors' package, float32",
    "fast": f"fast search {FAST_SEARCH}: bfloat16, decided in float32",
}
"""How AutoAttack may search (`eval.aa_search`), and what a record calls it."""

FAST = Engine("bfloat16", lean=True)
"""How a fast search runs the network; its agreement with the exact one was measured in this form. Where the device has
no arithmetic for bfloat16, torch emulates it."""

AGAIN = Engine("float32", lean=True)
"""How it runs the network where bfloat16 does not do."""

TOGETHER = 128
"""Pairs of an image and a target class that a fast search attacks at a time, at most, but for one target of each image;
as many as it has images, where that is more."""

# pyautoattack keeps counters and log handlers at module level: one evaluation at a time in a process.
LOCK = threading.Lock()

# A survivor of the fast search is searched again if a short float32 attack on the margin brings it this close to the
# boundary, in units of the gap between its first and third logit: by APGD in float32, towards the classes that it came
# close to, and from so many random starts where it came so close that one finds what breaks the image by chance.
CLOSE = 0.1
PROBE_STEPS = 20
CLOSEST = 0.02
STARTS = 5


def definition(name: str, eps: Fraction, classes: int, seed: int, search: str, shard: int) -> dict[str, Any]:
    """What `attack` runs, for the record.

    shard: images at a time. The package draws its random numbers a batch at a time, so it is part of the attack.
    """
    return {
        "name": name,
        "implementation": f"pyautoattack {version('pyautoattack')}",
        "version": VERSIONS[name],
        "eps": as_text(eps),
        "target_classes": min(9, classes - 1),
        "batch_size": shard,
        "seed": seed,
        "search": SEARCHES[search],
    }


def least_classes(name: str) -> int:
    """The number of classes from which on a version is defined: its losses need so many logits."""
    return 3 if name == "aa-rand" else 4


def too_few_classes(name: str, found: str) -> str:
    """What to say where there are fewer."""
    return (
        f"AutoAttack {VERSIONS[name]} needs at least {least_classes(name)} classes, {found}; "
        'set eval.attacks to others, as in eval.attacks = ["fgsm", "pgd20", "cw"]'
    )


class _Flags(logging.Handler):
    """Collects the warnings of one evaluation."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage().split(" See ")[0]
        if message not in self.messages:
            self.messages.append(message)


@contextmanager
def _captured() -> Iterator[_Flags]:
    logger = logging.getLogger("auto-attack")
    handler, propagated = _Flags(), logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield handler
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagated


class _AsWritten(nn.Module):
    """The network with contiguous input gradients, which AutoAttack takes views of."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x.contiguous())
        return logits.float()


def searching(network: nn.Module, search: str) -> nn.Module:
    """The network as a search sees it."""
    if search == "exact":
        return _AsWritten(network)
    return Lean(network, FAST if search == "fast" else AGAIN)


@dataclass(frozen=True)
class Found:
    """What one search of N images found.

    x_adv: (N, C, H, W), the x' that breaks an image where one was found, else the image. broken: (N,) booleans.
    doubtful: (N,) booleans, images that a fast search did not break and float32 should search again. flags: the
    warnings that the attack raised.
    """

    x_adv: Tensor
    broken: Tensor
    doubtful: Tensor
    flags: list[str]


def attack(
    network: nn.Module, x: Tensor, y: Tensor, eps: Fraction, *, seed: int, name: str = "aa", search: str = "exact"
) -> Found:
    """AutoAttack on one shard of images.

    x: images (N, C, H, W) in [0, 1] that the network classifies correctly; y: labels (N,); search: "exact" (the
    authors' package), "fast", or "again": its APGD attacks alone, in float32, for what a fast search left doubtful.
    These are the survivors that a float32 attack of PROBE_STEPS steps on the margin breaks, or brings within CLOSE of
    the boundary; those within CLOSEST start STARTS times. APGD is targeted there at as many classes, from the likeliest
    at x on, as include the one that each image came closest to, and one more. Images that bfloat16 misclassifies as
    they are, which its attacks would pass over, a fast search leaves to float32. Raises UserError with fewer classes
    than the version is defined for.
    """
    none = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    if len(x) == 0:
        return Found(x, none, none, [])
    run = {"exact": _exactly, "fast": _fast, "again": _once_more}[search]
    with LOCK, attacking(network), _captured() as flags:
        found = run(network, x, y, eps, seed, name)
        broken, doubtful = falls(network, x, found, y, eps), none
        if search == "fast":
            left = (~broken).nonzero().squeeze(1)
            close, _ = probe(searching(network, "again"), x[left], y[left], eps)
            doubtful = none.index_put((left,), close <= CLOSE)
    return Found(torch.where(broken[:, None, None, None], found, x), broken, doubtful, list(flags.messages))


def _exactly(network: nn.Module, x: Tensor, y: Tensor, eps: Fraction, seed: int, name: str) -> Tensor:
    """The x' that is found in float32."""
    return _run(network, searching(network, "exact"), x, y, eps, seed, name)


def _fast(network: nn.Module, x: Tensor, y: Tensor, eps: Fraction, seed: int, name: str) -> Tensor:
    """The x' that is found in bfloat16, or in float32 where bfloat16 misclassifies the image as it is."""
    found = x.clone()
    with _projecting_without_sorting():
        for searched, part in _shared_out(network, x, y, "fast", "again"):
            found[part] = _run(network, searched, x[part], y[part], eps, seed, name, together=True)
    return found


def _once_more(network: nn.Module, x: Tensor, y: Tensor, eps: Fraction, seed: int, name: str) -> Tensor:
    """The x' that APGD finds: of each of the closest, for STARTS copies with other noise, the first that breaks it."""
    close, rank = probe(searching(network, "again"), x, y, eps)
    starts = torch.where(close <= CLOSEST, STARTS, 1)
    copies, labels = x.repeat_interleave(starts, dim=0), y.repeat_interleave(starts)
    aimed, x_adv = int(rank.max()) + 1, copies.clone()
    for searched, part in _shared_out(network, copies, labels, "again"):
        x_adv[part] = _run(
            network, searched, copies[part], labels[part], eps, seed, name, together=True, apgd_targets=aimed
        )
    broken = falls(network, copies, x_adv, labels, eps)
    ends = starts.cumsum(0).tolist()
    return x_adv[[begin + int(broken[begin:end].int().argmax()) for begin, end in pairwise([0, *ends])]]


def _shared_out(network: nn.Module, x: Tensor, y: Tensor, *searches: str) -> Iterator[tuple[nn.Module, Tensor]]:
    """The network of each search with the images (N,) that it is to attack: those that none before it could.

    Attacks pass over what their network misclassifies as it is. Where all do by rounding, the network as written is
    the last.
    """
    left = torch.ones(len(x), dtype=torch.bool, device=x.device)
    for search in searches:
        searched = searching(network, search)
        with torch.no_grad():
            part = left & (searched(x).argmax(1) == y)
        if part.any():
            yield searched, part
        left &= ~part
        if not left.any():
            return
    yield _AsWritten(network), left


@contextmanager
def _projecting_without_sorting() -> Iterator[None]:
    """FAB with our projection: the same points but for rounding. Its own takes a quarter of FAB's time on a CPU."""
    from pyautoattack import fab_base

    own = fab_base.projection_linf
    fab_base.projection_linf = nearest_in_box
    try:
        yield
    finally:
        fab_base.projection_linf = own


def _run(
    network: nn.Module, searched: nn.Module, x: Tensor, y: Tensor, eps: Fraction, seed: int, name: str,
    together: bool = False, apgd_targets: int | None = None,
) -> Tensor:  # fmt: skip
    """The x' that pyautoattack finds against `searched`, each of its attacks on what `network` still classifies right.

    So an x' which only bfloat16 takes for another class ends no image's search: the next attack goes on with it.
    together: whether targeted attacks take several classes at a time (TOGETHER), or one as in the package.
    apgd_targets: APGD alone, aimed at so many classes.
    """
    import pyautoattack
    from pyautoattack import checks

    with torch.no_grad():
        classes = network(x[:1]).shape[1]
    if classes < least_classes(name):
        raise UserError(too_few_classes(name, f"this network has {classes}"))
    # The counters behind the "dynamic defense" warning are never reset by the package itself.
    for counter in checks.funcs:
        checks.funcs[counter] = 0
    attack = pyautoattack.AutoAttack(
        searched.eval(), norm="Linf", eps=float(eps), version=VERSIONS[name], seed=seed, device=x.device
    )
    attack.get_logits = _AsWritten(network)  # by which the package decides what each of its attacks has broken
    attack.apgd_targeted.n_target_classes = min(9, classes - 1)
    attack.fab.n_target_classes = min(9, classes - 1)
    if apgd_targets is not None:
        attack.apgd_targeted.n_target_classes = min(apgd_targets, attack.apgd_targeted.n_target_classes)
        attack.attacks_to_run = [each for each in attack.attacks_to_run if each.startswith("apgd")]
    if together:
        broken, most = partial(falls, network, eps=eps), max(TOGETHER, len(x))
        attack.apgd_targeted.perturb = partial(targets.apgd, attack.apgd_targeted, broken, most)
        attack.fab.perturb = partial(targets.fab, attack.fab, broken, most)
    # The package seeds torch's global generator; the caller's stream goes on as if it had not.
    # Its check for dynamic defences counts calls by a trace function, and leaves none behind: a debugger's goes on.
    tracing = sys.gettrace()
    with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):
        try:
            x_adv: Tensor = attack.run_standard_evaluation(x, y, batch_size=len(x))[0]
        finally:
            sys.settrace(tracing)
    return x_adv


@torch.no_grad()
def falls(network: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, eps: Fraction) -> Tensor:
    """Where x' lies in the ball and in [0, 1] and float32 misclassifies it."""
    predicted: Tensor = network(x_adv.contiguous()).argmax(1)
    inside = (x_adv - x).abs().flatten(1).amax(1) <= float(eps) + 1e-6
    inside &= (x_adv.flatten(1).amin(1) >= 0) & (x_adv.flatten(1).amax(1) <= 1)
    return inside & (predicted != y)


def probe(network: nn.Module, x: Tensor, y: Tensor, eps: Fraction) -> tuple[Tensor, Tensor]:
    """How far from the boundary a short float32 attack on the margin ends, and next to which class.

    Returns (N,) distances, negative where it crosses, in units of the gap between the first and the third logit there,
    so that they do not depend on the logits' scale; and (N,) ranks of the likeliest other class there among the logits
    at x: 1 for the second likeliest class at x.
    """
    if len(x) == 0:
        return torch.zeros(0, device=x.device), torch.zeros(0, dtype=torch.long, device=x.device)
    x_adv = ascend(x, lambda z: margin(network(z), y), eps=float(eps), step=float(eps) / 4, steps=PROBE_STEPS)
    with torch.no_grad():
        before, logits = network(x), network(x_adv)
    ordered = logits.sort(dim=1, descending=True).values
    gap = ordered[:, 0] - ordered[:, min(2, ordered.shape[1] - 1)]
    beside = logits.scatter(1, y[:, None], -torch.inf).argmax(1, keepdim=True)
    rank = (before > before.gather(1, beside)).sum(1)
    return -margin(logits, y) / gap.clamp_min(1e-12), rank
