"""The search for settings: the same passes for every method, the held-out images alone, and its record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from tiny import SETTINGS, TEACHER, cli

from adbench.data import dataset as data
from adbench.execution import tune
from adbench.report import writer as report
from adbench.report.view import View
from adbench.results.record import read_all

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("teachers") / "tiny.toml"
    path.write_text(TEACHER, encoding="utf-8")
    return path


def search(
    method: str, results: Path, *words: str | Path, budget: str = "40", over: str = "hyper.alpha=[0.1,0.2,0.3]"
) -> Result:
    settings = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
    tail = ["--student", "cnn-4", *settings, "--results", results, *words]
    return cli("tune", method, "--over", over, "--budget", budget, *tail)


def recorded(results: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("tuning/*.json"))]


def test_methods_have_the_same_passes_and_test_images_are_not_touched(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AdaAD's iterations cost more, since its attack goes through the teacher, so that it may try fewer settings."""
    withheld = []
    monkeypatch.setattr(tune, "without_test", lambda one: withheld.append(1) or data.without_test(one))
    for method in ("rslad", "adaad"):
        found = search(method, tmp_path / "results", "--teacher", teacher, budget="40")
        assert found.exit_code == 0, found.output
    searches = {one["method"]: one for one in recorded(tmp_path / "results")}
    assert {one["budget"] for one in searches.values()} == {40.0}
    for one in searches.values():
        costs = [trial["passes"] for trial in one["trials"]]
        assert sum(costs) <= 40
        assert len(costs) == 4 or sum(costs) + costs[-1] > 40  # all that there is, or all that is paid for
        assert one["trials"][0]["settings"] == {}
        assert one["held_out"] == 16
        assert all(0 <= trial["val_robust"] <= 1 for trial in one["trials"])
    assert searches["rslad"]["trials"][1]["passes"] != searches["adaad"]["trials"][1]["passes"]
    assert len(withheld) >= 6
    # Nothing was judged: there is no evaluation, of a teacher neither.
    assert [*(tmp_path / "results").rglob("record.json")] == []


def test_withheld_images_answer_nothing(tmp_path: Path) -> None:
    whole = data.load("digits", tmp_path)
    without = data.without_test(whole)
    assert len(without.val) == len(whole.val)
    for use in (lambda: len(without.test), lambda: without.test.images, lambda: without.test.to("cpu")):
        with pytest.raises(RuntimeError, match="withheld"):
            use()


def test_a_search_that_looked_at_test_images_would_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from adbench.training import trainer

    whole = trainer.Trainer.__init__

    def looking(self: Any, **options: Any) -> None:
        whole(self, **options)
        self.val = options["dataset"].test

    monkeypatch.setattr(trainer.Trainer, "__init__", looking)
    found = search("pgd-at", tmp_path / "results", over="train.lr=[0.05,0.01]")
    assert isinstance(found.exception, RuntimeError)
    assert "withheld" in str(found.exception)


def test_the_same_command_goes_on_and_its_trainings_are_those_of_run(tmp_path: Path) -> None:
    results = tmp_path / "results"
    first = search("pgd-at", results, over="train.lr=[0.05,0.01]")
    assert first.exit_code == 0, first.output
    weights = {path: path.stat().st_mtime_ns for path in results.rglob("best.safetensors")}
    assert len(weights) == 3
    assert search("pgd-at", results, over="train.lr=[0.05,0.01]").exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in results.rglob("best.safetensors")} == weights
    settings = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
    words = ("--methods", "pgd-at", "--student", "cnn-4", *settings, "--set", "train.lr=[0.05,0.1]")
    judged = cli("run", *words, "--results", results)
    assert judged.exit_code == 0, judged.output
    assert {path: path.stat().st_mtime_ns for path in results.rglob("best.safetensors")} == weights
    chapters, _ = report.contents(View(results, list(read_all(results))))
    ((table,),) = (chapter.tables for chapter in chapters if chapter.anchor == "tuned")
    (row,) = table.rows
    (one,) = recorded(results)
    recipe, best = one["trials"][0], max(one["trials"], key=lambda trial: trial["val_robust"])
    assert [cell.text for cell in row.cells[:6]] == [
        "PGD-AT (lr 0.1)",
        "–",
        "3",
        f"{sum(trial['passes'] for trial in one['trials']):.0f} of 40",
        f"{100 * recipe['val_robust']:.2f}",
        f"{100 * best['val_robust']:.2f}",
    ]
    # The recipe's own rate and one of the two that were tried were judged.
    tested = {record.train_id: 100 * record.metrics["pgd20"].value for record in read_all(results)}
    due = [f"{tested[trial['train_id']]:.2f}" if trial["train_id"] in tested else "–" for trial in (recipe, best)]
    assert [cell.text for cell in row.cells[7:]] == due
    assert due[0] != "–"
    merged = cli("merge", results, "--into", tmp_path / "merged")
    assert merged.exit_code == 0, merged.output
    assert recorded(tmp_path / "merged") == recorded(results)


@pytest.mark.parametrize(
    ("over", "budget", "named"),
    [
        ("hyper.alpha=0.5", "40", "hyper.alpha"),
        ("hyper.alpha=[0.5]", "40", "two values"),
        ("hyper.alhpa=[0.5,1]", "40", "alpha"),
        ("hyper.alpha=[0.5,9]", "400", "alpha = 9"),
        ("hyper.alpha=[0.5,1]", "3", "--budget 3"),
        ("hyper.alpha=[0.5,1]", "inf", "--budget inf"),
        ("hyper.alpha=[0.5,1]", "nan", "--budget nan"),
    ],
)
def test_what_cannot_be_searched_is_one_sentence(
    over: str, budget: str, named: str, teacher: Path, tmp_path: Path
) -> None:
    found = search("rslad", tmp_path / "results", "--teacher", teacher, over=over, budget=budget)
    assert found.exit_code == 2, found.output
    assert named in found.output
