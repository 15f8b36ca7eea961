"""How the figure of a test for gradient masking becomes its verdict: pass, suspect or fail. Imports no torch.

All tests but three count images that PGD-20 leaves standing and that another attack breaks, or that gave PGD-20 no
gradient to follow, or that stand where nothing should: for that share of the images robust accuracy may be an
illusion. A test tolerates a rate that ordinary networks stay below (`RATES`), and its limit is the count that a
network at that rate exceeds with probability `CHANCE` (exact binomial): beyond the limit for the first rate it is
suspect, beyond that for the second it fails. So an image that PGD-20 breaks is never held against a network, and one
without robust accuracy passes. One that calls nearly all images the same is suspect too, by growing-eps: what it has
of robust accuracy is real, and worth nothing. The three other tests:

- fgsm-weaker-than-pgd: the images that FGSM alone breaks less those that PGD-20 alone does, suspect beyond one point
  and failing beyond three, where McNemar's exact one-sided test gives it a chance below `CHANCE`.
- determinism: fails where passes over the same images differ by more than rounding, `ROUNDING` of an image's
  range of logits.
- autoattack-flags: a warning of AutoAttack's own makes it suspect, one of a randomised or dynamic defence makes it
  fail. That Square gained counts only where it gained more than AutoAttack's limit of 0.2% of the images does by
  chance: a shard is so small that a single image raises the warning.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from scipy import stats

VERDICTS = ("pass", "suspect", "fail")
CHANCE = 0.001
RATES = {
    # On CIFAR-10 more steps and restarts gain about a point; in balls as large as those of digits, restarts gain eight.
    "more-steps": (0.05, 0.10),
    "restarts": (0.08, 0.15),
    # No ordinary network resists gradients and falls to an attack that sees none.
    "black-box": (0.02, 0.05),
    "transfer": (0.02, 0.05),
    "zero-gradients": (0.01, 0.05),
    # A ball of radius 1/2 holds an all-grey image: nothing can be right there on purpose.
    "growing-eps": (0.02, 0.05),
    # Networks of low confidence leave up to nine points: MART's on CIFAR-10, on digits those hardly trained.
    "logit-scale": (0.10, 0.20),
}
LEADS = (0.01, 0.03)
ROUNDING = 1e-4
SQUARE_GAINS = 0.002


def most(images: int, rate: float) -> int:
    """The least count that a network at this rate exceeds on `images` with probability CHANCE at most."""
    return int(stats.binom.isf(CHANCE, images, rate)) if images else 0


def counted(name: str, count: int, images: int, says: str) -> dict[str, Any]:
    """The entry of a test that counts images; says: what was counted, with {} for the count."""
    tolerated, failing = RATES[name]
    rule = (
        f"suspect beyond the count that a network with {100 * tolerated:g}% of such images exceeds with probability "
        f"{CHANCE:g}, fails beyond that for {100 * failing:g}%"
    )
    limits = most(images, tolerated) / images, most(images, failing) / images
    return entry(name, count / images, limits, images, f"Of {images} images, {says.format(count)}.", rule)


def leading(name: str, weak: str, strong: str, only_weak: int, only_strong: int, images: int) -> dict[str, Any]:
    """The entry of a test that the attack `weak` leads over `strong`, by the images that just one of them breaks."""
    rule = (
        f"suspect where {weak} leads {strong} by more than {100 * LEADS[0]:g} points of the images and by chance with "
        f"probability {CHANCE:g} at most (McNemar, one-sided), fails likewise for {100 * LEADS[1]:g} points"
    )
    both = only_weak + only_strong
    beyond_chance = (2 * most(both, 0.5) - both) / images
    limits = max(LEADS[0], beyond_chance), max(LEADS[1], beyond_chance)
    says = f"Of {images} images, {weak} alone breaks {only_weak}, {strong} alone {only_strong}."
    return entry(name, (only_weak - only_strong) / images, limits, images, says, rule)


def differing(figure: float, passes: int, images: int) -> dict[str, Any]:
    """The entry on several passes over the same images that differ by `figure` of an image's range of logits."""
    says = f"{passes} passes over the same images differ by at most {100 * figure:.2g}% of an image's range of logits."
    rule = f"fails beyond {100 * ROUNDING:g}% of the range, which is more than rounding"
    return entry("determinism", figure, (ROUNDING, ROUNDING), images, says, rule)


def telling(flag: str, attacked: int) -> bool:
    """Whether a warning of AutoAttack's says something about gradients; attacked: images in one of its batches."""
    gained = re.search(r"Square Attack has decreased the robust accuracy of ([0-9.]+)%", flag)
    return gained is None or float(gained[1]) / 100 * attacked > most(attacked, SQUARE_GAINS)


def warned(flags: Sequence[str], images: int) -> dict[str, Any]:
    """The entry on the warnings that AutoAttack raised and that are telling."""
    distinct = list(dict.fromkeys(flags))
    fatal = any(f"{kind} defense" in flag for flag in distinct for kind in ("randomized", "dynamic"))
    says = f"AutoAttack warned: {'; '.join(distinct)}" if distinct else "AutoAttack raised no warning."
    rule = "any warning is suspect, one of a randomised or dynamic defence fails"
    return entry("autoattack-flags", len(distinct), (0, 0 if fatal else len(distinct)), images, says, rule, "count")


def entry(
    name: str, figure: float, limits: tuple[float, float], images: int, says: str, rule: str, unit: str = "share"
) -> dict[str, Any]:
    """One test for the record: suspect where its figure is above the first limit, failed where above the second.

    unit: of the figure and its limits, a share in [0, 1] or a count.
    """
    return {
        "name": name,
        "verdict": VERDICTS[(figure > limits[0]) + (figure > limits[1])],
        "figure": figure,
        "limit": limits[0],
        "fail_limit": limits[1],
        "unit": unit,
        "images": images,
        "says": says,
        "rule": rule,
    }


def contradicted(test: dict[str, Any]) -> list[str]:
    """The keys of a test in a record that do not follow from its figure and its number of images."""
    name, figure, images = test["name"], test["figure"], test["images"]
    wrong = []
    if name in RATES:
        limits = tuple(most(images, rate) / images for rate in RATES[name])
        count = round(min(figure, 1.0) * images)
        if abs(count - figure * images) > 1e-6 or not re.search(rf"\b{count}\b", test["says"]):
            wrong.append("figure")
    elif name == "determinism":
        limits = ROUNDING, ROUNDING
    elif name == "autoattack-flags":
        fatal = any(f"{kind} defense" in test["says"] for kind in ("randomized", "dynamic"))
        limits = 0.0, 0.0 if fatal else figure
        wrong += [] if (figure > 0) == (" warned: " in test["says"]) else ["figure"]
    else:  # its limits depend on how many images just one of the two attacks breaks, which it says
        match = re.search(r"alone breaks (\d+), .* alone (\d+)\.", test["says"])
        if match is None or abs((int(match[1]) - int(match[2])) / images - figure) > 1e-9:
            return ["figure"]
        both = int(match[1]) + int(match[2])
        limits = tuple(max(lead, (2 * most(both, 0.5) - both) / images) for lead in LEADS)
    stated = test["limit"], test["fail_limit"]
    wrong += ["limit"] if any(abs(a - b) > 1e-9 for a, b in zip(stated, limits, strict=True)) else []
    due = VERDICTS[(figure > limits[0]) + (figure > limits[1])]
    return wrong + ([] if test["verdict"] == due else ["verdict"])
