"""The report on gradient masking and on classes: verdicts stand where accuracies do, worst classes have names."""

from __future__ import annotations

import csv
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from synthetic import add, conform

from adbench.evaluation import masking_rules
from adbench.report import classes, render
from adbench.report import writer as report
from adbench.report.model import MISSING, Mark, Table
from adbench.report.tables import masking, robustness
from adbench.report.view import View
from adbench.results import record
from adbench.results.record import read_all
from adbench.results.runs import collect

NASTY = r"<script>alert(1)</script> a_b & 100% $x$ {~^\} `#|*"


def change(path: Path, **changed: Any) -> None:
    """Add to a synthetic record, which stays one by the schema."""
    data = json.loads(path.read_text(encoding="utf-8"))
    counts = changed.pop("per_class", {})
    data |= changed
    for metric, per_class in counts.items():
        data["metrics"][metric]["per_class"] = per_class
    conform(data)
    record.write(path, data)


def examined(*, zeros: int = 0, lead: int = -5, flags: Sequence[str] | None = None) -> dict[str, Any]:
    """What an examination of 100 images found."""
    tests = [
        masking_rules.leading("fgsm-weaker-than-pgd", "FGSM", "PGD-20", max(lead, 0), max(-lead, 0), 100),
        masking_rules.counted("zero-gradients", zeros, 100, "{} have no gradient"),
        masking_rules.differing(0.0, 10, 100),
    ]
    if flags is not None:
        tests.append(masking_rules.warned(flags, 100))
    worst = max((test["verdict"] for test in tests), key=masking_rules.VERDICTS.index)
    return {"verdict": worst, "images": 100, "tests": tests}


def masking_table(results: Path) -> Table:
    records = list(read_all(results))
    (table,) = masking.table([run for kind in ("student", "teacher", "checkpoint") for run in collect(records, kind)])
    return table


def classes_table(results: Path) -> Table:
    (table,) = classes.tables(collect(read_all(results), "student"))
    return table


def test_every_examined_network_has_its_verdict_and_figures(tmp_path: Path) -> None:
    change(add(tmp_path, teacher="t", metrics={"aa": 0.5}), masking=examined())
    change(add(tmp_path, kind="teacher", label="t", metrics={"aa": 0.6}), masking=examined(zeros=40, flags=()))
    change(add(tmp_path, kind="checkpoint", label="c", metrics={"aa": 0.6}), masking=examined(zeros=6))
    add(tmp_path, method="ard", teacher="t", metrics={"aa": 0.5})
    table = masking_table(tmp_path)
    found = {row.cells[0].text: [cell.text for cell in row.cells[1:]] for row in table.rows}
    assert [c.title for c in table.columns[2:]] == [
        "fgsm-weaker-than-pgd",
        "zero-gradients",
        "determinism",
        "autoattack-flags",
    ]
    assert found == {
        "RSLAD on cnn-16 taught by t": ["pass", "−5.0", "0.0", "0.0", MISSING.text],
        "t on cnn-16": ["fail", "−5.0", "40.0 (fail)", "0.0", "0"],
        "c on cnn-16": ["suspect", "−5.0", "6.0 (suspect)", "0.0", MISSING.text],
    }
    marked = [[cell.mark is Mark.FAILED for cell in row.cells] for row in table.rows]
    assert marked == [[False] * 6, [False, True, False, True, False, False], [False, True, False, True, False, False]]
    (doubt,) = (note for note in table.footnotes if note.startswith("t on cnn-16, zero-gradients, fail: "))
    assert {"100", "40"} <= set(doubt.replace(",", "").split()), "of so many images so many have no gradient"
    assert sum(note.startswith("zero-gradients: suspect beyond the count") for note in table.footnotes) == 1
    assert "100 test images" in table.caption


def test_of_several_seeds_the_worst_is_shown_and_named(tmp_path: Path) -> None:
    for seed, zeros in enumerate((0, 30, 2)):
        change(add(tmp_path, seed=seed, metrics={"aa": 0.5}), masking=examined(zeros=zeros))
    table = masking_table(tmp_path)
    assert [cell.text for cell in table.rows[0].cells[1:4]] == ["fail", "−5.0", "30.0 (fail)"]
    assert [note for note in table.footnotes if "seed" in note] == [
        "RSLAD on cnn-16, seed 1, zero-gradients, fail: Of 100 images, 30 have no gradient."
    ]


def test_noise_far_below_a_percent_is_not_printed_as_none(tmp_path: Path) -> None:
    found = examined()
    found["tests"][2] = masking_rules.differing(0.0003, 10, 100)
    found["verdict"] = "fail"
    change(add(tmp_path, metrics={"aa": 0.5}), masking=found)
    assert masking_table(tmp_path).rows[0].cells[-1].text == "0.03 (fail)"


def test_accuracies_that_may_be_illusions_have_a_footnote(tmp_path: Path) -> None:
    change(add(tmp_path, method="ard", metrics={"aa": 0.5}), masking=examined(zeros=30, lead=20))
    change(add(tmp_path, method="iad", metrics={"aa": 0.5}), masking=examined())
    change(add(tmp_path, kind="teacher", label="t", metrics={"aa": 0.5}), masking=examined(zeros=6))
    records = list(read_all(tmp_path))
    view = View(tmp_path, records)
    (white_box,) = robustness.white_box(collect(records, "student"), view)
    (note,) = white_box.footnotes
    assert note.startswith("ARD on cnn-16: gradient masking, fail (fgsm-weaker-than-pgd and zero-gradients); its")
    (networks,) = robustness.teachers(collect(records, "teacher"), view)
    assert networks.footnotes == (
        "t on cnn-16: gradient masking, suspect (zero-gradients); its robust accuracy may be an illusion.",
    )


def test_records_without_the_keys_are_reported_as_before(tmp_path: Path) -> None:
    add(tmp_path, metrics={"clean": 0.9, "pgd20": 0.5, "aa": 0.4})
    runs = collect(read_all(tmp_path), "student")
    assert masking.table(runs) == classes.tables(runs) == []
    written = report.write(tmp_path, tmp_path / "out")
    assert not [path for path in written if path.stem.startswith(("masking", "classes"))]
    page = (tmp_path / "out" / "index.html").read_text()
    assert "masking" not in page
    assert "by class" not in page


CLEAN, PGD, AA = ([[9, 10], [8, 10], [10, 10]], [[5, 10], [6, 10], [3, 10]], [[2, 10], [6, 10], [3, 10]])


def test_the_worst_class_of_each_attack_is_named_with_wilsons_interval(tmp_path: Path) -> None:
    metrics = {"clean": 0.9, "fgsm": 0.1, "pgd20": 0.5, "aa": 0.4}
    change(add(tmp_path, metrics=metrics), per_class={"clean": CLEAN, "pgd20": PGD, "aa": AA, "fgsm": [[0, 10]] * 3})
    table = classes_table(tmp_path)
    assert table.groups == [
        ("", 1),
        ("Worst class, Clean", 3),
        ("Worst class, PGD-20", 3),
        ("Worst class, AA", 3),
        ("Each class, AA", 3),
    ]

    def interval(correct: int) -> str:
        bounds = stats.binomtest(correct, 10).proportion_ci(method="wilson")
        return f"{100 * bounds.low:.1f} to {100 * bounds.high:.1f}"

    assert [cell.text for cell in table.rows[0].cells] == [
        "RSLAD",
        "1",
        "80.0",
        interval(8),
        "2",
        "30.0",
        interval(3),
        "0",
        "20.0",
        interval(2),
        "20.0",
        "60.0",
        "30.0",
    ]


def test_classes_are_averaged_over_seeds_before_the_worst_is_chosen(tmp_path: Path) -> None:
    seeds = ([[1, 10], [4, 10]], [[8, 10], [3, 10]], [[7, 10], [3, 10]])
    for seed, counts in enumerate(seeds):
        change(add(tmp_path, seed=seed, metrics={"aa": 0.4}), per_class={"aa": counts})
    add(tmp_path, seed=3, metrics={"aa": 0.4})
    cells = classes_table(tmp_path).rows[0].cells
    low, high = stats.t.interval(0.95, 2, loc=100 / 3, scale=np.std([40, 30, 30], ddof=1) / np.sqrt(3))
    assert [cell.text for cell in cells[1:4]] == ["1", "33.3", f"{low:.1f} to {high:.1f}"]
    assert cells[2].spread == f"{(high - low) / 2:.1f}"
    assert [cell.text for cell in cells[4:]] == ["53.3", "33.3"]


def test_without_autoattack_the_strongest_is_the_attack_with_the_lowest_accuracy(tmp_path: Path) -> None:
    path = add(tmp_path, metrics={"clean": 0.9, "pgd20": 0.5, "cw": 0.4})
    change(path, per_class={"clean": CLEAN, "pgd20": PGD, "cw": AA})
    groups = [group for group, _ in classes_table(tmp_path).groups]
    assert groups == ["", "Worst class, Clean", "Worst class, PGD-20", "Worst class, C&W∞", "Each class, C&W∞"]


def test_cifars_classes_have_names_and_a_hundred_have_no_columns(tmp_path: Path) -> None:
    ten, hundred = [[5, 10]] * 6 + [[1, 10]] + [[5, 10]] * 3, [[5, 10]] * 99 + [[1, 10]]
    for dataset, counts, worst, columns in (("cifar10", ten, "frog", 14), ("cifar100", hundred, "worm", 4)):
        folder = tmp_path / dataset
        change(add(folder, dataset=dataset, metrics={"aa": 0.5}), per_class={"aa": counts})
        table = classes_table(folder)
        assert table.rows[0].cells[1].text == worst
        assert len(table.columns) == columns


def test_a_class_without_attacked_images_is_missing_and_not_the_worst(tmp_path: Path) -> None:
    change(add(tmp_path, metrics={"aa": 0.5}), per_class={"aa": [[0, 0], [5, 10]]})
    cells = classes_table(tmp_path).rows[0].cells
    assert (cells[1].text, cells[4], cells[5].text) == ("1", MISSING, "50.0")


def test_a_method_whose_record_does_not_tell_its_classes_has_no_row(tmp_path: Path) -> None:
    change(add(tmp_path, method="ard", metrics={"aa": 0.5}), per_class={"aa": AA})
    add(tmp_path, method="iad", metrics={"aa": 0.5})
    assert [row.cells[0].text for row in classes_table(tmp_path).rows] == ["ARD"]


@pytest.fixture
def nasty(tmp_path: Path) -> Path:
    found = examined(zeros=30, flags=[NASTY])
    found["tests"][1]["name"] = NASTY
    path = add(tmp_path, label=NASTY, metrics={"aa": 0.5})
    change(path, masking=found, per_class={"aa": AA})
    return tmp_path


def test_names_and_warnings_are_text_in_every_language(nasty: Path) -> None:
    for table in (masking_table(nasty), classes_table(nasty)):
        page, tex, markdown = render.html(table), render.latex(table), render.markdown(table)
        assert html.escape(NASTY) in page
        assert "<script>" not in page
        assert r"a\_b \& 100\% \$x\$" in tex
        assert "a_b" not in tex
        assert r"\<script\>" in markdown
        assert "<script>" not in markdown
        assert any(NASTY in cell for line in csv.reader(render.csv(table).splitlines()) for cell in line)


def test_the_whole_report_holds_both_tables(nasty: Path) -> None:
    out = nasty / "out"
    names = {path.name for path in report.write(nasty, out)}
    assert {"masking.tex", "masking.csv", "classes_digits.tex", "classes_digits.csv"} <= names
    for name in ("index.html", "report.md"):
        text = (out / name).read_text()
        assert "Gradient masking" in text
        assert "Accuracy by class" in text
