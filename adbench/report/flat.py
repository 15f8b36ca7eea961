"""Data frames for machines: the records, and every value of the report's tables."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from adbench.report.model import MISSING, Table
from adbench.report.view import View
from adbench.results.frame import frame

if TYPE_CHECKING:
    import pandas as pd


def frames(view: View, tables: Sequence[Table]) -> dict[str, pd.DataFrame]:
    """`records`: as `frame.frame` has them, paths below the results folder. `values`: a row a cell of a table.

    Columns of values: table, setting of the attacks, block, family of the row's method (where rows stand by it), row,
    group, column, text as printed, value (a number, where it is one), spread, mark (best, second, failed or none), tied
    with the best, details, and the paths of the records behind it.
    """
    import pandas as pd

    records = frame(list(view.records))
    records["path"] = [view.names[id(record)] for record in view.records]
    # The list of cells is what `records` says better.
    values = pd.DataFrame(row for table in tables if table.label != "cells" for row in _values(table))
    return {"records": records, "values": values}


def _values(table: Table) -> Iterator[dict[str, Any]]:
    for row in table.rows:
        for column, cell in zip(table.columns[1:], row.cells[1:], strict=True):
            yield {
                "table": table.label,
                "setting": table.setting,
                "block": row.block,
                "family": row.family,
                "row": row.cells[0].text,
                "group": column.group,
                "column": column.title,
                "text": "" if cell.text == MISSING.text else cell.text,
                "value": _number(cell.text),
                "spread": _number(cell.spread),
                "spread_is": cell.spread_is,
                "mark": cell.mark.value,
                "tied": cell.tied,
                "details": "; ".join(f"{name}: {text}" for name, text in cell.details),
                "records": " ".join(cell.records),
            }


def _number(text: str) -> float | None:
    try:
        return float(text.replace("\N{MINUS SIGN}", "-"))
    except ValueError:
        return None


def parquet(table: pd.DataFrame) -> bytes:
    """A data frame as the bytes of a parquet file."""
    out = io.BytesIO()
    table.to_parquet(out, index=False)
    return out.getvalue()
