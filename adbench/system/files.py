"""Files that are either whole or not there."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from io import BufferedReader
from pathlib import Path
from typing import Any

from adbench.errors import UserError, warn

_UMASK = os.umask(0o77)
os.umask(_UMASK)

TEMPORARY = ".*.????????.tmp"
YOUNG = 60.0
"""Seconds for which a temporary file is its writer's, whether that holds it yet or not."""


def write_atomic(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it there, with the permissions of the umask.

    A process killed at any moment leaves the old file or the new one, never a part; what it leaves of the temporary
    file, whoever next writes `path` removes. Raises UserError where the folder cannot be written or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        temporary = Path(name)
        try:
            with os.fdopen(handle, "rb"):
                _claim(handle)
                write(temporary)
                with temporary.open("rb") as file:
                    os.fsync(file.fileno())
                temporary.chmod(0o666 & ~_UMASK)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        remove_abandoned(path.parent.glob(f".{glob.escape(path.name)}.????????.tmp"))
    except OSError as error:
        remedy = "" if error.errno in (errno.ENOENT, errno.EACCES, errno.EPERM) else "free the disk or "
        raise UserError(f"cannot write '{path}': {error.strerror or error}; {remedy}choose another folder") from error


def _claim(handle: int) -> bool:
    """Hold an open file until it is closed, or this process ends; whether nobody else holds it."""
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):  # a system or file system without such locks
        return True
    return True


def remove_abandoned(temporaries: Iterable[Path]) -> None:
    """Remove temporary files whose writer was killed: those that no process holds, and that are not quite new."""
    for path in temporaries:
        with suppress(OSError):
            if path.is_symlink() or time.time() - path.stat().st_mtime < YOUNG:
                continue
            with path.open("rb") as file:
                abandoned = _claim(file.fileno())
            if abandoned:
                path.unlink()


def write_bytes(path: Path, *pieces: bytes | memoryview) -> None:
    """Write `pieces`, one after the other, to `path` atomically."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.writelines(pieces)

    write_atomic(path, write)


def write_text(path: Path, text: str) -> None:
    """Write `text` (UTF-8) to `path` atomically."""

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    write_atomic(path, write)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON to `path` atomically; NaN and infinities are refused."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def write_npz(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write numpy arrays by name, compressed, to `path` atomically."""
    import numpy as np

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)

    write_atomic(path, write)


def opened(path: Path) -> BufferedReader:
    """A file to read. Raises OSError, also for a pipe or device, of which reading might never end."""
    if not (stat.S_ISREG(mode := path.stat().st_mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return path.open("rb")


def content(path: Path) -> bytes:
    """A file's bytes. Raises OSError as `opened` does."""
    with opened(path) as file:
        return file.read()


def expanded(path: Path) -> Path:
    """`path` with the home folder for a leading `~` or `~name`. Raises UserError where there is no such home."""
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise UserError(f"'{path}': no home folder is known for '{path.parts[0]}'; write the path in full") from error


def user_text(path: Path, kind: str) -> str:
    """The text of a user's file in UTF-8, with or without a byte-order mark. Raises UserError that names `kind`."""
    path = expanded(path)
    if reason := no_file(path):
        raise UserError(f"{kind} '{path}' {reason}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{kind} '{path}' cannot be read: {error.strerror or error}") from error
    if content.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in content[:4]:
        raise UserError(f"{kind} '{path}' is in UTF-16 or UTF-32; save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{kind} '{path}' is not in UTF-8 ({error.reason} at byte {error.start}); save it so"
        ) from error


def no_file(path: Path) -> str | None:
    """Why there is no file to read at `path`, as "does not exist" or "is a folder"; None where there is one.

    Links are followed. A pipe or a device, which may never end, is no file.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "does not exist"
    except (OSError, ValueError) as error:
        return f"cannot be read ({getattr(error, 'strerror', None) or error})"
    if stat.S_ISREG(mode):
        return None
    return "is a folder, not a file" if stat.S_ISDIR(mode) else "is a pipe or a device, not a file"


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex. Raises OSError as `opened` does."""
    with opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_id(value: Any) -> str:
    """SHA-256 (hex) of a JSON-able value in canonical form: equal content, equal id."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


SEPARATE = ".separate"
"""A folder with a file of this name holds results of its own: who reads the folder around it passes it over."""


LeftOut = Callable[[Path, str], object]
"""Hears of what is passed over: where, and why in a sentence."""


def below(results: Path, name: str) -> list[Path]:
    """The files `name` in the folders that `walk` visits, sorted. Raises UserError as it does."""
    return sorted(folder / name for folder, names in walk(results) if name in names)


def walk(results: Path, *, linked: bool = True, left_out: LeftOut | None = None) -> Iterator[tuple[Path, list[str]]]:
    """A results folder and those below it with the names of their files, but for those marked SEPARATE below it.

    linked: follow links, each folder once, however many lead there, and none back up; else they are left out. Raises
    UserError for a folder that cannot be listed or a link that leads nowhere: what is in them would be missing, and
    nobody would know. left_out: hears of these instead, and of links that are not followed.
    """

    def passed_over(path: Path, why: str) -> None:
        if left_out is None:
            raise UserError(why)
        left_out(path, why)

    visited: set[str] = set()
    real: list[tuple[Path, str]] = [(results, os.path.realpath(results))]
    links: list[tuple[Path, str]] = []
    while real or links:
        folder, place = real.pop() if real else links.pop(0)
        if place in visited:
            continue
        visited.add(place)
        try:
            inside = entries(folder)
        except UserError as error:
            passed_over(folder, str(error))
            continue
        if folder != results and any(entry.name == SEPARATE for entry in inside):
            continue
        names = []
        for entry in inside:
            path = folder / entry.name
            if entry.is_symlink() and not linked:
                if not entry.name.startswith("."):
                    passed_over(path, f"'{path}' is a link, which is not followed; left out")
            elif entry.is_dir(follow_symlinks=False):
                real.append((path, f"{place.rstrip(os.sep)}{os.sep}{entry.name}"))
            elif not entry.is_symlink():
                if linked or entry.is_file(follow_symlinks=False):
                    names.append(entry.name)
                else:
                    passed_over(path, f"'{path}' is no regular file; left out")
            elif _leads_nowhere(path):
                # Of a file that is gone, whoever needs it says so.
                if not path.suffix and not entry.name.startswith("."):
                    passed_over(path, f"the link '{path}' leads nowhere; bring back what it leads to, or remove it")
            elif path.is_dir():
                if not f"{place}{os.sep}".startswith(f"{os.path.realpath(path).rstrip(os.sep)}{os.sep}"):
                    links.append((path, os.path.realpath(path)))
            else:
                names.append(entry.name)
        yield folder, names


def search(folder: Path, names: Iterable[str]) -> Path | None:
    """The file somewhere below `folder` that ends in the first of `names` ("x.pt", "Linf/x.pt") that is there.

    Warns of folders that cannot be listed, in which it may be.
    """
    walked = walk(folder, left_out=lambda _, why: warn(f"{why}; files are looked for in the others"))
    paths = sorted(inside / name for inside, found in walked for name in found)
    wanted = (Path(name).parts for name in names)
    return next((path for end in wanted for path in paths if path.parts[-len(end) :] == end), None)


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder, sorted by name; nothing where it is not there (any more).

    Raises UserError where it cannot be listed.
    """
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(
            f"folder '{folder}' cannot be listed ({error.strerror or error}), so what is in it is not known; "
            f"make it readable"
        ) from error


def _leads_nowhere(link: Path) -> bool:
    try:
        link.stat()
    except OSError:
        return True
    return False


def there(path: Path) -> bool:
    """Whether there is a file. Raises UserError where its folder does not tell."""
    try:
        return path.is_file()
    except OSError as error:
        raise UserError(
            f"whether '{path}' is there is not known ({error.strerror or error}); make its folder readable"
        ) from error
