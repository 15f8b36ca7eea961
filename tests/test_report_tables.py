"""What the report's tables claim: who is best, who is tied with the best and by which test, what the paper printed."""

from __future__ import annotations

import itertools
import json
import random
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from scipy import stats
from synthetic import LABELS, add
from tiny import cli

from adbench.errors import UserError
from adbench.registry import METHODS
from adbench.report import classes, watching
from adbench.report import writer as report
from adbench.report.figures import comparisons
from adbench.report.figures.plot import FRONT
from adbench.report.model import Table, TableCell
from adbench.report.tables import compared, methods, ranking, robustness
from adbench.report.view import View
from adbench.results import document, record
from adbench.results.objectives import formulas
from adbench.results.record import read_all
from adbench.results.runs import collect
from adbench.system.files import sha256

PAPER = {"clean": 0.83, "fgsm": 0.6, "pgd20": 0.53, "cw": 0.51, "aa": 0.49}


def view_of(results: Path, **chosen: Any) -> View:
    return View(results, list(read_all(results)), **chosen)


def white_box(results: Path, **chosen: Any) -> list[Table]:
    view = view_of(results, **chosen)
    return robustness.white_box(collect(view.records, "student"), view)


def outcomes(path: Path, metric: str, right: list[bool]) -> None:
    """Let the network of a synthetic record be right on just these images under `metric`."""
    file = path.parent / "outcomes.parquet"
    table = pd.read_parquet(file)
    table[metric] = pd.array(right, dtype="boolean")
    table.to_parquet(file)
    written = document.opened(path)
    record.write(path, written | {"outcomes": written["outcomes"] | {"sha256": sha256(file)}})


def cell(table: Table, row: str, column: int = 1) -> TableCell:
    return next(r.cells[column] for r in table.rows if r.cells[0].text == row)


# Ties -----------------------------------------------------------------------------------------------------------------


def test_over_seeds_a_method_is_tied_unless_the_paired_interval_leaves_out_zero(tmp_path: Path) -> None:
    shares = {"smaraad": (0.50, 0.52, 0.54), "rslad": (0.49, 0.53, 0.52), "ard": (0.48, 0.501, 0.521)}
    for method, values in shares.items():
        for seed, value in enumerate(values):
            add(tmp_path, method=method, teacher="t", seed=seed, metrics={"aa": value}, outcomes=False)
    (table,) = white_box(tmp_path)
    p_values = {
        LABELS[method]: stats.ttest_rel(values, shares["smaraad"]).pvalue for method, values in list(shares.items())[1:]
    }
    # Unpaired, seeds scatter by more than these methods differ.
    assert p_values["ARD"] < 0.05 < p_values["RSLAD"]
    assert not cell(table, "ARD").tied
    assert cell(table, "RSLAD").tied
    assert not cell(table, "SmaraAD").tied, "the best is not tied with itself"
    due = stats.ttest_rel(shares["ard"], shares["smaraad"]).confidence_interval()
    interval = f"{100 * due.low:+.2f} to {100 * due.high:+.2f}".replace("-", "−")
    said = dict(cell(table, "ARD").details)["Against the best"]
    assert interval in said
    assert "3 seeds" in said
    assert "not told apart" not in said
    assert "Student-t" in table.caption
    assert "McNemar" not in table.caption


def test_single_seeds_are_tied_by_mcnemar_on_the_same_images(tmp_path: Path) -> None:
    add(tmp_path, method="smaraad", metrics={"aa": 0.52}, n=100)
    disagreeing = add(tmp_path, method="rslad", metrics={"aa": 0.46}, n=100)
    agreeing = add(tmp_path, method="ard", metrics={"aa": 0.45}, n=100)
    # The best is right on images 0 to 51. One other is wrong where the best is right and little else.
    outcomes(agreeing, "aa", [7 <= i < 52 for i in range(100)])
    outcomes(disagreeing, "aa", [i >= 54 for i in range(100)])
    (table,) = white_box(tmp_path)
    assert stats.binomtest(0, 7).pvalue < 0.05 < stats.binomtest(46, 98).pvalue
    assert not cell(table, "ARD").tied
    assert cell(table, "RSLAD").tied
    assert "McNemar" in table.caption


def test_what_no_image_could_tie_is_told_apart_without_its_outcomes(tmp_path: Path) -> None:
    add(tmp_path, method="smaraad", metrics={"aa": 0.60}, n=1000, outcomes=False)
    add(tmp_path, method="rslad", metrics={"aa": 0.50}, n=1000, outcomes=False)
    add(tmp_path, method="ard", metrics={"aa": 0.598}, n=1000, outcomes=False)
    (table,) = white_box(tmp_path)
    # Even if RSLAD were right on all 400 images that SmaraAD misses.
    assert stats.binomtest(400, 900).pvalue < 0.05
    assert "McNemar p ≤ 0.00" in dict(cell(table, "RSLAD").details)["Against the best"]
    assert "not tested" in dict(cell(table, "ARD").details)["Against the best"], "its outcomes are needed and not there"
    assert not cell(table, "ARD").tied


def test_seeds_that_the_two_do_not_share_are_not_paired(tmp_path: Path) -> None:
    for seed in (0, 1):
        add(tmp_path, method="smaraad", teacher="t", seed=seed, metrics={"aa": 0.5}, outcomes=False)
        add(tmp_path, method="ard", teacher="t", seed=seed + 2, metrics={"aa": 0.49}, outcomes=False)
    (table,) = white_box(tmp_path)
    assert "not tested" in dict(cell(table, "ARD").details)["Against the best"]


def test_only_values_near_the_best_are_tested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "MOST_TESTED", 1)
    for method, value in (("smaraad", 0.5), ("rslad", 0.49), ("ard", 0.48)):
        add(tmp_path, method=method, metrics={"aa": value}, n=100)
    (table,) = white_box(tmp_path)
    assert cell(table, "RSLAD").tied
    assert "Against the best" not in dict(cell(table, "ARD").details)
    assert re.search(r"\b1\b[^.]* nearest the best [^.]*tested", table.caption)


def test_ties_are_daggers_in_latex_and_markdown_and_a_column_for_machines(tmp_path: Path) -> None:
    results, out = tmp_path / "results", tmp_path / "out"
    for method, value in (("smaraad", 0.5), ("rslad", 0.49)):
        add(results, method=method, metrics={"aa": value}, n=100)
    report.write(results, out, formats=("latex", "markdown", "csv", "parquet"))
    assert r"\underline{49.00}$^{\dagger}$" in (out / "tables/whitebox_digits.tex").read_text()
    assert "| <ins>49.00</ins>† |" in (out / "report.md").read_text()
    values = pd.read_parquet(out / "data/values.parquet")
    found = values[(values.table == "whitebox_digits") & (values.row == "RSLAD")].iloc[0]
    assert (found.value, found.mark, bool(found.tied)) == (49.0, "second", True)
    assert (results / found.records).is_file()
    assert len(pd.read_csv(out / "data/records.csv")) == 2


# Choices --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two students, two teachers, three methods of which one needs no teacher."""
    results = tmp_path_factory.mktemp("matrix")
    for student in ("s1", "s2"):
        add(results, method="trades", student=student, metrics=PAPER, outcomes=False)
        for teacher in ("t1", "t2"):
            for method in ("rslad", "ard"):
                metrics = PAPER | {"transfer:p:pgd20": 0.6}
                add(results, method=method, student=student, teacher=teacher, metrics=metrics, outcomes=False)
    return results


def test_columns_are_those_that_are_asked_for_in_their_order(matrix: Path) -> None:
    (table,) = white_box(matrix, columns=("aa", "clean"))
    assert [c.title for c in table.columns] == ["Method", "AA", "Clean", "AA", "Clean"]
    view = view_of(matrix, columns=("aa",))
    assert robustness.transfer(collect(view.records, "student"), view) == [], "no column of theirs is asked for"


def test_fewer_columns_leave_room_for_more_teachers(tmp_path: Path) -> None:
    for teacher in ("t1", "t2", "t3"):
        add(tmp_path, method="ard", teacher=teacher, metrics=PAPER, outcomes=False)
    assert [len(table.groups) for table in white_box(tmp_path)] == [3, 2]
    assert [len(table.groups) for table in white_box(tmp_path, columns=("clean", "aa"))] == [4]


@pytest.mark.parametrize(
    ("group_by", "blocks", "rows", "groups"),
    [
        ("student", ["Student s1", "Student s2"], ["TRADES", "ARD", "RSLAD"], ["Teacher t1", "Teacher t2"]),
        ("teacher", ["Teacher t1", "Teacher t2"], ["TRADES", "ARD", "RSLAD"], ["Student s1", "Student s2"]),
        ("method", ["TRADES", "ARD", "RSLAD"], ["s1", "s2"], ["Teacher t1", "Teacher t2"]),
    ],
)
def test_rows_stand_together_by_what_is_asked_for(
    matrix: Path, group_by: str, blocks: list[str], rows: list[str], groups: list[str]
) -> None:
    (table,) = white_box(matrix, group_by=group_by)
    found = list(table.blocks())
    assert [name for name, _ in found] == blocks
    assert all([row.cells[0].text for row in members] == rows for _, members in found)
    assert [name for name, _ in table.groups if name] == groups
    assert all(c.text == f"{100 * PAPER['aa']:.2f}" for row in table.rows for c in (row.cells[5], row.cells[10]))
    assert f"among the rows of one {group_by}" in table.caption
    view = view_of(matrix, group_by=group_by)
    (black_box,) = robustness.transfer(collect(view.records, "student"), view)
    assert len(black_box.rows) == 2 * 2 * 2, "TRADES was not attacked from a proxy"
    assert len(list(black_box.blocks())) == (2 if group_by == "method" else 4)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--format", "pdf"], "unknown format 'pdf'; known are csv, figures, html, latex, markdown, parquet"),
        (["--columns", "aa,pgd2"], "unknown column 'pgd2'; did you mean 'pgd20'?"),
        (["--compare", "rsald"], "unknown method 'rsald'; did you mean 'rslad'?"),
        (["--group-by", "seed"], "'seed' is not one of 'student', 'teacher', 'method'"),
    ],
)
def test_wrong_choices_are_told_in_a_sentence(matrix: Path, tmp_path: Path, options: list[str], said: str) -> None:
    result = cli("report", "--results", matrix, "--out", tmp_path / "out", *options)
    assert result.exit_code == 2
    assert said in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("formats", "suffixes"),
    [
        ("csv", {".csv"}),
        ("latex", {".tex", ".pdf"}),
        ("markdown", {".md", ".png"}),
        ("parquet", {".parquet"}),
        ("figures", {".png", ".pdf", ".svg"}),
        ("csv,latex", {".csv", ".tex", ".pdf"}),
    ],
)
def test_a_format_writes_its_files_and_no_others(tmp_path: Path, formats: str, suffixes: set[str]) -> None:
    add(tmp_path / "results", metrics={"aa": 0.5}, epochs=2, outcomes=False)
    out = tmp_path / "out"
    result = cli("report", "--results", tmp_path / "results", "--out", out, "--format", formats)
    assert result.exit_code == 0, result.output
    assert {path.suffix for path in out.rglob("*.*")} == suffixes
    assert result.output == f"{sum(path.is_file() for path in out.rglob('*'))} files in {out}\n"


def test_comparing_tests_every_method_against_one_in_its_place(tmp_path: Path) -> None:
    shares = {"rslad": (0.50, 0.52, 0.54), "ard": (0.48, 0.501, 0.521)}
    for method, values in shares.items():
        for seed, value in enumerate(values):
            add(tmp_path, method=method, teacher="t", seed=seed, metrics={"aa": value})
    add(tmp_path, method="trades", metrics={"aa": 0.499})
    elsewhere = add(tmp_path, method="iad", teacher="t2", metrics={"aa": 0.4}, outcomes=False)
    view = view_of(tmp_path, against="rslad")
    (table,) = compared.tables(collect(view.records, "student"), view)
    assert [row.cells[0].text for row in table.rows] == ["TRADES", "ARD"]
    assert not any(elsewhere.as_posix().endswith(path) for row in table.rows for c in row.cells for path in c.records)
    difference, p_value = cell(table, "ARD"), cell(table, "ARD", 2)
    due = stats.ttest_rel(shares["ard"], shares["rslad"])
    half = 100 * (due.confidence_interval().high - due.confidence_interval().low) / 2
    assert (difference.text, difference.spread) == ("−1.93", f"{half:.2f}")
    assert due.pvalue < 0.001
    assert p_value.text == "< 0.001"
    assert not difference.tied
    # TRADES has one seed, on whose images RSLAD is right once more.
    assert (cell(table, "TRADES").text, cell(table, "TRADES").tied, cell(table, "TRADES", 2).text) == (
        "−0.10",
        True,
        f"{stats.binomtest(0, 1).pvalue:.3f}",
    )
    with pytest.raises(UserError, match="unknown method"):
        view_of(tmp_path, against="iadd").check()


def test_watching_writes_again_when_something_changed_and_waits_for_a_first_record(tmp_path: Path) -> None:
    results, out = tmp_path / "results", tmp_path / "out"
    written: list[int] = []

    def write() -> str:
        written.append(len(report.write(results, out, formats=("csv",))))
        return "written"

    pauses = iter(range(10))

    def pause(_: float) -> None:
        turn = next(pauses)
        if turn in (1, 4):
            add(results, method="ard" if turn == 1 else "iad", metrics={"aa": 0.5}, outcomes=False)
        if turn == 6:
            raise KeyboardInterrupt

    lines: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        lines.extend(watching.lines(results, write, pause))
    said = [re.sub(r"^\d\d:\d\d:\d\d  ", "", line) for line in lines]
    assert said[0] == f"watching {results}; Ctrl-C ends it"
    assert said[1].startswith("nothing written yet: results folder")
    assert said[2:] == ["written", "written"]
    assert len(pd.read_csv(out / "data/records.csv")) == 2


# Table 1 --------------------------------------------------------------------------------------------------------------


def test_objectives_are_those_of_the_plugins_without_importing_them(tmp_path: Path) -> None:
    for method in (*LABELS, "kd", "a-plugin-of-yesterday"):
        add(tmp_path, method=method, metrics={"aa": 0.5}, outcomes=False, epochs=1)
    (table,) = methods.tables(collect(read_all(tmp_path), "student"))
    assert [row.cells[0].text for row in table.rows][:10] == list(LABELS.values())
    assert [c.text for c in table.rows[-1].cells[1:]] == ["–", "–"]
    assert cell(table, "TRADES", 1).text == "max KL(S(x'), S(x))"
    assert cell(table, "TRADES", 2).text == "CE(S(x), y) + β KL(S(x'), S(x)), gradient through both arguments"
    assert cell(table, "SmaraAD", 2).text.endswith("where L_sm = -ρ(rank T, rank S), L_align = mean (CAM_T - CAM_S)²")
    assert cell(table, "IAD", 2).text.startswith("I: α τ² KL_τ(S(x'), T(x)) + (1 - α) CE(S(x), y), and after")


def test_every_built_in_method_states_both_objectives() -> None:
    for name in METHODS.names():
        told = formulas(METHODS.docstring(name) or "")
        assert "attack" in told, name
        assert any(key.startswith("loss") for key in told), name


# Figures --------------------------------------------------------------------------------------------------------------


def test_the_pareto_front_is_of_those_that_none_beats_in_both(tmp_path: Path) -> None:
    for method, seconds, value in (("ard", 100, 0.3), ("iad", 200, 0.5), ("rslad", 300, 0.4), ("adaad", 400, 0.6)):
        path = add(tmp_path, method=method, teacher="t", metrics={"aa": value}, outcomes=False)
        data = json.loads(path.read_text())
        data["training"]["seconds"] = seconds
        document.write(path, data)
    (plot,) = comparisons.costly(collect(read_all(tmp_path), "student"))
    assert plot.alt.endswith("On the Pareto front: ARD, IAD, AdaAD.")
    assert plot.data is not None
    (panel,) = plot.data.panels
    front = next(series for series in panel.series if series.name == FRONT)
    assert [(p.x, round(p.y)) for p in front.points] == [(100, 30), (200, 50), (400, 60), (400, 60)]
    assert plot.render("svg").startswith(b"<svg")


def test_accuracy_against_eps_joins_clean_images_and_every_radius(tmp_path: Path) -> None:
    path = add(
        tmp_path,
        method="ard",
        teacher="t",
        outcomes=False,
        metrics={"clean": 0.9, "pgd20": 0.5, "pgd20@4/255": 0.7, "pgd20@16/255": 0.1, "aa": 0.4},
    )
    data = json.loads(path.read_text())
    for metric, eps in (("pgd20@4/255", "4/255"), ("pgd20@16/255", "16/255")):
        data["metrics"][metric]["attack"]["eps"] = eps
    document.write(path, data)
    runs = collect(read_all(tmp_path), "student")
    (plot,) = comparisons.radii(runs)
    assert plot.alt == "Accuracy in percent. ARD: 90.0 at 0/255, 70.0 at 4/255, 50.0 at 8/255, 10.0 at 16/255."
    assert plot.render("png").startswith(b"\x89PNG")
    (table,) = white_box(tmp_path)
    assert [c.title for c in table.columns] == ["Method", "Clean", "PGD-20", "AA"], "other radii are not beside these"
    (table,) = white_box(tmp_path, columns=("pgd20@4/255",))
    assert table.columns[1].title == "PGD-20 at ε = 4/255"


@pytest.mark.parametrize(("classes_", "data"), [(10, False), (20, True)])
def test_classes_are_a_heat_map_or_many_of_them_lines(tmp_path: Path, classes_: int, data: bool) -> None:
    path = add(tmp_path, method="ard", teacher="t", metrics={"aa": 0.5}, n=1000, outcomes=False)
    content = json.loads(path.read_text())
    content["metrics"]["aa"]["per_class"] = [[label, 50] for label in range(classes_)]
    document.write(path, content)
    (plot,) = classes.figures(collect(read_all(tmp_path), "student"))
    assert plot.alt.endswith(f"ARD: 0.0 to {2 * (classes_ - 1):.1f}.")
    assert (plot.data is not None) == data
    assert plot.render("svg").startswith(b"<svg")


def test_rows_of_one_student_and_teacher_stand_together(tmp_path: Path) -> None:
    for teacher in ("t1", "t2"):
        for method in ("ard", "rslad"):
            add(tmp_path, method=method, teacher=teacher, metrics=PAPER, per_class=True)
    view = view_of(tmp_path, against="rslad")
    runs = collect(view.records, "student")
    for table in (*classes.tables(runs), *robustness.white_box(runs, view), *compared.tables(runs, view)):
        blocks = [block for block, _ in table.blocks()]
        assert len(blocks) == len(set(blocks)), table.label


def test_stored_examples_make_no_other_experiment(tmp_path: Path) -> None:
    add(tmp_path, method="ard", teacher="t", metrics=PAPER)
    add(tmp_path, method="ard", teacher="t", metrics=PAPER, evaluation={"keep_adversarial": True})
    (run,) = collect(read_all(tmp_path), "student")
    assert (run.label, len(run.done)) == ("ARD", 1)


# The whole ------------------------------------------------------------------------------------------------------------


def test_ten_random_figures_of_the_tables_follow_from_the_records(tmp_path: Path) -> None:
    results, out = tmp_path / "results", tmp_path / "out"
    draw = random.Random()
    for teacher in ("t1", "t2"):
        for method in ("ard", "rslad", "smaraad"):
            for seed in range(3):
                metrics = {name: share + draw.gauss(0, 0.02) for name, share in PAPER.items()}
                add(results, method=method, teacher=teacher, seed=seed, metrics=metrics, outcomes=False, epochs=1)
    report.write(results, out, formats=("csv", "markdown"))
    values = pd.read_csv(out / "data/values.csv")
    values = values[(values.table == "whitebox_digits") & values.value.notna()]
    markdown = (out / "report.md").read_text()
    titles = {"Clean": "clean", "FGSM": "fgsm", "PGD-20": "pgd20", "C&W∞": "cw", "AA": "aa"}
    for _, one in values.sample(10, random_state=draw.randrange(2**31)).iterrows():
        shares = []
        for file in one.records.split():
            record = json.loads((results / file).read_text())
            assert f"Teacher {record['teacher']}" == one.group
            assert record["label"] == one.row
            metric = record["metrics"][titles[one.column]]
            shares.append(100 * metric["correct"] / metric["n"])
        half = stats.sem(shares) * stats.t.ppf(0.975, 2)
        assert (one.text, f"{one.spread:.2f}") == (f"{statistics.mean(shares):.2f}", f"{half:.2f}")
        assert f"{one.text}{'</ins>' if one['mark'] == 'second' else ''}" in markdown


def test_ten_random_figures_of_the_page_follow_from_the_records_that_it_names(tmp_path: Path) -> None:
    results, draw = tmp_path / "results", random.Random()
    for teacher in (None, "t1", "t2"):
        for method in ("pgd-at", "trades") if teacher is None else ("ard", "rslad", "smaraad"):
            for seed in range(3):
                metrics = {name: share + draw.gauss(0, 0.02) for name, share in PAPER.items()}
                add(results, method=method, teacher=teacher, seed=seed, metrics=metrics, outcomes=False, epochs=1)
    report.write(results, tmp_path / "out", formats=("html",))
    page = (tmp_path / "out/index.html").read_text(encoding="utf-8")
    table = re.findall(r'<div class="table" id="whitebox_.*?</table>', page, re.DOTALL)
    rows = re.findall(r'<tr [^>]*data-method="([^"]*)">(.*?)</tr>', "".join(table), re.DOTALL)
    cells = [
        (method, metric, int(number), re.sub(r"<[^>]*>|†", "", text).split(" ± "))
        for method, row in rows
        for metric, (number, text) in zip(
            itertools.cycle(PAPER), re.findall(r"<td [^>]*data-e=(\d+)>(.*?)</td>", row), strict=False
        )
    ]
    found = re.search(r'id="evidence">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    evidence = json.loads(found[1])
    assert len(cells) == 5 * 2 * len(PAPER), "five methods under two teachers; those without one stand beside each"
    for method, metric, number, shown in draw.sample(cells, 10):
        files = [evidence["texts"][i] for i in evidence["cells"][number][1]]
        records = [json.loads((results / file).read_text()) for file in files]
        assert [record["label"] for record in records] == [method] * 3
        judged = [record["metrics"][metric] for record in records]
        shares = [100 * one["correct"] / one["n"] for one in judged]
        half = stats.sem(shares) * stats.t.ppf(0.975, 2)
        assert shown == [f"{statistics.mean(shares):.2f}", f"{half:.2f}"]


def test_of_too_many_figures_samples_are_printed_and_the_page_has_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for student in ("cnn-8", "cnn-16", "cnn-32"):
        add(tmp_path / "results", student=student, method="ard", teacher="t", metrics=PAPER, epochs=2)
    monkeypatch.setattr(report, "MOST_DRAWN", 2)
    monkeypatch.setattr(report, "SAMPLES", 1)
    report.write(tmp_path / "results", tmp_path / "out", formats=("html", "markdown"))
    printed = (tmp_path / "out/report.md").read_text(encoding="utf-8")
    assert [path.name for path in (tmp_path / "out/figures").glob("curves_*")] == ["curves_digits_cnn-8_t.png"]
    assert printed.count("curves_digits_") == 1
    assert re.search(r"\b2 [^.]*\(index\.html\)", printed), "how many more there are, and where"
    page = (tmp_path / "out/index.html").read_text(encoding="utf-8")
    curves = re.findall(r'<figure id="curves_.*?</figure>', page, re.DOTALL)
    assert len(curves) == 3
    assert ["<img" in one for one in curves] == [True, False, False]
    assert ["Panels by epoch" in one.partition("<script")[0] for one in curves] == [True] * 3, "words instead"


def test_the_report_of_all_formats_never_imports_torch(tmp_path: Path) -> None:
    results = tmp_path / "results"
    for seed in (0, 1):
        add(results, method="ard", teacher="t", seed=seed, metrics=PAPER, epochs=1)
        add(results, method="rslad", teacher="t", seed=seed, metrics=PAPER, epochs=1)
    code = "import sys; from adbench.cli import main\ntry:\n    main()\nfinally:\n    assert 'torch' not in sys.modules"
    command = [
        sys.executable,
        "-c",
        code,
        "report",
        "--results",
        results,
        "--out",
        tmp_path / "out",
        "--compare",
        "ard",
    ]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _white_box(results: Path, out: Path, *formats: str) -> Path:
    report.write(results, out, formats=formats)
    return out


def test_rows_of_more_than_the_papers_methods_stand_by_family(tmp_path: Path) -> None:
    results = tmp_path / "results"
    for method, label, teacher, accuracy in (
        ("rslad", None, "t", 0.5),
        ("fair", "Fair-RSLAD", "t", 0.4),
        ("mine", "Mine", "t", 0.6),
        ("adr", "ADR", None, 0.3),
        ("trades", None, None, 0.2),
    ):
        add(results, method=method, label=label, teacher=teacher, metrics={"clean": accuracy, "aa": accuracy})
    out = _white_box(results, tmp_path / "out", "csv", "latex", "markdown", "html", "parquet")
    table = pd.read_csv(out / "tables/whitebox_digits.csv")
    student = "Student cnn-16"
    assert table[["block", "family", "Method"]].values.tolist() == [
        [student, "Without distillation", "TRADES"],
        [student, "Without distillation", "ADR"],
        [student, "Distillation", "RSLAD"],
        [student, "Distillation", "Mine"],
        [student, "Fairness", "Fair-RSLAD"],
    ]
    headings = [f"{student}: {family}" for family in ("without distillation", "distillation", "fairness")]
    for file in ("tables/whitebox_digits.tex", "report.md", "index.html"):
        text = (out / file).read_text(encoding="utf-8")
        places = [text.index(heading) for heading in headings]
        assert places == sorted(places), file
    assert r"\textbf{60.00}" in (out / "tables/whitebox_digits.tex").read_text()
    assert r"\underline{50.00}" in (out / "tables/whitebox_digits.tex").read_text()
    assert r"\textbf{40.00}" not in (out / "tables/whitebox_digits.tex").read_text(), "ranked over all of a student"
    values = pd.read_parquet(out / "data/values.parquet")
    assert set(values[values.table == "costs_digits"].family) == {"Without distillation", "Distillation", "Fairness"}


def test_the_papers_methods_alone_and_those_of_one_family_stand_as_they_did(tmp_path: Path) -> None:
    for name, together in (("paper", ("trades", "rslad")), ("one", ("dgad", "rslad"))):
        for method in together:
            teacher = None if method == "trades" else "t"
            add(tmp_path / name, method=method, teacher=teacher, metrics={"clean": 0.5, "aa": 0.4})
        out = _white_box(tmp_path / name, tmp_path / f"{name}-out", "csv")
        assert "family" not in pd.read_csv(out / "tables/whitebox_digits.csv").columns
