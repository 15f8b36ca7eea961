"""Records to tables: teachers, white-box, black-box transfer, ablation and the list of cells."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

from adbench.report import captions
from adbench.report.families import families
from adbench.report.model import FAILED, MISSING, Column, Row, Table, TableCell, about
from adbench.report.parts import by_setting, titles
from adbench.report.tables import masking
from adbench.report.tables.ranking import RANKING, UnrankedRow, accuracy, rank
from adbench.report.view import View
from adbench.results import quantities
from adbench.results.record import Record
from adbench.results.runs import ABLATION, Run, heading, natural, slug
from adbench.results.teachers import proxy_accuracy, teacher_accuracy

ABREAST = 10
"""A page holds about this many columns of numbers: two teachers with the paper's five attacks, as the paper prints."""


def teachers(runs: Sequence[Run], view: View) -> list[Table]:
    """Table 2: how robust each teacher is itself, one row a teacher."""
    return _networks(
        runs, view, "teachers", "Teacher", "Teachers' own robustness", "Accuracy (%) of the teachers themselves."
    )


def checkpoints(runs: Sequence[Run], view: View) -> list[Table]:
    """Networks from `adbench eval`: not trained here, so in no comparison of methods."""
    return _networks(
        runs, view, "checkpoints", "Checkpoint", "Evaluated checkpoints", "Accuracy (%) of networks from elsewhere."
    )


@by_setting
def white_box(runs: Sequence[Run], view: View) -> list[Table]:
    """Tables 3 and 4: one table a data set; methods by student, teachers side by side (or as `view` groups them)."""
    metrics = view.metrics(runs)
    if not metrics:
        return []
    teachers = _teacher_names(runs, view.teachers)
    _, abreast = _layout(view.group_by)
    side_by_side = (teachers if abreast == "teacher" else list(dict.fromkeys(run.student for run in runs))) or [""]
    many = max(1, ABREAST // len(metrics))
    pages = [side_by_side[i : i + many] for i in range(0, len(side_by_side), many)]
    return [_white_box_page(runs, teachers, pages, number, view) for number in range(len(pages))]


def _layout(group_by: str) -> tuple[str, str]:
    """What rows name and what stands side by side, where blocks are of `group_by`."""
    return {"student": ("method", "teacher"), "teacher": ("method", "student"), "method": ("student", "teacher")}[
        group_by
    ]


def _white_box_page(
    runs: Sequence[Run], teachers: Sequence[str], pages: Sequence[Sequence[str]], number: int, view: View
) -> Table:
    """One of the pages, each of which has its teachers (or students) side by side."""
    dataset, metrics, shown = runs[0].dataset, view.metrics(runs), pages[number]
    part = f", part {number + 1} of {len(pages)}" if len(pages) > 1 else ""
    row, abreast = _layout(view.group_by)
    grid = _grid(runs, teachers, shown, view)
    order = {"teacher": list(teachers)}.get(view.group_by) or list(dict.fromkeys(block for block, *_ in grid))
    told = families(list(grid.values())) if row == "method" else {}
    of_row = {key[:2]: told.get(id(run), "") for key, run in grid.items()}
    places = sorted(dict.fromkeys(key[:2] for key in grid), key=lambda key: order.index(key[0]) if key[0] else 0)
    lines = [
        UnrankedRow(
            name,
            tuple((grid.get((block, name, column)), metric) for column in shown for metric in metrics),
            _titled(view.group_by, block),
            about(**{view.group_by: block or None, row: name}),
            of_row[block, name],
        )
        for block, name in places
    ]
    columns = [
        Column(row.capitalize(), numeric=False),
        *(
            Column(
                heading(metric),
                _titled(abreast, name),
                about=about(**{abreast: name or None}),
                better=quantities.better(metric),
            )
            for name in shown
            for metric in metrics
        ),
    ]
    used = list({id(run): run for run in grid.values()}.values())
    ranking = rank(lines, columns, view)
    alone = any(run.teacher is None for run in used) and len(teachers) > 1
    caption = _join(
        f"White-box robustness on {dataset}{part}: accuracy (%) on clean images and under attack.",
        f"{RANKING}, among the rows of one {view.group_by}.",
        ranking.rule,
        "A method without a teacher was trained once and stands under every teacher." if alone else "",
        captions.untaught(used),
        *_evidence(used, metrics, view.spread),
    )
    notes = captions.warnings(used, metrics) + masking.notes(used)
    label = slug("whitebox", dataset, *([str(number + 1)] if part else []))
    title = f"White-box robustness, {dataset}{part}"
    return Table(label, title, caption, tuple(columns), ranking.rows, notes, about(dataset=dataset))


def _grid(
    runs: Sequence[Run], teachers: Sequence[str], shown: Sequence[str], view: View
) -> dict[tuple[str, str, str], Run]:
    """Each run by its block, its row and its column."""
    row, abreast = _layout(view.group_by)
    grid: dict[tuple[str, str, str], Run] = {}
    for run in sorted(runs, key=lambda run: run.order) if view.group_by == "method" else runs:
        # A method without a teacher was trained once, and stands under every teacher.
        for teacher in [run.teacher] if run.teacher else teachers or [""]:
            place = {"student": run.student, "method": run.label, "teacher": teacher}
            if place[abreast] in shown:
                grid[place[view.group_by], place[row], place[abreast]] = run
    return grid


def _titled(kind: str, name: str) -> str:
    """The heading of a block, or over columns; a method's is its name."""
    return name if kind == "method" or not name else f"{kind.capitalize()} {name}"


@by_setting
def transfer(runs: Sequence[Run], view: View) -> list[Table]:
    """Table 5: accuracy on adversarial examples made on a proxy network that the attacker holds."""
    return _transferred(runs, view, "transfer", "Black-box transfer")


@by_setting
def transferred_to_checkpoints(runs: Sequence[Run], view: View) -> list[Table]:
    """The same of networks from elsewhere: all that is known of one without gradients, beside Square."""
    return _transferred(runs, view, "transfer-checkpoints", "Black-box transfer to evaluated checkpoints")


def _transferred(runs: Sequence[Run], view: View, label: str, what: str) -> list[Table]:
    dataset = runs[0].dataset
    pairs = sorted(view.transferred(runs), key=lambda pair: (natural(pair[0]), pair[1] != "pgd20", pair[1]))
    if not pairs:
        return []
    columns = [
        Column("Student" if view.group_by == "method" else "Method", numeric=False),
        *(Column(heading(attack), _proxy_heading(proxy, runs, view.teachers)) for proxy, attack in pairs),
    ]
    metrics = [f"transfer:{proxy}:{attack}" for proxy, attack in pairs]
    attacked = [run for run in runs if run.failed or any(run.metrics(m) for m in metrics)]
    ranking = rank(list(_transfer_lines(attacked, metrics, view)), columns, view)
    among = "of one method" if view.group_by == "method" else "of one student and teacher"
    caption = _join(
        f"Black-box robustness on {dataset}: accuracy (%) on adversarial examples made on a proxy.",
        f"{RANKING}, among the rows {among}.",
        ranking.rule,
        captions.untaught(attacked),
        *_evidence(attacked, metrics, view.spread),
    )
    title, notes = f"{what}, {dataset}", captions.warnings(attacked, metrics)
    return [Table(slug(label, dataset), title, caption, tuple(columns), ranking.rows, notes, about(dataset=dataset))]


def _transfer_lines(runs: Sequence[Run], metrics: Sequence[str], view: View) -> Iterator[UnrankedRow]:
    places: list[tuple[str, str, Run]] = []
    for _, of_student in groupby(runs, key=lambda run: run.student):
        group = list(of_student)
        for teacher in _teacher_names(group, view.teachers) or [""]:
            places += [(run.student, teacher, run) for run in group if (run.teacher or teacher) == teacher]
    if view.group_by == "teacher":
        names = _teacher_names(runs, view.teachers)
        places.sort(key=lambda place: names.index(place[1]) if place[1] else -1)
    elif view.group_by == "method":
        places.sort(key=lambda place: place[2].order)
    told = {} if view.group_by == "method" else families(runs)
    for student, teacher, run in places:
        where = captions.taught(student, teacher)
        name, block = (where, run.label) if view.group_by == "method" else (run.label, f"Student {where}")
        facets = about(student=student, teacher=teacher or None, method=run.label)
        yield UnrankedRow(name, tuple((run, metric) for metric in metrics), block, facets, told.get(id(run), ""))


@by_setting
def ablation(runs: Sequence[Run], view: View) -> list[Table]:
    """Figure 4's data: SmaraAD's variants by data set, student and teacher, where there are two or more."""
    dataset = runs[0].dataset
    shown = [run for group in variants(runs) if view.metrics(group) for run in group]
    if not shown:
        return []
    metrics = view.metrics(shown)
    columns = [
        Column("Variant", numeric=False),
        *(Column(heading(metric), better=quantities.better(metric)) for metric in metrics),
    ]
    lines = [
        UnrankedRow(
            run.label,
            tuple((run, metric) for metric in metrics),
            f"Student {captions.taught(run.student, run.teacher)}",
            about(student=run.student, teacher=run.teacher, method=run.label),
        )
        for run in shown
    ]
    ranking = rank(lines, columns, view)
    caption = _join(
        f"Ablation of SmaraAD on {dataset}: accuracy (%) of its variants, as Figure 4 of the paper has them.",
        f"{RANKING}, among the variants of one student and teacher.",
        ranking.rule,
        *_evidence(shown, metrics, view.spread),
    )
    notes = captions.warnings(shown, metrics) + masking.notes(shown)
    title = f"Ablation of SmaraAD, {dataset}"
    return [
        Table(slug("ablation", dataset), title, caption, tuple(columns), ranking.rows, notes, about(dataset=dataset))
    ]


def variants(runs: Sequence[Run]) -> list[list[Run]]:
    """The finished variants of SmaraAD by data set, student and teacher, in Figure 4's order; groups of two or more."""
    ordered = sorted(
        (run for run in runs if run.method in ABLATION and run.done),
        key=lambda run: (natural(run.dataset), run.student, natural(run.teacher or "")),
    )
    groups = [
        sorted(members, key=lambda run: ABLATION.index(str(run.method)))
        for _, members in groupby(ordered, key=lambda run: (run.dataset, run.student, run.teacher))
    ]
    return [group for group in groups if len({run.method for run in group}) > 1]


def cells(view: View, used: set[str]) -> Table:
    """Every record that was read, with its path below the results folder; used: the paths of those in other tables."""
    columns = tuple(
        Column(title, numeric=False)
        for title in ("Data set", "Network", "Teacher", "Student", "Seed", "State", "Record")
    )
    unused = {"teacher": "further evaluation"}
    rows = []
    for r in view.records:
        path = view.names[id(r)]
        state = TableCell("done" if path in used else unused.get(r.kind, "repeated")) if r.done else FAILED
        texts = (r.dataset, r.label, r.teacher, r.student, None if r.seed is None else str(r.seed))
        facets = about(
            dataset=r.dataset, teacher=r.teacher, student=r.student, method=r.label if r.kind == "student" else None
        )
        cells = (
            *(MISSING if text is None else TableCell(text) for text in texts),
            state,
            TableCell(path, records=(path,)),
        )
        rows.append(Row(cells, about=facets))
    caption = (
        "Every record behind this report. Paths are relative to the results folder; a repeated cell gave way "
        "to an equal one that finished later, and a further evaluation of a teacher to its fullest one."
    )
    return Table("cells", "Cells", caption, columns, tuple(rows))


def _networks(runs: Sequence[Run], view: View, label: str, name: str, title: str, what: str) -> list[Table]:
    metrics = view.metrics(runs)
    if not metrics or not any(run.done for run in runs):
        return []
    columns = (
        Column(name, numeric=False),
        Column("Architecture", numeric=False),
        Column("Parameters (M)"),
        *(Column(heading(metric), better=quantities.better(metric)) for metric in metrics),
    )
    blocks = titles(runs)
    rows = [
        Row(
            (
                TableCell(run.label),
                TableCell(run.student),
                mean(run, lambda r: r.network.parameters / 1e6, ".3g"),
                *(accuracy(run, metric, view) for metric in metrics),
            ),
            blocks[id(run)],
            about(dataset=run.dataset, teacher=run.label if label == "teachers" else None),
        )
        for run in sorted(runs, key=lambda run: (natural(run.dataset), natural(blocks[id(run)])))
    ]
    caption = _join(what, *_evidence(runs, metrics, view.spread))
    notes = captions.warnings(runs, metrics) + masking.notes(runs)
    return [Table(label, title, caption, columns, tuple(rows), notes)]


def _evidence(runs: Sequence[Run], metrics: Sequence[str], spread: str) -> tuple[str, ...]:
    done = [record for run in runs for record in run.done]
    attacks = quantities.attacks_behind(metrics)
    return (
        captions.quantities_of(metrics),
        captions.images(done, attacks),
        captions.seeds(runs, spread),
        captions.sampling(runs, [metric for metric in metrics if not quantities.split(metric)[0]]),
        captions.attacks(done, attacks),
        captions.checkpoints(done),
        captions.versions(done),
    )


def mean(run: Run, read: Callable[[Record], float | None], form: str) -> TableCell:
    """What `read` finds in the records of a run, averaged; 0 counts as not measured."""
    values = [value for record in run.done if (value := read(record))]
    if values:
        return TableCell(format(math.fsum(values) / len(values), form))
    return FAILED if run.failed and not run.done else MISSING


def _teacher_names(runs: Sequence[Run], records: Sequence[Record]) -> list[str]:
    """Teachers of `runs`, the most robust first where their own records tell, then by name."""
    own: dict[str, float] = {}
    for run in runs:
        if run.teacher:
            accuracy = teacher_accuracy(run, records, "aa")
            own[run.teacher] = max(own.get(run.teacher, -1.0), -1.0 if accuracy is None else accuracy)
    return sorted(own, key=lambda name: (-own[name], natural(name)))


def _proxy_heading(proxy: str, runs: Sequence[Run], records: Sequence[Record]) -> str:
    """The proxy, with its own PGD-20 accuracy where a record tells."""
    own = proxy_accuracy(proxy, runs, records, "pgd20")
    return f"Proxy {proxy}" + ("" if own is None else f" (its PGD-20: {own:.2f})")


def _join(*sentences: str) -> str:
    return " ".join(sentence.strip() for sentence in sentences if sentence.strip())
