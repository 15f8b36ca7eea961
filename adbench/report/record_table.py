"""Records filtered and written in other people's formats."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adbench.errors import Nothing, UserError
from adbench.registry import GROUPS, METHODS, members
from adbench.report import render
from adbench.results import record
from adbench.results.frame import frame
from adbench.results.networks import check_names
from adbench.results.record import Record
from adbench.results.runs import collect, natural, place_of
from adbench.results.setting import images
from adbench.results.teachers import named_apart
from adbench.system import files, terminal

if TYPE_CHECKING:
    import pandas as pd

_NAMES = ("label", "dataset", "student", "teacher", "seed", "seeds", "status", "eps", "step", "n", "search")
_WHICH = ("label", "dataset", "student", "teacher", "seed", "seeds")
_SPOKEN = {"search": "AutoAttack's search:"}
_SHARED = ("dataset", "student", "teacher", "status", "search")
"""Columns that a terminal has no room for where all rows say the same: it is said once, above."""


def export(
    results: Path,
    wanted: Mapping[str, Sequence[str]],
    form: str,
    out: Path | None,
    left_out: Callable[[str], object] | None = None,
    spread: str | None = None,
) -> None:
    """Print the records that have, of every key of `wanted`, one of its values, or write them to `out`.

    form: table, csv, json, parquet (binary, so only to a file), latex or markdown. left_out: as of `record.read_all`.
    spread: a row for all seeds of a network, with their mean and what `Estimate.spread` calls so. Raises UserError when
    nothing matches, and for a name that nothing has.
    """
    everything = list(record.read_all(results, left_out))
    named = named_apart(everything)
    names = [_names_of(*pair) for pair in zip(everything, named, strict=True)]
    for key in ("dataset", "method", "teacher", "student") if everything else ():
        # A method that adbench knows is no slip of the pen: there is only nothing of it here.
        strange = [name for name in wanted.get(key, ()) if key != "method" or name not in (*METHODS, *GROUPS)]
        check_names(key, strange, [each[key] for each in names], results)
    chosen = {key: members(asked) if key == "method" else asked for key, asked in wanted.items()}
    records = [
        one
        for one, of_one in zip(named, names, strict=True)
        if all(not of_one[key].isdisjoint(asked) for key, asked in chosen.items())
    ]
    if form in ("table", "latex", "markdown"):
        records.sort(key=_order)
    table = _over_seeds(records, spread) if spread else _one_by_one(records, form)
    if table.empty:
        asked = ", ".join(f"{key} = {' or '.join(values)}" for key, values in wanted.items()) or "any"
        raise Nothing(f"no record in '{results}' matches ({asked})")
    if "seed" in table:
        # Networks from elsewhere have no seed; the others' are whole numbers all the same.
        table["seed"] = table["seed"].astype("Int64")
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


def _names_of(plain: Record, named: Record) -> dict[str, set[str | None]]:
    """What a record is asked for by, of each key. plain, named: itself, and with its teachers told apart."""
    keys = ("dataset", "method", "teacher", "student", "kind", "status")
    names: dict[str, set[str | None]] = {key: {getattr(plain, key), getattr(named, key)} for key in keys}
    names["method"] |= {plain.label} if plain.kind == "student" else set()
    return names


def _order(one: Record) -> tuple[Any, ...]:
    """As the report's tables have them: students by method, the paper's first, then teachers, then others."""
    kinds = ("student", "teacher", "checkpoint")
    seed = -1 if one.seed is None else one.seed
    return (
        natural(one.dataset),
        kinds.index(one.kind),
        natural(one.student),
        place_of(one.method),
        natural(one.label),
        natural(one.teacher or ""),
        seed,
    )


def _one_by_one(records: Sequence[Record], form: str) -> pd.DataFrame:
    """A row a record. Where records of one label differ in settings, tables name these behind it, and other forms in a
    column `differs`, last but for what training saw of the held-out split, on which a setting is chosen: `val_robust`.
    """
    runs = [run for kind in ("student", "teacher", "checkpoint") for run in collect(records, kind)]
    labels = {str(one.path): run.label for run in runs for one in (*run.done, *run.failed)}
    told = {str(one.path): labels.get(str(one.path), one.label).removeprefix(one.label).strip() for one in records}
    if not any(told.values()):
        return frame(records)
    if form in ("table", "latex", "markdown"):
        places = {str(one.path): _order(one) for one in records}
        records = sorted(records, key=lambda r: (*places[p := str(r.path)][:5], natural(told[p]), *places[p][5:]))
        table = frame(records)
        table["label"] = [f"{one.label} {told[str(one.path)]}".rstrip() for one in records]
    else:
        table = frame(records)
        table["differs"] = [told[str(one.path)] for one in records]
    table["val_robust"] = [one.training.best_val_robust if one.training else None for one in records]
    return table


def _over_seeds(records: Sequence[Record], spread: str) -> pd.DataFrame:
    """A row for the finished seeds of each network that were judged alike: `frame.frame`'s columns of what they share,
    the number of seeds, and for every metric m the mean `m`, `m.spread` (fractions) and `m.spread_is`."""
    runs = [run for kind in ("student", "teacher", "checkpoint") for run in collect(records, kind) if run.done]
    table = frame([run.done[0] for run in runs])
    if table.empty:
        return table
    table["label"] = [run.label for run in runs]
    table = table.drop(columns=["seed", "id", "train_seconds", "evaluate_seconds", "path", "error"])
    table.insert(list(table.columns).index("eps"), "seeds", [len(run.done) for run in runs])
    for metric in [c.removesuffix(".n") for c in table.columns if c.endswith(".n")]:
        estimates = [run.estimate(metric) for run in runs]
        spreads = [e.spread(spread) if e else None for e in estimates]
        table[metric] = [e.mean / 100 if e else None for e in estimates]
        place = list(table.columns).index(metric) + 1
        table.insert(place, f"{metric}.spread_is", [s.name or None if s else None for s in spreads])
        table.insert(place, f"{metric}.spread", [s.value / 100 if s else None for s in spreads])
    return table


def _text(table: pd.DataFrame, form: str) -> str:
    if form == "json":
        return str(table.to_json(orient="records", indent=1))
    if form == "csv":
        shown = table.map(lambda value: render.plain(value) if isinstance(value, str) else value)
        shown.columns = [render.plain(name) for name in shown.columns]
        buffer = io.StringIO()
        shown.to_csv(buffer, index=False)
        return buffer.getvalue().rstrip("\n")
    shown, note = _for_reading(table)
    rows = [[str(name) for name in shown.columns], *shown.to_numpy().tolist()]
    if form == "latex":
        return _latex(rows, note)
    if form == "markdown":
        lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
        body = "\n".join(f"| {' | '.join(render.md(v) if i != 1 else v for v in row)} |" for i, row in enumerate(lines))
        return f"{body}\n\n{render.md(note)}" if note else body
    return _terminal(rows, note)


def _terminal(rows: Sequence[Sequence[str]], note: str) -> str:
    """The table for a terminal: what all rows share on a line above, the rest in columns."""
    head, *body = rows
    shared = [i for i, name in enumerate(head) if name in _SHARED and len({row[i] for row in body}) == 1]
    kept = [i for i in range(len(head)) if i not in shared]
    said = [(head[i], body[0][i]) for i in shared if (head[i], body[0][i]) != ("status", "done")]
    lines = list(terminal.wrapped(", ".join(f"{_SPOKEN.get(name, name)} {value}" for name, value in said)))
    table = [[row[i] for i in kept] for row in rows]
    left = sum(head[i] in _WHICH for i in kept)
    transferred = [" from " in name for name in table[0]]
    groups = [i for i, name in enumerate(table[0]) if name == "clean" or (transferred[i] and not transferred[i - 1])]
    lines += terminal.table(table, left=left, indent=0, groups=groups)
    return "\n".join([*lines, *terminal.wrapped(note)])


def _latex(rows: Sequence[Sequence[str]], note: str) -> str:
    head, *body = ([render.tex(text) for text in row] for row in rows)
    numbers = sum(name not in _NAMES for name in rows[0])
    lines = [rf"\begin{{tabular}}{{{'l' * (len(head) - numbers)}{'r' * numbers}}}", r"\toprule"]
    lines += [" & ".join(head) + r" \\", r"\midrule", *(" & ".join(row) + r" \\" for row in body)]
    lines += [r"\bottomrule", r"\end{tabular}"]
    return "\n".join([*lines, rf"\par {render.tex(note)}"] if note else lines)


def _for_reading(table: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The columns a person compares: names, how each was judged, accuracies in percent; and what the spread is."""
    metrics = [c.removesuffix(".n") for c in table.columns if c.endswith(".n")]
    searches = [c for c in table.columns if c.endswith(".search")]
    table = table.assign(n=[_images(row, metrics) for row in table.to_dict("records")])
    if searches:
        table["search"] = table[searches].bfill(axis=1).iloc[:, 0]
    chosen = table[[name for name in _NAMES if name in table]].astype(object)
    shown = chosen.where(chosen.notna(), "-").astype(str)
    for metric in metrics:
        spreads = table.get(f"{metric}.spread", [None] * len(table))
        name = (
            metric
            if not metric.startswith("transfer:")
            else " from ".join(metric.split(":", 1)[1].rsplit(":", 1)[::-1])
        )
        shown[name] = [_percent(v, s) for v, s in zip(table[metric], spreads, strict=True)]
    kinds = {kind for metric in metrics for kind in table.get(f"{metric}.spread_is", ()) if isinstance(kind, str)}
    told = {
        "95% interval": "half-width of the 95% Student-t interval over seeds",
        "std": "standard deviation over seeds",
    }
    if "val_robust" in table:
        shown["held out"] = [_percent(value, None) for value in table["val_robust"]]
    note = "; of two seeds ".join(told[kind] for kind in sorted(kinds))
    return shown, f"\N{PLUS-MINUS SIGN}: {note}" if note else ""


def _percent(value: float | None, spread: float | None) -> str:
    if value is None or value != value:
        return "-"
    text = f"{100 * value:.2f}"
    return text if spread is None or spread != spread else f"{text} \N{PLUS-MINUS SIGN} {100 * spread:.2f}"


def _images(row: dict[Any, Any], metrics: Sequence[str]) -> str:
    """How many test images, of each metric where they differ: "360", "360 (AA 100)"."""
    return images({m: int(row[f"{m}.n"]) for m in metrics if row[f"{m}.n"] == row[f"{m}.n"] and row[f"{m}.n"]}) or "-"
