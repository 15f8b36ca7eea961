"""What the name of an attack says of the settings that it takes."""

from __future__ import annotations

import re

from adbench.errors import UserError, unknown

ITERATED = re.compile(r"(pgd|cw)([1-9][0-9]{0,3})?(?:x([1-9][0-9]{0,2}))?")
"""PGD and C&W: the kind, its steps and its restarts."""
_OTHERS = ("fgsm", "mi-fgsm", "aa", "aa-plus", "aa-rand", "aa-square")
_AUTOATTACK = re.compile(r"aa(-|@|$)")
_OWN_STEP = re.compile(r"(fgsm|mi-fgsm|aa)(-|@|$)")
"""Attacks without `eval.step` and `eval.start`: FGSM and MI-FGSM begin at the image, in steps of their own."""


def autoattack(attack: str) -> bool:
    """Whether an attack is AutoAttack in one of its versions."""
    return _AUTOATTACK.match(attack) is not None


def takes_step(attack: str) -> bool:
    """Whether `eval.step` and `eval.start` say how an attack goes."""
    return _OWN_STEP.match(attack) is None


def known(name: str) -> None:
    """Raise UserError for an attack that there is not, whatever its radius (NAME@R) is."""
    alone = name.partition("@")[0]
    match = ITERATED.fullmatch(alone)
    if alone not in _OTHERS and not (match and (match[1] == "cw" or match[2])):
        raise nobody_has(alone)


def nobody_has(name: str) -> UserError:
    """The error for an attack's name that there is not."""
    return unknown(
        "attack",
        name,
        ("fgsm", "mi-fgsm", "pgd20", "cw", "aa"),
        "fgsm, mi-fgsm, pgdK for K steps, pgdKxR for R restarts, cw, cwKxR, aa, aa-plus, aa-rand, aa-square; "
        "NAME@R within R, as pgd20@4/255",
    )
