"""Where a number comes from: versions, commit, machine, command."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from adbench import __version__


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@cache
def _git() -> tuple[str | None, bool | None]:
    """Commit of the checkout that adbench runs from and whether it has changes; (None, None) outside one."""

    def ask(*words: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        return ask("rev-parse", "HEAD"), bool(ask("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return None, None


def _processor() -> str:
    """The model of the CPU, '' where the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def provenance(device: str, threads: int, method_source: str | None, started: str) -> dict[str, Any]:
    """The provenance of a record that is finished now.

    device: as a person would name it; method_source: SHA-256 of the method's file, None for weights from elsewhere.
    """
    commit, dirty = _git()
    return {
        "adbench": __version__,
        "torch": version("torch"),
        "python": platform.python_version(),
        "pyautoattack": version("pyautoattack"),
        "platform": platform.platform(),
        "processor": _processor(),
        "device": device,
        "threads": threads,
        "git_commit": commit,
        "git_dirty": dirty,
        "method_source_sha256": method_source,
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "started": started,
        "finished": now(),
    }
