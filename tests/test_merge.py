"""Results folders joined: what is taken, what is a conflict, and what a merge that is killed leaves."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import cli, records, run

from adbench.results import document, plans, record
from adbench.results.layout import BEST, LAST, SUMMARY, TUNING
from adbench.system import files, locks

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results folders `one` (pgd-at, natural) and `two` (natural, trades). Not to be written to."""
    folder = tmp_path_factory.mktemp("runs")
    for name, methods in (("one", "pgd-at,natural"), ("two", "natural,trades")):
        result = run("--methods", methods, "--results", folder / name)
        assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def copies(runs: Path, tmp_path: Path) -> Path:
    """The same to be written to."""
    for name in ("one", "two"):
        shutil.copytree(runs / name, tmp_path / name)
    return tmp_path


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


def only(folder: Path, method: str) -> Path:
    (found,) = folder.glob(f"digits/{method}/*/*/eval-*/record.json")
    return found


def change(path: Path, changed: Callable[[dict[str, Any]], None]) -> None:
    data = document.opened(path)
    changed(data)
    record.write(path, data)


def other_figures(data: dict[str, Any]) -> None:
    metric = data["metrics"]["pgd20"]
    metric["correct"] += -1 if metric["correct"] == metric["n"] else 1
    metric["value"] = metric["correct"] / metric["n"]


def test_two_folders_become_one_and_a_cell_that_both_have_is_there_once(copies: Path) -> None:
    result = cli("merge", copies / "one", copies / "two", "--into", copies / "all")
    assert result.exit_code == 0, result.output
    assert f"{copies / 'one'}: 2 taken" in result.output
    assert "1 already there, 1 taken" in result.output
    merged = content(copies / "all")
    assert len(records(copies / "all")) == 3
    assert {**content(copies / "two"), **content(copies / "one")} == merged
    assert len(plans.read_all(copies / "all")) == 2
    assert not (copies / "all.conflicts").exists()

    again = cli("merge", copies / "one", copies / "two", "--into", copies / "all")
    assert again.exit_code == 0
    assert content(copies / "all") == merged

    # What was merged is finished for a run as well.
    assert "0 of 3 cells to do" in run("--methods", "pgd-at,natural,trades", "--results", copies / "all").output


def test_figures_that_differ_are_a_conflict_of_which_both_sides_are_kept(copies: Path) -> None:
    theirs, ours = only(copies / "two", "natural"), only(copies / "one", "natural")
    change(theirs, other_figures)
    before = content(copies / "one")
    result = cli("merge", copies / "two", "--into", copies / "one")
    assert result.exit_code == 1
    now, there = (record.read(path).metrics["pgd20"].correct for path in (ours, theirs))
    assert f"conflict, pgd20 {now}/16 here and {there}/16 there" in result.output
    assert "digits/natural/none__cnn-4/s0-" in result.output
    after = content(copies / "one")
    assert {key: after[key] for key in before} == before
    assert len(records(copies / "one")) == 3, "what does not conflict is taken all the same"
    (kept,) = (copies / "one.conflicts").rglob("record.json")
    assert kept.read_bytes() == theirs.read_bytes()
    assert (kept.parent / "outcomes.parquet").read_bytes() == (theirs.parent / "outcomes.parquet").read_bytes()
    assert (kept.parents[1] / BEST).is_file()

    evidence = content(copies / "one.conflicts")
    assert cli("merge", copies / "two", "--into", copies / "one").exit_code == 1
    assert content(copies / "one.conflicts") == evidence

    # A third opinion under the same name takes nobody's place.
    change(theirs, other_figures)
    assert cli("merge", copies / "two", "--into", copies / "one").exit_code == 1
    assert content(copies / "one.conflicts").items() > evidence.items()
    assert len(list((copies / "one.conflicts").rglob("record.json"))) == 2


def test_another_training_under_the_same_id_is_a_conflict(copies: Path) -> None:
    folder = only(copies / "two", "natural").parents[1]
    for name in (BEST, LAST):
        (folder / name).write_bytes((folder / name).read_bytes()[:-4] + b"\x00\x00\x80\x3f")
    before = content(copies / "one")
    result = cli("merge", copies / "two", "--into", copies / "one")
    assert result.exit_code == 1
    assert f"conflict, {LAST} and {BEST} differ" in result.output
    after = content(copies / "one")
    assert {key: after[key] for key in before} == before


def test_weights_that_only_one_side_has_are_taken_where_both_ended_alike(copies: Path) -> None:
    theirs, ours = (only(copies / name, "natural").parents[1] for name in ("two", "one"))
    (ours / BEST).unlink()
    assert cli("merge", copies / "two", "--into", copies / "one").exit_code == 0
    assert (ours / BEST).read_bytes() == (theirs / BEST).read_bytes()


def test_another_training_is_a_conflict_also_where_the_weights_are_on_one_side_alone(copies: Path) -> None:
    theirs, ours = (only(copies / name, "natural").parents[1] for name in ("two", "one"))
    for name in (BEST, LAST):
        (ours / name).unlink()

    def other(data: dict[str, Any]) -> None:
        data["weights"] = {"best": "0" * 64, "last": "0" * 64}

    data = document.opened(theirs / SUMMARY)
    other(data)
    document.write(theirs / SUMMARY, data)
    result = cli("merge", copies / "two", "--into", copies / "one")
    assert result.exit_code == 1, result.output
    assert "the weights that they ended with differ" in result.output
    assert not (ours / BEST).exists()
    assert list((copies / "one.conflicts").rglob(BEST))


def test_of_one_search_the_fuller_record_stays(copies: Path) -> None:
    words = ("tune", "natural", "--over", "train.lr=[0.05,0.1]", "--student", "cnn-4")
    small = ("train.epochs=1", "data.train_images=64", "data.val_images=16", "train.batch_size=32")
    settings = [word for setting in small for word in ("--set", setting)]
    done = cli(*words, *settings, "--budget", 4, "--results", copies / "one")
    assert done.exit_code == 0, done.output
    (whole,) = (copies / "one" / TUNING).glob("*.json")
    other = copies / "two" / TUNING / whole.name
    complete = whole.read_bytes()
    begun = document.opened(whole)
    assert len(begun["trials"]) == 2
    begun["trials"] = begun["trials"][:1]
    for first, second in ((begun, complete), (complete, begun)):
        for path, content_ in ((other, first), (whole, second)):
            path.parent.mkdir(exist_ok=True)
            if isinstance(content_, bytes):
                path.write_bytes(content_)
            else:
                document.write(path, content_)
        assert cli("merge", copies / "one", "--into", copies / "two").exit_code == 0
        assert other.read_bytes() == complete, "whichever comes first"


def test_a_failure_gives_way_to_a_result_and_never_the_other_way(copies: Path) -> None:
    def fail(data: dict[str, Any]) -> None:
        data["status"] = "failed"
        data["error"] = {"phase": "evaluate", "type": "MemoryError", "message": "there"}

    ours, theirs = only(copies / "one", "natural"), only(copies / "two", "natural")
    good = ours.read_bytes()
    change(theirs, fail)
    assert cli("merge", copies / "two", "--into", copies / "one").exit_code == 0
    assert ours.read_bytes() == good
    assert cli("merge", copies / "one", "--into", copies / "two").exit_code == 0
    assert theirs.read_bytes() == good


def test_damaged_and_misplaced_records_and_links_are_left_out(copies: Path) -> None:
    outcomes = only(copies / "one", "natural").with_name("outcomes.parquet")
    outcomes.write_bytes(outcomes.read_bytes()[:-1] + b"?")
    change(only(copies / "one", "pgd-at"), lambda data: data.update(train_id="0" * 16))
    (copies / "secret").write_text("not ours", encoding="utf-8")
    (outcomes.parents[1] / "link").symlink_to(copies / "secret")
    result = cli("merge", copies / "one", "--into", copies / "all")
    assert result.exit_code == 1
    assert "has another SHA-256 than its record states; left out" in result.output
    assert "its id belongs elsewhere; left out" in result.output
    assert not records(copies / "all")
    assert not list((copies / "all").rglob("link"))


def test_a_cell_that_a_run_works_on_is_left_for_later(copies: Path) -> None:
    inside = only(copies / "two", "natural").parents[1].relative_to(copies / "two")
    with locks.locked(copies / "one" / inside):
        result = cli("merge", copies / "two", "--into", copies / "one")
    assert result.exit_code == 1
    assert f"{inside}: a run works on it; merge again when it is done" in result.output


class Killed(BaseException):
    """The end of the process, as far as the code can tell."""


def test_a_merge_killed_at_any_write_is_finished_by_the_next(copies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, count, fatal = files.write_atomic, 0, -1

    def counted(path: Path, content: Callable[[Path], None]) -> None:
        nonlocal count
        count += 1
        if count == fatal:
            raise Killed
        write(path, content)

    monkeypatch.setattr(files, "write_atomic", counted)
    words = ("merge", copies / "one", copies / "two", "--into")
    assert cli(*words, copies / "whole").exit_code == 0
    expected, total = content(copies / "whole"), count
    assert total > 20
    for fatal in range(1, total + 1):
        count, into = 0, copies / f"killed-{fatal}"
        with pytest.raises(Killed):
            cli(*words, into)
        for path in into.rglob("record.json"):
            assert record.finished(path), "a record is the last of its files"
            assert (path.parents[1] / SUMMARY).is_file()
        fatal = -1
        assert cli(*words, into).exit_code == 0
        assert content(into) == expected
        shutil.rmtree(into)


@pytest.mark.parametrize("folder", ["missing", "one"])
def test_a_folder_that_cannot_be_merged_is_refused(runs: Path, folder: str) -> None:
    result = cli("merge", runs / folder, "--into", runs / "one")
    assert result.exit_code == 2
    assert ("does not exist" if folder == "missing" else "is the folder to merge into") in result.stderr
