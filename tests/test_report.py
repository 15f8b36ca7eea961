"""The report says what the records say, in every spelling."""

from __future__ import annotations

import csv
import html.parser
import json
import math
import re
import shutil
import statistics
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from scipy import stats
from synthetic import LABELS, TEACHERLESS, add

from adbench.errors import UserError
from adbench.report import captions, page, render
from adbench.report import writer as report
from adbench.report.figures import comparisons, training
from adbench.report.figures.plot import labels_of, look
from adbench.report.model import Column, Mark, Row, Table, TableCell, ranked
from adbench.report.tables import costs, paper, robustness
from adbench.report.view import View
from adbench.results import teachers
from adbench.results.record import Record, read_all
from adbench.results.runs import ATTACKS, STUDENTS, collect, slug
from adbench.system.files import SEPARATE, below

NASTY = r"<script>alert(1)</script> a_b & 100% $x$ {~^\} `#|*"
METHODS = {label: name for name, label in LABELS.items()}
STUDENT_OF = {theirs: ours for ours, theirs in STUDENTS.items()}
WHITE_BOX = ("table3_cifar10_whitebox", "table4_cifar100_whitebox")


class Page(html.parser.HTMLParser):
    """Tables of a page as lists of rows of (text, innermost tag); and every tag and address met."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[list[list[tuple[str, str]]]] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self._inside: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append(("", ""))
            self._inside = [tag]
        elif self._inside:
            self._inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._inside and self._inside[-1] == tag:
            self._inside.pop()

    def handle_data(self, data: str) -> None:
        if self._inside:
            text, tag = self.tables[-1][-1][-1]
            self.tables[-1][-1][-1] = (text + data, tag or self._inside[-1])


def numbers_of(words: str) -> dict[str, list[float]]:
    """The numbers of a figure's description by what they are of: "A: 1.0, 2.0; B: 3.0"."""
    parts = (part.partition(": ") for part in words.split("; "))
    return {name.rpartition(". ")[2]: [float(n) for n in re.findall(r"\d+\.\d", rest)] for name, _, rest in parts}


def view_of(results: Path, **chosen: Any) -> View:
    return View(results, list(read_all(results)), **chosen)


def white_box(results: Path, **chosen: Any) -> list[Table]:
    view = view_of(results, **chosen)
    return robustness.white_box(collect(view.records, "student"), view)


def texts(table: Table) -> dict[tuple[str, str], list[str]]:
    """Printed values by (block, row name)."""
    return {(row.block, row.cells[0].text): [cell.text for cell in row.cells[1:]] for row in table.rows}


def marks(table: Table, mark: Mark) -> set[tuple[str, str]]:
    """(row name, column title) of the cells that carry `mark`."""
    return {
        (row.cells[0].text, column.title)
        for row in table.rows
        for cell, column in zip(row.cells, table.columns, strict=True)
        if cell.mark is mark
    }


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The paper's own numbers as records."""
    results = tmp_path_factory.mktemp("published")
    for line in paper.published("table2_teachers"):
        add(
            results,
            kind="teacher",
            dataset=line["dataset"],
            label=line["teacher"],
            student=line["teacher"],
            n=10000,
            metrics={a: float(line[a]) / 100 for a in ATTACKS},
            seed=None,
            outcomes=False,
        )
    black_box = paper.published("table5_blackbox")
    students = {theirs: ours for ours, theirs in STUDENTS.items()}
    for line in (line for name in WHITE_BOX for line in paper.published(name)):
        method = METHODS[line["method"]]
        metrics = {a: float(line[a]) / 100 for a in ATTACKS}
        if (line["student"], line["dataset"], line["teacher"]) == ("resnet18", "cifar10", "wrn-34-10"):
            for other in (other for other in black_box if other["method"] == line["method"]):
                metrics |= {f"transfer:{other['proxy']}:{a}": float(other[a]) / 100 for a in ("pgd20", "cw")}
        if method in TEACHERLESS and line["teacher"] == "wrn-28-10":
            continue
        add(
            results,
            dataset=line["dataset"],
            method=method,
            student=students[line["student"]],
            metrics=metrics,
            teacher=None if method in TEACHERLESS else line["teacher"],
            teacher_architecture=line["teacher"],
            n=10000,
            outcomes=False,
        )
    return results


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[Path]]:
    """A little of everything, seeds and strange names included; its report written once."""
    results, out = tmp_path_factory.mktemp("results"), tmp_path_factory.mktemp("out")
    add(results, kind="teacher", label="robust", student="wrn-10-2", metrics={"pgd20": 0.62, "aa": 0.55})
    add(results, kind="teacher", label="strong", student="wrn-10-2", metrics={"pgd20": 0.70, "aa": 0.65})
    for seed, value in enumerate((0.401, 0.415, 0.433)):
        add(
            results,
            method="rslad",
            teacher="robust",
            seed=seed,
            metrics={"clean": 0.9, "aa": value, "transfer:strong:pgd20": 0.7},
        )
    add(results, method="rslad", teacher="strong", metrics={"clean": 0.92, "aa": 0.44})
    add(results, method="pgd-at", metrics={"clean": 0.88, "aa": 0.402}, passes={"student": 11, "total": 22})
    add(results, method="mine", label=NASTY, teacher="robust", metrics={"clean": 0.91, "aa": 0.36})
    add(results, method="ard", teacher="robust", error=f"out of memory\n{NASTY}")
    add(results, kind="checkpoint", method=None, label="from-elsewhere", metrics={"clean": 0.8, "aa": 0.3})
    return results, out, report.write(results, out)


def test_every_returned_path_exists_and_the_page_names_no_other_address(small: tuple[Path, Path, list[Path]]) -> None:
    _, out, written = small
    assert all(path.is_file() and path.is_relative_to(out) for path in written)
    assert {"index.html", "report.md", "report.tex"} <= {path.name for path in written}
    found = Page((out / "index.html").read_text())
    assert all(address.startswith(("#", "data:image/svg+xml,")) for address in found.addresses)
    assert not {"link", "iframe", "object", "embed"} & set(found.tags)
    assert found.tags.count("caption") == found.tags.count("table") >= 5


def test_all_four_spellings_carry_the_mean_recomputed_from_the_records(small: tuple[Path, Path, list[Path]]) -> None:
    results, out, _ = small
    shares = [
        100 * r.metrics["aa"].correct / r.metrics["aa"].n
        for r in read_all(results)
        if (r.label, r.teacher) == ("RSLAD", "robust")
    ]
    mean = f"{statistics.mean(shares):.2f}"
    half = f"{stats.t.interval(0.95, 2, scale=statistics.stdev(shares) / math.sqrt(3))[1]:.2f}"
    with (out / "tables/whitebox_digits.csv").open() as file:
        line = next(line for line in csv.DictReader(file) if line["Method"] == "RSLAD")
    assert (line["Teacher robust: AA"], line["Teacher robust: AA ±"]) == (mean, half)
    assert line["Teacher strong: AA"] == "44.00"
    assert f"\\textbf{{{mean}}}\\,{{\\scriptsize$\\pm${half}}}" in (out / "tables/whitebox_digits.tex").read_text()
    assert f"**{mean}** ± {half}" in (out / "report.md").read_text()
    row = next(row for row in Page((out / "index.html").read_text()).tables[0] if row[0][0] == "RSLAD")
    assert (f"{mean} ± {half}", "strong") in row


def test_best_and_second_are_compared_as_printed_and_ties_share_the_mark() -> None:
    columns = (Column("Method", numeric=False), Column("AA"))
    rows = [
        Row((TableCell(name), TableCell(f"{value:.2f}")))
        for name, value in [("a", 50.001), ("b", 50.004), ("c", 49.0), ("d", 48.999), ("e", 10.0)]
    ]
    found = [row.cells[1].mark for row in ranked(rows, columns)]
    assert found == [Mark.BEST, Mark.BEST, Mark.SECOND, Mark.SECOND, Mark.NONE]


def test_a_lone_number_is_neither_best_nor_worst() -> None:
    columns = (Column("Method", numeric=False), Column("AA"))
    rows = [Row((TableCell("a"), TableCell("50.00"))), Row((TableCell("b"), TableCell("failed", mark=Mark.FAILED)))]
    assert [row.cells[1].mark for row in ranked(rows, columns)] == [Mark.NONE, Mark.FAILED]


def test_marks_are_given_within_each_student_and_teacher(tmp_path: Path) -> None:
    for student, teacher, ard, iad in [("s1", "t1", 0.5, 0.4), ("s1", "t2", 0.1, 0.2), ("s2", "t1", 0.7, 0.9)]:
        add(tmp_path, method="ard", student=student, teacher=teacher, metrics={"aa": ard})
        add(tmp_path, method="iad", student=student, teacher=teacher, metrics={"aa": iad})
    (table,) = white_box(tmp_path)
    assert table.groups == [("", 1), ("Teacher t1", 1), ("Teacher t2", 1)]
    best = [[cell.mark is Mark.BEST for cell in row.cells[1:]] for row in table.rows]
    assert best == [[True, False], [False, True], [False, False], [True, False]]


def test_a_method_without_a_teacher_stands_under_every_teacher(small: tuple[Path, Path, list[Path]]) -> None:
    (table,) = white_box(small[0])
    assert table.groups == [("", 1), ("Teacher strong", 2), ("Teacher robust", 2)]
    assert texts(table)["Student cnn-16", "PGD-AT"] == ["88.00", "40.20"] * 2


def test_missing_and_failed_cells_are_told_apart_and_never_numbers(small: tuple[Path, Path, list[Path]]) -> None:
    (table,) = white_box(small[0])
    assert texts(table)["Student cnn-16", "ARD"] == ["–", "–", "failed", "failed"]
    lines = list(csv.DictReader(render.csv(table).splitlines()))
    ard = next(line for line in lines if line["Method"] == "ARD")
    assert (ard["Teacher strong: AA"], ard["Teacher robust: AA"]) == ("", "failed")


def test_one_failed_seed_is_told_beside_the_mean_of_the_others(tmp_path: Path) -> None:
    for seed in (0, 1):
        add(tmp_path, seed=seed, teacher="t", metrics={"aa": 0.4 + 0.02 * seed})
    add(tmp_path, seed=2, teacher="t", error="out of memory")
    (table,) = white_box(tmp_path)
    assert table.rows[0].cells[1].text == "41.00"
    assert any({"RSLAD", "1", "3", "failed;"} <= set(note.split()) for note in table.footnotes)


def test_seeds_of_different_settings_are_never_averaged(tmp_path: Path) -> None:
    add(tmp_path, seed=0, metrics={"aa": 0.4}, epochs=200)
    add(tmp_path, seed=1, metrics={"aa": 0.2}, epochs=2)
    (table,) = white_box(tmp_path)
    found = {name: values for (_, name), values in texts(table).items()}
    assert found == {"RSLAD (epochs 2)": ["20.00"], "RSLAD (epochs 200)": ["40.00"]}
    assert any("trained equally long" in note for note in table.footnotes)


def test_variants_are_told_apart_by_the_settings_in_which_they_differ(tmp_path: Path) -> None:
    for gamma, norm in ((10.0, "minmax"), (1000.0, "minmax"), (1000.0, "none")):
        hyper = {"gamma": gamma, "cam_norm": norm, "c": 2.0}
        add(tmp_path, method="smaraad", metrics={"aa": gamma / 5000}, settings={"hyper": hyper})
    (table,) = white_box(tmp_path)
    assert {name for _, name in texts(table)} == {
        "SmaraAD (gamma 10, cam_norm minmax)",
        "SmaraAD (gamma 1000, cam_norm minmax)",
        "SmaraAD (gamma 1000, cam_norm none)",
    }


def test_variants_are_named_alike_under_every_teacher(tmp_path: Path) -> None:
    for teacher, gamma, norm in (("ta", 10.0, "minmax"), ("ta", 1000.0, "minmax"), ("tb", 10.0, "none")):
        hyper = {"gamma": gamma, "cam_norm": norm}
        add(tmp_path, method="smaraad", teacher=teacher, metrics={"aa": 0.3}, settings={"hyper": hyper})
    assert {run.label for run in collect(read_all(tmp_path), "student") if run.teacher == "tb"} == {
        "SmaraAD (gamma 10, cam_norm none)"
    }


def test_hashes_name_nothing(tmp_path: Path) -> None:
    for number in (1, 2):
        add(tmp_path, metrics={"aa": number / 10}, settings={"source": f"{number}f" * 32})
    (table,) = white_box(tmp_path)
    assert all(re.fullmatch(r"RSLAD #[0-9a-f]{6}", row.cells[0].text) for row in table.rows)


def test_variants_that_differ_in_much_are_told_apart_by_a_digest(tmp_path: Path) -> None:
    for value in (1, 2):
        add(tmp_path, metrics={"aa": value / 10}, settings={"hyper": dict.fromkeys("abcd", value)})
    (table,) = white_box(tmp_path)
    assert all(re.fullmatch(r"RSLAD #[0-9a-f]{6}", row.cells[0].text) for row in table.rows)
    assert any("different #" in note for note in table.footnotes)


def test_an_ablation_is_drawn_where_two_of_its_variants_are(tmp_path: Path) -> None:
    for method, value in (("smaraad", 0.5), ("kd", 0.4), ("rslad", 0.3)):
        for seed in (0, 1):
            add(
                tmp_path, method=method, label=method, teacher="t", seed=seed, metrics={"pgd20": value, "aa": value / 2}
            )
    (plot,) = comparisons.ablation(collect(read_all(tmp_path), "student"))
    assert numbers_of(plot.alt) == {"kd": [40.0, 20.0], "smaraad": [50.0, 25.0]}
    assert "over seeds" in plot.caption
    assert "range" in plot.caption, "two seeds have no interval worth drawing"
    assert plot.render("svg").startswith(b"<svg")
    for method in ("smaraad", "kd"):
        add(tmp_path, method=method, label=method, teacher="t2", metrics={"pgd20": 0.3, "aa": 0.2})
    assert len(comparisons.ablation(collect(read_all(tmp_path), "student"))) == 2, "one for each teacher"
    (tmp_path / "alone").mkdir()
    add(tmp_path / "alone", method="smaraad", metrics={"aa": 0.4})
    assert comparisons.ablation(collect(read_all(tmp_path / "alone"), "student")) == []


@pytest.mark.parametrize("method", [*LABELS, "slack", "mart", None])
def test_no_table_is_without_rows_and_no_chapter_empty(method: str | None, tmp_path: Path) -> None:
    add(
        tmp_path,
        method=method,
        kind="student" if method else "checkpoint",
        teacher="t" if method else None,
        metrics={"clean": 0.6, "aa": 0.4},
    )
    chapters, cells = report.contents(view_of(tmp_path))
    assert all(table.rows for chapter in chapters for table in (*chapter.tables, cells))
    assert all(chapter.tables or chapter.plots for chapter in chapters)


def test_rows_of_one_setting_line_up_under_two_teachers(tmp_path: Path) -> None:
    for teacher in ("t1", "t2"):
        for epochs in (2, 200):
            add(tmp_path, teacher=teacher, metrics={"aa": epochs / 1000}, epochs=epochs)
    (table,) = white_box(tmp_path)
    assert sorted(texts(table).values()) == [["0.20", "0.20"], ["20.00", "20.00"]]


def test_a_seed_found_twice_counts_once_the_later_one(tmp_path: Path) -> None:
    add(tmp_path / "old", metrics={"aa": 0.2}, finished="2026-01-01T00:00:00+00:00")
    add(tmp_path / "new", metrics={"aa": 0.4}, finished="2026-02-01T00:00:00+00:00")
    add(tmp_path / "broken", error="interrupted", finished="2026-03-01T00:00:00+00:00")
    (table,) = white_box(tmp_path)
    assert (table.rows[0].cells[1].text, table.rows[0].cells[1].spread) == ("40.00", "")


def test_more_than_two_teachers_go_into_further_tables(tmp_path: Path) -> None:
    for teacher in ("t1", "t2", "t10"):
        add(tmp_path, teacher=teacher, metrics=dict.fromkeys(ATTACKS, 0.4), outcomes=False)
    found = white_box(tmp_path)
    assert [t.label for t in found] == ["whitebox_digits_1", "whitebox_digits_2"]
    assert [name for t in found for name, _ in t.groups if name] == ["Teacher t1", "Teacher t2", "Teacher t10"]


def test_the_caption_states_what_the_records_state(tmp_path: Path) -> None:
    metrics = {"clean": 0.9, "fgsm": 0.5, "pgd20": 0.4, "cw": 0.39, "aa": 0.3}
    images = dict.fromkeys(metrics, 10000) | {"aa": 1000}
    flags = {"aa": ["square gained most: gradients may be masked"]}
    add(tmp_path, metrics=metrics, n=images, flags=flags, checkpoint="last", epochs=7)
    (table,) = white_box(tmp_path)
    thin = "\u202f"
    for said in (
        f"Clean 10{thin}000",
        f"AA 1{thin}000",
        "ε = 8/255 in L∞",
        "FGSM: 1 step of 8/255",
        "PGD-20 and C&W∞: 20 steps of 2/255",
        "seed 0",
        "Trained for 7 epochs",
        "the last epoch",
        "adbench 0.1.0, torch 2.11.0 and pyautoattack 0.2.0",
    ):
        assert said in table.caption, said
    (note,) = table.footnotes
    assert note.startswith("RSLAD on cnn-16, AA: "), "whose flag it is, under which attack"
    assert note.endswith("square gained most: gradients may be masked"), "the flag as the record has it"


@pytest.mark.parametrize(("value", "printed"), [(8 / 255, "8/255"), (0.1, "0.1"), (1, "255/255"), ("8/255", "8/255")])
def test_perturbations_are_printed_as_the_field_does(value: object, printed: str) -> None:
    assert captions.size(value) == printed


def test_names_and_errors_from_records_are_text_in_every_language(small: tuple[Path, Path, list[Path]]) -> None:
    _, out, _ = small
    found = Page((out / "index.html").read_text())
    assert any(NASTY in cell for table in found.tables for row in table for cell, _ in row)
    assert "<script>alert" not in (out / "index.html").read_text()
    escaped = (
        r"<script>alert(1)</script> a\_b \& 100\% \$x\$ "
        r"\{\textasciitilde{}\textasciicircum{}\textbackslash{}\} `\#|{*}"
    )
    assert escaped in (out / "tables/whitebox_digits.tex").read_text()
    assert escaped in (out / "report.tex").read_text()
    lines = (out / "report.md").read_text().splitlines()
    row = next(line for line in lines if "alert(1)" in line and "36.00" in line)
    assert r"\<script\>alert(1)\</script\> a\_b & 100% \$x\$ {\~^\\} \`#\|\*" in row
    head = next(line for line in lines if line.startswith("|"))
    assert len(re.findall(r"(?<!\\)\|", row)) == head.count("|")


def test_latex_survives_what_only_latex_minds() -> None:
    assert render.tex("[x] *y* --z << 中") == r"{[}x{]} {*}y{*} -{}-z <{}< {[}U+4E2D{]}"


def test_file_names_are_plain_and_never_shared() -> None:
    assert slug("curves", "cifar10", "wrn-34-10") == "curves_cifar10_wrn-34-10"
    names = [slug(name) for name in ("a-b", "a_b", "A-B", "a/b", "../b", "ü")]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z0-9_-]+", name) for name in names)


def test_the_papers_numbers_give_the_papers_tables(published: Path) -> None:
    for table, name in zip(white_box(published), WHITE_BOX, strict=True):
        teachers = [group.removeprefix("Teacher ") for group, _ in table.groups if group]
        found = texts(table)
        lines = paper.published(name)
        assert len(found) == 20
        assert len(lines) == 20 * len(teachers)
        for line in lines:
            student = next(ours for ours, theirs in STUDENTS.items() if theirs == line["student"])
            start = 5 * teachers.index(line["teacher"])
            printed = found[f"Student {student}", line["method"]][start : start + 5]
            assert printed == [f"{float(line[a]):.2f}" for a in ATTACKS]
    cifar10 = white_box(published)[0]
    assert [group for group, _ in cifar10.groups if group] == ["Teacher wrn-34-10", "Teacher wrn-28-10"]
    assert [row.cells[0].text for row in cifar10.rows] == list(METHODS) * 2


def test_bold_and_underlined_are_what_the_papers_rule_makes_of_its_numbers(published: Path) -> None:
    """ "The best results are boldfaced, and the second best results are underlined", of one student and teacher."""
    for table, name in zip(white_box(published), WHITE_BOX, strict=True):
        printed: dict[tuple[str, str, str], list[tuple[float, str]]] = {}
        for line in paper.published(name):
            for attack in ATTACKS:
                where = (STUDENT_OF[line["student"]], line["teacher"], ATTACKS[attack])
                printed.setdefault(where, []).append((float(line[attack]), line["method"]))
        found: dict[tuple[str, str, str], dict[Mark, str]] = {}
        for row in table.rows:
            for cell, column in zip(row.cells[1:], table.columns[1:], strict=True):
                if cell.mark is not Mark.NONE:
                    where = (row.block.split()[-1], column.group.removeprefix("Teacher "), column.title)
                    # Nothing is printed twice in a column among its two best, so each mark is given once.
                    assert cell.mark not in found.setdefault(where, {})
                    found[where][cell.mark] = row.cells[0].text
        best_two = {where: sorted(values)[-2:] for where, values in printed.items()}
        assert found == {
            where: {Mark.BEST: best, Mark.SECOND: second} for where, ((_, second), (_, best)) in best_two.items()
        }
    view = view_of(published)
    (black_box,) = robustness.transfer(collect(view.records, "student"), view)
    assert {name for name, _ in marks(black_box, Mark.BEST)} == {"SmaraAD"}
    assert {name for name, _ in marks(black_box, Mark.SECOND)} == {"AdaAD"}


def test_what_the_paper_says_of_its_tables_is_what_these_mark(published: Path) -> None:
    cifar10, cifar100 = white_box(published)
    # MTARD has the best clean accuracy everywhere but for RN-18 taught by WRN-34-10.
    assert {name for name, _ in marks(cifar10, Mark.BEST)} == {"MTARD", "SmaraAD++"}
    assert {title for name, title in marks(cifar10, Mark.BEST) if name == "MTARD"} == {"Clean"}
    assert {title for name, title in marks(cifar100, Mark.BEST) if name == "SmaraAD++"} == {
        "FGSM",
        "PGD-20",
        "C&W∞",
        "AA",
    }
    first = next(row for row in cifar10.rows if row.cells[0].text == "SmaraAD++")
    assert [cell.mark for cell in first.cells[1:7]] == [*[Mark.BEST] * 5, Mark.SECOND]


def test_transfer_columns_are_grouped_by_proxy_with_its_own_strength(published: Path, tmp_path: Path) -> None:
    view = view_of(published)
    students = collect(view.records, "student")
    (table,) = robustness.transfer(students, view)
    assert table.groups == [("", 1), ("Proxy resnet18", 2), ("Proxy wrn-34-20", 2)]
    for line in paper.published("table5_blackbox"):
        start = 0 if line["proxy"] == "resnet18" else 2
        printed = texts(table)["Student rn18 taught by wrn-34-10", line["method"]][start : start + 2]
        assert printed == [f"{float(line[a]):.2f}" for a in ("pgd20", "cw")]
    assert {name for name, _ in marks(table, Mark.BEST)} == {"SmaraAD"}
    add(tmp_path, kind="teacher", dataset="cifar10", label="wrn-34-20", metrics={"pgd20": 0.7064}, n=10000)
    (table,) = robustness.transfer(students, View(Path("/"), [*view.records, *read_all(tmp_path)]))
    assert table.groups[2][0] == "Proxy wrn-34-20 (its PGD-20: 70.64)"


def test_the_paper_beside_itself_differs_by_nothing(published: Path) -> None:
    view = view_of(published)
    found = paper.comparison(collect(view.records, "student"), collect(view.records, "teacher"), view)
    assert [len(table.rows) for table in found] == [2 + 2 * (3 + 7 * 2), 1 + 2 * 10, 4]
    assert {cell.text for table in found for row in table.rows for cell in row.cells[3::3]} == {"+0.00"}
    assert all(row.cells[i].text == row.cells[i + 1].text for t in found for row in t.rows for i in (1, 4))
    assert all(paper.FGSM in table.footnotes for table in found[:2])
    assert paper.TABLE_5 in found[2].footnotes


def test_the_paper_is_not_compared_where_nothing_matches(tmp_path: Path) -> None:
    add(tmp_path, dataset="cifar10", student="rn18", teacher="t", teacher_architecture="rn18", metrics={"aa": 0.5})
    add(tmp_path, dataset="digits", student="rn18", method="trades", metrics={"aa": 0.5})
    view = view_of(tmp_path)
    assert paper.comparison(collect(view.records, "student"), [], view) == []


def test_costs_are_means_over_seeds_and_tell_passes_where_they_were_recorded(
    small: tuple[Path, Path, list[Path]],
) -> None:
    view = view_of(small[0])
    (table,) = costs.tables(collect(view.records, "student"), view)
    block = "Student cnn-16"
    assert texts(table)[block, "PGD-AT"] == ["–", "11.2", "106.0", "1940", "300", "22", "132", "12.5"]
    assert texts(table)[block, "ARD"] == ["robust", *["failed"] * 7]
    assert texts(table)[block, NASTY][5:7] == ["–", "–"], "an old record"
    row = next(row for row in table.rows if row.cells[0].text == "PGD-AT")
    assert row.cells[6].details == (("student, forward and backward", "11"),)
    assert [column.title for column in table.columns[3:5]] == ["Time (s)", "Images/s"]


def test_the_overview_counts_cells_and_gives_reasons(small: tuple[Path, Path, list[Path]]) -> None:
    results, out, _ = small
    head = page.overview(list(read_all(results)), results)
    assert head.summary == "10 cells (7 students, 2 teachers and 1 checkpoint): 9 done, 1 failed."
    (failure,) = head.failures
    assert failure.reason == f"RuntimeError in train: out of memory {NASTY}"
    paths = [record.path.relative_to(results).as_posix() for record in read_all(results)]
    for spelling in ("index.html", "tables/cells.csv"):
        text = (out / spelling).read_text()
        assert all(path in text for path in paths)
    assert str(results) not in (out / "index.html").read_text()


def test_figure_1_pairs_students_with_their_teachers(small: tuple[Path, Path, list[Path]]) -> None:
    view = view_of(small[0])
    (plot,) = comparisons.teacher_student(collect(view.records, "student"), view)
    numbers = numbers_of(plot.alt)
    assert numbers["RSLAD"] == [41.6, 55.0, 44.0, 65.0], "its accuracy at the accuracy of each teacher"
    assert [values for name, values in numbers.items() if name.startswith("PGD-AT")] == [[40.2]]


@pytest.fixture
def twice(tmp_path: Path) -> list[Record]:
    """A student and its teacher, which was evaluated in full, on fewer images, and by `--verify`."""
    few, quick = {"images": 100}, {"images": 100, "attacks": ["pgd20"]}
    teacher = {"kind": "teacher", "label": "robust", "student": "wrn-10-2"}
    add(tmp_path, **teacher, metrics={"clean": 0.9, "pgd20": 0.62, "aa": 0.55})
    add(tmp_path, **teacher, metrics={"clean": 0.9, "pgd20": 0.66, "aa": 0.59}, n=100, evaluation=few)
    add(tmp_path, **teacher, metrics={"clean": 0.9, "pgd20": 0.71}, n=100, evaluation=quick)
    add(
        tmp_path,
        **teacher | {"student": "wrn-16-2"},
        metrics={"pgd20": 0.2, "aa": 0.1},
        weights="another network of its name",
    )
    metrics = {"aa": 0.4, "transfer:robust:pgd20": 0.7}
    add(tmp_path, teacher="robust", metrics=metrics, evaluation={"proxies": {"robust": _train_id(tmp_path)}})
    return list(read_all(tmp_path))


def _train_id(results: Path) -> str:
    return next(r.train_id for r in read_all(results) if r.student == "wrn-10-2")


def test_a_teacher_evaluated_again_keeps_figure_1_and_the_proxy_heading(twice: list[Record]) -> None:
    students, view = collect(twice, "student"), View(twice[0].path.parents[2], twice)
    (plot,) = comparisons.teacher_student(students, view)
    assert numbers_of(plot.alt)["RSLAD"] == [40.0, 55.0]
    (table,) = robustness.transfer(students, view)
    assert table.groups[1][0] == "Proxy robust (its PGD-20: 62.00)"


def test_a_teacher_is_read_from_the_record_evaluated_as_the_student_was(twice: list[Record], tmp_path: Path) -> None:
    add(tmp_path, method="ard", teacher="robust", metrics={"aa": 0.3}, n=100, evaluation={"images": 100})
    add(tmp_path, method="iad", teacher="robust", metrics={"aa": 0.3}, n=50, evaluation={"images": 50})
    ard, iad, rslad = collect(read_all(tmp_path), "student")
    assert [teachers.teacher_accuracy(run, twice, "aa") for run in (ard, iad, rslad)] == pytest.approx([59, 55, 55])


@pytest.mark.usefixtures("twice")
def test_teachers_are_listed_once_a_network_by_their_fullest_evaluation(tmp_path: Path) -> None:
    add(tmp_path, kind="teacher", label="robust", student="wrn-10-2", error="interrupted", evaluation={"images": 5})
    add(tmp_path, kind="teacher", label="broken", error="out of memory")
    out = tmp_path / "out"
    report.write(tmp_path, out)
    with (out / "tables/teachers.csv").open() as file:
        found = [(line["Teacher"], line["Architecture"], line["AA"]) for line in csv.DictReader(file)]
    assert [(name.partition(" #")[0], *rest) for name, *rest in found] == [
        ("broken", "cnn-16", "failed"),
        ("robust", "wrn-10-2", "55.00"),
        ("robust", "wrn-16-2", "10.00"),
    ]
    assert len({name for name, *_ in found}) == 3, "two networks of one name have a digest beside it"
    with (out / "tables/cells.csv").open() as file:
        states = [line["State"] for line in csv.DictReader(file) if line["Student"] == "wrn-10-2"]
    assert sorted(states) == ["done", "failed", "further evaluation", "further evaluation"]


def test_error_bars_span_seeds_where_there_are_several_and_images_where_not(tmp_path: Path) -> None:
    add(tmp_path, method="ard", metrics={"aa": 0.5}, n=1000)
    for seed, value in enumerate((0.4, 0.5)):
        add(tmp_path, method="iad", seed=seed, metrics={"aa": value}, n=1000)
    ard, iad = collect(read_all(tmp_path), "student")
    test = stats.binomtest(500, 1000).proportion_ci(method="wilson")
    assert ard.interval("aa") == pytest.approx((100 * test.low, 100 * test.high))
    assert iad.interval("aa") == pytest.approx((40, 50)), "two seeds span their range"
    add(tmp_path, method="iad", seed=2, metrics={"aa": 0.6}, n=1000)
    _, iad = collect(read_all(tmp_path), "student")
    assert iad.interval("aa") == pytest.approx(stats.t.interval(0.95, 2, 50, 10 / math.sqrt(3)))


def test_every_method_of_the_paper_has_a_look_of_its_own() -> None:
    looks = [look(label, labels_of([])) for label in LABELS.values()]
    for one in ("marker",), ("color", "linestyle"):
        assert len({tuple(str(look[key]) for key in one) for look in looks}) == len(looks)


@pytest.mark.parametrize(("what", "form"), [("1", "png"), ("1", "pdf"), ("1", "svg"), ("curves", "svg")])
def test_figures_have_the_same_bytes_every_time(small: tuple[Path, Path, list[Path]], what: str, form: str) -> None:
    view = view_of(small[0])
    runs = collect(view.records, "student")
    found = training.curves(runs, [training.averaged(run.done)[0] for run in runs])
    plot = (comparisons.teacher_student(runs, view) if what == "1" else found)[0]
    first, second = plot.render(form), plot.render(form)
    assert first == second
    assert str(datetime.now(UTC).year).encode() + b"-" not in first


def test_what_the_teacher_says_of_the_attacks_is_drawn_where_a_log_tells(tmp_path: Path) -> None:
    add(tmp_path, method="trades", metrics={"aa": 0.4}, epochs=2)
    for seed, accuracy in ((0, 0.5), (1, 0.7)):
        path = add(tmp_path, method="rslad", teacher="t", seed=seed, metrics={"aa": 0.4}, epochs=2)
        log = path.parent / "log.jsonl"
        told = {"teacher_accuracy_adv": accuracy, "teacher_entropy_adv": 2 * accuracy}
        log.write_text("".join(json.dumps(json.loads(line) | told) + "\n" for line in log.read_text().splitlines()))
    runs = collect(read_all(tmp_path), "student")
    usual, plot = training.curves(runs, [training.averaged(run.done)[0] for run in runs])
    assert usual.label.startswith("curves_")
    assert plot.label.startswith("guidance_")
    assert plot.data is not None
    accuracies, entropies = plot.data.panels
    for panel, value in ((accuracies, 60), (entropies, 1.2)):
        (series,) = panel.series
        assert (series.name, [point.y for point in series.points]) == ("RSLAD", [pytest.approx(value)] * 2)


def test_results_marked_as_separate_are_read_by_themselves_alone(tmp_path: Path) -> None:
    study = tmp_path / "study"
    add(tmp_path, method="ard", metrics={"aa": 0.4})
    add(study, method="rslad", metrics={"aa": 0.5})
    assert len(list(read_all(tmp_path))) == 2
    (study / SEPARATE).touch()
    (mine,), (theirs,) = read_all(tmp_path), read_all(study)
    assert (mine.method, theirs.method) == ("ard", "rslad")


def test_the_committed_study_is_in_nobodys_first_report() -> None:
    results = Path(__file__).resolve().parents[1] / "results"
    assert not [path for path in below(results, "record.json") if path.is_relative_to(results / "smaraad")]
    assert below(results / "smaraad", "record.json")


def test_no_finished_record_is_a_users_error_and_writes_nothing(tmp_path: Path) -> None:
    results, out = tmp_path / "results", tmp_path / "out"
    results.mkdir()
    with pytest.raises(UserError, match="no record below"):
        report.write(results, out)
    add(results, error="CUDA out of memory")
    with pytest.raises(UserError, match=r"all 1 cells .* failed, the first with: CUDA out of memory"):
        report.write(results, out)
    assert not out.exists()


def test_the_report_never_imports_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from adbench.report.writer import write;"
        "write(Path(sys.argv[1]), Path(sys.argv[2])); assert 'torch' not in sys.modules"
    )
    one = tmp_path / "results"
    add(one, metrics={"aa": 0.5}, epochs=1)
    done = subprocess.run(
        [sys.executable, "-c", code, str(one), str(tmp_path / "out")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_the_latex_document_compiles(small: tuple[Path, Path, list[Path]], tmp_path: Path) -> None:
    shutil.copytree(small[1], tmp_path / "out")
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "report.tex"],
        cwd=tmp_path / "out",
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Missing character" not in done.stdout
