"""What is damaged in a results folder is named, left out and counted; the rest is shown, and the exit code is 1."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from synthetic import add
from tiny import cli

from adbench.report import page, reading
from adbench.report.model import Table
from adbench.results import document, layout, record
from adbench.system.files import sha256

SHARES = {"pgd-at": 0.40, "trades": 0.41, "rslad": 0.45}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for method, share in SHARES.items():
        add(tmp_path / "r", method=method, metrics={"clean": 0.9, "pgd20": share, "aa": share - 0.1}, n=200)
    return tmp_path / "r"


def path_of(results: Path, method: str) -> Path:
    return next(r.path for r in record.read_all(results) if r.method == method)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)


def of_another_version(path: Path) -> None:
    path.write_text('{"schema_version": 99}', encoding="utf-8")


@pytest.mark.parametrize("harm", [cut, flip, of_another_version])
def test_a_damaged_record_is_named_and_the_others_are_shown(
    harm: Callable[[Path], None], results: Path, tmp_path: Path
) -> None:
    path = path_of(results, "trades")
    harm(path)
    shown = {
        "results": cli("results", "--results", results),
        "report": cli("report", "--results", results, "--out", tmp_path / "out", "--format", "csv"),
        "compare": cli("compare", "pgd-at", "rslad", "--results", results),
    }
    for command, result in shown.items():
        assert result.exit_code == 1, (command, result.output)
        assert f"'{path}'" in result.stderr, command
        assert result.stderr.endswith("1 left out\n"), command
    assert "RSLAD" in shown["results"].stdout
    assert "45.00" in shown["compare"].stdout
    assert "TRADES" not in (tmp_path / "out" / "tables" / "whitebox_digits.csv").read_text(encoding="utf-8")


def test_the_report_says_what_it_leaves_out(results: Path) -> None:
    cut(path_of(results, "trades"))
    left_out: list[str] = []
    with reading.held(results, left_out.append) as records:
        head = replace(page.overview(records, results), left_out=tuple(left_out))
    empty_cells = Table("cells", "Cells", "", (), ())
    for text in (
        page.html(head, [], empty_cells, dict),
        page.markdown(head, [], empty_cells),
        page.latex(head, [], empty_cells),
    ):
        assert "Left out as damaged" in text
        assert "is not a readable record" in text


def test_where_nothing_whole_is_left_the_exit_code_is_one_too(tmp_path: Path) -> None:
    path = add(tmp_path / "r", metrics={"clean": 0.9}, n=100)
    path.write_text("[]", encoding="utf-8")
    for command in (("results",), ("report", "--out", tmp_path / "out")):
        result = cli(*command, "--results", tmp_path / "r")
        assert result.exit_code == 1
        assert f"'{path}'" in result.stderr
    assert not (tmp_path / "out").exists()


def absent(path: Path, _: Path) -> None:
    path.unlink()


def anothers(path: Path, other: Path) -> None:
    shutil.copyfile(other, path)


def one_bit(path: Path, _: Path) -> None:
    flip(path)


def empty(path: Path, _: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("harm", [absent, anothers, one_bit, empty])
def test_outcomes_that_are_not_the_records_decide_no_comparison(
    harm: Callable[[Path, Path], None], results: Path, tmp_path: Path
) -> None:
    file, other = (path_of(results, method).with_name(layout.OUTCOMES) for method in ("trades", "rslad"))
    harm(file, other)
    result = cli("compare", "trades", "rslad", "--results", results)
    assert result.exit_code == 1
    assert f"'{file}'" in result.stderr
    assert "no seed in common" in result.stdout
    assert cli("compare", "pgd-at", "rslad", "--results", results).exit_code == 0, "it is of two others"
    refused = cli("compare", file.parent, other.parent)
    assert (refused.exit_code, f"'{file}'" in refused.stderr) == (2, True), "of one record, it is refused"
    result = cli("report", "--results", results, "--out", tmp_path, "--format", "csv", "--compare", "pgd-at")
    assert result.exit_code == 1
    assert f"'{file}'" in result.stderr
    values = (tmp_path / "data" / "values.csv").read_text(encoding="utf-8").splitlines()
    assert any(line.startswith("whitebox_digits,") and ",TRADES,," in line for line in values), "its own figures stand"
    assert not any("McNemar" in line and "TRADES" in line for line in values)


def test_outcomes_that_contradict_their_record_take_it_out_of_the_report(results: Path, tmp_path: Path) -> None:
    path, better = path_of(results, "trades"), path_of(results, "rslad")
    anothers(path.with_name(layout.OUTCOMES), better.with_name(layout.OUTCOMES))
    data = document.opened(path)
    record.write(path, data | {"outcomes": data["outcomes"] | {"sha256": sha256(path.with_name(layout.OUTCOMES))}})
    for command in (("compare", "trades", "rslad"), ("report", "--out", tmp_path / "out", "--format", "csv")):
        result = cli(*command, "--results", results)
        assert result.exit_code == 1
        assert f"'{path}' states 82 of 200 under pgd20" in result.stderr
        assert "90 of 200" in result.stderr
    assert "TRADES" not in (tmp_path / "out" / "tables" / "whitebox_digits.csv").read_text(encoding="utf-8")


def test_a_damaged_log_costs_its_curve_and_nothing_else(results: Path, tmp_path: Path) -> None:
    path = path_of(results, "trades")
    data = document.opened(path)
    log = path.with_name("log.jsonl")
    record.write(path, data | {"training": data["training"] | {"log_sha256": sha256(log)}})
    flip(log)
    result = cli("report", "--results", results, "--out", tmp_path, "--format", "csv")
    assert result.exit_code == 1
    assert f"'{log}' is damaged" in result.stderr
    assert "TRADES" in (tmp_path / "tables" / "whitebox_digits.csv").read_text(encoding="utf-8")


def test_a_damaged_analysis_is_left_out(results: Path, tmp_path: Path) -> None:
    path = results / "digits" / "cross" / "0" / "cross.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"schema_version": 7}), encoding="utf-8")
    result = cli("report", "--results", results, "--out", tmp_path, "--format", "csv")
    assert result.exit_code == 1
    assert f"'{path}'" in result.stderr
