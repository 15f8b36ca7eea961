"""What only some operating systems have: adbench works without it (tried on Linux with that taken away)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from adbench.errors import UserError
from adbench.system import locks, machine

ELSEWHERE = """
import multiprocessing, os, sys
for module in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[module] = None
for name in ("sched_getaffinity", "pread", "pwrite", "O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC"):
    delattr(os, name)
multiprocessing.get_all_start_methods = lambda: ["spawn"]
"""
"""Run at the start of every Python process: what Windows lacks, as far as Python itself goes on without it."""


def test_list_run_and_status_work_without_what_only_linux_has(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(ELSEWHERE, encoding="utf-8")
    paths = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])

    def adbench(*words: str) -> str:
        process = subprocess.run(
            [sys.executable, "-m", "adbench", *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        )
        assert process.returncode == 0, process.stdout + process.stderr
        return process.stdout

    assert "methods" in adbench("list")
    adbench("run", "--methods", "pgd-at", "--timeout", "10m", *tiny.options())  # with a worker of its own
    ((_, record),) = tiny.records(tmp_path / "results").items()
    assert record["status"] == "done"
    assert record["provenance"]["threads"] == 1
    assert "done" in adbench("status")


def test_a_folder_is_held_by_one_at_a_time_where_there_is_no_flock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "fcntl", None)
    with locks.attempt(tmp_path) as mine:
        assert mine
        assert (found := locks.holder(tmp_path))
        assert found.pid == os.getpid()
        with locks.attempt(tmp_path) as theirs:
            assert not theirs
    assert locks.holder(tmp_path) is None
    with locks.locked(tmp_path), locks.attempt(tmp_path) as theirs:
        assert not theirs


@pytest.mark.parametrize("kind", ["link", "dangling", "loop", "hard link", "folder", "pipe"])
def test_a_lock_that_is_no_file_of_its_folder_is_refused_and_left_as_it_is(kind: str, tmp_path: Path) -> None:
    folder, other = tmp_path / "cell", tmp_path / "other"
    folder.mkdir()
    other.write_text("x" * 600, encoding="utf-8")
    lock = folder / locks.FILE
    match kind:
        case "link":
            lock.symlink_to(other)
        case "dangling":
            lock.symlink_to(tmp_path / "nothing")
        case "loop":
            lock.symlink_to(lock)
        case "hard link":
            lock.hardlink_to(other)
        case "folder":
            lock.mkdir()
        case "pipe":
            os.mkfifo(lock)
    uses: list[Any] = [locks.locked(folder).__enter__, locks.attempt(folder).__enter__, lambda: locks.holder(folder)]
    for use in uses:
        with pytest.raises(UserError, match=r"\.lock.* remove it"):
            use()
    assert other.read_text(encoding="utf-8") == "x" * 600
    assert not (tmp_path / "nothing").exists()


def test_locks_that_the_system_refuses_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    assert locks.fcntl is not None
    monkeypatch.setattr(locks.fcntl, "flock", refused)
    for use in (locks.locked(tmp_path).__enter__, lambda: locks.holder(tmp_path)):
        with pytest.raises(UserError, match="Input/output error"):
            use()  # type: ignore[operator]


# Threads


@pytest.mark.parametrize(("value", "expected"), [("3", 3), (" 3 ", 3), ("4,2", 4), ("", None)])
def test_the_environments_number_of_threads_is_a_wish(
    value: str, expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert machine.threads() == expected
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    assert machine.threads() is None, "torchrun sets it for its processes"


@pytest.mark.parametrize("value", ["many", "0", "-1", "1e3", "99999999999999999999"])
def test_a_number_of_threads_that_is_none_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    result = tiny.cli("golden", "nothing.json")
    assert result.exit_code == 2
    assert "OMP_NUM_THREADS" in result.output


@pytest.mark.parametrize("command", ["run", "cost", "eval", "cross", "cam", "verify", "teachers", "golden", "validate"])
def test_every_command_that_computes_takes_a_number_of_threads(command: str) -> None:
    assert "--threads" in tiny.cli(command, "--help").output
    assert tiny.cli(command, "--threads", "0").exit_code == 2


def test_the_option_wins_over_the_environment_and_both_over_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", seen.append)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    tiny.run("--methods", "natural", "--dry-run")
    tiny.run("--methods", "natural", "--dry-run", "--threads", "3")
    tiny.cli("validate", "natural")
    tiny.cli("validate", "natural", "--threads", "3")
    assert seen == [2, 3, 2, 3]


# Memory and cores


def test_memory_is_bytes_on_every_system(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    here = machine.peak_memory()
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: (_ for _ in ()).throw(FileNotFoundError()))
    assert machine.peak_memory() == pytest.approx(here, rel=0.5), "Linux without /proc: KiB"
    usage = type("Usage", (), {"ru_maxrss": 12345})
    monkeypatch.setattr(resource, "getrusage", lambda _: usage)
    assert machine.peak_memory() == 12345 * 1024
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    assert machine.peak_memory() == 12345, "macOS counts in bytes"


def test_cores_are_counted_where_the_system_does_not_say_which_are_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    assert machine.cores() == os.cpu_count()


# Apple's GPU


def test_apples_gpu_is_taken_where_it_is_there_and_refused_in_one_sentence_where_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from adbench.cli.options import place_of

    zeros = torch.zeros
    if not torch.backends.mps.is_available():
        with pytest.raises(UserError, match="device 'mps' cannot be used here; choose cpu"):
            place_of(tmp_path, tmp_path, "mps")
    monkeypatch.setattr(torch, "zeros", lambda *size, device: zeros(*size, device="meta" if device == "cpu" else "cpu"))
    monkeypatch.setattr(torch.Tensor, "device", torch.device("mps"), raising=False)
    assert place_of(tmp_path, tmp_path, "mps").device == "mps"
