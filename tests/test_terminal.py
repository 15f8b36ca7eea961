"""What a person sees on a terminal and opens in a spreadsheet: tables that fit, names that do nothing."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from rich.cells import cell_len
from synthetic import add
from tiny import cli

from adbench.cli import display
from adbench.report import render
from adbench.report import writer as report
from adbench.report.figures import heat
from adbench.results import record
from adbench.results.runs import slug
from adbench.system import terminal

NASTY = "\x1b[31mred\x07 \u202eevil\u2066 \r\n\t<img src=x onerror=alert(1)> |a| =b"


def test_nothing_in_a_name_moves_the_cursor_or_turns_the_writing() -> None:
    shown = terminal.plain(NASTY)
    assert shown.isprintable()
    for spelt in (r"\x1b", r"\x07", r"\u202e", r"\u2066", "<img"):
        assert spelt in shown
    assert terminal.plain("ä ∞ \U0001f600 名") == "ä ∞ \U0001f600 名"


@pytest.mark.parametrize("wide", [40, 80, 120])
@pytest.mark.parametrize("columns", [1, 3, 12])
def test_a_table_fits_the_terminal_and_loses_nothing(wide: int, columns: int) -> None:
    rows = [
        ["name", *(f"a long heading-of {i}" for i in range(columns))],
        ["x" * 90, *(f"{i}.25" for i in range(columns))],
        ["two words 名前", *("-" for _ in range(columns))],
    ]
    lines = list(terminal.table(rows, limit=wide))
    assert max(map(cell_len, lines)) <= wide
    assert all(any(f" {i}.25" in line for line in lines) for i in range(columns))
    assert "".join(lines).count("x") >= 90


@pytest.mark.parametrize("wide", ["80", "120"])
def test_what_commands_print_fits(wide: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", wide)
    metrics = {"clean": 0.9, "fgsm": 0.6, "pgd20": 0.5, "cw": 0.5, "aa": 0.4} | {
        f"transfer:{proxy}:{attack}": 0.7 for proxy in ("digits-robust", "digits-natural") for attack in ("pgd20", "cw")
    }
    for method, label in (("rslad", None), ("ard", "A" * 90)):
        for seed in (0, 1, 2):
            add(tmp_path, method=method, label=label, teacher="digits-robust", seed=seed, metrics=metrics, n=50)
    for command in (("results",), ("results", "--spread", "std"), ("compare", "rslad", "ard")):
        result = cli(*command, "--results", tmp_path)
        assert result.exit_code == 0, result.output
        assert max(map(cell_len, result.output.splitlines())) <= int(wide), command
        assert "70.00" in result.output
    for command in (("list",), ("teachers",)):
        assert max(map(cell_len, cli(*command).output.splitlines())) <= int(wide)
    assert "cifar100" in cli("list", "teachers").output, "names that two data sets share are told apart"


def test_hostile_names_do_nothing_in_any_form_of_results(tmp_path: Path) -> None:
    for number, start in enumerate(("=", "+", "-", "@", "\t=", "\r=", " =", "\uff1d", "\uff0b", "\uff20")):
        add(tmp_path, method="mine", label=f"{start}cmd|{NASTY}", seed=number, metrics={"clean": 0.5}, n=10)
    for form in ("table", "csv", "markdown", "latex"):
        text = cli("results", "--results", tmp_path, "--format", form).output
        assert all(c.isprintable() or c == "\n" for c in text), form
        if form == "markdown":
            assert "<img" not in text.replace(r"\<img", "")
        if form == "csv":
            rows = list(csv.DictReader(text.splitlines()))
            assert len(rows) == 10
            assert all(row["label"].startswith("'") for row in rows)
    for path in report.write(tmp_path, tmp_path / "out", formats=("csv",)):
        for row in csv.reader(path.read_text(encoding="utf-8").splitlines()):
            assert all(cell.isprintable() and not cell.startswith(("=", "@", "\uff1d")) for cell in row), path


def test_a_number_is_no_formula() -> None:
    assert [render.plain(text) for text in ("-0.5", "+3", "-cmd", "\t=1", "a=1")] == [
        "-0.5",
        "+3",
        "'-cmd",
        "' =1",
        "a=1",
    ]


def test_the_last_table_of_a_run_has_no_seed_for_a_network_without_one(tmp_path: Path) -> None:
    path = add(tmp_path, kind="teacher", label="\x1b[31mt", seed=None, metrics={"clean": 0.9})
    table = display.summary_table([record.read(path)])
    cells = [str(next(iter(column.cells))) for column in table.columns]
    assert "-" in cells
    assert "None" not in cells
    assert all(cell.isprintable() for cell in cells)


def test_long_names_are_cut_and_told_apart() -> None:
    one, other = ("/".join(["data" * 60, end]) for end in ("a", "b"))
    assert len(slug("whitebox", one, one, one, one)) < 200
    assert slug("whitebox", one) != slug("whitebox", other)
    assert slug("whitebox", "digits") == "whitebox_digits"
    for name in ("A" * 90, "W" * 200):
        assert heat.width(heat.fitted(name, 2.5)) <= 2.5
        assert heat.fitted(name, 2.5) != heat.fitted(f"{name}!", 2.5)
    assert heat.fitted("RSLAD", 2.5) == "RSLAD"


def test_a_report_of_long_names_is_written(tmp_path: Path) -> None:
    for seed in (0, 1):
        for method, label in (("mine", "A" * 90), ("rslad", None)):
            add(
                tmp_path / "r",
                method=method,
                label=label,
                dataset="d" * 200,
                student="s" * 90,
                teacher="t" * 120,
                seed=seed,
                metrics={"clean": 0.9, "aa": 0.4},
                n=50,
                per_class=True,
            )
    written = report.write(tmp_path / "r", tmp_path / "out", formats=("html", "latex"))
    assert max(len(path.name) for path in written) < 200
