"""Table 1: the objectives of the methods, from the docstrings of their plugins.

Formulas are read from the docstring of the method's class without importing it, so no torch is needed; those of a
plugin that is not at hand from its records.
"""

from __future__ import annotations

from collections.abc import Sequence

from adbench.registry import METHODS
from adbench.report.captions import listed
from adbench.report.families import arranged, families
from adbench.report.model import MISSING, Column, Row, Table, TableCell, about
from adbench.results.diff import edited
from adbench.results.objectives import formulas
from adbench.results.runs import Run


def tables(runs: Sequence[Run]) -> list[Table]:
    """One table of the methods among `runs`, in the paper's order; none where nobody states any."""
    methods = {run.method: run for run in sorted(runs, key=lambda run: run.order) if run.method}
    installed = set(METHODS.names())
    known = {
        name: formulas(METHODS.docstring(name) or "") if name in installed else _recorded(run)
        for name, run in methods.items()
    }
    if not any(known.values()):
        return []
    columns = (
        Column("Method", numeric=False),
        Column("Training examples x'", numeric=False, wide=True),
        Column("The student's objective", numeric=False, wide=True),
    )
    rows, unlike, told = [], [], families(list(methods.values()))
    for name, run in methods.items():
        label = (run.done or run.failed)[0].label
        objectives = (known[name].get("attack", ""), _objective(known[name]))
        rows.append(
            Row(
                (TableCell(label), *(TableCell(text) if text else MISSING for text in objectives)),
                about=about(method=label),
                family=told[id(run)],
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
    return [
        Table(
            "objectives",
            "Objectives of the methods",
            caption,
            columns,
            tuple(arranged(rows)),
            (note,) if unlike else (),
        )
    ]


def _recorded(run: Run) -> dict[str, str]:
    """The formulas that the run's records carry, of a method that is not installed here."""
    return next((record.objectives for record in run.done if record.objectives), {})


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
