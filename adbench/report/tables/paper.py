"""The published numbers beside ours, where data set, student and the teacher's architecture are the paper's.

The CSV files hold Tables 2 to 5 of SmaraAD (CVPR 2024).
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.resources import files

from adbench.report.captions import taught
from adbench.report.model import MISSING, Column, Row, Table, TableCell, about
from adbench.report.view import View
from adbench.results.runs import ATTACKS, METHODS, STUDENTS, Run, heading, natural, proxy_and_attack, slug

FGSM = (
    "Read the FGSM column with caution: in several rows of the paper it falls little from clean to FGSM "
    "and far from FGSM to PGD-20, a pattern that one full step of 8/255 rarely leaves. Expect such a step to "
    "land some 12 to 16 points lower."
)
TEACHERS = (
    "The paper's teachers are not public (its WRN-28-10 is far from the released one of the data that it names): "
    "compare rankings and gaps rather than absolute values."
)
SINGLE = (
    "The paper reports single runs, without seeds or deviations. PGD-AT, TRADES and LAS-AT have no teacher; each is "
    "one run that stands under every teacher."
)
CW = "The paper does not say how its C&W∞ starts or how often; ours is 20 steps from one uniform start."
OPEN = "MTARD's alpha and IAD's warm-up are not stated, nor which of the two variants of IAD is meant."
TABLE_5 = (
    "The paper does not say which student and teacher its Table 5 is about; it is set beside rn18 taught by WRN-34-10, "
    "which it uses elsewhere."
)
EPS = "8/255"
"""The radius of all of the paper's attacks."""

_TEACHER = "wrn-34-10"
_STUDENT = "resnet18"


@cache
def published(name: str) -> tuple[dict[str, str], ...]:
    """The rows of one of the paper's tables, e.g. `published("table2_teachers")`; accuracies in percent."""
    text = (files("adbench.report") / "paper" / f"{name}.csv").read_text(encoding="utf-8")
    return tuple(csv.DictReader(text.splitlines()))


@cache
def _networks() -> dict[tuple[str, str], dict[str, str]]:
    return {(line["dataset"], line["teacher"]): line for line in published("table2_teachers")}


@cache
def _students() -> dict[tuple[str, str, str, str], dict[str, str]]:
    lines = [*published("table3_cifar10_whitebox"), *published("table4_cifar100_whitebox")]
    students = {(line["dataset"], line["student"], line["method"], line["teacher"]): line for line in lines}
    # Methods without a teacher are printed under every teacher alike: any of those lines will do.
    return students | {(dataset, student, method, ""): line for (dataset, student, method, _), line in students.items()}


@cache
def _black_box() -> dict[tuple[str, str], dict[str, str]]:
    return {(line["method"], line["proxy"]): line for line in published("table5_blackbox")}


def value(run: Run, metric: str, view: View) -> float | None:
    """The accuracy that the paper prints for a student or teacher like `run` under `metric`; None where it has none."""
    if run.setting.items.get("eps", EPS) != EPS:
        return None
    if metric.startswith("transfer:"):
        proxy, attack = proxy_and_attack(metric)
        like_theirs = run.dataset == "cifar10" and _student(run) == _STUDENT and _architecture(run) in ("", _TEACHER)
        line = _black_box().get((_method(run), _proxy(proxy, run, view))) if like_theirs else None
        return float(line[attack]) if line and attack in line else None
    line = _networks().get((run.dataset, run.student)) if run.method is None else _line(run)
    return float(line[metric]) if line and metric in ATTACKS else None


def _line(run: Run) -> dict[str, str] | None:
    return _students().get((run.dataset, _student(run), _method(run), _architecture(run)))


def _student(run: Run) -> str:
    return STUDENTS.get(run.student, "")


def _method(run: Run) -> str:
    """The paper's name of a run's method; "" for what it has no row of."""
    perturbed = any(record.perturbed for record in run.done)
    return "" if perturbed else METHODS.get(run.method or "", "")


def _architecture(run: Run) -> str:
    robust = next((r.teachers.robust for r in run.done if r.teachers.robust), None)
    return str(robust.architecture) if robust and run.teacher else (run.teacher or "")


def _proxy(name: str, run: Run, view: View) -> str:
    """The architecture of a proxy, as the paper spells it; its own record tells, else its name."""
    architectures = {r.student for r in view.teachers if (r.dataset, r.label) == (run.dataset, name)} or {name}
    architecture = architectures.pop()
    return str(STUDENTS.get(architecture, architecture))


def comparison(runs: Sequence[Run], teacher_runs: Sequence[Run], view: View) -> list[Table]:
    """One table a data set of our values, the paper's and the differences, one on transfer; none without a match."""
    tables = []
    for dataset in ("cifar10", "cifar100"):
        teachers = [run for run in teacher_runs if run.dataset == dataset]
        students = sorted((run for run in runs if run.dataset == dataset), key=_place)
        metrics = [m for m in view.metrics([*teachers, *students]) if m in ATTACKS]
        rows = [*_rows(teachers, metrics, view), *_rows(students, metrics, view)]
        if rows:
            caption = (
                f"Against the paper on {dataset} (SmaraAD, CVPR 2024, Tables 2 to 4): accuracy (%) measured here, "
                "printed there, and the difference Δ, ours minus the paper's, in points."
            )
            tables.append(
                Table(
                    slug("paper", dataset),
                    f"Against the paper, {dataset}",
                    caption,
                    _columns(metrics),
                    tuple(rows),
                    _caveats(metrics, rows),
                    about(dataset=dataset),
                )
            )
    return tables + _transfer(runs, view)


def _transfer(runs: Sequence[Run], view: View) -> list[Table]:
    members = [run for run in runs if run.dataset == "cifar10"]
    pairs = sorted(view.transferred(members), key=lambda pair: (natural(pair[0]), pair[1] != "pgd20", pair[1]))
    metrics = [f"transfer:{proxy}:{attack}" for proxy, attack in pairs]
    rows = list(_rows(members, metrics, view))
    metrics = [m for m in metrics if any(value(run, m, view) is not None for run in members)]
    if not rows:
        return []
    caption = (
        "Against the paper's black-box Table 5 on cifar10 (SmaraAD, CVPR 2024): accuracy (%) measured here, printed "
        "there, and the difference Δ, ours minus the paper's, in points."
    )
    rows = list(_rows(members, metrics, view))
    title = "Against the paper, black-box transfer, cifar10"
    facets = about(dataset="cifar10")
    return [
        Table("paper_transfer_cifar10", title, caption, _columns(metrics), tuple(rows), (TABLE_5, TEACHERS), facets)
    ]


def _place(run: Run) -> tuple[int, tuple[tuple[int, str], ...]]:
    known = list(STUDENTS)
    return known.index(run.student) if run.student in known else len(known), natural(run.teacher or "")


def _columns(metrics: Sequence[str]) -> tuple[Column, ...]:
    titles = ("Ours", "Paper", "Δ")
    return (Column("Network", numeric=False), *(Column(title, heading(m)) for m in metrics for title in titles))


def _rows(runs: Sequence[Run], metrics: Sequence[str], view: View) -> Iterator[Row]:
    for run in runs:
        theirs = [value(run, metric, view) for metric in metrics]
        if not run.done or all(each is None for each in theirs):
            continue
        cells = [TableCell(run.label)]
        for metric, printed in zip(metrics, theirs, strict=True):
            ours = run.estimate(metric)
            cells += [
                TableCell(f"{ours.mean:.2f}", records=view.where([run])) if ours else MISSING,
                MISSING if printed is None else TableCell(f"{printed:.2f}"),
                MISSING if printed is None or ours is None else TableCell(signed(ours.mean - printed)),
            ]
        block = f"Student {taught(run.student, run.teacher)}" if run.method else "Teachers"
        student = run.student if run.method else None
        teacher = run.teacher if run.method else run.label
        yield Row(tuple(cells), block, about(student=student, teacher=teacher, method=run.method and run.label))


def signed(points: float, digits: int = 2) -> str:
    """A difference with its sign, two decimals or as many as its numbers have."""
    # Adding 0.0 turns a rounded -0.0 into 0.0: no difference has no direction.
    return f"{round(points, digits) + 0.0:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _caveats(metrics: Sequence[str], rows: Sequence[Row]) -> tuple[str, ...]:
    """What to keep in mind, of the columns and rows that are there."""
    names = {row.cells[0].text for row in rows}
    notes = [TEACHERS, SINGLE]
    notes += [FGSM] if "fgsm" in metrics else []
    notes += [CW] if "cw" in metrics else []
    notes += [OPEN] if names & {"MTARD", "IAD"} else []
    return tuple(notes)
