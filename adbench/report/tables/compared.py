"""`adbench report --compare METHOD`: every method tested against one, paired over seeds or on the same images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from adbench.report import captions
from adbench.report.families import arranged, families
from adbench.report.model import MISSING, Column, Row, Table, TableCell, about
from adbench.report.parts import by_setting
from adbench.report.tables.paper import signed
from adbench.report.tables.ranking import digits_of
from adbench.report.view import View
from adbench.results.paired import LEVEL, Standing, standing
from adbench.results.quantities import attacks_behind
from adbench.results.runs import Run, heading, slug


@by_setting
def tables(runs: Sequence[Run], view: View) -> list[Table]:
    """One table a data set and reference (a method may have been run with several settings); [] without a reference."""
    labels = dict.fromkeys(run.label for run in runs if _is(run, view.against))
    tables = (_table(label, [run for run in runs if run.label == label and run.done], runs, view) for label in labels)
    return [table for table in tables if table.rows]


def _is(run: Run, name: str | None) -> bool:
    return name is not None and name in (run.method, run.label, *(record.label for record in run.done[:1]))


def _table(label: str, references: Sequence[Run], runs: Sequence[Run], view: View) -> Table:
    dataset = runs[0].dataset
    metrics = view.metrics(runs)
    columns = [Column("Method", numeric=False)]
    columns += [Column(title, heading(metric)) for metric in metrics for title in ("Difference", "p")]
    pairs = [(run, other) for other in references for run in runs if _same_place(run, other)]
    pairs.sort(key=lambda pair: (pair[0].student, _teacher(*pair) or ""))
    tests: list[Standing] = []
    told = families([run for run, _ in pairs])
    rows = [
        replace(row, family=told[id(run)]) for run, other in pairs if (row := _row(run, other, metrics, tests, view))
    ]
    used = list({id(run): run for pair in pairs for run in pair}.values())
    done = [record for run in used for record in run.done]
    attacks = attacks_behind(metrics)
    caption = " ".join(
        filter(
            None,
            (
                f"Every method's accuracy on {dataset} minus that of {label}, in points.",
                *_rules(tests),
                captions.untaught(used),
                f"†: not told apart from {label} (p ≥ {LEVEL:g}); p values are not corrected for the number of tests.",
                captions.seeds(used, view.spread, "a difference"),
                captions.quantities_of(metrics),
                captions.images(done, attacks),
                captions.attacks(done, attacks),
            ),
        )
    )
    return Table(
        slug("compared", dataset, label.lower()),
        f"Compared with {label}, {dataset}",
        caption,
        tuple(columns),
        tuple(arranged(rows)),
        captions.warnings(used, metrics),
        about(dataset=dataset),
    )


def _rules(tests: Sequence[Standing]) -> Iterator[str]:
    if any(test.spread.name for test in tests):
        yield "Over two or more seeds that both have: p of the paired t-test."
    if any(not test.spread.name for test in tests):
        yield "Of one seed: p of McNemar's exact test on the same test images, which speaks of these networks alone."


def _same_place(run: Run, other: Run) -> bool:
    """Methods without a teacher stand beside every teacher's students."""
    taught = run.teacher == other.teacher or None in (run.teacher, other.teacher)
    return run is not other and taught and (run.dataset, run.student) == (other.dataset, other.student)


def _teacher(run: Run, other: Run) -> str | None:
    return run.teacher or other.teacher


def _row(run: Run, other: Run, metrics: Sequence[str], tests: list[Standing], view: View) -> Row | None:
    cells = [TableCell(run.label)]
    for metric in metrics:
        test = standing(run, other, metric, exact=True, spread=view.spread)
        if test is None:
            cells += [MISSING, MISSING]
            continue
        tests.append(test)
        difference = TableCell(
            signed(test.difference, digits_of(metric)),
            f"{test.spread.value:.{digits_of(metric)}f}" if test.spread.name else "",
            test.spread.name,
            tied=not test.apart,
            details=(("Test", test.says),),
        )
        cells += [replace(difference, records=view.where([run, other])), TableCell(_p(test.p_value))]
    teacher = _teacher(run, other)
    block = f"Student {captions.taught(run.student, teacher)}"
    facets = about(student=run.student, teacher=teacher, method=run.label)
    return Row(tuple(cells), block, facets) if any(cell is not MISSING for cell in cells[1:]) else None


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
