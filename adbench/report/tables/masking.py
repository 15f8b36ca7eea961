"""Tests for gradient masking, as a table and as footnotes: where robust accuracies may be illusions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from adbench.report.captions import listed, name, versions, whole
from adbench.report.model import MISSING, Column, Mark, Row, Table, TableCell
from adbench.report.parts import titles
from adbench.results.fields import MaskingTest
from adbench.results.record import Record
from adbench.results.runs import Run, natural

VERDICTS = ("pass", "suspect", "fail")
LATER = "transfer", "autoattack-flags"
"""Tests that not every network has, and that stand last."""


def table(runs: Sequence[Run]) -> list[Table]:
    """The verdict on every network that was examined, and each test's figure; none where none was."""
    examined = [run for run in runs if any(r.masking for r in run.done)]
    if not examined:
        return []
    tests = [test for run in examined for _, test in _tests(run)]
    names = sorted(dict.fromkeys(test.name for test in tests), key=lambda title: title in LATER)
    columns = (Column("Network", numeric=False), Column("Verdict", numeric=False), *map(Column, names))
    ordered = sorted(examined, key=lambda run: [r.dataset for r in examined].index(run.dataset))
    blocks = titles(ordered)
    rows = [
        Row((TableCell(name(run)), _marked("", verdict(run)), *(_figure(run, test) for test in names)), blocks[id(run)])
        for run in sorted(ordered, key=lambda run: natural(blocks[id(run)]))
    ]
    records = [r for run in examined for r in run.done if r.masking]
    images = listed((whole(n) for n in sorted({r.masking.images for r in records if r.masking})), "or")
    caption = (
        "Tests for gradient masking: where one fails, robust accuracy may be an illusion; a pass is no proof. "
        "Figures are shares of images (%) that speak against the network, but for those of determinism (of an image's "
        "range of logits) and autoattack-flags (a count); a negative one speaks for it. The verdict is the worst of "
        f"the tests, and of several seeds the worst is shown. First {images} test images, or all where the evaluation "
        f"has their outcomes. {versions(records)}"
    )
    rules = dict.fromkeys(f"{test.name}: {test.rule}." for test in tests)
    doubts = (
        f"{name(run)}{_seed(run, record)}, {test.name}, {test.verdict}: {test.says}"
        for run in examined
        for record, test in _tests(run)
        if test.verdict != "pass"
    )
    return [Table("masking", "Gradient masking", caption, columns, tuple(rows), (*dict.fromkeys(doubts), *rules))]


def verdict(run: Run) -> str:
    """The worst verdict on a seed of the run; "" where none was examined."""
    return max((r.masking.verdict for r in run.done if r.masking), key=VERDICTS.index, default="")


def notes(runs: Sequence[Run]) -> tuple[str, ...]:
    """Footnotes for a table of accuracies: whose are not to be trusted, and by which tests."""
    footnotes = []
    for run in runs:
        if (worst := verdict(run)) in VERDICTS[1:]:
            doubted = dict.fromkeys(test.name for _, test in _tests(run) if test.verdict != "pass")
            footnotes.append(
                f"{name(run)}: gradient masking, {worst} ({listed(doubted)}); its robust accuracy may be an illusion."
            )
    return tuple(dict.fromkeys(footnotes))


def _tests(run: Run) -> Iterator[tuple[Record, MaskingTest]]:
    for record in run.done:
        if record.masking:
            yield from ((record, test) for test in record.masking.tests)


def _figure(run: Run, title: str) -> TableCell:
    """The worst figure over seeds, with its verdict where that is no pass."""
    tests = [test for _, test in _tests(run) if test.name == title]
    if not tests:
        return MISSING
    worst = max(tests, key=lambda test: (VERDICTS.index(test.verdict), test.figure))
    figure = worst.figure
    percent = f"{100 * figure + 0.0:.1f}"
    if figure and not float(percent):
        percent = f"{100 * figure:.1g}"  # noise far below a percent is noise
    text = f"{figure:g}" if worst.unit == "count" else percent
    return _marked(text.replace("-", "\N{MINUS SIGN}"), worst.verdict)


def _marked(figure: str, judged: str) -> TableCell:
    """A figure with its verdict where that is no pass; the verdict alone where there is no figure."""
    if judged == "pass":
        return TableCell(figure or judged)
    return TableCell(f"{figure} ({judged})" if figure else judged, mark=Mark.FAILED)


def _seed(run: Run, record: Record) -> str:
    return f", seed {record.seed}" if len(run.done) > 1 else ""
