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

import pyautoattack
import torch
from pyautoattack import checks, fab_base
from torch import Tensor, nn

from adbench import FAST_SEARCH
from adbench.attacks import targeted
from adbench.attacks.hyperplane import nearest_in_box
from adbench.attacks.linf import NOT_FOLLOWED, ascend, attacking, usable
from adbench.data.threat import as_text
from adbench.losses import margin
from adbench.models.precision import Lean, Precision
from adbench.models.verdict import Verdict

SQUARE = "aa-square"
VERSIONS = {"aa": "standard", "aa-plus": "plus", "aa-rand": "rand", SQUARE: "custom: square"}
"""Names of the attack, and what its authors call these versions: of the last one the attack that sees logits alone."""

LOGGER = "auto-attack"
"""The package's."""

SEARCHES = {"exact": "authors' package, float32", "fast": f"fast search {FAST_SEARCH}: bfloat16, decided in float32"}
"""How AutoAttack may search (`eval.aa_search`), and what a record calls it."""

FAST = Precision("bfloat16", lean=True)
"""How a fast search runs the network; its agreement with the exact one was measured in this form. Where the device has
no arithmetic for bfloat16, torch emulates it."""

AGAIN = Precision("float32", lean=True)
"""How it runs the network where bfloat16 does not do."""

TOGETHER = 128
"""Largest number of (image, target class) pairs that a fast search attacks at a time. It is never less than one pair an
image."""

SLACK = 1e-6
"""By which rounding may leave x' outside the ball."""

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
        "version": version_for(name, classes),
        "eps": as_text(eps),
        "target_classes": min(9, classes - 1),
        "batch_size": shard,
        "seed": seed,
        "search": SEARCHES[search],
    }


def version_for(name: str, classes: int) -> str:
    """Which version runs, for the record: with 2 or 3 classes one of adbench's definition, since the package has none.

    The DLR loss (Eq. 6) divides a difference of logits by another, of the largest and the third; the targeted one
    (Eq. 7) also needs the fourth. Where there are too few, the loss is the difference alone.
    """
    needs = {
        "DLR": name in ("aa-plus", "aa-rand") and classes < 3,
        "targeted DLR": name in ("aa", "aa-plus") and classes < 4,
    }
    undivided = [loss for loss, few in needs.items() if few]
    if not undivided:
        return VERSIONS[name]
    return f"{VERSIONS[name]}, {classes} classes: {' and '.join(undivided)} as a difference of logits"


class _Flags(logging.Handler):
    """Collects the warnings of one evaluation."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage().split(" See ")[0]
        # What DLR cannot do with few classes is not done (`version_for`).
        if message not in self.messages and "classes it is not possible" not in message:
            self.messages.append(message)


@contextmanager
def _captured() -> Iterator[_Flags]:
    logger = logging.getLogger(LOGGER)
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
class SearchResult:
    """The result of one search on N images.

    x_adv: (N, C, H, W), the x' that breaks an image, or the image itself where none does. broken: (N,) booleans.
    doubtful: (N,) booleans, images that a fast search did not break and float32 should search again. flags: the
    warnings that the attack raised.
    """

    x_adv: Tensor
    broken: Tensor
    doubtful: Tensor
    flags: list[str]


def attack(
    network: nn.Module, x: Tensor, y: Tensor, eps: Fraction, *, seed: int, name: str = "aa", search: str = "exact"
) -> SearchResult:
    """AutoAttack on one shard of images.

    x: images (N, C, H, W) in [0, 1] that the network classifies correctly; y: labels (N,); search: "exact" (the
    authors' package), "fast", or "again": its APGD attacks alone, in float32, for what a fast search left doubtful.
    These are the survivors that a float32 attack of PROBE_STEPS steps on the margin breaks, or brings within CLOSE of
    the boundary; those within CLOSEST start STARTS times. There APGD's targets are the likeliest
    classes at x, down to the one that each image came closest to, and one more. Images that bfloat16 misclassifies
    without an attack are attacked in float32, since the attacks would pass over them.
    """
    none = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    if len(x) == 0:
        return SearchResult(x, none, none, [])
    run = {"exact": _exactly, "fast": _fast, "again": _once_more}[search]
    with LOCK, attacking(network), _captured() as flags:
        x_adv = run(network, x, y, eps, seed, name)
        (broken, verdict), doubtful = _judged(network, x, x_adv, y, eps), none
        verdict = Verdict(~broken, verdict.unfinite & broken, verdict.tied & broken)
        if search == "fast" and name != SQUARE:  # which float32 would not repeat otherwise
            left = (~broken).nonzero().squeeze(1)
            close, _ = probe(searching(network, "again"), x[left], y[left], eps)
            doubtful = none.index_put((left,), close <= CLOSE)
    flags_of_all = [*flags.messages, *verdict.flags()]
    return SearchResult(torch.where(broken[:, None, None, None], x_adv, x), broken, doubtful, flags_of_all)


def _exactly(network: nn.Module, x: Tensor, y: Tensor, eps: Fraction, seed: int, name: str) -> Tensor:
    """The x' of the authors' package in float32."""
    return _run(network, searching(network, "exact"), x, y, eps, seed, name)


def _fast(network: nn.Module, x: Tensor, y: Tensor, eps: Fraction, seed: int, name: str) -> Tensor:
    """The x' of the search in bfloat16, or in float32 where bfloat16 misclassifies the image itself."""
    x_adv = x.clone()
    with _projecting_without_sorting():
        for searched, part in _shared_out(network, x, y, "fast", "again"):
            x_adv[part] = _run(network, searched, x[part], y[part], eps, seed, name, together=True)
    return x_adv


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
    """FAB with our projection: the same points except for rounding. Its own takes a quarter of FAB's time on a CPU."""
    own = fab_base.projection_linf
    fab_base.projection_linf = nearest_in_box
    try:
        yield
    finally:
        fab_base.projection_linf = own


def _run(
    network: nn.Module,
    searched: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: Fraction,
    seed: int,
    name: str,
    together: bool = False,
    apgd_targets: int | None = None,
) -> Tensor:
    """The x' that pyautoattack finds against `searched`, each of its attacks on what `network` still classifies right.

    So an x' which only bfloat16 takes for another class ends no image's search: the next attack goes on with it.
    together: whether targeted attacks take several classes at a time (TOGETHER), or one as in the package.
    apgd_targets: APGD alone, aimed at so many classes.
    """
    with torch.no_grad():
        classes = network(x[:1]).shape[1]
    # The counters behind the "dynamic defense" warning are never reset by the package itself.
    for counter in checks.funcs:
        checks.funcs[counter] = 0
    watched = _Watched(searched.eval(), x, eps)
    version, _, alone = VERSIONS[name].partition(": ")
    attack = pyautoattack.AutoAttack(
        watched,
        norm="Linf",
        eps=float(eps),
        version=version,
        attacks=[alone] if alone else None,
        seed=seed,
        device=x.device,
    )
    attack.get_logits = _AsWritten(network)  # by which the package decides what each of its attacks has broken
    attack.apgd_targeted.n_target_classes = min(9, classes - 1)
    attack.fab.n_target_classes = min(9, classes - 1)
    if classes < 4:
        attack.apgd_targeted.dlr_loss_targeted = partial(_toward, attack.apgd_targeted)
    if classes < 3:
        attack.apgd.dlr_loss = margin
    if apgd_targets is not None:
        attack.apgd_targeted.n_target_classes = min(apgd_targets, attack.apgd_targeted.n_target_classes)
        attack.attacks_to_run = [each for each in attack.attacks_to_run if each.startswith("apgd")]
    if together:
        broken, most = partial(falls, network, eps=eps), max(TOGETHER, len(x))
        attack.apgd_targeted.perturb = partial(targeted.apgd, attack.apgd_targeted, broken, most)
        attack.fab.perturb = partial(targeted.fab, attack.fab, broken, most)
    # The package seeds torch's global generator; the caller's stream goes on as if it had not.
    # Its check for dynamic defences counts calls by a trace function, and leaves none behind: a debugger's goes on.
    tracing = sys.gettrace()
    with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):
        try:
            x_adv: Tensor = attack.run_standard_evaluation(x, y, batch_size=len(x))[0]
        finally:
            sys.settrace(tracing)
    if watched.stuck:
        logging.getLogger(LOGGER).warning(f"there are images with {NOT_FOLLOWED}")
    if watched.met.any():
        instead = watched.met & ~falls(network, x, x_adv, y, eps)
        x_adv[instead] = watched.witnesses[instead]
    return x_adv


def _toward(attack: Any, logits: Tensor, y: Tensor) -> Tensor:
    """How far the target class of a targeted attack is above the label, (M,) for logits (M, classes)."""
    return (logits.gather(1, attack.y_target[:, None]) - logits.gather(1, y[:, None])).squeeze(1)


class _Watched(nn.Module):
    """The network that an attack sees, and where it met logits that are not finite.

    The package takes no notice of these: its search goes on, or ends with an x' that is none. met: (N,) booleans, the
    images in whose ball that happened; witnesses: (N, C, H, W), the first such x' of each. stuck: whether any gradient
    was NaN. Logits and gradients that are finite stay as they are.
    """

    def __init__(self, network: nn.Module, x: Tensor, eps: Fraction) -> None:
        super().__init__()
        self.network, self.x, self.eps = network, x, float(eps)
        self.met, self.witnesses = torch.zeros(len(x), dtype=torch.bool, device=x.device), x.clone()
        self.stuck = torch.zeros((), dtype=torch.bool, device=x.device)

    def forward(self, z: Tensor) -> Tensor:
        logits: Tensor = self.network(usable(z, lambda nowhere: self.stuck.logical_or_(nowhere.any())))
        if not (finite := logits.detach().isfinite().all(1)).all():
            for candidate in z.detach()[~finite]:
                left = (~self.met).nonzero().squeeze(1)
                within = (self.x[left] - candidate).abs().flatten(1).amax(1) <= self.eps + SLACK
                self.met[left[within]], self.witnesses[left[within]] = True, candidate
        return logits


def falls(network: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, eps: Fraction) -> Tensor:
    """Where x' lies in the ball and in [0, 1] and float32 does not have it right."""
    return _judged(network, x, x_adv, y, eps)[0]


@torch.no_grad()
def _judged(network: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, eps: Fraction) -> tuple[Tensor, Verdict]:
    """`falls`, and the verdicts behind it."""
    verdict = Verdict.of(network(x_adv.contiguous()), y)
    inside = (x_adv - x).abs().flatten(1).amax(1) <= float(eps) + SLACK
    inside &= (x_adv.flatten(1).amin(1) >= 0) & (x_adv.flatten(1).amax(1) <= 1)
    return inside & ~verdict.right, verdict


def probe(network: nn.Module, x: Tensor, y: Tensor, eps: Fraction) -> tuple[Tensor, Tensor]:
    """The distance to the boundary at which a short float32 attack on the margin ends, and the class beside it.

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
