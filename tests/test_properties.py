"""What holds for every input, tried on many: fractions, identities, and texts in the report's four languages."""

from __future__ import annotations

import csv
import io
import re
from fractions import Fraction
from html.parser import HTMLParser
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from adbench.data.threat import as_text, parse_fraction
from adbench.report import render
from adbench.report.model import Column, Row, Table, TableCell
from adbench.system.files import content_id

MARKUP = st.sampled_from("\\{}[]$&%#_~^*|`<>\"'=+-@!\t\r\n\x00\x1b\u202e,;€é∞\ufe0f\uff1d")
TEXTS = st.text(st.one_of(MARKUP, st.characters(exclude_categories=["Cs"])), min_size=1, max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=8,
)


@given(st.fractions(0, 1))
def test_a_size_is_read_as_it_was_written(size: Fraction) -> None:
    assert parse_fraction(as_text(size)) == size


def reordered(value: Any) -> Any:
    """The same with the keys of every dictionary backwards."""
    if isinstance(value, dict):
        return {key: reordered(inner) for key, inner in reversed(value.items())}
    return [reordered(inner) for inner in value] if isinstance(value, list) else value


@given(VALUES)
def test_the_order_of_keys_is_in_no_identity(value: Any) -> None:
    assert content_id(reordered(value)) == content_id(value)


@given(VALUES, VALUES)
def test_other_content_has_another_identity(value: Any, other: Any) -> None:
    assert content_id([value, other]) != content_id([other, value]) or spelt(value) == spelt(other)


def spelt(value: Any) -> str:
    """A value with its keys in order; 1, 1.0 and True are three values."""
    if isinstance(value, dict):
        return repr(sorted((key, spelt(inner)) for key, inner in value.items()))
    return repr([spelt(inner) for inner in value] if isinstance(value, list) else value)


def table_of(text: str) -> Table:
    columns = (Column("Method", numeric=False), Column(text))
    return Table("label", text, text, columns, (Row((TableCell(text), TableCell(text, mark=render.Mark.BEST)), text),))


class Structure(HTMLParser):
    """The tags of a page with the names of their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, list[str]]] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, [name for name, _ in attrs]))

    def handle_data(self, data: str) -> None:
        self.text += data


@settings(deadline=None)
@given(TEXTS)
def test_no_text_is_markup_in_html(text: str) -> None:
    harmless = Structure(render.html(table_of("x")))
    assert Structure(render.html(table_of(f"x{text}"))).tags == harmless.tags


@given(TEXTS)
def test_no_text_is_markup_in_markdown(text: str) -> None:
    spelt = render.md(text)
    assert not re.search(r"[\r\n]", spelt)
    assert not re.search(r"[`*_\[\]|~$<>]", re.sub(r"\\.", "", spelt))


@given(TEXTS)
def test_no_text_is_a_command_in_latex(text: str) -> None:
    spelt = render.tex(text)
    assert spelt.isprintable()
    plain = re.sub(r"\\[&%$#_{},]", "", spelt)
    plain = re.sub(r"\\(text[a-z]+|dots)\{\}", "", plain)
    plain = re.sub(r"\$\^?_?\{?\\?[a-z0-9]+\}?\$|\$-\$", "", plain)
    plain = re.sub(r"\{[\[\]*]?\}", "", plain)
    assert not re.search(r"[\\{}$&%#_~^]", plain), spelt


@given(TEXTS)
def test_no_text_is_a_formula_in_csv(text: str) -> None:
    rows = list(csv.reader(io.StringIO(render.csv(table_of(text)))))
    assert [len(row) for row in rows] == [3, 3]
    for cell in (cell for row in rows for cell in row):
        assert not re.match(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20]", cell) or re.fullmatch(r"[+-][\d.,]+", cell), cell
