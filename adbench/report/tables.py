"""Records to tables: teachers, white-box, black-box transfer, costs and the list of cells."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path

from adbench.record import Record
from adbench.report import captions, masking
from adbench.report.model import FAILED, MISSING, Cell, Column, Row, Table, ranked
from adbench.report.runs import Estimate, Run, attacks_of, heading, natural, slug
from adbench.report.teachers import proxy_accuracy, teacher_accuracy

TEACHERS_ABREAST = 2
"""Further teachers go into a further table: the paper prints two side by side, and a page holds no more."""

RANKING = "The best number of a column is bold and the second best underlined"


def teachers(runs: Sequence[Run]) -> list[Table]:
    """Table 2: how robust each teacher is itself, one row a teacher."""
    return _networks(
        runs, "teachers", "Teacher", "Teachers' own robustness", "Accuracy (%) of the teachers themselves."
    )


def checkpoints(runs: Sequence[Run]) -> list[Table]:
    """Networks from `adbench eval`: not trained here, so in no comparison of methods."""
    return _networks(
        runs, "checkpoints", "Checkpoint", "Evaluated checkpoints", "Accuracy (%) of networks from elsewhere."
    )


def white_box(runs: Sequence[Run], records: Sequence[Record]) -> list[Table]:
    """Tables 3 and 4: one table a data set; methods by student, teachers side by side."""
    tables = []
    for dataset, members in _by_dataset(runs):
        teachers = _teacher_names(members, records)
        pages = [teachers[i : i + TEACHERS_ABREAST] for i in range(0, len(teachers), TEACHERS_ABREAST)] or [[]]
        for number, names in enumerate(pages, start=1):
            page = [run for run in members if run.teacher is None or run.teacher in names]
            part = f", part {number} of {len(pages)}" if len(pages) > 1 else ""
            tables.append(_white_box_page(dataset, page, names, part, number if part else 0))
    return tables


def transfer(runs: Sequence[Run], records: Sequence[Record]) -> list[Table]:
    """Table 5: accuracy on adversarial examples made on a proxy network that the attacker holds."""
    tables = []
    for dataset, members in _by_dataset(runs):
        keys = {key for run in members for r in run.done for key in r["metrics"] if key.startswith("transfer:")}
        pairs = sorted((_split(key) for key in keys), key=lambda pair: (natural(pair[0]), pair[1] != "pgd20", pair[1]))
        if not pairs:
            continue
        columns = [
            Column("Method", numeric=False),
            *(Column(heading(attack), _proxy_heading(proxy, members, records)) for proxy, attack in pairs),
        ]
        metrics = [f"transfer:{proxy}:{attack}" for proxy, attack in pairs]
        attacked = [run for run in members if run.failed or any(run.metrics(m) for m in metrics)]
        rows = []
        for student, of_student in groupby(attacked, key=lambda run: run.student):
            group = list(of_student)
            for teacher in _teacher_names(group, records) or [""]:
                block = f"Student {student}" + (f" taught by {teacher}" if teacher else "")
                for run in group:
                    if (run.teacher or teacher) == teacher:
                        rows.append(Row((Cell(run.label), *(_accuracy(run, m) for m in metrics)), block))
        caption = _join(
            f"Black-box robustness on {dataset}: accuracy (%) on adversarial examples made on a proxy.",
            f"{RANKING}, among the methods of one student and teacher.",
            *_evidence(attacked, metrics),
        )
        notes = captions.warnings(attacked, metrics)
        title = f"Black-box transfer, {dataset}"
        tables.append(Table(slug("transfer", dataset), title, caption, tuple(columns), ranked(rows, columns), notes))
    return tables


def costs(runs: Sequence[Run]) -> list[Table]:
    """What each method cost on the machine that ran it."""
    columns = (
        Column("Method", numeric=False),
        Column("Teacher", numeric=False),
        Column("Parameters (M)"),
        Column("Training (s)"),
        Column("Images/s"),
        Column("Peak memory (MiB)"),
        Column("Evaluation (s)"),
    )
    tables = []
    for dataset, members in _by_dataset(runs):
        done = [record for run in members for record in run.done]
        if not done:
            continue
        rows = [
            Row(
                (
                    Cell(run.label),
                    Cell(run.teacher) if run.teacher else MISSING,
                    _mean(run, lambda r: r["model"] and r["model"]["parameters"] / 1e6, ".3g"),
                    _mean(run, lambda r: r["training"] and r["training"]["seconds"], ".1f"),
                    _mean(run, lambda r: r["training"] and r["training"]["images_per_second"], ".0f"),
                    _mean(run, lambda r: r["training"] and r["training"]["peak_memory_bytes"] / 2**20, ".0f"),
                    _mean(run, lambda r: r["timing"].get("evaluate"), ".1f"),
                ),
                f"Student {run.student}",
            )
            for run in members
        ]
        devices = captions.listed(sorted({r["provenance"]["device"] for r in done}), "or")
        caption = _join(
            f"What training and evaluating each method on {dataset} cost on {devices}; means over seeds.",
            "Images/s counts training images, with the attack on each included.",
            captions.checkpoints(done),
            captions.versions(done),
        )
        notes = ("Times compare methods only where nothing else ran on the machine.",)
        tables.append(Table(slug("costs", dataset), f"Costs, {dataset}", caption, columns, tuple(rows), notes))
    return tables


def cells(records: Sequence[Record], results: Path, used: set[Path]) -> Table:
    """Every record that was read, with its path below the results folder."""
    columns = tuple(
        Column(title, numeric=False)
        for title in ("Data set", "Network", "Teacher", "Student", "Seed", "State", "Record")
    )
    unused = {"teacher": "further evaluation"}
    rows = [
        Row(
            (
                Cell(r["dataset"]),
                Cell(r["label"]),
                Cell(r["teacher"]) if r["teacher"] else MISSING,
                Cell(r["student"]),
                MISSING if r["seed"] is None else Cell(str(r["seed"])),
                FAILED if not r.done else Cell("done" if r.path in used else unused.get(r["kind"], "repeated")),
                Cell(r.path.relative_to(results).as_posix()),
            )
        )
        for r in records
    ]
    caption = (
        "Every record behind this report. Paths are relative to the results folder; a repeated cell gave way "
        "to an equal one that finished later, and a further evaluation of a teacher to its fullest one."
    )
    return Table("cells", "Cells", caption, columns, tuple(rows))


def _networks(runs: Sequence[Run], label: str, name: str, title: str, what: str) -> list[Table]:
    if not any(run.done for run in runs):
        return []
    metrics = attacks_of(runs)
    columns = (
        Column(name, numeric=False),
        Column("Architecture", numeric=False),
        Column("Parameters (M)"),
        *(Column(heading(metric)) for metric in metrics),
    )
    rows = [
        Row(
            (
                Cell(run.label),
                Cell(run.student),
                _mean(run, lambda r: r["model"] and r["model"]["parameters"] / 1e6, ".3g"),
                *(_accuracy(run, metric) for metric in metrics),
            ),
            run.dataset,
        )
        for run in runs
    ]
    caption = _join(what, *_evidence(runs, metrics))
    notes = captions.warnings(runs, metrics) + masking.notes(runs)
    return [Table(label, title, caption, columns, tuple(rows), notes)]


def _white_box_page(dataset: str, runs: Sequence[Run], names: Sequence[str], part: str, number: int) -> Table:
    metrics = attacks_of(runs)
    columns = [Column("Method", numeric=False)]
    columns += [Column(heading(m), f"Teacher {name}" if name else "") for name in names or [""] for m in metrics]
    rows = []
    for student, of_student in groupby(runs, key=lambda run: run.student):
        for (_, label), same_row in groupby(of_student, key=lambda run: (run.order, run.label)):
            by_teacher = {run.teacher: run for run in same_row}
            found = [by_teacher.get(name, by_teacher.get(None)) for name in names or [""]]
            values = (_accuracy(run, m) if run else MISSING for run in found for m in metrics)
            rows.append(Row((Cell(label), *values), f"Student {student}"))
    alone = any(run.teacher is None for run in runs) and len(names) > 1
    caption = _join(
        f"White-box robustness on {dataset}{part}: accuracy (%) on clean images and under attack.",
        f"{RANKING}, among the methods of one student" + (" and teacher." if len(names) > 1 else "."),
        "A method without a teacher was trained once and stands under every teacher." if alone else "",
        *_evidence(runs, metrics),
    )
    label = slug("whitebox", dataset, *([str(number)] if number else []))
    title = f"White-box robustness, {dataset}{part}"
    notes = captions.warnings(runs, metrics) + masking.notes(runs)
    return Table(label, title, caption, tuple(columns), ranked(rows, columns), notes)


def _evidence(runs: Sequence[Run], metrics: Sequence[str]) -> tuple[str, ...]:
    done = [record for run in runs for record in run.done]
    return (
        captions.images(done, metrics),
        captions.seeds(runs),
        captions.sampling(runs, metrics),
        captions.attacks(done, metrics),
        captions.checkpoints(done),
        captions.versions(done),
    )


def _accuracy(run: Run, metric: str) -> Cell:
    estimate = run.estimate(metric)
    if estimate is not None:
        return percent(estimate)
    return FAILED if run.failed and not run.done else MISSING


def percent(estimate: Estimate) -> Cell:
    """An accuracy as printed: two decimals, and the half-width where there are several seeds."""
    return Cell(f"{estimate.mean:.2f}", "" if math.isnan(estimate.half) else f"{estimate.half:.2f}")


def _mean(run: Run, read: Callable[[Record], float | None], form: str) -> Cell:
    values = [value for record in run.done if (value := read(record))]
    if values:
        return Cell(format(math.fsum(values) / len(values), form))
    return FAILED if run.failed and not run.done else MISSING


def _by_dataset(runs: Sequence[Run]) -> list[tuple[str, list[Run]]]:
    return [(dataset, list(members)) for dataset, members in groupby(runs, key=lambda run: run.dataset)]


def _teacher_names(runs: Sequence[Run], records: Sequence[Record]) -> list[str]:
    """Teachers of `runs`, the most robust first where their own records tell, then by name."""
    own: dict[str, float] = {}
    for run in runs:
        if run.teacher:
            accuracy = teacher_accuracy(run, records, "aa")
            own[run.teacher] = max(own.get(run.teacher, -1.0), -1.0 if accuracy is None else accuracy)
    return sorted(own, key=lambda name: (-own[name], natural(name)))


def _split(key: str) -> tuple[str, str]:
    """transfer:<proxy>:<attack> into proxy and attack."""
    proxy, _, attack = key.partition(":")[2].rpartition(":")  # a proxy's name may have any character
    return proxy, attack


def _proxy_heading(proxy: str, runs: Sequence[Run], records: Sequence[Record]) -> str:
    """The proxy, with its own PGD-20 accuracy where a record tells."""
    own = proxy_accuracy(proxy, runs, records, "pgd20")
    return f"Proxy {proxy}" + ("" if own is None else f" (its PGD-20: {own:.2f})")


def _join(*sentences: str) -> str:
    return " ".join(sentence.strip() for sentence in sentences if sentence.strip())
