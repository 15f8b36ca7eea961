"""Folders held by one process at a time, among all processes of all machines that share them.

A lock is `flock` on the folder's file `.lock`. The operating system ends it with the process, however that ends, so
there is nothing stale to clean up; on NFS, Linux passes it to the server as a byte-range lock, which ends with the
process or, when a machine dies, with its lease. Of a lock file, nothing but its `flock` decides.

Some file systems keep `flock` to one machine (`docs/cluster.md` names them). The holder therefore leaves a note in
the file (who it is) and touches it every few seconds: whoever gets a lock whose note is from another machine and
still being touched knows that the locks cannot be trusted, and says so. Clocks are never compared.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from io import BufferedRandom, BufferedReader
from pathlib import Path

from adbench.errors import UserError

FILE = ".lock"
BEAT = 5.0
"""Seconds between two signs of life."""
_NOTE_BYTES = 512


@dataclass(frozen=True)
class Holder:
    """Who holds a lock. machine: a name of the running kernel, which containers on one machine share."""

    host: str
    pid: int
    machine: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@cache
def _machine() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return platform.node()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder` (made if it is not there) for this process; another one that asks for it waits."""
    with _open(folder) as handle:
        _flock(handle, fcntl.LOCK_EX, folder)
        with _held(handle, folder):
            yield


@contextmanager
def attempt(folder: Path) -> Iterator[bool]:
    """Hold `folder` (made if it is not there) where nobody else does; whether it is held now."""
    with _open(folder) as handle:
        if not _flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB, folder):
            yield False
            return
        with _held(handle, folder):
            yield True


def holder(folder: Path) -> Holder | None:
    """Who holds `folder`, or None; somebody without a name where the note cannot be read."""
    try:
        with (folder / FILE).open("rb") as handle:
            if _flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB, folder):
                return None
            return _read(handle.fileno()) or Holder("?", 0, "?")
    except FileNotFoundError:
        return None


def _open(folder: Path) -> BufferedRandom:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return os.fdopen(os.open(folder / FILE, os.O_RDWR | os.O_CREAT, 0o644), "r+b")
    except OSError as error:
        raise UserError(f"cannot write '{folder}': {error.strerror or error}; choose another folder") from error


def _flock(handle: BufferedRandom | BufferedReader, how: int, folder: Path) -> bool:
    try:
        fcntl.flock(handle, how)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise UserError(
                f"the file system of '{folder}' has no locks ({error.strerror}); mount it with locks, or give each "
                f"run a results folder of its own and join them with `adbench merge`"
            ) from error
        raise
    return True


@contextmanager
def _held(handle: BufferedRandom, folder: Path) -> Iterator[None]:
    """Leave a note in the lock file that is held, and signs of life, until the end."""
    file = handle.fileno()
    before = _read(file)
    if before and before.machine != _machine() and _alive(folder / FILE):
        raise UserError(
            f"'{folder}' is in use by {before}, and its lock does not reach this machine; mount the file system with "
            f"locks that do (docs/cluster.md), or give each machine a results folder and join them with `adbench merge`"
        )
    _write(file, json.dumps(asdict(Holder(platform.node(), os.getpid(), _machine()))))
    ended = threading.Event()
    threading.Thread(target=_beat, args=(folder / FILE, ended), daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        _write(file, "")


def _beat(path: Path, ended: threading.Event) -> None:
    while not ended.wait(BEAT):
        with suppress(OSError):
            os.utime(path)


def _alive(path: Path) -> bool:
    """Whether somebody touches the file, as far as three beats can tell."""
    first = _touched(path)
    patience = time.monotonic() + 3 * BEAT
    while time.monotonic() < patience:
        time.sleep(BEAT / 10)
        if _touched(path) != first:
            return True
    return False


def _touched(path: Path) -> int:
    # NFS asks the server anew when a file is opened, and answers from memory otherwise.
    with path.open("rb") as file:
        return os.fstat(file.fileno()).st_mtime_ns


def _read(file: int) -> Holder | None:
    try:
        return Holder(**json.loads(os.pread(file, _NOTE_BYTES, 0)))
    except (ValueError, TypeError):  # nobody's, or one that a full disk left half written
        return None


def _write(file: int, note: str) -> None:
    # In place, since a lock belongs to its file. The note is a courtesy, so a full disk may keep it.
    with suppress(OSError):
        os.pwrite(file, note.encode().ljust(_NOTE_BYTES), 0)
        os.fsync(file)
