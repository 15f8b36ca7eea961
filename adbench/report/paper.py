"""The published numbers beside ours, where data set, student and the teacher's architecture are the paper's.

The CSV files hold Tables 2 to 5 of SmaraAD (CVPR 2024). Table 5 is not compared: the paper does not say
which student and teacher it is about.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

from adbench.report.model import MISSING, Cell, Column, Row, Table
from adbench.report.runs import ATTACKS, METHODS, STUDENTS, Run, heading, slug

FGSM_CAVEAT = (
    "Read the FGSM column with caution: in several rows of the paper it falls little from clean to FGSM "
    "and far from FGSM to PGD-20, a pattern that one full step of 8/255 rarely leaves. Expect such a step to "
    "land some 12 to 16 points lower."
)


@cache
def published(name: str) -> tuple[dict[str, str], ...]:
    """The rows of one of the paper's tables, e.g. `published("table2_teachers")`; accuracies in percent."""
    text = (files("adbench.report") / "paper" / f"{name}.csv").read_text(encoding="utf-8")
    return tuple(csv.DictReader(text.splitlines()))


def comparison(runs: Sequence[Run], teacher_runs: Sequence[Run]) -> list[Table]:
    """One table a data set of the paper's values and our differences; none where nothing matches."""
    columns = (
        Column("Network", numeric=False),
        *(Column(title, heading(attack)) for attack in ATTACKS for title in ("Paper", "Δ")),
    )
    tables = []
    for dataset in ("cifar10", "cifar100"):
        rows = [
            row
            for run, block, line in (*_teachers(teacher_runs, dataset), *_students(runs, dataset))
            if (row := _row(run, block, line))
        ]
        if not rows:
            continue
        caption = (
            f"Against the paper on {dataset} (SmaraAD, CVPR 2024, Tables 2 to 4): accuracy (%) there, "
            "and the difference Δ, ours minus the paper's, in points. The paper reports single runs with "
            "teachers that are not public, so rankings and gaps compare better than absolute values."
        )
        title = f"Against the paper, {dataset}"
        tables.append(Table(slug("paper", dataset), title, caption, columns, tuple(rows), (FGSM_CAVEAT,)))
    return tables


_Match = tuple[Run, str, dict[str, str]]


def _teachers(runs: Sequence[Run], dataset: str) -> list[_Match]:
    lines = {line["teacher"]: line for line in published("table2_teachers") if line["dataset"] == dataset}
    return [(run, "Teachers", lines[run.student]) for run in runs if run.dataset == dataset and run.student in lines]


def _students(runs: Sequence[Run], dataset: str) -> list[_Match]:
    table = "table3_cifar10_whitebox" if dataset == "cifar10" else "table4_cifar100_whitebox"
    lines = {(line["student"], line["method"], line["teacher"]): line for line in published(table)}
    # Methods without a teacher are printed under every teacher alike: any of those lines will do.
    lines |= {(student, method, ""): line for (student, method, _), line in lines.items()}
    matches = []
    for run in runs:
        student, method = STUDENTS.get(run.student, ""), METHODS.get(run.method or "", "")
        line = lines.get((student, method, _architecture(run)))
        if run.dataset == dataset and line:
            matches.append((run, f"Student {run.student}" + (f" taught by {run.teacher}" if run.teacher else ""), line))
    return sorted(matches, key=lambda match: (list(STUDENTS).index(match[0].student), match[0].teacher or ""))


def _architecture(run: Run) -> str:
    robust = next((r["teachers"]["robust"] for r in run.done if r["teachers"]["robust"]), None)
    return str(robust["architecture"]) if robust and run.teacher else (run.teacher or "")


def _row(run: Run, block: str, line: dict[str, str]) -> Row | None:
    cells = [Cell(run.label)]
    for attack in ATTACKS:
        ours, theirs = run.estimate(attack), float(line[attack])
        difference = _signed(ours.mean - theirs) if ours else MISSING.text
        cells += [Cell(f"{theirs:.2f}"), Cell(difference)]
    return Row(tuple(cells), block) if run.done else None


def _signed(points: float) -> str:
    # Adding 0.0 turns a rounded -0.0 into 0.0: no difference has no direction.
    return f"{round(points, 2) + 0.0:+.2f}".replace("-", "\N{MINUS SIGN}")
