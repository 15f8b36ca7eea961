"""Files that are either whole or not there."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any

from adbench.errors import UserError


def write_atomic(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it there.

    A process killed at any moment leaves the old file or the new one, never a part.
    Raises UserError where the folder cannot be written or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            write(temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        remedy = "" if error.errno in (errno.ENOENT, errno.EACCES, errno.EPERM) else "free the disk or "
        raise UserError(f"cannot write '{path}': {error.strerror or error}; {remedy}choose another folder") from error


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


def below(results: Path, name: str) -> list[Path]:
    """The files `name` in and below a results folder, sorted, but for those of folders marked SEPARATE below it."""
    return sorted(Path(folder, name) for folder, files in _walk(results) if name in files)


def folders(results: Path) -> list[Path]:
    """A results folder and those below it, sorted, but for those marked SEPARATE below it."""
    return sorted(Path(folder) for folder, _ in _walk(results))


def _walk(results: Path) -> Iterator[tuple[str, list[str]]]:
    for folder, inner, files in os.walk(results):
        if SEPARATE in files and Path(folder) != results:
            inner.clear()
        else:
            yield folder, files
