"""What `adbench status` says of a matrix, and how fast."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import PLUGIN, TEACHER, cli, options, records, run

from adbench.models import build
from adbench.results import document, plans, record
from adbench.results.diff import differences
from adbench.results.status import PlannedCells
from adbench.system import locks

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the results of a teacher, PGD-AT and RSLAD. Not to be written to."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "tiny.toml").write_text(TEACHER, encoding="utf-8")
    words = ("--methods", "pgd-at,rslad", "--teacher", folder / "tiny.toml", "--results", folder / "results")
    result = run(*words)
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def results(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same to be written to."""
    subprocess.run(["cp", "-r", finished / "results", tmp_path], check=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "results"


def states(results: Path) -> dict[str, str]:
    rows = json.loads(cli("status", "--results", results, "--format", "json").output)
    return {row["cell"]: row["state"] for row in rows}


def folder(results: Path, method: str) -> Path:
    (found,) = results.glob(f"digits/{method}/*/*")
    return found


def lose(path: Path) -> None:
    subprocess.run(["rm", "-r", path], check=True)


def test_a_finished_matrix_is_done(finished: Path) -> None:
    result = cli("status", "--results", finished / "results")
    assert result.exit_code == 0, result.output
    assert [line.split() for line in result.output.splitlines()[2:6]] == [
        ["dataset", "network", "cells", "done"],
        ["digits", "teachers", "1", "1"],
        ["digits", "pgd-at", "1", "1"],
        ["digits", "rslad", "1", "1"],
    ]
    assert "left" not in result.output


def test_each_state_has_its_name_and_its_reason(results: Path) -> None:
    (teacher,) = results.glob("digits/teachers/*")
    pgd_at, rslad = folder(results, "pgd-at"), folder(results, "rslad")
    lose(next(rslad.glob("eval-*")))
    assert states(results) == {
        "teacher tiny": "done",
        "pgd-at cnn-4 seed 0": "done",
        "rslad cnn-4 from tiny seed 0": "trained",
    }
    with locks.locked(rslad):
        said = cli("status", "--results", results).output
        assert states(results)["rslad cnn-4 from tiny seed 0"] == "running"
        assert "evaluation, process " in said
        assert "about " in said
        assert "left with 1 at a time" in said
    (rslad / "training.json").unlink()
    (rslad / "resume.pt").touch()
    assert states(results)["rslad cnn-4 from tiny seed 0"] == "interrupted"
    assert "epoch 1 of 1 done" in cli("status", "--results", results).output
    lose(rslad)
    assert states(results)["rslad cnn-4 from tiny seed 0"] == "new"
    lose(teacher)
    assert states(results) == {
        "teacher tiny": "new",
        "pgd-at cnn-4 seed 0": "done",
        "rslad cnn-4 from tiny seed 0": "waiting",
    }
    assert "for teacher tiny (new)" in cli("status", "--results", results).output
    path = next(pgd_at.glob("eval-*/record.json"))
    failed = document.opened(path)
    failed |= {"status": "failed", "error": {"phase": "train", "type": "UserError", "message": "the loss\nis nan"}}
    record.write(path, failed)
    assert states(results)["pgd-at cnn-4 seed 0"] == "failed"
    assert "train: the loss is nan" in cli("status", "--results", results).output


def test_two_teachers_of_one_name_are_told_apart_from_the_plan_to_the_last_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("A", "B")):
        torch.manual_seed(seed)
        Path(name).mkdir()
        torch.save(build("cnn-4", classes=10, channels=1).state_dict(), f"{name}/best.pt")
    words = ("--teacher", "cnn-4@A/best.pt", "--teacher", "cnn-4@B/best.pt", "--results", "r")
    said = run("--methods", "rslad,pgd-at", *words).output
    found = {found["train_id"][:6] for found in records(Path("r")).values() if found["kind"] == "teacher"}
    before, _, after = said.partition("expected\n")[2].partition("[1/")
    status = cli("status", "--results", "r", "--format", "json").output
    for digest in found:
        for text, count in ((before, 2), (after, 4), (status, 2)):
            assert text.count(f"best #{digest}") == count, text
    assert len(found) == 2
    assert {one["teacher"] for one in records(Path("r")).values() if one["kind"] == "student"} == {"best", None}
    assert "best #" not in run("--methods", "rslad", *words[:2], "--results", "r", "--dry-run").output


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["record.json", "outcomes.parquet"])
def test_a_result_that_is_not_what_was_written_is_damaged(name: str, results: Path) -> None:
    (path,) = folder(results, "pgd-at").glob(f"eval-*/{name}")
    flip(path)
    shown = cli("status", "--results", results)
    assert states(results)["pgd-at cnn-4 seed 0"] == "damaged"
    assert f"'{path}'" in shown.output
    assert "about " in shown.output, "it is to be judged again"


def test_a_damaged_plan_is_named_and_the_others_are_shown(results: Path) -> None:
    assert run("--methods", "pgd-at", "--dry-run").exit_code == 0
    (plan,) = (results / "plans").iterdir()
    other = plan.with_name("0123456789abcdef.json")
    document.write(other, {**document.opened(plan), "written": "2100", "jobs": "two"})
    for form in ("table", "json"):
        shown = cli("status", "--results", results, "--format", form)
        assert shown.exit_code == 1
        assert f"'{other}'" in shown.stderr
        assert "jobs" in shown.stderr
        assert shown.stderr.endswith("1 left out\n")
        assert "rslad cnn-4 from tiny seed 0" in shown.stdout or "rslad" in shown.stdout
    assert json.loads(shown.stdout)
    flip(plan)
    alone = cli("status", "--results", results)
    assert (alone.exit_code, alone.stdout) == (1, ""), "none is left"
    assert "2 left out" in alone.stderr


def test_what_cannot_be_read_beside_a_cell_is_named_by_why(results: Path) -> None:
    (path,) = folder(results, "pgd-at").glob("eval-*/record.json")
    other = path.parent.with_name("eval-01234567") / path.name
    shutil.copytree(path.parent, other.parent)
    flip(other)
    lose(path.parent)
    shown = cli("status", "--results", results, "--why", "pgd-at cnn-4 seed 0")
    assert shown.exit_code == 1
    assert f"'{other}'" in shown.stderr
    assert "trained" in shown.stdout


def test_why_names_the_settings_in_which_the_nearest_cell_differs(results: Path, finished: Path) -> None:
    """Only the plan of the changed matrix is there, as if its run had been killed at once."""
    teacher = finished / "other.toml"
    teacher.write_text(TEACHER.replace("epochs = 1", "epochs = 2"), encoding="utf-8")
    asked = ("--methods", "pgd-at,rslad", "--teacher", teacher, "--results", "elsewhere")
    assert run(*asked, train__lr="0.05", eval__images="10").exit_code == 0
    (plan,) = Path("elsewhere/plans").iterdir()
    shutil.copy(plan, results / "plans")
    rows = json.loads(cli("status", "--format", "json", "--plan", plan.stem).output)
    by_name = {row["cell"]: row for row in rows}
    assert {row["state"] for name, row in by_name.items() if "rslad" not in name} == {"new", "stale"}

    said = cli("status", "--why", by_name["pgd-at cnn-4 seed 0"]["id"][:8]).output
    assert "stale, s0-" in said
    assert "nearest: " in said
    assert "train.lr: 0.1 there, 0.05 here" in said
    assert "eval.images: 16 there, 10 here" in said
    said = cli("status", "--why", by_name["rslad cnn-4 from other seed 0"]["id"]).output
    assert "teacher: another one, which differs in train.epochs: 1 there, 2 here" in said


def test_why_of_the_same_weights_names_the_evaluation(results: Path) -> None:
    run("--methods", "pgd-at", eval__attacks='["fgsm"]')
    judged = results.glob("digits/pgd-at/*/*/eval-*/record.json")
    lose(next(path.parent for path in judged if "pgd20" not in record.read(path).metrics))
    said = cli("status", "--why", "pgd-at cnn-4 seed 0").output
    assert "pgd-at cnn-4 seed 0: trained, trained, but not judged in this way" in said
    assert "the same weights are judged otherwise in" in said
    assert "eval.attacks: ['fgsm', 'pgd20'] there, ['fgsm'] here" in said


def test_why_of_a_result_says_where_it_comes_from(finished: Path) -> None:
    path = next((finished / "results").glob("digits/pgd-at/*/*/eval-*/record.json"))
    for named in (str(path), str(path.parent), str(path.parents[1]), "pgd-at cnn-4 seed 0"):
        said = cli("status", "--results", finished / "results", "--why", named).output
        assert "pgd-at cnn-4 seed 0: done" in said
        assert "by adbench " in said
    result = cli("status", "--results", finished / "results", "--why", "nothing")
    assert result.exit_code == 2
    assert "no cell of the plan is 'nothing'" in result.stderr


def test_results_of_a_plugin_that_was_edited_since_are_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(PLUGIN, encoding="utf-8")
    result = run("--methods", "mine,pgd-at", "--plugin", "mine.py")
    assert result.exit_code == 0, result.output
    assert set(states(Path("results")).values()) == {"done"}
    Path("mine.py").write_text(PLUGIN.replace("at the image itself", "where it is") + "\n", encoding="utf-8")
    assert set(states(Path("results")).values()) == {"done"}
    Path("mine.py").write_text(PLUGIN.replace("step.y)", "step.y) * 2"), encoding="utf-8")
    assert states(Path("results")) == {"mine cnn-4 seed 0": "stale", "pgd-at cnn-4 seed 0": "done"}
    assert "the code of method 'mine' changed since; a run now makes other cells" in cli("status").output
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("adbench.results.status.REVISION", 99)
        assert set(states(Path("results")).values()) == {"stale"}


@pytest.mark.usefixtures("results")
def test_the_options_of_a_run_choose_its_plan(finished: Path) -> None:
    run("--methods", "natural")
    assert "natural" in cli("status").output
    asked = ("--methods", "pgd-at,rslad", "--teacher", finished / "tiny.toml")
    said = cli("status", *options(), *asked).output
    assert "rslad" in said
    assert "another plan: " in said
    result = cli("status", *options(), "--methods", "trades")
    assert result.exit_code == 2
    assert "no run with these options was planned in 'results'" in result.stderr
    result = cli("status", "--results", "nowhere")
    assert result.exit_code == 2
    assert "no run was planned in 'nowhere' yet" in result.stderr


def test_the_time_left_is_corrected_by_what_cells_took(results: Path) -> None:
    (path,) = (results / "plans").iterdir()
    plan = json.loads(path.read_text(encoding="utf-8"))
    for cell in plan["cells"]:
        cell |= {"seconds": 100.0, "evaluation_seconds": 25.0}
    document.write(path, plan | {"jobs": 1})
    for done in results.rglob("record.json"):
        data = document.opened(done)
        record.write(done, data | {"timing": {"train": 150.0, "evaluate": 50.0}})
    lose(folder(results, "rslad"))
    seconds, at_a_time, correction = PlannedCells(plans.read(path)).time_left()
    assert (seconds, at_a_time, correction) == (200.0, 1, 2.0)


def test_the_time_left_of_a_new_evaluation_is_that_of_evaluations(results: Path) -> None:
    """Ten hours of training lie behind two networks that are judged anew, in ten minutes each; one is done."""
    assert run("--methods", "pgd-at", "--seeds", "2").exit_code == 0
    assert run("--methods", "pgd-at", "--seeds", "2", eval__attacks='["fgsm"]').exit_code == 0
    plan_of = {len(json.loads(path.read_text())["cells"]): path for path in (results / "plans").iterdir()}
    path = max((results / "plans").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    assert len(plan_of) > 1
    plan = json.loads(path.read_text(encoding="utf-8"))
    assert all(cell["seconds"] > cell["evaluation_seconds"] > 0 for cell in plan["cells"]), "whole, though trained"
    for cell in plan["cells"]:
        cell |= {"seconds": 36_600.0, "evaluation_seconds": 600.0}
    document.write(path, plan | {"jobs": 1})
    first, second = (results / cell["record"] for cell in plan["cells"])
    record.write(first, document.opened(first) | {"timing": {"train": 300.0, "evaluate": 630.0}})
    lose(second.parent)
    seconds, _, _ = PlannedCells(plans.read(path)).time_left()
    assert seconds == pytest.approx(630.0)
    # And of one that was begun: half the training, at the rate of trainings.
    lose(second.parents[1])
    (log := second.parents[1] / "log.jsonl").parent.mkdir(parents=True)
    log.write_text("{}\n")
    (log.parent / "resume.pt").touch()
    plan["cells"][1]["epochs"] = 2
    document.write(path, plan | {"jobs": 1})
    seconds, _, _ = PlannedCells(plans.read(path)).time_left()
    assert seconds == pytest.approx(150.0 + 630.0)


def _many(results: Path, cells: int) -> None:
    """A plan of so many cells, of which every second one is done."""
    (path,) = (results / "plans").iterdir()
    plan = json.loads(path.read_text(encoding="utf-8"))
    one = next(cell for cell in plan["cells"] if cell["kind"] == "student" and cell["method"] == "pgd-at")
    contents = {path.name: path.read_bytes() for path in (results / one["record"]).parent.iterdir()}
    lose(results / "digits")
    planned = []
    for number in range(cells):
        cell = deepcopy(one)
        cell |= {"id": f"{number:016x}", "seed": number, "says": f"pgd-at cnn-4 seed {number}"}
        cell["record"] = f"digits/pgd-at/none__cnn-4/s{number}-{number:08x}/eval-{number:08x}/record.json"
        planned.append(cell)
        if number % 2:
            (results / cell["record"]).parent.mkdir(parents=True)
            for name, content in contents.items():
                (results / cell["record"]).with_name(name).write_bytes(content)
    document.write(path, plan | {"cells": planned})


def test_five_thousand_cells_are_looked_up_in_seconds_without_torch(results: Path) -> None:
    _many(results, 5000)
    script = """
import sys
from adbench.cli import main
try:
    main(["status"])
except SystemExit as ended:
    assert not ended.code
assert "torch" not in sys.modules
"""
    begun = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    took = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - begun
    assert "digits   pgd-at    5000  2500  2500" in done.stdout
    # Half of it is for the digests of 2,500 records and their outcomes.
    assert took < 6, took


def test_a_difference_is_told_in_the_words_of_the_settings() -> None:
    there = {"train": {"lr": 0.1, "clip": None}, "source": "a" * 64, "teacher": "1", "natural": "x"}
    here = {"train": {"lr": 0.1, "clip": 1.0}, "source": "b" * 64, "teacher": "2", "natural": None}
    networks: dict[str, dict[str, Any]] = {"1": {"seed": 0}}
    assert differences(there, here, networks.get) == [
        "train.clip: not set there, 1.0 here",
        "code of the method (it was edited): aaaaaaaaaaaa... there, bbbbbbbbbbbb... here",
        "teacher: other weights (1 there, 2 here)",
        "natural: x there, not set here",
    ]
