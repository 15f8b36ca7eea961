"""Searches for settings (`adbench tune`), and what the setting that each found is worth on test images beside the
recipe's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

from adbench.report import captions
from adbench.report.model import MISSING, Column, Row, Table, TableCell, about
from adbench.report.tables.ranking import accuracy
from adbench.report.view import View
from adbench.results import tuning
from adbench.results.runs import Run, attacks_of, heading, natural, slug, strongest
from adbench.results.tuning import Trial, Tuning


def tables(runs: Sequence[Run], view: View) -> list[Table]:
    """One table a data set, a row a search; test figures where the cells of its trials were judged, too."""
    searches = sorted(tuning.read_all(view.results, view.left_out), key=_order)
    return [_table(list(members), runs, view) for _, members in groupby(searches, key=lambda one: one.dataset)]


def _order(one: Tuning) -> tuple[object, ...]:
    return natural(one.dataset), natural(one.student), natural(one.method), natural(one.teacher or ""), one.id


def _table(searches: Sequence[Tuning], runs: Sequence[Run], view: View) -> Table:
    dataset = searches[0].dataset
    by_training = _by_training(searches, runs)
    judged = list(by_training.values())
    attack = strongest(judged, attacks_of(judged)) if judged else ""
    rows = []
    for one in searches:
        recipe, best = one.trials[0], one.best
        beside = [
            accuracy(by_training.get(trial.train_id), attack, view) if trial and attack else MISSING
            for trial in (recipe, best)
        ]
        cells = (
            TableCell(by_training[recipe.train_id].label if recipe.train_id in by_training else one.method),
            TableCell(one.teacher) if one.teacher else MISSING,
            TableCell(f"{len(one.trials)}"),
            TableCell(f"{one.spent:.0f} of {one.budget:.0f}"),
            _held_out(recipe),
            _held_out(best),
            TableCell(tuning.told(best.settings) if best else "all failed"),
            *(beside if attack else ()),
        )
        facets = about(student=one.student, teacher=one.teacher, method=cells[0].text)
        rows.append(Row(cells, f"Student {one.student}", facets))
    columns = [
        Column("Method", numeric=False),
        Column("Teacher", numeric=False),
        Column("Tried"),
        Column("Passes"),
        Column("Recipe", "Held out: robust (%)"),
        Column("Best", "Held out: robust (%)"),
        Column("Best setting", numeric=False, wide=True),
    ]
    if attack:
        columns += [Column(title, f"Test: {heading(attack)} (%)") for title in ("Recipe", "Best")]
    counts = captions.listed(sorted({one.held_out for one in searches}), "or")
    caption = (
        f"Random searches for settings on {dataset}, each within a budget of forward and backward passes an image. The "
        f"best setting is that of the highest robust accuracy on {counts} held-out training images; as the best of "
        "several it is too high there. Test images had no part in it."
    )
    if attack:
        n = max(metric.n for run in judged for metric in run.metrics(attack))
        caption += f" Test figures are of the networks of these trainings that were judged alike, on {n:,} test images."
    return Table(
        slug("tuned", dataset), f"Tuned, {dataset}", caption, tuple(columns), tuple(rows), (), about(dataset=dataset)
    )


def _by_training(searches: Sequence[Tuning], runs: Sequence[Run]) -> dict[str, Run]:
    """The trainings of these searches that were judged with their best epoch, each as a run of its own record; of
    several evaluations the one that most of them have, and of these the fullest."""
    wanted = {trial.train_id for one in searches for trial in one.trials}
    found: dict[str, dict[str, Run]] = {}
    for run in runs:
        for record in run.done:
            if record.train_id in wanted and record.network.checkpoint == "best":
                alone = replace(run, done=(record,), failed=(), last={})
                found.setdefault(record.eval_id, {})[record.train_id] = alone

    def images(evaluation: dict[str, Run]) -> int:
        return max(record.images.test_images for run in evaluation.values() for record in run.done)

    return max(found.values(), key=lambda evaluation: (len(evaluation), images(evaluation)), default={})


def _held_out(trial: Trial | None) -> TableCell:
    if trial is None or trial.val_robust is None:
        return MISSING
    return TableCell(f"{100 * trial.val_robust:.2f}", details=(("best epoch", str(trial.best_epoch)),))
