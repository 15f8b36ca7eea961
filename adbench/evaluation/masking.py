"""Whether a network's robust accuracy may be an illusion: tests for gradient masking, each with a figure and a limit.

A gradient attack that fails on a network without usable gradients says nothing about its robustness. The signs to look
for are those of Athalye et al. (ICML 2018, "Obfuscated gradients", Sec. 3.1) and Carlini et al. (2019, "On evaluating
adversarial robustness", Sec. 3 and 5); Tramer et al. (NeurIPS 2020) is why there are several, and why a pass proves
nothing: a defence that is made against these tests passes them. How figures become verdicts: `masking_rules`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from adbench.attacks import square
from adbench.attacks.autoattack import VERSIONS
from adbench.attacks.linf import Start, attacking
from adbench.attacks.named import GradientAttack, gradient_attack
from adbench.evaluation.evaluator import Evaluator, Outcome
from adbench.evaluation.masking_rules import VERDICTS, counted, differing, leading, telling, warned
from adbench.losses import cross_entropy
from adbench.models.verdict import COUNTED
from adbench.seeding import derive

STEPS, FURTHER, QUERIES, REPEATS = 100, 4, 500, 10
LARGE = Fraction(1, 2)
RANGE = 10.0  # of the logits for "logit-scale": softmax neither saturates nor is flat
ZEROS = 0.9  # of an image's pixels: it has no gradient to follow


def passes() -> tuple[int, int]:
    """What `examine` costs for an image that stands under everything: passes forward and back, and forward alone.

    Beyond FGSM, PGD-20 and C&W, which an evaluation mostly has. An image that PGD-20 breaks costs REPEATS forward.
    """
    both = 1 + STEPS + 20 * FURTHER + 20 + 20
    # Each attack's verdict; Square's queries with its start and end; the passes compared.
    return both, (1 + FURTHER + 1 + 1) + (QUERIES + 4) + REPEATS


def examine(evaluator: Evaluator, outcomes: Mapping[str, Outcome], images: int) -> dict[str, Any]:
    """The verdict on the evaluator's network, for the record: the worst of its tests.

    outcomes: what is known already; FGSM, PGD-20 and C&W are run where they are missing. images: the first so many
    test images are examined; outcomes on more are compared on all of them. Returns verdict, images and tests, each
    with name, verdict, figure and limits (shares in [0, 1], or counts), images, says, rule and what was run (attack).

    The network's modes and the caller's random stream are as before. Raises ValueError for less than one image.
    """
    if images < 1:
        raise ValueError(f"examine needs at least one image, got {images}")
    images = min(images, len(evaluator.y))
    devices = [evaluator.x.device] if evaluator.x.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        # For networks that draw random numbers: their entry is then the same every time.
        torch.manual_seed(derive(evaluator.seed, "masking"))
        tests = _Examination(evaluator, outcomes, images).tests()
    verdict = max((test["verdict"] for test in tests), key=VERDICTS.index)
    return {"verdict": verdict, "images": images, "tests": tests}


@dataclass
class _Examination:
    """The tests on the first `images` test images; `standing` are the places (S,) of those that PGD-20 leaves."""

    evaluator: Evaluator
    outcomes: Mapping[str, Outcome]
    images: int

    def __post_init__(self) -> None:
        self.pgd, self.fgsm, self.cw = (self._right(name) for name in ("pgd20", "fgsm", "cw"))
        self.standing = self.pgd[: self.images].nonzero().squeeze(1).to(self.evaluator.x.device)

    def tests(self) -> list[dict[str, Any]]:
        pgd, long, several = (self._attack(name) for name in ("pgd20", f"pgd{STEPS}", f"pgd20x{1 + FURTHER}"))
        large = max(LARGE, self.evaluator.threat.eps)
        far = gradient_attack("pgd20", large, large / 4, Start.UNIFORM)
        scaled, spread = _Scaled(self.evaluator.network), f"each image's scaled to a range of {RANGE:g}"
        standing = len(self.standing) - self._broken(far)
        left = "that PGD-20 leaves standing"
        return [
            self._fgsm_against_pgd(),
            self._counted("more-steps", self._broken(long), f"PGD of {STEPS} steps breaks {{}} {left}", long),
            self._counted("restarts", self._broken(several), f"{FURTHER} further restarts break {{}} {left}", several),
            self._counted(
                "logit-scale",
                self._broken(pgd, scaled),
                f"PGD-20 on logits of another scale breaks {{}} {left}",
                pgd.definition(self.evaluator.seed) | {"logits": spread},
            ),
            self._counted("growing-eps", standing, f"{{}} stand under PGD-20 at eps {large}, as none should", far),
            self._counted("zero-gradients", self._without_gradient(), f"{{}} {left} have no gradient to follow"),
            self._black_box(),
            *self._transfer(),
            self._determinism(),
            *self._flags(),
        ]

    def _right(self, name: str) -> Tensor:
        """Where the network stays right under attack `name`, on the examined images or all that it was run on."""
        outcome = self.outcomes.get(name)
        if outcome is not None and len(outcome.right) >= self.images:
            return outcome.right
        if not self.evaluator.right[: self.images].any():
            return torch.zeros(self.images, dtype=torch.bool)
        return self.evaluator.under(name, self.images).right

    def _attack(self, name: str) -> GradientAttack:
        """PGD at the threat model's eps, always from a random start: restarts from the image would be all the same."""
        return gradient_attack(name, self.evaluator.threat.eps, self.evaluator.threat.step, Start.UNIFORM)

    def _broken(self, attack: GradientAttack, through: nn.Module | None = None) -> int:
        """How many standing images fall to x' crafted on `through`, the network itself if not given.

        The first of several restarts is PGD-20's own, and is left out.
        """
        e = self.evaluator
        right = torch.ones(len(self.standing), dtype=torch.bool, device=e.x.device)
        for restart in range(attack.restarts > 1, attack.restarts):
            for part in torch.split(right.nonzero().squeeze(1), e.batch_size):
                index = self.standing[part]
                if len(index):
                    x_adv = attack(through or e.network, e.x[index], e.y[index], index, e.seed, restart)
                    right[part] = e.verdict(x_adv, e.y[index]).right
        return int((~right).sum())

    def _without_gradient(self) -> int:
        """How many standing images have a cross-entropy whose gradient is exactly zero in ZEROS of their pixels."""
        e, count = self.evaluator, 0
        with attacking(e.network), torch.enable_grad():
            for index in torch.split(self.standing, e.batch_size):
                x = e.x[index].requires_grad_(True)
                (gradient,) = torch.autograd.grad(cross_entropy(e.network(x), e.y[index]).sum(), x)
                count += int(((gradient == 0).flatten(1).float().mean(1) >= ZEROS).sum()) if len(index) else 0
        return count

    def _fgsm_against_pgd(self) -> dict[str, Any]:
        n = min(len(self.pgd), len(self.fgsm))
        fgsm, pgd = self.fgsm[:n], self.pgd[:n]
        return leading("fgsm-weaker-than-pgd", "FGSM", "PGD-20", int((pgd & ~fgsm).sum()), int((fgsm & ~pgd).sum()), n)

    def _black_box(self) -> dict[str, Any]:
        e = self.evaluator
        index = (self.pgd[: self.images] & self.cw[: self.images]).nonzero().squeeze(1).to(e.x.device)
        survived = square.survivors(
            e.network, e.x[index], e.y[index], e.threat.eps, seed=e.seed, queries=QUERIES, batch_size=e.batch_size
        )
        says = f"Square, which sees no gradients, breaks {{}} in {QUERIES} queries that PGD-20 and C&W leave standing"
        attack = square.definition(e.threat.eps, e.seed, QUERIES)
        return self._counted("black-box", int((~survived).sum()), says, attack)

    def _transfer(self) -> list[dict[str, Any]]:
        """Over all proxies together; none where nothing was transferred."""
        transferred = [outcome.right for name, outcome in self.outcomes.items() if name.startswith("transfer:")]
        if not transferred:
            return []
        n = min(map(len, (self.pgd, self.cw, *transferred)))
        right = torch.stack([other[:n] for other in transferred]).all(dim=0)
        count = int((self.pgd[:n] & self.cw[:n] & ~right).sum())
        says = "x' made on other networks break {} that PGD-20 and C&W leave standing"
        return [self._counted("transfer", count, says, images=n)]

    def _determinism(self) -> dict[str, Any]:
        x = self.evaluator.x[: self.images]
        first, furthest = self.evaluator.logits(x), 0.0
        span = (first.amax(1) - first.amin(1)).clamp_min(1e-30)
        # One repetition would miss a network that draws one of two transformations, half of the time.
        for _ in range(REPEATS - 1):
            apart = (first - self.evaluator.logits(x)).abs().amax(1) / span
            # Logits that are no numbers differ from themselves: by all of their range.
            furthest = max(furthest, float(apart.nan_to_num(nan=1.0).clamp(max=1).max()))
        return differing(furthest, REPEATS, self.images)

    def _flags(self) -> list[dict[str, Any]]:
        outcomes = [outcome for name, outcome in self.outcomes.items() if name in VERSIONS]
        if not outcomes:
            return []
        own = [(flag, outcome) for outcome in outcomes for flag in outcome.flags if not flag.startswith(COUNTED)]
        flags = [flag for flag, outcome in own if telling(flag, self._shard(outcome))]
        return [warned(flags, max(len(outcome.right) for outcome in outcomes))]

    def _shard(self, outcome: Outcome) -> int:
        """How many images AutoAttack attacked at a time: those of a shard that are right to begin with, on average."""
        right = self.evaluator.right[: len(outcome.right)].float().mean()
        size: int = outcome.definition.get("batch_size", len(outcome.right))
        return round(size * float(right))

    def _counted(
        self,
        name: str,
        count: int,
        says: str,
        attack: GradientAttack | dict[str, Any] | None = None,
        images: int | None = None,
    ) -> dict[str, Any]:
        """The entry of a test that counts images among `images`, the examined ones if not given."""
        entry = counted(name, count, images or self.images, says)
        if isinstance(attack, GradientAttack):
            attack = attack.definition(self.evaluator.seed)
        return entry | ({"attack": attack} if attack else {})


class _Scaled(nn.Module):
    """The network with each image's logits scaled to a range of RANGE; the scale itself has no gradient."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        top, bottom = logits.detach().amax(1, keepdim=True), logits.detach().amin(1, keepdim=True)
        return (logits - top) * (RANGE / (top - bottom).clamp_min(1e-30))
