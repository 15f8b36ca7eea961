"""What was judged alike is compared, and nothing else: threat models, numbers of images and searches do not mix."""

from __future__ import annotations

import csv
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from synthetic import add
from tiny import cli

from adbench.report import reading, render
from adbench.report.figures import comparisons
from adbench.report.findings import findings
from adbench.report.model import Column, Row, Table, TableCell
from adbench.report.tables import compared, paper, robustness
from adbench.report.view import View
from adbench.results import document, frame, layout, paired, record
from adbench.results.record import read, read_all
from adbench.results.runs import collect
from adbench.results.setting import Setting, alike, size
from adbench.system.files import content_id

METRICS = {"clean": 0.9, "pgd20": 0.5, "aa": 0.4}


def judged(
    results: Path, method: str, share: float, attack: dict[str, dict[str, Any]] | None = None, **more: Any
) -> Path:
    """A record whose attacks' definitions say what `attack` says of each ("*": of all)."""
    metrics = {"clean": 0.9, "pgd20": share + 0.1, "aa": share}
    path = add(results, method=method, metrics=metrics, **({"n": 1000} | more))
    data = document.opened(path)
    del data["metrics"]["clean"]["attack"]["seed"]
    for name, metric in data["metrics"].items():
        if name != "clean":
            metric["attack"] |= (attack or {}).get("*", {}) | (attack or {}).get(name, {})
    record.write(path, data)
    return path


WIDE = {"*": {"eps": "28/255"}, "pgd20": {"step": "7/255"}}
OTHERWISE = {
    "eps": ({"attack": WIDE}, "eps 28/255"),
    "step": ({"attack": {"pgd20": {"step": "1/255"}}}, "step 1/255"),
    "steps": ({"attack": {"pgd20": {"steps": 10}}}, "pgd20 steps 10"),
    "start": ({"attack": {"pgd20": {"start": "clean"}}}, "start clean"),
    "noise": ({"attack": {"pgd20": {"seed": 7}, "aa": {"seed": 7}}}, "noise seed 7"),
    "search": ({"attack": {"aa": {"search": "fast search 2: bfloat16"}}}, "AutoAttack: fast search 2: bfloat16"),
    "images": ({"n": {"clean": 1000, "pgd20": 1000, "aa": 100}}, "n 1000 (AA 100)"),
    "radius": ({"attack": {"*": {"eps": "0.1"}}}, "eps 0.1"),
}


@pytest.mark.parametrize("what", OTHERWISE)
def test_networks_that_were_not_judged_alike_are_not_compared(what: str, tmp_path: Path) -> None:
    changed, said = OTHERWISE[what]
    one = judged(tmp_path, "rslad", 0.45, {"aa": {"search": "float32"}})
    other = judged(tmp_path, "ard", 0.40, **changed)
    if what != "search":
        data = document.opened(other)
        data["metrics"]["aa"]["attack"]["search"] = "authors' package, float32"
        record.write(other, data)
    for pair in ((one, other), ("rslad", "ard")):
        result = cli("compare", *pair, "--results", tmp_path)
        assert result.exit_code == 2, result.output
        assert len(result.output.splitlines()) == 1
        assert said in result.output
        assert "eps 8/255, step 2/255, n 1000, AutoAttack: exact" in result.output
        result = cli("compare", *pair, "--results", tmp_path, "--anyway")
        assert result.exit_code == 0, result.output
        before, _, after = result.output.partition("attack ")
        assert said in before
        assert "eps 8/255" in before
        assert "PGD-20" in after
    view = View(tmp_path, list(read_all(tmp_path)), against="rslad")
    runs = collect(view.records, "student")
    white, *rest = robustness.white_box(runs, view)
    assert len(rest) == 1
    for table in (white, *rest):
        assert len(table.rows) == 1, "a table has only what was judged alike"
        assert len(table.setting.split(", ")) > 3
        assert table.setting in render.csv(table).splitlines()[1].replace('"', "")
    assert white.label != rest[0].label
    assert white.title != rest[0].title
    assert paired.standing(runs[0], runs[1], "aa") is None
    for made in (compared.tables(runs, view), comparisons.costly(runs), findings([white, *rest], frozenset())):
        assert made == [], "nothing ranks one against the other"


def test_data_sets_of_one_name_do_not_mix(tmp_path: Path) -> None:
    one = judged(tmp_path, "rslad", 0.45)
    data = document.opened(judged(tmp_path, "ard", 0.40))
    other = tmp_path / "other" / layout.RECORD
    record.write(other, data | {"data": data["data"] | {"fingerprint": "0" * 64}})
    result = cli("compare", one, other)
    assert result.exit_code == 2
    assert "different test images" in result.output
    result = cli("compare", one, other, "--anyway")
    assert result.exit_code == 0
    assert {line.split()[-1] for line in result.output.splitlines() if line.strip().startswith(("Clean", "AA"))} == {
        "-"
    }


def test_seeds_that_were_searched_otherwise_are_not_averaged(tmp_path: Path) -> None:
    for seed, search in enumerate(("float32", "authors' package, float32", "bfloat16, several targets")):
        judged(tmp_path, "rslad", 0.4 + seed / 10, {"aa": {"search": search}}, seed=seed)
    view = View(tmp_path, list(read_all(tmp_path)))
    exact, fast = sorted(collect(view.records, "student"), key=lambda run: len(run.done), reverse=True)
    assert [[r.seed for r in run.done] for run in (exact, fast)] == [[0, 1], [2]]
    assert exact.setting.search() == "exact"
    shown = robustness.white_box([exact, fast], view)
    assert len(shown) == 2
    for table, word in zip(
        sorted(shown, key=lambda t: "bfloat16" in t.caption), ("in float32", "bfloat16"), strict=True
    ):
        assert word in table.caption
        assert word in render.latex(table)


def test_a_teachers_accuracy_under_another_attack_places_no_student(tmp_path: Path) -> None:
    def plots(eps: str) -> int:
        folder = tmp_path / eps.replace("/", "-")
        teacher = add(folder, kind="teacher", label="t", student="wrn-10-2", metrics={"clean": 0.9, "aa": 0.6})
        data = document.opened(teacher)
        data["metrics"]["aa"]["attack"]["eps"] = eps
        record.write(teacher, data)
        for method in ("rslad", "ard"):
            add(folder, method=method, teacher="t", metrics={"clean": 0.9, "aa": 0.5})
        records = list(read_all(folder))
        return len(comparisons.teacher_student(collect(records, "student"), View(folder, records)))

    assert (plots("8/255"), plots("4/255")) == (1, 0)


def test_the_papers_numbers_stand_beside_its_own_radius_alone(tmp_path: Path) -> None:
    for dataset, attack in (("cifar10", {}), ("cifar100", WIDE)):
        judged(
            tmp_path,
            "rslad",
            0.45,
            attack,
            dataset=dataset,
            student="rn18",
            teacher="wrn-34-10",
            teacher_architecture="wrn-34-10",
        )
    view = View(tmp_path, list(read_all(tmp_path)))
    assert [table.label for table in paper.comparison(collect(view.records, "student"), [], view)] == ["paper_cifar10"]


def test_results_state_radius_step_and_images_in_every_form(tmp_path: Path) -> None:
    judged(tmp_path, "rslad", 0.45, n={"clean": 1000, "pgd20": 1000, "aa": 100})
    judged(tmp_path, "ard", 0.40, WIDE | {"aa": {"search": "bfloat16, fast"}})
    table = frame.load(tmp_path).set_index("label")
    assert table.loc["RSLAD", ["eps", "step", "n", "aa.n"]].tolist() == ["8/255", "2/255", 1000, 100]
    assert table.loc["ARD", ["eps", "step", "aa.search"]].tolist() == ["28/255", "7/255", "bfloat16, fast"]
    out = tmp_path / "out.parquet"
    assert cli("results", "--results", tmp_path, "--format", "parquet", "--out", out).exit_code == 0
    for form in ("table", "csv", "markdown", "latex", "json"):
        text = cli("results", "--results", tmp_path, "--format", form).output.replace("\\/", "/")
        for said in ("eps", "step", "28/255", "7/255", "1000"):
            assert said in text, (form, said)
    rows = list(csv.DictReader(cli("results", "--results", tmp_path, "--format", "csv").output.splitlines()))
    assert {row["eps"] for row in rows} == {"8/255", "28/255"}


def test_settings_are_alike_where_nothing_that_both_have_differs(tmp_path: Path) -> None:
    full = Setting.of(read(add(tmp_path, metrics=METRICS)))
    part = Setting.of(read(add(tmp_path, method="ard", metrics={"clean": 0.9})))
    other = Setting.of(read(add(tmp_path, method="iad", metrics={"clean": 0.9}, n=10)))
    assert alike([part, full, other, full]) == [[0, 1, 3], [2]]
    assert full.apart(other) == ["clean n"]


@pytest.mark.parametrize(
    ("value", "printed"),
    [
        ("8/255", "8/255"),
        (8 / 255, "8/255"),
        ("0.0313725490", "8/255"),
        ("0.5", "0.5"),
        (0.1, "0.1"),
        ("odd", "odd"),
        (None, "None"),
    ],
)
def test_a_radius_is_printed_in_grey_levels_where_it_is_whole(value: object, printed: str) -> None:
    assert size(value) == printed


# Spread over seeds ----------------------------------------------------------------------------------------------------


def test_two_seeds_have_a_deviation_three_an_interval_and_either_can_be_asked_for(tmp_path: Path) -> None:
    values = {"rslad": (0.40, 0.44), "ard": (0.40, 0.42, 0.47), "iad": (0.3,)}
    for method, shares in values.items():
        for seed, share in enumerate(shares):
            add(tmp_path, method=method, teacher="t", seed=seed, metrics={"aa": share}, n=1000, outcomes=False)
    view = View(tmp_path, list(read_all(tmp_path)), against="rslad")
    runs = {run.method: run for run in collect(view.records, "student")}
    std = {method: 100 * np.std(shares, ddof=1) for method, shares in values.items() if len(shares) > 1}
    half = 100 * stats.t.interval(0.95, 2, 0, stats.sem(values["ard"]))[1]
    for asked, due in {"ci": (std["rslad"], half), "std": (std["rslad"], std["ard"])}.items():
        (table,) = robustness.white_box(list(runs.values()), replace(view, spread=asked))
        shown = {row.cells[0].text: row.cells[1] for row in table.rows}
        assert [shown[name].spread for name in ("RSLAD", "ARD", "IAD")] == [f"{due[0]:.2f}", f"{due[1]:.2f}", ""]
        assert "standard deviation" in table.caption
        assert ("half-width of the 95% Student-t" in table.caption) == (asked == "ci")
        rows = {row["Method"]: row for row in csv.DictReader(render.csv(table).splitlines())}
        assert (rows["RSLAD"]["± is"], rows["ARD"]["± is"]) == ("std", "95% interval" if asked == "ci" else "std")
        for form in ("table", "csv", "markdown", "latex"):
            text = cli("results", "--results", tmp_path, "--spread", asked, "--format", form).output
            for number, name in zip(due, ("RSLAD", "ARD"), strict=True):
                line = next(line for line in text.splitlines() if name in line)
                assert (f"{number:.2f}" if form != "csv" else f"{number / 100:.6f}"[:7]) in line, (form, line)
    assert cli("report", "--results", tmp_path, "--spread", "none").exit_code == 2
    assert "standard deviation" in compared.tables(list(runs.values()), view)[0].caption


@pytest.mark.parametrize("seeds", [2, 3])
def test_compare_prints_a_range_of_two_differences_and_an_interval_of_more(seeds: int, tmp_path: Path) -> None:
    for seed in range(seeds):
        add(tmp_path, method="rslad", seed=seed, metrics={"aa": 0.5 + seed / 100}, n=100)
        add(tmp_path, method="ard", seed=seed, metrics={"aa": 0.45}, n=100)
    output = cli("compare", "rslad", "ard", "--results", tmp_path).output
    low, high = stats.t.interval(0.95, 2, 6, 1 / np.sqrt(3))
    assert ("+5.00 to +6.00 (range)" if seeds == 2 else f"{low:+.2f} to {high:+.2f}") in output


# Names ----------------------------------------------------------------------------------------------------------------


def test_a_folder_of_a_methods_name_does_not_hide_the_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one = judged(Path("results"), "rslad", 0.5)
    other = judged(Path("results"), "ard", 0.4)
    Path("rslad").mkdir()
    shutil.copytree(other.parent, "rslad", dirs_exist_ok=True)
    assert "45.00" not in (said := cli("compare", "rslad", "ard").output)
    assert "RSLAD against ARD" in said
    assert "AA" in cli("compare", "./rslad", one).output


def test_two_teachers_of_one_name_have_the_same_digest_wherever_they_are_named(tmp_path: Path) -> None:
    for weights, share in (("a", 0.5), ("b", 0.6)):
        add(tmp_path, kind="teacher", label="best", student="cnn-16", weights=weights, metrics={"clean": share})
        path = add(tmp_path, method="rslad", teacher="best", metrics={"clean": share}, settings={"at": weights})
        data = document.opened(path)
        data["teachers"]["robust"]["weights_sha256"] = content_id(weights)
        record.write(path, data)
    records = reading.records(tmp_path)
    own = {r.network.weights_sha256: r.label for r in records if r.kind == "teacher"}
    taught = {r.teachers.robust.weights_sha256: r.teacher for r in records if r.teachers.robust}
    assert own == taught
    assert len(set(own.values())) == 2
    assert all(name.startswith("best #") for name in own.values())
    for form in ("table", "csv", "markdown"):
        text = cli("results", "--results", tmp_path, "--format", form).output.replace("\\#", "#")
        assert all(text.count(name) == 2 for name in own.values()), form
    (table,) = robustness.white_box(collect(records, "student"), View(tmp_path, records))
    assert {column.group for column in table.columns} == {"", *(f"Teacher {name}" for name in own.values())}


def test_rows_named_by_a_digest_say_what_they_differ_in(tmp_path: Path) -> None:
    for number in (1, 2):
        settings = dict.fromkeys(("one", "two", "three", "four"), number) | {"source": f"{number}" * 64}
        add(tmp_path, method="rslad", teacher="t", metrics={"clean": 0.5}, settings=settings)
    view = View(tmp_path, list(read_all(tmp_path)))
    (table,) = robustness.white_box(collect(view.records, "student"), view)
    for row in table.rows:
        (note,) = [note for note in table.footnotes if note.startswith(f"{row.cells[0].text}: ")]
        number = note.partition("one ")[2][0]
        assert all(f"{name} {number}" in note for name in ("one", "two", "three", "four"))
        assert f"source {number * 8}..." in note


def test_a_method_without_a_teacher_is_named_where_it_stands_under_one(tmp_path: Path) -> None:
    for method, teacher in (("trades", None), ("rslad", "t")):
        add(tmp_path, method=method, teacher=teacher, metrics={"clean": 0.5, "transfer:p:pgd20": 0.4})
    view = View(tmp_path, list(read_all(tmp_path)), against="rslad")
    runs = collect(view.records, "student")
    for table in (*robustness.white_box(runs, view), *robustness.transfer(runs, view), *compared.tables(runs, view)):
        assert "TRADES has no teacher" in table.caption, table.label


def test_a_heading_wider_than_its_columns_is_broken() -> None:
    columns = (Column("Method", numeric=False), *(Column(t, "Proxy of a long name (its PGD-20: 62.00)") for t in "ab"))
    head = (
        render.latex(Table("t", "T", "C", columns, (Row((TableCell("m"), TableCell("1"), TableCell("2"))),)))
        .split("toprule")[1]
        .split("cmidrule")[0]
    )
    assert "\\multicolumn{2}{c}{\\begin{tabular}" in head
    assert max(map(len, re.findall(r"[\w (:.)-]+", head))) <= 30
