"""Results folders as disks and users leave them: what cannot be listed is told, links are followed once, and
temporary files of killed writers go."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from synthetic import add
from tiny import cli, records, run

from adbench.errors import UserError
from adbench.results import document, record
from adbench.system import files

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Records of two datasets."""
    for dataset in ("digits", "other"):
        add(tmp_path / "results", dataset=dataset, metrics={"clean": 0.9, "pgd20": 0.5})
    return tmp_path / "results"


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real results folder (pgd-at, natural). Not to be written to."""
    folder = tmp_path_factory.mktemp("judged") / "one"
    result = run("--methods", "pgd-at,natural", "--results", folder)
    assert result.exit_code == 0, result.output
    return folder


Unlisted = Callable[[Path, int], None]


@pytest.fixture
def unlisted(monkeypatch: pytest.MonkeyPatch) -> Unlisted:
    """Lets a folder be one that the system does not list."""
    scandir, broken = os.scandir, dict[str, int]()

    def refuse(folder: Any = ".") -> Any:
        if not isinstance(folder, int) and (number := broken.get(os.path.realpath(folder))) is not None:
            raise OSError(number, os.strerror(number), str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    return lambda folder, number: broken.__setitem__(os.path.realpath(folder), number)


@pytest.mark.parametrize(
    ("command", "number"),
    [
        ("results", errno.EIO),
        ("results", errno.ESTALE),
        ("results", errno.EACCES),
        ("report", errno.EIO),
        ("cross", errno.EIO),
        ("cam", errno.ESTALE),
    ],
)
def test_a_folder_that_cannot_be_listed_is_named(command: str, number: int, results: Path, unlisted: Unlisted) -> None:
    unlisted(results / "other", number)
    result = cli(command, "--results", results, *(["--out", results / "out"] if command == "report" else []))
    assert result.exit_code == 2, result.output
    assert f"folder '{results / 'other'}' cannot be listed ({os.strerror(number)})" in result.stderr


def test_compare_does_not_leave_out_a_folder_that_cannot_be_listed(results: Path, unlisted: Unlisted) -> None:
    unlisted(results / "other", errno.EIO)
    result = cli("compare", "rslad", "ard", "--results", results)
    assert result.exit_code == 2
    assert f"'{results / 'other'}' cannot be listed" in result.stderr


@pytest.mark.parametrize("where", ["pgd-at", "plans"])
def test_status_does_not_leave_out_a_folder_that_cannot_be_listed(
    where: str, judged: Path, tmp_path: Path, unlisted: Unlisted
) -> None:
    shutil.copytree(judged, tmp_path / "one")
    folder = tmp_path / "one" / ("plans" if where == "plans" else "digits/pgd-at/none__cnn-4")
    if where != "plans":
        shutil.rmtree(next(folder.iterdir()))  # a new cell is compared with its neighbours
    unlisted(folder, errno.ESTALE)
    result = cli("status", "--results", tmp_path / "one")
    assert result.exit_code == 2
    assert f"folder '{folder}' cannot be listed" in result.stderr


def test_merge_takes_the_rest_and_counts_what_cannot_be_listed(
    judged: Path, tmp_path: Path, unlisted: Unlisted
) -> None:
    unlisted(judged / "digits/natural", errno.EIO)
    result = cli("merge", judged, "--into", tmp_path / "all")
    assert result.exit_code == 1, result.output
    assert f"folder '{judged / 'digits/natural'}' cannot be listed" in result.output
    assert f"{judged}: 1 left out, 1 taken" in result.output
    assert [path.split("/")[1] for path in records(tmp_path / "all")] == ["pgd-at"]


def test_merge_leaves_out_an_evaluation_of_which_a_part_cannot_be_listed(
    judged: Path, tmp_path: Path, unlisted: Unlisted
) -> None:
    shutil.copytree(judged, tmp_path / "one")
    (record_path,) = tmp_path.glob("one/digits/natural/*/*/eval-*/record.json")
    (record_path.parent / "adversarial").mkdir()
    unlisted(record_path.parent / "adversarial", errno.EIO)
    assert cli("merge", tmp_path / "one", "--into", tmp_path / "all").exit_code == 1
    assert [path.split("/")[1] for path in records(tmp_path / "all")] == ["pgd-at"]


def test_a_file_whose_folder_does_not_tell_is_not_taken_for_missing(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    (path,) = (results / "other").rglob("record.json")
    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(UserError, match="make its folder readable"):
        record.finished(path)


# Links


def test_linked_folders_are_followed_once_and_never_back_up(results: Path, tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    shutil.move(results / "other", tmp_path / "scratch" / "other")
    (results / "a").symlink_to(tmp_path / "scratch" / "other")
    (results / "b").symlink_to(tmp_path / "scratch" / "other")
    (results / "digits" / "up").symlink_to(results)
    (results / "digits" / "self").symlink_to("..")
    found = files.below(results, "record.json")
    assert [path.relative_to(results).parts[0] for path in found] == ["a", "digits"]
    result = cli("results", "--results", results)
    assert result.exit_code == 0
    assert "other" in result.output
    (tmp_path / "all").symlink_to(results)
    assert len(files.below(tmp_path / "all", "record.json")) == 2


@pytest.mark.parametrize("kind", ["gone", "loop"])
def test_a_linked_folder_that_is_gone_is_named(kind: str, results: Path, tmp_path: Path) -> None:
    (results / "far").symlink_to(tmp_path / "unmounted" if kind == "gone" else "far")
    result = cli("results", "--results", results)
    assert result.exit_code == 2
    assert f"the link '{results / 'far'}' leads nowhere" in result.stderr
    (results / "far").unlink()
    (results / ".hidden").symlink_to("nowhere")
    assert cli("results", "--results", results).exit_code == 0


def test_a_run_goes_on_in_a_linked_dataset_folder(judged: Path, tmp_path: Path) -> None:
    shutil.copytree(judged, tmp_path / "one")
    shutil.move(tmp_path / "one" / "digits", tmp_path / "scratch")
    (tmp_path / "one" / "digits").symlink_to(tmp_path / "scratch")
    assert "0 of 2 cells to do" in run("--methods", "pgd-at,natural", "--results", tmp_path / "one").output
    listed = cli("results", "--results", tmp_path / "one").output
    assert all(label in listed for label in ("PGD-AT", "natural"))
    assert " 2" in cli("status", "--results", tmp_path / "one").output


def test_merge_follows_no_link_in_what_is_merged(judged: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    for name in ("key", "0.json", "record.json"):
        (secret / name).write_text("not yours", encoding="utf-8")
    source = tmp_path / "one"
    shutil.copytree(judged, source)
    (cell,) = source.glob("digits/natural/*/*")
    (cell / "eval-deadbeef").symlink_to(secret)
    (source / "far").symlink_to(secret)
    shutil.rmtree(source / "plans")
    (source / "plans").symlink_to(secret)
    result = cli("merge", source, "--into", tmp_path / "all")
    assert result.exit_code == 1
    for link in (cell / "eval-deadbeef", source / "far", source / "plans"):
        assert f"'{link}' is a link, which is not followed" in result.output
    assert "3 left out, 2 taken" in result.output
    assert not [path for path in (tmp_path / "all").rglob("*") if path.is_symlink() or path.name in ("key", "0.json")]
    assert not (tmp_path / "all" / "plans").exists()


@pytest.mark.parametrize("name", ["outcomes.parquet", "../best.safetensors"])
def test_merge_takes_nothing_of_which_a_file_is_a_link(name: str, judged: Path, tmp_path: Path) -> None:
    shutil.copytree(judged, tmp_path / "one")
    (folder,) = tmp_path.glob("one/digits/natural/*/*/eval-*")
    shutil.move(folder / name, tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    assert cli("merge", tmp_path / "one", "--into", tmp_path / "all").exit_code == 1
    assert [path.split("/")[1] for path in records(tmp_path / "all")] == ["pgd-at"]


@pytest.mark.parametrize("depth", ["cell", "evaluation", "plans"])
def test_merge_writes_through_no_link(depth: str, judged: Path, tmp_path: Path) -> None:
    elsewhere, into = tmp_path / "elsewhere", tmp_path / "all"
    elsewhere.mkdir()
    (evaluation,) = judged.glob("digits/natural/*/*/eval-*")
    inside = {"cell": evaluation.parent, "evaluation": evaluation, "plans": judged / "plans"}[depth].relative_to(judged)
    (into / inside).parent.mkdir(parents=True)
    (into / inside).symlink_to(elsewhere)
    result = cli("merge", judged, "--into", into)
    assert result.exit_code == 1
    assert f"'{into / inside}' is a link, through which nothing is written" in result.output
    assert not list(elsewhere.iterdir())
    assert any("pgd-at" in path for path in records(into))


def test_merge_writes_to_a_dataset_that_lies_elsewhere(judged: Path, tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "digits").symlink_to(tmp_path / "scratch")
    assert cli("merge", judged, "--into", tmp_path / "all").exit_code == 0
    assert len(records(tmp_path / "scratch")) == 2


# Folders in each other


def test_merge_into_the_working_folder_from_its_own_folders(
    judged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(judged, tmp_path / "one")
    monkeypatch.chdir(tmp_path)
    assert cli("merge", "one", "--into", ".").exit_code == 0
    assert len(list(tmp_path.glob("digits/*/*/*/eval-*/record.json"))) == 2
    # Other figures for a cell: both are kept, beside the folder.
    (path,) = tmp_path.glob("one/digits/natural/*/*/eval-*/record.json")
    data = document.opened(path)
    data["model"]["weights_sha256"] = "0" * 64
    record.write(path, data)
    result = cli("merge", "one", "--into", ".")
    assert result.exit_code == 1
    assert list(tmp_path.with_name(f"{tmp_path.name}.conflicts").rglob("record.json"))


@pytest.mark.parametrize("into", ["one", "one/.", "one/digits", "one/sub/all", "link", "link/sub"])
def test_a_folder_is_not_merged_into_itself(into: str, judged: Path, tmp_path: Path) -> None:
    shutil.copytree(judged, tmp_path / "one")
    (tmp_path / "link").symlink_to(tmp_path / "one")
    before = sorted(tmp_path.rglob("*"))
    result = cli("merge", judged, tmp_path / "one", "--into", tmp_path / into)
    assert result.exit_code == 2
    assert str(tmp_path / "one") in result.stderr
    assert sorted(tmp_path.rglob("*")) == before


# Files


@pytest.mark.parametrize(("umask", "mode"), [(0o077, 0o600), (0o002, 0o664), (0o022, 0o644)])
def test_files_have_the_permissions_that_the_umask_leaves(
    umask: int, mode: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_UMASK", umask)
    files.write_text(tmp_path / "x", "x")
    assert (tmp_path / "x").stat().st_mode & 0o777 == mode


def test_a_temporary_file_goes_when_its_writer_is_gone_and_not_before(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    old, new, other = (tmp_path / name for name in (".record.json.abcdefgh.tmp", ".record.json.ijklmnop.tmp", ".x.tmp"))
    for file in (old, new, other):
        file.write_bytes(b"half")
    long_ago = time.time() - 2 * files.YOUNG
    os.utime(old, (long_ago, long_ago))
    os.utime(other, (long_ago, long_ago))
    files.write_text(path, "whole")
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([new.name, other.name, path.name])

    def slowly(temporary: Path) -> None:
        temporary.write_bytes(b"half")
        os.utime(temporary, (long_ago, long_ago))
        files.write_text(path, "of another writer")
        assert temporary.exists(), "its writer is alive"
        temporary.write_bytes(b"whole")

    files.write_atomic(path, slowly)
    assert path.read_bytes() == b"whole"


def test_a_merge_removes_what_killed_ones_left(judged: Path, tmp_path: Path) -> None:
    assert cli("merge", judged, "--into", tmp_path / "all").exit_code == 0
    (cell,) = tmp_path.glob("all/digits/natural/*/*")
    left = [cell / ".best.safetensors.abcdefgh.tmp", tmp_path / "all/plans/.0.json.abcdefgh.tmp"]
    for file in left:
        file.write_bytes(b"half")
        os.utime(file, (0, 0))
    assert cli("merge", judged, "--into", tmp_path / "all").exit_code == 0
    assert not any(file.exists() for file in left)
