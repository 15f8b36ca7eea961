"""Locks on folders, among all processes of all machines that share them.

A lock is `flock` on the folder's file `.lock`. The operating system releases it when the process ends, however it ends,
so no stale lock is left. On NFS, Linux passes it to the server as a byte-range lock, which is released with the process
or, when a machine dies, with its lease. A link, a folder or a pipe in place of the lock file is refused. Where there is
no `flock` (Windows), `filelock` locks a second file instead.

Some file systems keep `flock` to one machine (`docs/cluster.md` names them). The holder therefore writes a note into
the file (who it is) and touches the file every few seconds. A process that gets a lock whose note is from another
machine, and that is still being touched, raises UserError: the locks cannot be trusted. Clocks are never compared.
"""

from __future__ import annotations

import json
import os
import platform
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import filelock

from adbench.errors import UserError

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:
    fcntl = None

FILE, SECOND = ".lock", ".lock.held"
BEAT = 5.0
"""Seconds between two heartbeats."""
_NOTE_BYTES = 512
_AS_IT_IS = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))
"""Open flags of a lock file: no link is followed, no pipe is waited for, bytes stay as they are."""


@dataclass(frozen=True)
class Holder:
    """The process that has a lock. machine: an id of the running kernel, which containers on one machine share."""

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
    """Lock `folder`, which is made if it is not there; waits for the process that has the lock."""
    with _lock_file(folder) as file, _flock(file, folder, wait=True), _noted(file, folder):
        yield


@contextmanager
def attempt(folder: Path) -> Iterator[bool]:
    """Lock `folder`, which is made if it is not there, unless another process has; yields whether it is locked now."""
    with _lock_file(folder) as file, _flock(file, folder) as locked:
        if not locked:
            yield False
            return
        with _noted(file, folder):
            yield True


def holder(folder: Path) -> Holder | None:
    """The holder of `folder`'s lock, or None; a `Holder` of question marks where its note cannot be read."""
    try:
        with _opened(folder / FILE, os.O_RDONLY) as file, _flock(file, folder, shared=True) as free:
            return None if free else _read(file) or Holder("?", 0, "?")
    except FileNotFoundError:
        return None


@contextmanager
def _lock_file(folder: Path) -> Iterator[int]:
    """The folder's lock file, open for writing; both are made if they are not there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write '{folder}': {error.strerror or error}; choose another folder") from error
    with _opened(folder / FILE, os.O_RDWR | os.O_CREAT) as file:
        yield file


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    """The lock file's descriptor. Raises as `_open` does."""
    file = _open(path, flags)
    try:
        yield file
    finally:
        os.close(file)


def _open(path: Path, flags: int) -> int:
    """Open the lock file itself, never what a link leads to.

    Raises FileNotFoundError, and UserError for what is no file or cannot be opened.
    """
    try:
        file = -1 if path.is_symlink() else os.open(path, flags | _AS_IT_IS, 0o666)
        status = path.lstat() if file < 0 else os.fstat(file)
    except FileNotFoundError:
        raise
    except OSError as error:
        if not isinstance(error, IsADirectoryError):
            verb = "write" if flags & os.O_CREAT else "read"
            message = f"cannot {verb} '{path.parent}': {error.strerror or error}; choose another folder"
            raise UserError(message) from error
        file, status = -1, path.lstat()
    if file >= 0 and stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
        return file
    if file >= 0:
        os.close(file)
    kinds = {stat.S_IFLNK: "a link", stat.S_IFREG: "also a file elsewhere (a hard link)", stat.S_IFDIR: "a folder"}
    what = kinds.get(stat.S_IFMT(status.st_mode), "no file")
    raise UserError(f"the lock '{path}' is {what}, which adbench leaves as it is; remove it")


@contextmanager
def _flock(file: int, folder: Path, *, wait: bool = False, shared: bool = False) -> Iterator[bool]:
    """Lock an open lock file; yields whether that succeeded. It is released when the file is closed."""
    if fcntl is None:
        with _filelock(folder, wait=wait) as locked:
            yield locked
        return
    how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    try:
        fcntl.flock(file, how)
    except BlockingIOError:
        yield False
        return
    except OSError as error:
        raise UserError(
            f"the file system of '{folder}' has no locks ({error.strerror}); mount it with locks, or give each "
            f"run a results folder of its own and join them with `adbench merge`"
        ) from error
    yield True


@contextmanager
def _filelock(folder: Path, *, wait: bool) -> Iterator[bool]:
    """The same without flock (Windows): on a second file, since a lock there keeps readers from its file."""
    lock = filelock.FileLock(folder / SECOND, timeout=-1 if wait else 0)
    try:
        lock.acquire()
    except filelock.Timeout:
        yield False
        return
    except OSError as error:
        raise UserError(f"'{folder / SECOND}' cannot be locked: {error.strerror or error}") from error
    try:
        yield True
    finally:
        lock.release()


@contextmanager
def _noted(file: int, folder: Path) -> Iterator[None]:
    """Keep the holder's note in a locked lock file, and a heartbeat. Raises UserError for a second living holder."""
    before = _read(file)
    if before and before.machine != _machine() and _alive(folder / FILE):
        raise UserError(
            f"'{folder}' is in use by {before}, and its lock does not reach this machine; mount the file system with "
            f"locks that do (docs/cluster.md), or give each machine a results folder and join them with `adbench merge`"
        )
    _write(file, json.dumps(asdict(Holder(platform.node(), os.getpid(), _machine()))))
    ended = threading.Event()
    threading.Thread(target=_heartbeat, args=(folder / FILE, ended), daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        _write(file, "")


def _heartbeat(path: Path, ended: threading.Event) -> None:
    while not ended.wait(BEAT):
        with suppress(OSError):
            os.utime(path, follow_symlinks=os.utime not in os.supports_follow_symlinks)


def _alive(path: Path) -> bool:
    """Whether the file's heartbeat goes on: it is watched for three beats."""
    first = _touched(path)
    deadline = time.monotonic() + 3 * BEAT
    while time.monotonic() < deadline:
        time.sleep(BEAT / 10)
        if _touched(path) != first:
            return True
    return False


def _touched(path: Path) -> int:
    # NFS asks the server anew when a file is opened, and answers from memory otherwise.
    with _opened(path, os.O_RDONLY) as file:
        return os.fstat(file).st_mtime_ns


def _read(file: int) -> Holder | None:
    try:
        os.lseek(file, 0, os.SEEK_SET)
        return Holder(**json.loads(os.read(file, _NOTE_BYTES)))
    except (ValueError, TypeError):  # none, or one that a full disk left half written
        return None


def _write(file: int, note: str) -> None:
    # In place, since a lock belongs to its file. The note is a courtesy, so a full disk may keep it.
    with suppress(OSError):
        os.lseek(file, 0, os.SEEK_SET)
        os.write(file, note.encode().ljust(_NOTE_BYTES))
        os.fsync(file)
