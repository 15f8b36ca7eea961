"""Teachers whose weights come with adbench: their files, records and recipes, and how a run uses them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from safetensors.torch import load_file, save_file
from tiny import TEACHER, cli, records, shorten_autoattack

from adbench.execution import runner
from adbench.execution.expand import expand, teacher_cell
from adbench.execution.place import Place
from adbench.experiment import teacher
from adbench.experiment.cell import Cell
from adbench.experiment.config import experiment, layered, read_preset
from adbench.experiment.teacher import LocalFile
from adbench.results import record
from adbench.system import files
from adbench.weights.networks import lookup

NAMES = ["digits-robust", "digits-natural"]
TRAINED = ROOT / "teachers" / "trained"


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_teacher_is_what_its_record_and_its_recipe_say(name: str, tmp_path: Path) -> None:
    spec = teacher.find(name)
    source = spec.source
    assert isinstance(source, LocalFile)
    assert source.ours
    assert source.path.stat().st_size < 600_000
    assert teacher.shipped(files.sha256(source.path)) == source.path
    (path,) = source.path.parent.rglob("record.json")
    told = record.read(path)
    anew = spec.model_copy(update={"source": spec.recipe})
    assert told.train_id == teacher_cell(experiment({}), "digits", anew, lookup(tmp_path)).train_id
    claims = spec.expected.model_dump(exclude={"tolerance"}, exclude_none=True)
    assert {metric: round(told.metrics[metric].value, 4) for metric in claims} == claims
    assert all(told.metrics[metric].n == 360 for metric in claims)


def test_the_records_of_shipped_teachers_follow_from_what_lies_beside_them() -> None:
    result = cli("verify", TRAINED)
    assert result.exit_code == 0, result.output
    assert len(records(TRAINED)) == len(NAMES)


def test_a_shipped_teacher_is_judged_and_verified_wherever_adbench_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    judged = cli("teachers", "digits-natural", "--verify", "--images", "16")
    assert judged.exit_code == 0, judged.output
    (found,) = records(tmp_path / "results").values()
    assert found["model"]["checkpoint"] == "file"
    assert str(ROOT) not in str(found["model"]), "its place on this machine is nobody's business"
    result = cli("verify", "results")
    assert result.exit_code == 0, result.output
    assert "weights are not at" not in result.output


def _with_a_file(weights: Path, recipe: bool = True) -> Path:
    """The file of a teacher called tiny that has these weights, and the recipe of `TEACHER`."""
    head, _, made = TEACHER.partition("[source]")
    made = "[recipe]" + made.replace("[source", "[recipe") if recipe else ""
    file = weights.parent / "tiny.toml"
    file.write_text(f'{head}[source]\nkind = "file"\npath = "{weights}"\n{made}', encoding="utf-8")
    return file


def test_a_teacher_is_made_anew_by_its_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shorten_autoattack(monkeypatch, iterations=1)
    (tmp_path / "tiny.toml").write_text(TEACHER, encoding="utf-8")
    words = ("--train", "--images", "2", "--threads", "1")
    first = cli("teachers", "tiny.toml", *words)
    assert first.exit_code == 0, first.output
    (made,) = (tmp_path / "results").rglob("best.safetensors")
    assert made.name in first.output
    weights = tmp_path / "file" / "any.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(made.read_bytes())
    same = cli("teachers", _with_a_file(weights), *words)
    assert same.exit_code == 0, same.output
    assert "the weights that the teacher's file has" in same.output
    state = load_file(made)
    state["linear.bias"] += 1
    save_file(state, weights)
    other = cli("teachers", _with_a_file(weights), *words)
    assert "other weights than" in other.output
    assert len(list((tmp_path / "results").rglob("best.safetensors"))) == 1, "it is trained once"


def test_a_teacher_without_a_recipe_cannot_be_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    weights = tmp_path / "any.safetensors"
    weights.write_bytes(b"")
    result = cli("teachers", _with_a_file(weights, recipe=False), "--train")
    assert result.exit_code == 2
    assert "'tiny'" in result.output
    assert "[recipe]" in result.output


class _Workers:
    """An engine with room for every cell, whose cells all end when it is waited for."""

    def __init__(self, emit: Callable[[str, dict[str, Any]], None]) -> None:
        self.emit, self.begun = emit, []
        self.rounds: list[list[str]] = []

    def room(self) -> bool:
        return True

    def start(self, cell: Cell) -> None:
        self.begun.append(cell)

    def wait(self, _: float) -> None:
        begun, self.begun = self.begun, []
        self.rounds.append(sorted(cell.name for cell in begun))
        for cell in begun:
            self.emit(cell.id, {"what": "record", "record": {"status": "done"}})

    def stop(self, *, gently: bool) -> None:
        pass


@pytest.mark.parametrize("shipped", [True, False])
def test_students_begin_while_a_teacher_whose_weights_are_there_is_judged(shipped: bool, tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TEACHER, encoding="utf-8")
    name = "digits-robust" if shipped else str(tmp_path / "tiny.toml")
    asked = experiment({"methods": ["rslad"], "teachers": [name]})
    matrix = expand(asked, lookup(tmp_path))
    engines: list[_Workers] = []

    class Where:
        def engine(self, cells: list[Cell], place: Place, isolated: bool, emit: Any) -> _Workers:
            engines.append(_Workers(emit))
            return engines[0]

    runner.run(runner.plan(matrix, tmp_path / "r"), Place(tmp_path / "r", tmp_path, "cpu"), Where(), lambda *_: None)
    first = [matrix.teachers[0].name]
    assert engines[0].rounds == ([sorted([*first, "rslad"])] if shipped else [first, ["rslad"]])


def test_the_tour_makes_cells_that_the_digits_preset_finds_done(tmp_path: Path) -> None:
    assert {**read_preset("tour"), "methods": ["all"]} == {**layered(read_preset("digits")), "methods": ["all"]}
    tour, whole = (expand(experiment(read_preset(name)), lookup(tmp_path)) for name in ("tour", "digits"))
    assert len(tour.students) == 3
    assert {cell.id for cell in tour.cells} < {cell.id for cell in whole.cells}
