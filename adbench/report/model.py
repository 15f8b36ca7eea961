"""The one table model. What a table says is decided once, here; `render` only spells it.

A table is rows of cells under columns. Neighbouring columns may share a group (a teacher, a proxy) and
neighbouring rows a block (a student); marks such as "best" belong to the cell, not to its spelling.
All text is plain Unicode as it came from the records: every renderer escapes for its own language.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from itertools import groupby

from adbench.results.quantities import Better

About = tuple[tuple[str, str], ...]
"""What a table, column, row or figure is of, as (facet, value) pairs: readers of the page choose by these."""

FACETS = ("dataset", "setting", "student", "teacher", "method")


class Mark(Enum):
    """What a reader should notice about a cell."""

    NONE = "none"
    BEST = "best"
    SECOND = "second"
    FAILED = "failed"


@dataclass(frozen=True)
class TableCell:
    """One value as printed: `text`, and `spread`, the number after a plus-minus sign ("" for none), and its kind.

    tied: statistically tied with the best of its column. details: what stands behind the value, as (name, text)
    pairs for a reader who asks: n, intervals, the attack's definition, seeds. records: paths below the results folder.
    """

    text: str
    spread: str = ""
    spread_is: str = ""
    mark: Mark = Mark.NONE
    tied: bool = False
    details: tuple[tuple[str, str], ...] = ()
    records: tuple[str, ...] = ()


MISSING = TableCell("\N{EN DASH}")
FAILED = TableCell("failed", mark=Mark.FAILED)


@dataclass(frozen=True)
class Column:
    """A column; equal neighbouring `group`s are set under one common heading. wide: of sentences, which are wrapped.

    better: which of two of its numbers, for ranking.
    """

    title: str
    group: str = ""
    numeric: bool = True
    wide: bool = False
    about: About = ()
    better: Better = "higher"


@dataclass(frozen=True)
class Row:
    """One line of cells; the first names the row. Neighbours of equal `block` are set together.

    family: of its method, whose rows stand together within a block; numbers are ranked over all families of a block.
    """

    cells: tuple[TableCell, ...]
    block: str = ""
    about: About = ()
    family: str = ""

    @property
    def heading(self) -> str:
        """What stands over neighbours of equal block and family."""
        return f"{self.block}: {self.family.lower()}" if self.block and self.family else self.block or self.family


@dataclass(frozen=True)
class Table:
    """A table with all that is printed around it. `label` is its file name and LaTeX label.

    setting: how all its networks were judged, for readers who see the rows alone; "" where they were not judged alike.
    """

    label: str
    title: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    footnotes: tuple[str, ...] = ()
    about: About = ()
    setting: str = ""

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Headings over the columns with the number of columns each spans; [] when there are none."""
        spans = [(name, len(list(columns))) for name, columns in groupby(self.columns, key=lambda c: c.group)]
        return spans if any(name for name, _ in spans) else []

    def blocks(self) -> Iterator[tuple[str, list[Row]]]:
        """Rows by block and family, in order, with what stands over them."""
        for name, rows in groupby(self.rows, key=lambda row: row.heading):
            yield name, list(rows)


def about(**facets: str | None) -> About:
    """Facets that are known, as pairs: about(dataset="cifar10", teacher=None) is (("dataset", "cifar10"),)."""
    assert set(facets) <= set(FACETS), f"not among {FACETS}: {set(facets)}"
    return tuple((name, value) for name, value in facets.items() if value is not None)


def ranked(rows: Sequence[Row], columns: Sequence[Column]) -> tuple[Row, ...]:
    """Mark the best and second-best number of every numeric column within each block of rows.

    Numbers are compared as they are printed, so two cells that read the same share their mark; the second best is the
    next lower number (the next higher, where lower is better). A column with fewer than two numbers has nothing to
    compare.
    """
    marked: list[Row] = []
    for _, group in groupby(rows, key=lambda row: row.block):
        block = list(group)
        medals = [_medals([row.cells[i] for row in block], c) for i, c in enumerate(columns)]
        for row in block:
            cells = (
                replace(cell, mark=medal.get(number, cell.mark)) if (number := number_of(cell)) is not None else cell
                for cell, medal in zip(row.cells, medals, strict=True)
            )
            marked.append(replace(row, cells=tuple(cells)))
    return tuple(marked)


def number_of(cell: TableCell) -> float | None:
    """The number that a cell prints; None for a dash or words."""
    try:
        return float(cell.text.replace("\N{MINUS SIGN}", "-"))
    except ValueError:
        return None


def _medals(cells: Sequence[TableCell], column: Column) -> dict[float, Mark]:
    numbers = [number for cell in cells if (number := number_of(cell)) is not None]
    if not column.numeric or column.better == "neither" or len(numbers) < 2:
        return {}
    ordered = sorted(set(numbers), reverse=column.better == "higher")
    return dict(zip(ordered, (Mark.BEST, Mark.SECOND), strict=False))
