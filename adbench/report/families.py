"""Methods by family, where rows of more than the paper's ten stand in one table: how they are headed and ordered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from adbench.registry import GROUPS, PAPER
from adbench.results.runs import ABLATION, Run

UNGUIDED, GUIDED, FAIR = "Without distillation", "Distillation", "Fairness"
FAMILIES = ("", UNGUIDED, GUIDED, FAIR)
"""Headings in their order; "" for rows that are not grouped."""

_LATER = frozenset(GROUPS["every"]) - frozenset(PAPER)

R = TypeVar("R", bound=Any)
"""A Row, or what becomes one: it has a block and a family."""


def families(runs: Sequence[Run]) -> dict[int, str]:
    """The family of every run, by its `id()`; "" for all where they are of one.

    The paper's methods, and a plugin beside them, stand as the paper prints them.
    """
    found = {id(run): _family(run) for run in runs}
    grouped = any(run.method in _LATER for run in runs) and len(set(found.values())) > 1
    return found if grouped else dict.fromkeys(found, "")


def _family(run: Run) -> str:
    """By the registry's groups; of a method that is in none, by whether it has a teacher."""
    if run.method in GROUPS["fairness"]:
        return FAIR
    if run.method in GROUPS["adversarial-training"]:
        return UNGUIDED
    return GUIDED if run.method in (*GROUPS["distillation"], *ABLATION) or run.teacher else UNGUIDED


def arranged(rows: Sequence[R]) -> list[R]:
    """Rows with those of one family together within their block, else in their order."""
    blocks = {block: place for place, block in enumerate(dict.fromkeys(row.block for row in rows))}
    return sorted(rows, key=lambda row: (blocks[row.block], FAMILIES.index(row.family)))
