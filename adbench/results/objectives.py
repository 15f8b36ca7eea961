"""The formulas of a method, as the docstring of its class states them. Imports no torch."""

from __future__ import annotations

import re

_NAMED = re.compile(r"([a-zA-Z][\w ]{0,15}):\s+(.*)|(with)\s+(.*)")
_LETTERS = {"alpha": "α", "beta": "β", "gamma": "γ", "lambda": "λ", "rho": "ρ", "tau": "τ"}
_RAISED = {"^2": "²", "_1": "₁", "_2": "₂"}


def formulas(docstring: str) -> dict[str, str]:
    """The lines "attack: ..." and "loss: ..." of a method's docstring, and those that explain them, by their names.

    A line that is indented goes on with the one before; the first other line without a name ends them.
    """
    texts: dict[str, str] = {}
    for line in docstring.splitlines():
        named = _NAMED.fullmatch(line)
        if named and (texts or named[1] == "attack"):
            texts[named[1] or named[3]] = named[2] or named[4]
        elif texts and line.startswith(" "):
            key = list(texts)[-1]
            texts[key] += f" {line.strip()}"
        elif texts:
            break
    return {key: _printed(text) for key, text in texts.items()}


def _printed(formula: str) -> str:
    """Greek letters and small digits for their names; single spaces."""
    text = re.sub(r"(?<![A-Za-z])(?:" + "|".join(_LETTERS) + r")(?![A-Za-z])", lambda m: _LETTERS[m[0]], formula)
    text = re.sub(r"\^2|_[12](?!\d)", lambda m: _RAISED[m[0]], text)
    return " ".join(text.split())
