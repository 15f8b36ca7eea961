"""Columns beside accuracies: class spread, trade-off, best and last epoch."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import harmonic_mean, pstdev
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from synthetic import add
from tiny import cli

from adbench.errors import UserError
from adbench.report import writer as report
from adbench.report.tables import robustness
from adbench.report.view import View
from adbench.results import document
from adbench.results.quantities import QUANTITIES, interval, value
from adbench.results.record import read, read_all
from adbench.results.runs import beside_last, collect, heading
from adbench.results.stats import jackknife
from adbench.system.files import sha256

SHARES = [0.9, 0.8, 0.85, 0.5, 0.6, 0.4, 0.7, 0.95, 0.75, 0.3]
"""Of ten classes, whose images are not equally many."""


def uneven(path: Path, attack: str = "aa") -> Path:
    """Give a record of 1,000 images classes of different size and accuracy, and drop its counts by class."""
    draw = np.random.default_rng(0)
    labels = draw.choice(10, 1000, p=np.arange(1, 11) / 55)
    table = pd.read_parquet(path.parent / "outcomes.parquet")
    right = draw.random(1000) < np.array(SHARES)[labels]
    table["prediction"] = np.where(table["prediction"] == table["label"], labels, (labels + 1) % 10)
    table["label"], table[attack] = labels, pd.array(right, dtype="boolean")
    table.to_parquet(path.parent / "outcomes.parquet")
    data = json.loads(path.read_text())
    data["metrics"][attack] |= {"correct": int(right.sum()), "value": right.sum() / 1000}
    data["outcomes"]["sha256"] = sha256(path.parent / "outcomes.parquet")
    document.write(path, data)
    return path


def outcomes(path: Path) -> pd.DataFrame:
    table = pd.read_parquet(path.parent / "outcomes.parquet")
    return table.assign(clean=table["prediction"] == table["label"])


def table_of(results: Path, **chosen: Any) -> Any:
    view = View(results, list(read_all(results)), **chosen)
    view.check()
    records, twins = beside_last(view.records) if view.beside_last else (view.records, {})
    (table,) = robustness.white_box(collect(records, "student", twins), view)
    return table


def texts(table: Any) -> list[list[str]]:
    return [[cell.text for cell in row.cells] for row in table.rows]


@pytest.mark.parametrize("counted", [False, True])
def test_class_spread_is_that_of_the_outcomes(tmp_path: Path, counted: bool) -> None:
    """Also of a record that has no counts by class."""
    path = uneven(add(tmp_path, metrics={"clean": 0.8, "aa": 0.5}, n=1000))
    table = outcomes(path)
    if counted:
        data = json.loads(path.read_text())
        both = table.groupby("label")["aa"].agg(["sum", "count"]).astype(int)
        data["metrics"]["aa"]["per_class"] = both.to_numpy().tolist()
        document.write(path, data)
    shares = (100 * table.groupby("label")["aa"].mean().astype(float)).tolist()
    record = read(path)
    assert value(record, None, "worst:aa") == pytest.approx(min(shares))
    assert value(record, None, "nsd:aa") == pytest.approx(pstdev(shares) / (sum(shares) / 10))
    low, high = interval(record, None, "worst:aa") or (0, 0)
    weakest = table[table["label"] == int(np.argmin(shares))]["aa"]
    wilson = stats.binomtest(int(weakest.sum()), len(weakest)).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((100 * wilson.low, 100 * wilson.high))


def test_the_interval_of_the_class_spread_covers_as_often_as_it_says(tmp_path: Path) -> None:
    """Against the spread of bootstrapped test sets."""
    path = uneven(add(tmp_path, metrics={"clean": 0.8, "aa": 0.5}, n=1000))
    record, table = read(path), outcomes(path)
    labels, right = table["label"].to_numpy(), table["aa"].to_numpy(dtype=float)
    draw, again = np.random.default_rng(1), []
    for _ in range(400):
        chosen = draw.integers(0, 1000, 1000)
        shares = np.bincount(labels[chosen], right[chosen], 10) / np.bincount(labels[chosen], minlength=10)
        again.append(shares.std() / shares.mean())
    low, high = interval(record, None, "nsd:aa") or (0, 0)
    assert (high - low) / 2 == pytest.approx(1.96 * np.std(again), rel=0.15)


def test_the_trade_off_is_of_clean_and_robust_accuracy_image_by_image(tmp_path: Path) -> None:
    path = uneven(add(tmp_path, metrics={"clean": 0.8, "aa": 0.5}, n=1000))
    record, table = read(path), outcomes(path)
    clean, robust = 100 * table["clean"].mean(), 100 * table["aa"].astype(float).mean()
    assert value(record, None, "mean:aa") == pytest.approx((clean + robust) / 2)
    assert value(record, None, "harmonic:aa") == pytest.approx(harmonic_mean([clean, robust]))
    low, high = interval(record, None, "mean:aa") or (0, 0)
    each = 50 * (table["clean"] + table["aa"].astype(float))
    assert (high - low) / 2 == pytest.approx(stats.norm.ppf(0.975) * each.sem())


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    half = jackknife(lambda counts: counts[1] / counts.sum(), np.array([30, 70]))
    assert half == pytest.approx(stats.norm.ppf(0.975) * stats.sem([0] * 30 + [1] * 70))
    assert np.isnan(jackknife(lambda _: 1.0, np.array([1])))


def both_epochs(results: Path, method: str, seed: int, best: float, last: float, **more: Any) -> tuple[Path, Path]:
    """A network that was judged at its best and its last epoch."""
    return tuple(  # type: ignore[return-value]
        add(
            results,
            method=method,
            seed=seed,
            metrics={"clean": 0.8, "aa": accuracy},
            evaluation={"checkpoint": epoch, "images": 1000},
            checkpoint=epoch,
            weights=f"{method} {seed}",
            **more,
        )
        for epoch, accuracy in (("best", best), ("last", last))
    )


def test_best_and_last_epoch_stand_side_by_side_with_their_paired_difference(tmp_path: Path) -> None:
    for seed, best, last in ((0, 0.5, 0.44), (1, 0.52, 0.45), (2, 0.48, 0.43)):
        both_epochs(tmp_path, "trades", seed, best, last)
    add(tmp_path, method="rslad", metrics={"clean": 0.8, "aa": 0.4}, evaluation={"checkpoint": "best"})
    table = table_of(tmp_path, columns=("aa", "last:aa", "diff:aa"))
    assert [column.title for column in table.columns[1:]] == ["AA", "AA, last", "AA, best − last"]
    assert texts(table) == [["TRADES", "50.00", "44.00", "6.00"], ["RSLAD", "40.00", "–", "–"]]
    difference = table.rows[0].cells[3]
    half = stats.t.ppf(0.975, 2) * stats.sem([6, 7, 5])
    assert difference.spread == f"{half:.2f}", "over seeds, each with its own two epochs"
    assert ("95% interval over seeds", f"{6 - half:.2f} to {6 + half:.2f}") in difference.details
    assert len(difference.records) == 6
    assert {cell.mark.value for row in table.rows for cell in row.cells[3:]} == {"none"}, "it has no best"
    # Nobody who does not ask for it sees other rows than before.
    assert [row[0] for row in texts(table_of(tmp_path))][:2] == ["TRADES (checkpoint best)", "TRADES (checkpoint last)"]


def test_of_one_seed_the_epochs_are_paired_over_the_same_images(tmp_path: Path) -> None:
    best, last = both_epochs(tmp_path, "trades", 0, 0.5, 0.47)
    uneven(best)
    record, twin = read(best), read(last)
    one, two = outcomes(best)["aa"].to_numpy(dtype=bool), outcomes(last)["aa"].to_numpy(dtype=bool)
    found = value(record, twin, "diff:aa")
    assert found == pytest.approx(100 * (one.mean() - two.mean()))
    half = stats.norm.ppf(0.975) * stats.sem(100 * (one.astype(float) - two.astype(float)))
    assert interval(record, twin, "diff:aa") == pytest.approx((found - half, found + half))
    table = table_of(tmp_path, columns=("diff:aa",))
    details = dict(table.rows[0].cells[1].details)
    assert "95% interval over test images" in details
    assert "95% interval over seeds" not in details
    p_value = stats.binomtest(int((one & ~two).sum()), int((one ^ two).sum())).pvalue
    assert f"p = {p_value:.2g}" in details["Best against last"]


def test_a_network_that_was_judged_at_its_last_epoch_alone_has_no_difference(tmp_path: Path) -> None:
    _, last = both_epochs(tmp_path, "ard", 0, 0.5, 0.4)
    both_epochs(tmp_path, "rslad", 0, 0.6, 0.5)
    for path in tmp_path.rglob("record.json"):
        record = read(path)
        if record.method == "ard" and path != last:
            path.unlink()
    table = table_of(tmp_path, columns=("last:aa", "diff:aa"))
    assert texts(table) == [["ARD", "40.00", "–"], ["RSLAD", "50.00", "10.00"]]


def test_epochs_that_were_not_judged_alike_are_no_pair(tmp_path: Path) -> None:
    best, _ = both_epochs(tmp_path, "trades", 0, 0.5, 0.4)
    data = json.loads(best.read_text())
    data["config"]["evaluation"]["seed"] = 1
    document.write(best, data)
    records = list(read_all(tmp_path))
    kept, twins = beside_last(records)
    assert kept == records
    assert not twins


def test_the_class_spread_stands_where_fairness_methods_do_and_elsewhere_on_request(tmp_path: Path) -> None:
    add(tmp_path, method="rslad", teacher="t", metrics={"clean": 0.8, "pgd20": 0.45, "aa": 0.4}, per_class=True)
    spread = [heading(f"{quantity}:{attack}") for quantity in ("worst", "nsd") for attack in ("clean", "aa")]
    titles = [column.title for column in table_of(tmp_path).columns]
    assert titles == ["Method", "Clean", "PGD-20", "AA"]
    asked = table_of(tmp_path, columns=("worst", "nsd:pgd20"))
    assert [column.title for column in asked.columns] == ["Method", *spread[:2], "NSD, PGD-20"]
    add(tmp_path, method="absld", label="ABSLD", teacher="t", metrics={"clean": 0.7, "aa": 0.45}, per_class=True)
    assert [column.title for column in table_of(tmp_path).columns] == [*titles, *spread]


def test_where_lower_is_better_the_lowest_is_the_best(tmp_path: Path) -> None:
    for method, accuracy in (("ard", 0.455), ("rslad", 0.95), ("iad", 0.25)):
        add(tmp_path, method=method, metrics={"clean": 0.8, "aa": accuracy}, n=1000)
    table = table_of(tmp_path, columns=("nsd:aa",))
    cells = {row.cells[0].text: row.cells[1] for row in table.rows}
    expected = pstdev([46] * 5 + [45] * 5) / 45.5
    assert cells["ARD"].text == f"{expected:.3f}"
    assert sorted(cells, key=lambda name: float(cells[name].text))[0] == next(
        name for name, cell in cells.items() if cell.mark.value == "best"
    )
    report.write(tmp_path, tmp_path / "out", formats=("html",), columns=("nsd:aa",))
    assert 'class="number lower' in (tmp_path / "out/index.html").read_text(encoding="utf-8")


def test_without_autoattack_the_strongest_attack_stands_for_robust(tmp_path: Path) -> None:
    for method in ("ard", "rslad"):
        add(tmp_path, method=method, metrics={"clean": 0.8, "fgsm": 0.5, "cw": 0.3, "pgd20": 0.4}, outcomes=False)
    table = table_of(tmp_path, columns=("mean", "harmonic"))
    assert [column.title for column in table.columns[1:]] == ["Mean, C&W∞", "Harmonic, C&W∞"]
    assert texts(table)[0][1:] == ["55.00", f"{harmonic_mean([80, 30]):.2f}"]


@pytest.mark.parametrize(
    ("column", "said"),
    [
        ("wrst:aa", "did you mean 'worst:aa'"),
        ("nsd:fgsn", "did you mean 'nsd:fgsm'"),
        ("zzz", "worst"),
        ("mean:clean", "unknown column 'mean:clean'"),
        ("diff", "eval.checkpoint"),
        ("last:aa", "eval.checkpoint"),
    ],
)
def test_a_column_that_is_not_there_is_answered(tmp_path: Path, column: str, said: str) -> None:
    add(tmp_path, method="ard", metrics={"clean": 0.8, "fgsm": 0.5, "aa": 0.3}, outcomes=False)
    with pytest.raises(UserError) as error:
        table_of(tmp_path, columns=(column,))
    assert said in str(error.value)


def test_help_and_documents_name_all_quantities() -> None:
    text = cli("report", "--help").output
    docs = (Path(__file__).resolve().parents[1] / "docs/report.md").read_text(encoding="utf-8")
    for name in QUANTITIES:
        assert f" {name} " in text
        assert f"`{name}`" in docs
