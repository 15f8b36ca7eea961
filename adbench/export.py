"""Records filtered and written in other people's formats."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from adbench import files, record
from adbench.errors import Nothing, UserError

if TYPE_CHECKING:
    import pandas as pd


def export(
    results: Path, wanted: dict[str, str], form: str, out: Path | None, left_out: Callable[[str], object] | None = None
) -> None:
    """Print the records that match every `wanted` column, or write them to `out`.

    form: table, csv, json, parquet (binary, so only to a file), latex or markdown. left_out: as of
    `record.read_all`. Raises UserError when nothing matches.
    """
    table = record.load(results, left_out)
    if len(table):
        # Networks from elsewhere have no seed; the others' are whole numbers all the same.
        table["seed"] = table["seed"].astype("Int64")
    for column, value in wanted.items():
        table = table[table[column] == value] if len(table) else table
    if table.empty:
        asked = ", ".join(f"{k} = {v}" for k, v in wanted.items()) or "any"
        raise Nothing(f"no record in '{results}' matches ({asked})")
    if form == "parquet":
        if out is None:
            raise UserError("parquet is a binary format; name a file with --out")
        files.write_atomic(out, lambda path: table.to_parquet(path, index=False))
        return
    text = _text(table, form)
    if out is None:
        click.echo(text)
    else:
        files.write_text(out, text if text.endswith("\n") else text + "\n")


def _text(table: pd.DataFrame, form: str) -> str:
    if form == "csv":
        buffer = io.StringIO()
        table.to_csv(buffer, index=False)
        return buffer.getvalue().rstrip("\n")
    if form == "json":
        return str(table.to_json(orient="records", indent=1))
    shown = _for_reading(table)
    if form == "latex":
        return str(shown.style.hide(axis="index").format(escape="latex", na_rep="--").to_latex(hrules=True))
    if form == "markdown":
        return _markdown(shown)
    return str(shown.to_string(index=False, na_rep="-"))


def _for_reading(table: pd.DataFrame) -> pd.DataFrame:
    """The columns a person compares: names, and accuracies in percent."""
    names = ["dataset", "label", "student", "teacher", "seed", "status"]
    metrics = [c.removesuffix(".n") for c in table.columns if c.endswith(".n")]
    chosen = table[names].astype(object)
    shown = chosen.where(chosen.notna(), "-").astype(str)
    for metric in metrics:
        shown[metric] = [f"{100 * v:.2f}" if v == v else "-" for v in table[metric]]
    return shown


def _markdown(table: pd.DataFrame) -> str:
    rows = [list(table.columns), ["---"] * len(table.columns), *table.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(str(v).replace("|", r"\|") for v in row) + " |" for row in rows)
