"""The L-infinity threat model, in exact fractions, and how its numbers are written."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from adbench.errors import UserError


def parse_fraction(value: str | float | Fraction) -> Fraction:
    """Read a perturbation size: '8/255', '0.031' or 0.031, exactly as it is written.

    A float stands for its shortest decimal: 0.031 is 31/1000, not the nearest binary number.
    Raises UserError unless 0 <= value <= 1 (images live in [0, 1]).
    """
    try:
        fraction = Fraction(str(value))
    except (ValueError, ZeroDivisionError):
        fraction = None
    if fraction is None or not 0 <= fraction <= 1:
        raise UserError(f"'{value}' is no number in [0, 1]; write a fraction or a decimal: '8/255', 0.031")
    return fraction


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
