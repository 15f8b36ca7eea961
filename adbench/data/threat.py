"""The L-infinity threat model, in exact fractions, and how its numbers are written."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from adbench.errors import UserError


def parse_fraction(value: str | float | Fraction) -> Fraction:
    """Read a perturbation size: '8/255', '0.031' or 0.031, exactly as it is written.

    A float stands for its shortest decimal: 0.031 is 31/1000, not the nearest binary number.
    Raises UserError unless 0 <= value <= 1 (images live in [0, 1]).
    """
    text = re.sub(r"\s*/\s*", "/", str(value))
    try:
        # A number with a long exponent would take all memory.
        fraction = None if re.search(r"e[+-]?\d{4}", text, re.IGNORECASE) else Fraction(text)
    except (ValueError, ZeroDivisionError):
        fraction = None
    if fraction is None or not 0 <= fraction <= 1:
        raise UserError(f"'{value}' is no number in [0, 1]; write a fraction or a decimal: '8/255', 0.031")
    return fraction


FLOAT32 = Fraction(1, 2**24)
"""Half a unit in the last place of a number in single precision, relative to it."""


def meant(value: str | float | Fraction) -> Fraction:
    """Read a size that a user writes: a decimal of four places or more that is a rounded k/255 is k/255.

    So 0.0314, 0.03137254901960784 (Python's 8/255) and 0.0313725508749485 (single precision's) are 8/255; 0.031 is
    31/1000, as TRADES has it. Raises UserError as `parse_fraction`, which reads what records hold.
    """
    exact = parse_fraction(value)
    number, _, power = str(value).lower().partition("e")
    places = len(number.strip().partition(".")[2]) - int(power or 0)
    pixel = Fraction(round(exact * 255), 255)
    rounding = max(Fraction(1, 2 * 10**places), FLOAT32 * pixel) if places >= 4 else 0
    return pixel if abs(exact - pixel) <= rounding else exact


def meant_attack(name: str) -> str:
    """An attack's name with its radius as records write it: "pgd20@0.0157" is "pgd20@4/255"."""
    attack, at, text = name.partition("@")
    try:
        return f"{attack}@{as_text(meant(text))}" if at else name
    except UserError:  # what is wrong with it, whoever runs it says
        return name


def as_text(fraction: Fraction) -> str:
    """How a size in [0, 1] is written: '8/255' if it is a whole number of 255ths, else '0.031' or '1/7'.

    `parse_fraction` reads back the same fraction.
    """
    if 255 % fraction.denominator == 0:
        return f"{fraction * 255}/255"
    for places in range(1, 20):  # no float needs more decimals than that to be told from its neighbours
        scaled = fraction * 10**places
        if scaled.denominator == 1:
            return f"0.{scaled.numerator:0{places}d}"
    return str(fraction)


@dataclass(frozen=True)
class Threat:
    """An L-infinity ball around each image, and the training attack that searches it.

    eps: radius, in [0, 1].  step: length of one attack step, in [0, 1].
    """

    eps: Fraction
    step: Fraction

    def __str__(self) -> str:
        return as_text(self.eps)
