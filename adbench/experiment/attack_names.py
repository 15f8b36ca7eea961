"""What the name of an attack says of the settings that it takes."""

from __future__ import annotations

import re

_AUTOATTACK = re.compile(r"aa(-|@|$)")
_OWN_STEP = re.compile(r"(fgsm|mi-fgsm|aa)(-|@|$)")
"""Attacks without `eval.step` and `eval.start`: FGSM and MI-FGSM begin at the image, in steps of their own."""


def autoattack(attack: str) -> bool:
    """Whether an attack is AutoAttack in one of its versions."""
    return _AUTOATTACK.match(attack) is not None


def takes_step(attack: str) -> bool:
    """Whether `eval.step` and `eval.start` say how an attack goes."""
    return _OWN_STEP.match(attack) is None
