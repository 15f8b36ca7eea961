"""Settings that can be found, and several values of one: a cell each, told apart wherever they are named."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from tiny import cli, options, run

from adbench.errors import UserError
from adbench.execution.expand import recipe
from adbench.experiment.config import Experiment, experiment, layered
from adbench.experiment.settings import keys, swept, variants
from adbench.results import plans

HERE = ("--set", "hyper.trades.beta=[3,6]", "--methods", "pgd-at,trades")


def test_every_setting_has_a_line_a_default_and_bounds() -> None:
    found = {key.key: key for key in keys()}
    for name, field in Experiment.model_fields.items():
        assert any(key.partition(".")[0] == (field.alias or name) for key in found)
    for key in found.values():
        assert key.says, key
        assert key.bounds not in ("", "any"), key
    assert found["train.epochs"][1:3] == ("200", "whole number 1 to 1,000,000")
    assert found["train.momentum"].bounds == "number >= 0, < 1"
    assert found["train.optimiser"][1:3] == ('"sgd"', "sgd | adamw")
    assert found["train.points"][1:3] == ("[]", "list of [number 0 to 1, number >= 0]")
    assert found["data.resize"].default == "none"
    assert "8/255" in found["threat.eps"].bounds


@pytest.mark.parametrize("columns", [80, 160])
def test_the_settings_fit_the_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    done = cli("list", "settings")
    assert done.exit_code == 0
    assert max(map(len, done.output.splitlines())) <= columns
    for key in keys():
        assert re.search(rf"^  {re.escape(key.key)}\s", done.output, re.MULTILINE), key.key


@pytest.mark.parametrize(
    ("layer", "rest", "found"),
    [
        ({"train": {"lr": [0.1, 0.2], "epochs": 3}}, {"train": {"epochs": 3}}, {"train.lr": [0.1, 0.2]}),
        ({"hyper": {"trades": {"beta": [1, 2]}}}, {"hyper": {"trades": {}}}, {"hyper.trades.beta": [1, 2]}),
        ({"budget": [100, 200]}, {}, {"budget": [100, 200]}),
        # What is a list itself is one value, and a list of lists several.
        ({"train": {"milestones": [0.5]}}, {"train": {"milestones": [0.5]}}, {}),
        ({"eval": {"attacks": ["fgsm"]}}, {"eval": {"attacks": ["fgsm"]}}, {}),
        ({"train": {"milestones": [[], [0.5]]}}, {"train": {}}, {"train.milestones": [[], [0.5]]}),
        ({"train": {"points": [[0, 1], [1, 0]]}}, {"train": {"points": [[0, 1], [1, 0]]}}, {}),
        (
            {"train": {"points": [[[0, 1]], [[0, 0], [1, 1]]]}},
            {"train": {}},
            {"train.points": [[[0, 1]], [[0, 0], [1, 1]]]},
        ),
        ({"seeds": [0, 1]}, {"seeds": [0, 1]}, {}),
        # What is not known is refused later.
        ({"train": {"nix": [1, 2]}}, {"train": {"nix": [1, 2]}}, {}),
        ({"hyper": {"nobody": {"x": [1]}}}, {"hyper": {"nobody": {"x": [1]}}}, {}),
    ],
)
def test_a_list_where_one_value_belongs_is_several(
    layer: dict[str, Any], rest: dict[str, Any], found: dict[str, Any]
) -> None:
    taken, lists = swept(layer)
    assert {key: value for key, value in taken.items() if key not in found} == rest
    assert lists == found


def test_a_value_wins_over_all_layers_and_overrides_and_a_budget() -> None:
    rule = {"methods": ["trades"], "train": {"epochs": 7, "lr": 0.5}, "hyper": {"beta": 1.0, "start": "clean"}}
    whole = layered({"override": [rule], "budget": 50}, {"sweep": {"train.epochs": [1, 2], "hyper.trades.beta": [3]}})
    first, second = variants(experiment(whole))
    assert [first.train.epochs, second.train.epochs] == [1, 2]
    assert first.budget is None
    assert first.overrides[0].train == {"lr": 0.5}
    assert first.hyper == {"trades": {"beta": 3}}
    method, train = recipe(first, "trades", "digits")
    assert method.settings()["beta"] == 3
    assert method.settings()["start"] == "clean"
    assert (train.epochs, train.lr) == (1, 0.5)
    assert not first.sweep


@pytest.mark.parametrize("value", ["[3,-6]", "[]", '[3,"x"]'])
def test_a_value_that_the_setting_cannot_have_is_refused(value: str, tmp_path: Path) -> None:
    done = run("--results", tmp_path, "--methods", "trades", hyper__trades__beta=value)
    assert done.exit_code == 2
    assert "beta" in done.output


def test_a_sweep_in_a_file_yields_to_one_value_on_the_line(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("[hyper.trades]\nbeta = [1, 2, 3]\n")
    words = ("--config", tmp_path / "mine.toml", "--methods", "trades", "--results", tmp_path, "--dry-run")
    assert "of 3 cells" in run(*words).output
    assert "of 1 cells" in run(*words, hyper__trades__beta="5").output


@pytest.mark.usefixtures("one_thread")
def test_what_differs_is_named_from_the_plan_to_the_report(tmp_path: Path) -> None:
    results = tmp_path / "results"
    done = run(*HERE, "--results", results)
    assert done.exit_code == 0, done.output
    assert "of 3 cells" in done.output, "a method that the setting is not for is there once"
    for name in ("beta 3", "beta 6"):
        assert done.output.count(f"trades ({name})") == 2, "in the plan and while it runs"
        assert f"TRADES ({name})" in done.output
    assert "pgd-at (" not in done.output
    shown = cli("results", "--results", results).output
    assert re.search(r"TRADES \(beta 3\).*\n.*TRADES \(beta 6\)", shown)
    assert "held out" in shown, "by which one is chosen"
    frame = cli("results", "--results", results, "--format", "csv").output
    assert "(beta 6)" in frame
    assert cli("status", *options(), *HERE, "--results", results).exit_code == 0
    (plan,) = plans.read_all(results)
    assert sorted(cell.says for cell in plan.cells)[1:] == [f"trades (beta {b}) cnn-4 seed 0" for b in (3, 6)]
    assert cli("report", "--results", results, "--out", tmp_path / "report").exit_code == 0
    page = "".join(path.read_text() for path in (tmp_path / "report").rglob("*.html"))
    assert "TRADES (beta 3)" in page


def test_a_plan_from_before_a_setting_came_is_found_by_its_options() -> None:
    now = plans.canonical(experiment({"train": {"epochs": 3}}))
    before = {key: value for key, value in now.items() if key != "sweep"}
    before["train"] = {key: value for key, value in now["train"].items() if key not in ("augment", "average")}
    assert before != now
    assert plans.filled(before) == now


def test_a_key_that_is_no_setting_is_refused() -> None:
    with pytest.raises(UserError, match="nix"):
        variants(experiment({"sweep": {"train.nix": [1, 2]}}))


def test_a_value_of_one_method_takes_nothing_from_another_of_its_rule() -> None:
    rule = {"methods": ["ard", "iad"], "hyper": {"attack_bn": "train"}}
    whole = layered({"override": [rule]}, {"sweep": {"hyper.ard.attack_bn": ["eval", "train"]}})
    for one, value in zip(variants(experiment(whole)), ("eval", "train"), strict=True):
        assert recipe(one, "ard", "digits")[0].settings()["attack_bn"] == value
        assert recipe(one, "iad", "digits")[0].settings()["attack_bn"] == "train"


def test_a_budget_can_have_several_values_and_decides_over_a_files_epochs(tmp_path: Path) -> None:
    words = ("--methods", "pgd-at", "--preset", "quick", "--results", tmp_path, "--dry-run")
    done = cli("run", *words, "--set", "budget=[24,48]")
    assert "of 2 cells" in done.output, done.output
    (tmp_path / "mine.toml").write_text("[train]\nepochs = [10, 20]\n", encoding="utf-8")
    done = cli("run", *words, "--config", tmp_path / "mine.toml", "--set", "budget=24")
    assert "of 1 cells" in done.output, done.output


@pytest.mark.parametrize("text", ["train = [3]", "hyper = [3]"])
def test_a_sweep_of_a_table_is_one_sentence(text: str, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(f"[sweep]\n{text}\n", encoding="utf-8")
    done = cli("run", "--config", tmp_path / "mine.toml", "--preset", "official", "--dry-run")
    assert done.exit_code == 2, done.output
    assert "is a table; give values of one of its settings" in done.output
