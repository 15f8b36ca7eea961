"""The highest robust accuracy of every data set and student, read off the tables: what a reader should know first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from adbench.report.captions import listed
from adbench.report.model import About, Table, TableCell, about
from adbench.results.runs import ATTACKS


@dataclass(frozen=True)
class Headline:
    """The highest accuracy (%) under the strongest attack in a sentence, and how far it can be trusted."""

    where: str
    value: str
    spread: str
    says: str
    more: str
    about: About


@dataclass(frozen=True)
class _Value:
    number: float
    cell: TableCell
    method: str
    teacher: str | None
    place: tuple[str, int, str]
    """Table, column and block: ties are within these."""


def findings(white_box: Iterable[Table], alone: frozenset[str]) -> list[Headline]:
    """Of the tables of white-box robustness, one finding a data set and student; none for a method alone.

    alone: labels of methods without a teacher; they stand under every teacher, and none taught them.
    """
    values: dict[tuple[str, str, str, str], list[_Value]] = {}
    for table in white_box:
        attack = next((a for a in reversed(ATTACKS.values()) if any(c.title == a for c in table.columns)), None)
        if attack and attack != ATTACKS["clean"]:
            for key, value in _values(table, attack, alone):
                values.setdefault((*key, attack), []).append(value)
    return [
        _finding(dataset, setting, student, attack, members)
        for (dataset, setting, student, attack), members in values.items()
        if len({value.method for value in members}) > 1
    ]


def _values(table: Table, attack: str, alone: frozenset[str]) -> Iterator[tuple[tuple[str, str, str], _Value]]:
    for row in table.rows:
        for place, (column, cell) in enumerate(zip(table.columns, row.cells, strict=True)):
            facets = dict((*table.about, *column.about, *row.about))
            if column.title == attack and {"dataset", "student", "method"} <= set(facets) and _is_number(cell):
                method = facets["method"]
                # A label may be followed by the settings that tell variants apart.
                taught = not any(method == label or method.startswith(f"{label} ") for label in alone)
                teacher = facets.get("teacher") if taught else None
                place_of = (table.label, place, row.block)
                yield (
                    (facets["dataset"], facets.get("setting", ""), facets["student"]),
                    _Value(float(cell.text), cell, method, teacher, place_of),
                )


def _finding(dataset: str, setting: str, student: str, attack: str, values: list[_Value]) -> Headline:
    best = max(values, key=lambda value: value.number)
    first = [value for value in values if value.number == best.number]
    names = list(dict.fromkeys(_named(value, several=len({v.teacher for v in first}) > 1) for value in first))
    methods = {value.method for value in values}
    places = {value.place for value in first}
    tied = [value.method for value in values if value.cell.tied and value.place in places and value not in first]
    lowest = min(values, key=lambda value: value.number)
    more = [
        f"Not told apart from {'it' if len(names) == 1 else 'them'} there: {listed(tied)}." if tied else "",
        f"The {len(methods)} methods compared lie between {lowest.number:.2f} and {best.number:.2f} %"
        + (f", under {len(taught)} teachers." if len(taught := {v.teacher for v in values if v.teacher}) > 1 else "."),
        "" if best.cell.spread else "One seed: this ranks networks, not methods.",
    ]
    under = "AutoAttack" if attack == ATTACKS["aa"] else attack
    return Headline(
        f"{dataset}, student {student}" + (f", {setting}" if setting else ""),
        best.cell.text,
        best.cell.spread,
        f"{listed(names)} {'has' if len(names) == 1 else 'have'} the highest accuracy under {under}"
        + (f", taught by {best.teacher}." if best.teacher and len(names) == 1 else "."),
        " ".join(filter(None, more)),
        about(dataset=dataset, setting=setting or None, student=student),
    )


def _named(value: _Value, several: bool) -> str:
    """A method, with its teacher where the best have several."""
    return f"{value.method} taught by {value.teacher}" if several and value.teacher else value.method


def _is_number(cell: TableCell) -> bool:
    return cell.text.replace(".", "", 1).isdigit()
