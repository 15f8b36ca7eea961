"""A `Table` as HTML, LaTeX, Markdown and CSV: four spellings of the same cells. A tie with the best is a dagger."""

from __future__ import annotations

import csv as csv_format
import io
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from itertools import groupby
from pathlib import PurePosixPath

import jinja2
from markupsafe import Markup

from adbench.report.model import MISSING, Mark, Row, Table, TableCell
from adbench.system import terminal

_TEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    # Not special by themselves, but at the start of a row `\\` would take them for its own arguments.
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
    "±": r"$\pm$",
    "∞": r"$_\infty$",
    "ε": r"$\varepsilon$",
    "Δ": r"$\Delta$",
    "\N{MINUS SIGN}": r"$-$",
    "\N{EN DASH}": r"\textendash{}",
    "“": r"\textquotedblleft{}",
    "”": r"\textquotedblright{}",
    "\N{RIGHT SINGLE QUOTATION MARK}": r"\textquoteright{}",
    "…": r"\dots{}",
    "†": r"$^{\dagger}$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "²": r"\texttwosuperior{}",
    "₁": r"$_1$",
    "₂": r"$_2$",
    "α": r"$\alpha$",
    "β": r"$\beta$",
    "γ": r"$\gamma$",
    "λ": r"$\lambda$",
    "ρ": r"$\rho$",
    "τ": r"$\tau$",
    "\u202f": r"\,",
}

TIED = "†"

# A page holds about this many rows; longer tables continue in a further float.
_TEX_ROWS = 40

# With more columns than these, they stand closer together.
_TEX_NARROW = 8

# Characters of a heading that a column of numbers holds.
_TEX_COLUMN = 9

# Footnotes longer than this stand below the float, where they may go on on the next page.
_TEX_NOTES = 1500


@cache
def environment() -> jinja2.Environment:
    """The templates. HTML is escaped by itself; `tex` and `md` are filters for the others."""
    env = jinja2.Environment(
        loader=jinja2.PackageLoader("adbench.report"),
        autoescape=lambda name: name is not None and PurePosixPath(name).suffixes[:1] == [".html"],
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    env.filters |= {"tex": tex, "md": md}
    return env


def one_line(text: str) -> str:
    """`text` with every run of white space as one space (thin spaces stay) and no control characters."""
    if _PLAIN.fullmatch(text):
        return text
    spaced = re.sub(r"[^\S\u202f]+", " ", text).strip()
    return "".join(c for c in spaced if c.isprintable() or c == "\u202f")


_PLAIN = re.compile(r"(?:[!-~]+(?: [!-~]+)*)?")
"""ASCII words with single spaces between them, which most texts are."""


def tex(text: str) -> str:
    """Plain text as LaTeX that pdflatex compiles; characters that it cannot print are named by code point."""
    # T1 fonts would join these pairs: -- into a dash, << into a guillemet.
    return _JOINED.sub(r"\1{}", _SPELT.sub(lambda match: _spelt(match[0]), one_line(text)))


def _spelt(c: str) -> str:
    return _TEX.get(c) or (c if "À" <= c <= "ÿ" else f"{{[}}U+{ord(c):04X}{{]}}")


_JOINED = re.compile(r"([-<>,'`])(?=\1)")
_SPELT = re.compile(r"[^\x00-\x7f]|[" + re.escape("".join(c for c in _TEX if c.isascii())) + "]")


def md(text: str) -> str:
    """Plain text as Markdown, also inside a table row: nothing in it is taken for markup."""
    text = re.sub(r"[\\`*_\[\]|~$<>]", lambda m: "\\" + m.group(), one_line(text))
    return re.sub(r"&(?=#?\w+;)", r"\\&", text)


def html(table: Table, evidence: Callable[[TableCell], int | None] = lambda _: None) -> str:
    """The table as an HTML fragment: its own scrolling container, then caption text and footnotes.

    evidence: where the page keeps what stands behind a cell; None where nothing does.
    """
    starts = [bool(c.group) and (i == 0 or c.group != table.columns[i - 1].group) for i, c in enumerate(table.columns)]
    classes = [
        " ".join(
            name
            for name, has in (("number", c.numeric), ("lower", c.better == "lower"), ("start", start), ("wide", c.wide))
            if has
        )
        for c, start in zip(table.columns, starts, strict=True)
    ]
    styles = [Markup(f' class="{names}"') if names else "" for names in classes]
    # Where one cell of a column has a spread, all leave room for it, so that the numbers stay one below the other.
    spreads = [any(row.cells[i].spread for row in table.rows) for i in range(len(table.columns))]
    members = [list(columns) for _, columns in groupby(table.columns, key=lambda column: column.group)]
    groups = [(columns[0], len(columns)) for columns in members] if table.groups else []
    template = environment().get_template("table.html.j2")
    return template.render(
        table=table, Mark=Mark, TIED=TIED, styles=styles, spreads=spreads, groups=groups, evidence=evidence
    )


def latex(table: Table) -> str:
    r"""The table as floats to \input; the document needs array, booktabs and adjustbox."""
    pages = [table.rows[i : i + _TEX_ROWS] for i in range(0, len(table.rows), _TEX_ROWS)]
    floats = [_latex_float(table, rows, number) for number, rows in enumerate(pages)]
    return "% Needs \\usepackage{array,booktabs,adjustbox}.\n" + "\n".join(floats)


def _latex_float(table: Table, rows: Sequence[Row], number: int) -> str:
    lines = [r"\begin{table}[!htbp]", r"\centering"]
    if number == 0:
        lines += [rf"\caption{{{tex(table.caption)}}}", rf"\label{{tab:{table.label}}}"]
    else:
        lines += [r"\addtocounter{table}{-1}", rf"\caption{{{tex(table.title)} (continued).}}"]
    lines += [
        r"\setlength{\tabcolsep}{3pt}" if len(table.columns) > _TEX_NARROW else "",
        r"\begin{adjustbox}{max width=\linewidth,max totalheight=0.75\textheight}",
        rf"\begin{{tabular}}{{{_latex_columns(table)}}}",
        r"\toprule",
    ]
    if table.groups:
        heads, rules, start = [], [], 1
        for name, span in table.groups:
            heads.append(rf"\multicolumn{{{span}}}{{c}}{{{_latex_head(name, span)}}}" if name else " & " * (span - 1))
            rules += [rf"\cmidrule(lr){{{start}-{start + span - 1}}}"] if name else []
            start += span
        lines += [" & ".join(heads) + r" \\", " ".join(rules)]
    lines.append(" & ".join(tex(column.title) for column in table.columns) + r" \\")
    for block, members in replace(table, rows=tuple(rows)).blocks():
        lines.append(r"\midrule")
        if block:
            lines.append(rf"\multicolumn{{{len(table.columns)}}}{{l}}{{\itshape {tex(block)}}} \\")
        lines += [" & ".join(map(_latex_cell, row.cells)) + r" \\" for row in members]
    lines += [r"\bottomrule", r"\end{tabular}", r"\end{adjustbox}"]
    notes = r"\par ".join(map(tex, table.footnotes)) if rows[-1] is table.rows[-1] else ""
    if 0 < len(notes) <= _TEX_NOTES:
        lines.append(rf"\par\smallskip\begin{{minipage}}{{\linewidth}}\footnotesize\sloppy {notes}\end{{minipage}}")
    lines.append(r"\end{table}")
    if len(notes) > _TEX_NOTES:
        lines.append(rf"{{\footnotesize\sloppy\noindent Notes on {tex(table.title)}:\par {notes}\par}}")
    return "\n".join(filter(None, lines)) + "\n"


def _latex_head(name: str, span: int) -> str:
    """A heading over columns, broken into lines that they hold: LaTeX would widen the last of them."""
    lines = textwrap.wrap(name, max(12, _TEX_COLUMN * span), break_long_words=False) or [""]
    if len(lines) == 1:
        return tex(name)
    return r"\begin{tabular}[b]{@{}c@{}}" + r"\\".join(map(tex, lines)) + r"\end{tabular}"


def _latex_columns(table: Table) -> str:
    wide = sum(column.wide for column in table.columns)
    spelt = {
        (True, False): "r",
        (False, False): "l",
        (False, True): rf">{{\raggedright\arraybackslash}}p{{{0.8 / max(wide, 1):.2f}\linewidth}}",
    }
    return "".join(spelt[column.numeric, column.wide] for column in table.columns)


def _latex_cell(cell: TableCell) -> str:
    text = tex(cell.text)
    match cell.mark:
        case Mark.BEST:
            text = rf"\textbf{{{text}}}"
        case Mark.SECOND:
            text = rf"\underline{{{text}}}"
        case Mark.FAILED:
            text = rf"\textit{{{text}}}"
        case Mark.NONE:
            pass
    text += tex(TIED) if cell.tied else ""
    return rf"{text}\,{{\scriptsize$\pm${tex(cell.spread)}}}" if cell.spread else text


def markdown(table: Table) -> str:
    """The table in GitHub's Markdown: heading, caption, rows, footnotes."""
    blocks = any(row.heading for row in table.rows)
    titles = [md(f"{c.group}: {c.title}" if c.group else c.title) for c in table.columns]
    lines = [f"### {md(table.title)}", "", md(table.caption), ""]
    lines.append(_md_line([" ", *titles] if blocks else titles))
    lines.append(_md_line([*(["---"] if blocks else []), *("---:" if c.numeric else "---" for c in table.columns)]))
    for row in table.rows:
        lines.append(_md_line([*([md(row.heading)] if blocks else []), *map(_md_cell, row.cells)]))
    for note in table.footnotes:
        lines += ["", md(note)]
    return "\n".join(lines) + "\n"


def _md_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _md_cell(cell: TableCell) -> str:
    text = md(cell.text)
    match cell.mark:
        case Mark.BEST:
            text = f"**{text}**"
        case Mark.SECOND:
            text = f"<ins>{text}</ins>"
        case Mark.FAILED:
            text = f"*{text}*"
        case Mark.NONE:
            pass
    text += TIED if cell.tied else ""
    return f"{text} ± {md(cell.spread)}" if cell.spread else text


def csv(table: Table) -> str:
    """The table for machines: one header line; blocks, half-widths and the setting are columns, missing is empty."""
    blocks = any(row.block for row in table.rows)
    spreads = [any(row.cells[i].spread for row in table.rows) for i in range(len(table.columns))]
    families = any(row.family for row in table.rows)
    header = ["block"] * blocks + ["family"] * families
    for column, spread in zip(table.columns, spreads, strict=True):
        title = f"{column.group}: {column.title}" if column.group else column.title
        header += [title, f"{title} ±"] if spread else [title]
    header += ["± is"] if any(spreads) else []
    header += ["attacked with"] if table.setting else []
    out = io.StringIO()
    writer = csv_format.writer(out, lineterminator="\n")
    writer.writerow([plain(one_line(title)) for title in header])
    for row in table.rows:
        line = [one_line(row.block)] * blocks + [row.family] * families
        for cell, spread in zip(row.cells, spreads, strict=True):
            text = "" if cell.text == MISSING.text else one_line(cell.text).replace("\N{MINUS SIGN}", "-")
            line += [text, cell.spread] if spread else [text]
        line += [", ".join(dict.fromkeys(c.spread_is for c in row.cells if c.spread))] if any(spreads) else []
        line += [table.setting] if table.setting else []
        writer.writerow([plain(text) for text in line])
    return out.getvalue()


def plain(text: str) -> str:
    """`text` such that a spreadsheet shows it: what begins like a formula, and is no number, gets an apostrophe.

    Signs of full width, tabs and line ends before a sign begin one too; control characters are spelt, as on a terminal.
    """
    formula = text[:1] in ("\t", "\r", "\n") or text.lstrip().startswith(_SIGNS)
    shown = terminal.plain(text)
    return f"'{shown}" if formula and not re.fullmatch(r"[+-]?[\d.,]+", text) else shown


_SIGNS = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
