"""A board as one static page: what is in its folder and nothing else decides its bytes. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from adbench import __version__
from adbench.board import rules
from adbench.board.standings import LEVELS, Board, BoardRow, groups
from adbench.report import page, render
from adbench.report.captions import listed, whole
from adbench.report.model import MISSING, Column, Row, Table, TableCell, about
from adbench.report.page import Chapter
from adbench.results.paired import LEVEL
from adbench.results.record import Record
from adbench.results.runs import Estimate, heading, natural, slug
from adbench.system.files import write_text

INDEX = "index.html"

LEGEND = (
    (
        "Group",
        (
            "rows not told apart from the first row of their group, without an order. Of three seeds or more that two "
            "rows share, a paired t-test over seeds; of fewer, McNemar's exact test on the images for each pair of "
            f"networks, the largest p. Holm's correction for all pairs of a table, at {LEVEL:g} for the whole table."
        ),
    ),
    (
        "Best-known",
        (
            "test images, in percent, on which a network is right under every attack of its record within the threat "
            "model, and that no challenge has broken since. Where an attack was run on fewer images, on those."
        ),
    ),
    ("Claimed", "the same before any challenge."),
    ("AutoAttack", "accuracy, and on how many test images where these are not all."),
    (
        "Level",
        (
            "claimed: figures, outcomes and log agree with each other. re-attacked: others attacked survivors of "
            "every attack anew, under a seed drawn afterwards. reproduced: others trained the cell again, and it "
            "came out alike. A row has the level that all its networks have."
        ),
    ),
    ("Date", "when the last of its networks was finished, as its record says."),
    ("Passes", "forward and backward passes over the training images, in all, as the method declares them."),
    ("Extra data", "images beyond the training set, or weights that training began with."),
    ("Teacher's hash", "the beginning of the SHA-256 of its weights."),
    ("Recipe track", f"the presets that train so; {rules.OWN}: none does."),
)


def build(board: Board, out: Path) -> Path:
    """Write the board's page into `out`; returns its path."""
    path = out / INDEX
    write_text(path, html(board))
    return path


def html(board: Board) -> str:
    """The page, self-contained: nothing is fetched, and no script runs but its own."""
    sections = _sections(board)
    tables = [table for section in sections for table in section.tables]
    style, script = page.manners()
    evidence = page.CellEvidence()
    fragments = {table.label: Markup(render.html(table, evidence.of)) for table in tables}
    return (
        render.environment()
        .get_template("board.html.j2")
        .render(
            title=board.rules.title,
            summary=_summary(board),
            legend=LEGEND,
            sections=sections,
            fragments=fragments,
            choices=page.choices(tables),
            submissions=board.entries,
            left_out=[render.one_line(why) for why in board.left_out],
            policy=page.policy(style, script),
            style=Markup(style),
            script=Markup(script),
            evidence=evidence.plain,
            version=__version__,
        )
    )


def _summary(board: Board) -> str:
    reached = [line.level for lines in board.ranked.values() for line in lines]
    levels = listed(f"{reached.count(level)} {level}" for level in LEVELS)
    told = f"{_number(len(reached), 'row')} of {_number(len(board.entries), 'submission')}: {levels}"
    return f"{told}; {len(board.false)} found out." if board.false else f"{told}."


def _number(count: int, of: str) -> str:
    return f"{count} {of}" if count == 1 else f"{count} {of}s"


def _sections(board: Board) -> list[Chapter]:
    places: dict[str, list[Table]] = {}
    for number, ((dataset, student, _), lines) in enumerate(board.ranked.items(), 1):
        places.setdefault(dataset, []).append(_table(dataset, student, number, lines))
    sections = [Chapter(slug(dataset), dataset, tuple(places[dataset])) for dataset in sorted(places, key=natural)]
    if board.false:
        sections.append(Chapter("found-out", "Found out", (_false(board.false),)))
    return sections


COLUMNS = (
    Column("Method", numeric=False),
    Column("By", numeric=False),
    Column("Group"),
    Column("Best-known"),
    Column("Claimed"),
    Column("Clean"),
    Column(heading("aa")),
    Column("Level", numeric=False),
    Column("Seeds"),
    Column("Date", numeric=False),
    Column("Passes"),
    Column("Extra data", numeric=False),
    Column("Teacher", numeric=False),
    Column("Teacher's hash", numeric=False),
    Column("Recipe track", numeric=False),
)


def _table(dataset: str, student: str, number: int, lines: Sequence[BoardRow]) -> Table:
    placed = sorted(zip(groups(lines), lines, strict=True), key=lambda pair: pair[0])
    first = lines[0].networks[0].record
    attacks = ", ".join(
        f"{heading(name)} ({whole(first.metrics[name].n)})" for name in first.metrics if name in rules.white_box(first)
    )
    tested = rules.RANKED[dataset]
    return Table(
        label=f"board-{number}",
        title=f"{dataset}, {student}",
        caption=(
            f"Accuracy in percent on all {whole(tested.images)} test images, ε = {tested.eps}. Attacks (images): "
            f"{attacks}. Rows of a group are not told apart from its first."
        ),
        columns=COLUMNS,
        rows=tuple(_row(group, line) for group, line in placed),
        about=about(dataset=dataset, student=student),
    )


def _row(group: int, line: BoardRow) -> Row:
    records = [network.record for network in line.networks]
    first = records[0]
    dates = max(record.provenance.finished[:10] for record in records)
    robust = first.teachers.robust
    cells = (
        TableCell(line.run.label, details=(("Settings", line.run.differs),) if line.run.differs else ()),
        TableCell(line.entry.said.label),
        TableCell(str(group)),
        _percent(line.best, _behind(line), _paths(line)),
        _percent(line.claimed),
        _percent(Estimate.over([100 * record.metrics["clean"].value for record in records])),
        _autoattack(records),
        TableCell(line.level, details=_levels(line)),
        TableCell(str(len(records)), details=(("Seeds", listed(str(record.seed) for record in records)),)),
        TableCell(dates),
        _passes(first),
        TableCell(_extra(first)),
        TableCell(first.teacher or MISSING.text),
        TableCell(robust.weights_sha256[:12] if robust else MISSING.text),
        TableCell(rules.track(first)),
    )
    return Row(cells, about=about(method=line.run.label, teacher=first.teacher))


def _percent(value: Estimate, details: tuple[tuple[str, str], ...] = (), records: tuple[str, ...] = ()) -> TableCell:
    spread = value.spread()
    return TableCell(f"{value.mean:.2f}", spread.text, spread.name, details=details, records=records)


def _behind(line: BoardRow) -> tuple[tuple[str, str], ...]:
    """Each network's figure, what challenges did to it, and its verdict on gradient masking."""
    told = []
    for one in line.networks:
        n = len(one.best)
        told.append((f"Seed {one.record.seed}", f"{whole(int(one.best.sum()))} of {whole(n)} images"))
        for challenge in one.challenges:
            new = int(one.stands[[i for i in challenge.broken if i < n]].sum())
            told.append(("Challenged", f"{whole(new)} images broken by {challenge.by}, {challenge.date[:10]}"))
        if one.record.masking:
            told.append(("Gradient masking", one.record.masking.verdict))
    return tuple(told)


def _paths(line: BoardRow) -> tuple[str, ...]:
    """Where the records lie in the board."""
    paths = (network.record.path.as_posix() for network in line.networks)
    return tuple(path[path.rindex(f"{line.entry.folder}/") :] for path in paths)


def _levels(line: BoardRow) -> tuple[tuple[str, str], ...]:
    told = [(f"Seed {one.record.seed}", one.level) for one in line.networks]
    checks = {(v.date, v.seed) for one in line.networks for v in one.verdicts if v.attacked}
    told += [("Re-attacked", f"{date}, seed {seed}") for date, seed in sorted(checks)]
    told += [("Reproduced by", who) for who in sorted({one.reproduced for one in line.networks} - {""})]
    return tuple(told)


def _autoattack(records: Sequence[Record]) -> TableCell:
    found = [record.metrics["aa"] for record in records if "aa" in record.metrics]
    if len(found) < len(records):
        return MISSING
    n = found[0].n
    return _percent(Estimate.over([100 * one.value for one in found]), (("Test images", whole(n)),))


def _passes(record: Record) -> TableCell:
    training = record.training
    if training is None or training.passes is None:
        return MISSING
    each = training.passes["total"]
    text = f"{each * training.epochs:,.0f}".replace(",", "\u202f")
    return TableCell(text, details=(("An iteration", f"{each:g}"), ("Epochs", str(training.epochs))))


def _extra(record: Record) -> str:
    told = []
    if extra := record.images.extra:
        told.append(f"{whole(extra.images)} images ({extra.sha256[:8]})")
    if first := record.config.training.get("train", {}).get("init_sha256"):
        told.append(f"first weights {str(first)[:8]}")
    return ", ".join(told) or "none"


def _false(lines: Sequence[BoardRow]) -> Table:
    columns = (
        Column("Method", numeric=False),
        Column("By", numeric=False),
        Column("Student", numeric=False),
        Column("Claimed"),
        Column("What contradicts", numeric=False, wide=True),
    )
    rows = tuple(
        Row(
            (
                TableCell(line.run.label),
                TableCell(line.entry.said.label),
                TableCell(f"{line.run.student} on {line.run.dataset}"),
                _percent(line.claimed, (), _paths(line)),
                TableCell("; ".join(line.wrong)),
            ),
            about=about(dataset=line.run.dataset, student=line.run.student, method=line.run.label),
        )
        for line in lines
    )
    caption = "Rows that somebody else's check contradicts. They are not ranked."
    return Table("board-false", "Found out", caption, columns, rows)
