"""Text onto a terminal: tables that fit its width, and nothing in a name that moves the cursor or turns the writing."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Iterator, Sequence

from rich.cells import cell_len, chop_cells

NARROWEST = 12
"""Characters that a column of names keeps, however narrow the terminal."""

_GAP = 2


def plain(text: str) -> str:
    r"""`text` on one line, every character printed: control characters, escape sequences and marks that turn the
    direction of writing are spelt as \x1b or \u202e, white space is a space."""
    return "".join(c if c.isprintable() else " " if c.isspace() else _spelt(c) for c in text)


def _spelt(c: str) -> str:
    code = ord(c)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def width() -> int:
    """Characters of a line: COLUMNS, the terminal's, or 80."""
    return max(shutil.get_terminal_size((80, 24)).columns, 2 * NARROWEST)


def wrapped(text: str, indent: str = "") -> Iterator[str]:
    """A sentence as lines that fit the terminal, those after the first set in by two more; none for an empty one."""
    yield from textwrap.wrap(plain(text), width(), initial_indent=indent, subsequent_indent=f"{indent}  ")


def percent(value: float | None) -> str:
    """A share as a percentage with one decimal; a dash for none."""
    return "-" if value is None else f"{100 * value:.1f}"


def duration(seconds: float) -> str:
    """Seconds as a person says them: 45 s, 3 min 20 s, 2 h 05 min, 3 d 4 h."""
    s = round(seconds)
    if s < 60:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min {s % 60:02d} s"
    if s < 86400:
        return f"{s // 3600} h {s % 3600 // 60:02d} min"
    return f"{s // 86400} d {s % 86400 // 3600} h"


def table(
    rows: Sequence[Sequence[str]], left: int = 1, indent: int = 2, limit: int | None = None, groups: Sequence[int] = ()
) -> Iterator[str]:
    """Rows as lines of at most `limit` characters (by default the terminal's), the first of them a heading.

    The first `left` columns name the rows and stand flush left, the others right. What is too wide is narrowed: first
    headings and names are broken into lines, then further columns go into a table below, under the same names.
    groups: columns before which such a break is best.
    """
    space = (limit or width()) - indent
    rows = [[plain(text) for text in row] for row in rows]
    columns = list(zip(*rows, strict=True))
    widths = [max(map(cell_len, column)) for column in columns]
    if _total(widths) > space:
        widths = [max([*map(cell_len, column[1:]), *map(cell_len, _words(column[0]))], default=1) for column in columns]
        widths[left:] = [min(wide, max(space - NARROWEST - _GAP, 1)) for wide in widths[left:]]
    names, others = widths[:left], widths[left:]
    if _total(_narrowed(names, space - _total(others) - _GAP, NARROWEST)) + _GAP + _total(others) <= space:
        widths[:left] = _narrowed(names, space - _total(others) - _GAP, NARROWEST)
    else:
        widths[:left] = _narrowed(names, space - max(others, default=0) - _GAP, NARROWEST)
    for number, shown in enumerate(_blocks(widths, left, space, groups)):
        if number:
            yield ""
        yield from _lines(rows, [*range(left), *shown], widths, left, " " * indent)


def _words(heading: str) -> list[str]:
    return re.findall(r"[^\s-]*-|[^\s-]+", heading)


def _narrowed(widths: Sequence[int], space: int, least: int) -> list[int]:
    """Widths that take no more than `space`, if that can be had with none below `least`."""
    narrowed = list(widths)
    while narrowed and _total(narrowed) > space and max(narrowed) > least:
        narrowed[narrowed.index(max(narrowed))] -= 1
    return narrowed


def _blocks(widths: Sequence[int], left: int, space: int, groups: Sequence[int]) -> list[list[int]]:
    """The columns beyond the first `left` as tables below each other that fit."""

    def fits(columns: Sequence[int]) -> bool:
        return _total([*widths[:left], *(widths[i] for i in columns)]) <= space

    blocks: list[list[int]] = [[]]
    edges = [*groups, len(widths)]
    for i in range(left, len(widths)):
        group = list(range(i, next((edge for edge in edges if edge > i), len(widths)))) if i in groups else [i]
        # A group that fits into a table of its own is not torn apart.
        if blocks[-1] and not fits([*blocks[-1], *(group if fits(group) else [i])]):
            blocks.append([])
        blocks[-1].append(i)
    return blocks


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + _GAP * (len(widths) - 1)


def _lines(
    rows: Sequence[Sequence[str]], shown: Sequence[int], widths: Sequence[int], left: int, indent: str
) -> Iterator[str]:
    for number, row in enumerate(rows):
        broken = {i: _broken(row[i], widths[i]) for i in shown}
        height = max(map(len, broken.values()))
        for line in range(height):
            cells = []
            for i in shown:
                parts = broken[i]
                # Headings stand on their columns, names begin beside their numbers.
                at = line - (height - len(parts)) if number == 0 else line
                text = parts[at] if 0 <= at < len(parts) else ""
                blank = " " * max(0, widths[i] - cell_len(text))
                cells.append(text + blank if i < left else blank + text)
            yield (indent + (" " * _GAP).join(cells)).rstrip()


def _broken(text: str, wide: int) -> list[str]:
    """A text as lines of at most `wide` characters, broken between words where there are any."""
    if cell_len(text) <= wide:
        return [text]
    lines = []
    for line in textwrap.wrap(text, wide, break_long_words=False) or [""]:
        lines += chop_cells(line, wide)
    return lines
