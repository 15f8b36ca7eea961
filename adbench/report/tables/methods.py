"""Table 1: the objectives of the methods, from the docstrings of their plugins.

Formulas are read from the docstring of the method's class without importing it, so no torch is needed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from adbench.registry import METHODS
from adbench.report.captions import listed
from adbench.report.model import MISSING, Column, Row, Table, TableCell, about
from adbench.results.diff import edited
from adbench.results.runs import Run

_NAMED = re.compile(r"([a-zA-Z][\w ]{0,15}):\s+(.*)|(with)\s+(.*)")
_LETTERS = {"alpha": "α", "beta": "β", "gamma": "γ", "lambda": "λ", "rho": "ρ", "tau": "τ"}
_RAISED = {"^2": "²", "_1": "₁", "_2": "₂"}


def tables(runs: Sequence[Run]) -> list[Table]:
    """One table of the methods among `runs`, in the paper's order; none where no plugin of theirs is installed."""
    methods = {run.method: run for run in sorted(runs, key=lambda run: run.order) if run.method}
    installed = set(METHODS.names())
    known = {name: formulas(METHODS.docstring(name) or "") for name in methods if name in installed}
    if not any(known.values()):
        return []
    columns = (
        Column("Method", numeric=False),
        Column("Training examples x'", numeric=False, wide=True),
        Column("The student's objective", numeric=False, wide=True),
    )
    rows, unlike = [], []
    for name, run in methods.items():
        label = (run.done or run.failed)[0].label
        objectives = (known[name].get("attack", ""), _objective(known[name])) if name in known else ("", "")
        rows.append(
            Row(
                (TableCell(label), *(TableCell(text) if text else MISSING for text in objectives)),
                about=about(method=label),
            )
        )
        if any(edited(r.config.training, r.provenance.method_source_sha256) for r in run.done):
            unlike.append(label)
    caption = (
        "Objectives of the methods, as the docstrings of their plugins state them. S: student; T: teacher; x: image, "
        "y: its label; x': the adversarial example, within ε of x; KL(p, q): divergence of the student's p from its "
        "target q; CE: cross-entropy."
    )
    note = f"{listed(unlike)}: the code was edited since the records were made; formulas may differ."
    return [Table("objectives", "Objectives of the methods", caption, columns, tuple(rows), (note,) if unlike else ())]


def _objective(formulas: dict[str, str]) -> str:
    """All but the attack, in one line: the loss, its variants, and what explains them."""
    parts = []
    for key, text in formulas.items():
        if key.startswith("loss"):
            variant = key.removeprefix("loss").strip()
            parts.append(f"{variant}: {text}" if variant else text)
        elif key != "attack":
            parts.append(f"where {text}" if key == "with" else f"{key}: {text}")
    return "; ".join(parts)


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
