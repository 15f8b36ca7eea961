"""A board's folder, and what may lie in it. Everything there is somebody else's: it is read as data, and bounded.

    BOARD/board.toml                     teachers that this board takes beside adbench's; may be left out
    BOARD/submissions/NAME/submission.toml
    BOARD/submissions/NAME/cells/...     records, outcomes and logs, as in a results folder
    BOARD/submissions/NAME/code/...txt   the source of plugins, as text
    BOARD/reproductions/NAME/...         the same of cells that somebody else trained again
    BOARD/checks/*.json                  what `adbench verify --survivors --format json` printed
    BOARD/challenges/*.json              what `adbench board challenge` wrote

Nothing of it is imported or executed, links are not followed, and names and sizes are checked before anything is read.
Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import pyarrow.parquet as parquet
from pyarrow import types
from pydantic import AfterValidator, Field

from adbench.errors import UserError
from adbench.experiment.config import Section, validated
from adbench.plugin_code import Code, Module
from adbench.results import layout

SUBMISSIONS, REPRODUCTIONS, CHECKS, CHALLENGES = "submissions", "reproductions", "checks", "challenges"
BOARD, SUBMISSION, CELLS, CODE = "board.toml", "submission.toml", "cells", "code"

SIZES = {
    SUBMISSION: 2**16,
    layout.RECORD: 2**22,
    layout.OUTCOMES: 2**24,
    layout.LOG: 2**26,
    layout.CONFIGURATION: 2**20,
    layout.SUMMARY: 2**20,
}
"""The files of a submission, and how many bytes each may have."""
TEXT_SIZE = 2**20
"""Bytes of a source."""
DOCUMENT_SIZE = 2**24
"""Bytes of a check or a challenge."""
MOST_FILES = 5_000
MOST_COLUMNS = 100
DEEPEST = 10

_NAME = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9._+-]{0,199}")


def _label(text: str) -> str:
    if not text.strip() or not text.isprintable() or len(text) > 100:
        raise ValueError("give 1 to 100 printable characters")
    return text


def _address(text: str) -> str:
    try:
        parts = urlsplit(text)
    except ValueError:  # half an IPv6 address
        parts = urlsplit("")
    plain = re.fullmatch(r"[!-~]{1,1000}", text) and not re.search(r"[\"'<>\\^`{|}]", text)
    if not plain or parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        raise ValueError("give an address that begins with https:// or http://, without user, blanks or quotes")
    return text


Label = Annotated[str, AfterValidator(_label)]
Address = Annotated[str, AfterValidator(_address)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


def label(text: str) -> str:
    """A name that a board shows. Raises UserError for one that it does not take."""
    try:
        return _label(text)
    except ValueError as error:
        raise UserError(f"'{text}' is no name that a board shows: {error}") from error


class Source(Section):
    """A file of a plugin's code. module: its import name, "" for a file that was run from its path."""

    method: Label
    module: str = Field("", max_length=200)
    was: str = Field(pattern=r"^[^/\\]{1,200}$", description="what the file was called")
    file: str = Field(pattern=r"^code/[A-Za-z0-9_+-][A-Za-z0-9._+-]{0,150}\.txt$", description="where its text is")


class Submission(Section):
    """What `submission.toml` says."""

    schema_version: Literal[1]
    label: Label
    weights: Address
    date: str = Field(pattern=r"^\d{4}-\d\d-\d\d$")
    adbench: str = Field(max_length=50)
    code: tuple[Source, ...] = ()


class BoardTeacher(Section):
    """A teacher that a board takes beside adbench's."""

    name: Label
    weights_sha256: Digest
    weights: Address


class Rules(Section):
    """What `board.toml` says."""

    title: Label = "Adversarial distillation"
    teacher: tuple[BoardTeacher, ...] = ()

    @property
    def teachers(self) -> dict[str, str]:
        """SHA-256 of their weights, by name."""
        return {one.name: one.weights_sha256 for one in self.teacher}


def rules(board: Path) -> Rules:
    """The board's own rules, the defaults where it has no file of them."""
    path = board / BOARD
    return validated(Rules, _toml(path), f"'{path}'") if path.exists() else Rules()


def described(folder: Path) -> Submission:
    """What a submission says of itself. Raises UserError where it says it in another way."""
    path = folder / SUBMISSION
    return validated(Submission, _toml(path), f"'{path}'")


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(bounded(path, SIZES[SUBMISSION]).decode("utf-8"))
    except (ValueError, RecursionError) as error:  # of TOML, of UTF-8, of numbers too long
        raise UserError(f"'{path}' is not valid TOML in UTF-8 ({error})") from error


def as_toml(submission: Submission) -> str:
    """A submission as its file has it."""
    values = submission.model_dump(mode="json")
    code = values.pop("code")
    lines = [f"{key} = {_spelt(value)}" for key, value in values.items()]
    for source in code:
        lines += ["", "[[code]]", *(f"{key} = {_spelt(value)}" for key, value in source.items())]
    return "\n".join(lines) + "\n"


def _spelt(value: str | int) -> str:
    # Of text that can be printed, JSON's spelling is TOML's.
    return json.dumps(value, ensure_ascii=False)


def bounded(path: Path, most: int) -> bytes:
    """The bytes of a regular file that is no link. Raises UserError for anything else, and beyond `most` bytes."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        raise UserError(f"'{path}' cannot be read ({error.strerror}); give a regular file, no link") from error
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"'{path}' is no regular file")
        if status.st_size > most:
            raise UserError(f"'{path}' has {status.st_size:,} bytes; it may have {most:,}")
        return file.read(most)


def inside(folder: Path) -> list[str]:
    """The names in a folder of a board, sorted; [] where there is no such folder. Raises UserError for a link."""
    if folder.is_symlink():
        raise UserError(f"'{folder}' is a link; a board has folders and files of its own")
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def check(folder: Path) -> list[Path]:
    """The files of a submission, each of which is of a kind, a name and a size that belong there.

    Raises UserError, which names the first that is not, before anything is read.
    """
    found: list[Path] = []
    for path in _files(folder, 0):
        found.append(path)
        if len(found) > MOST_FILES:
            raise UserError(f"'{folder}' has more than {MOST_FILES:,} files")
    return found


def _files(folder: Path, depth: int) -> Iterator[Path]:
    if depth > DEEPEST:
        raise UserError(f"'{folder}' lies too deep")
    for name in inside(folder):
        path = folder / name
        mode = path.lstat()
        if not _NAME.fullmatch(name):
            raise UserError(f"'{path}': a name has letters, digits and . _ + - alone, and no dot at its beginning")
        if stat.S_ISLNK(mode.st_mode):
            raise UserError(f"'{path}' is a link; a submission has files of its own")
        if stat.S_ISDIR(mode.st_mode):
            if depth == 0 and name not in (CELLS, CODE):
                raise UserError(f"'{path}' does not belong into a submission, which has {SUBMISSION}, cells and code")
            yield from _files(path, depth + 1)
        elif not stat.S_ISREG(mode.st_mode):
            raise UserError(f"'{path}' is no regular file")
        else:
            most = _most(path, depth)
            if most is None:
                raise UserError(
                    f"'{path}' does not belong into a submission, which has records, outcomes, logs and text"
                )
            if mode.st_size > most:
                raise UserError(f"'{path}' has {mode.st_size:,} bytes; it may have {most:,}")
            yield path


def _most(path: Path, depth: int) -> int | None:
    """How many bytes a file of that name may have there; None where it does not belong."""
    if depth == 0:
        return SIZES[SUBMISSION] if path.name == SUBMISSION else None
    if depth == 1:
        return TEXT_SIZE if path.parent.name == CODE and path.suffix == ".txt" else None
    return SIZES.get(path.name) if path.name != SUBMISSION else None


def check_outcomes(path: Path, images: int) -> None:
    """Raise UserError unless outcomes are of so many images and small when unpacked, which their footer tells."""
    try:
        file = parquet.ParquetFile(path)
        content, kinds = file.metadata, file.schema_arrow.types
        rows, columns = content.num_rows, content.num_columns
        unpacked = sum(content.row_group(group).total_byte_size for group in range(content.num_row_groups))
    except Exception as error:  # whatever pyarrow makes of odd bytes
        raise UserError(f"'{path}' cannot be read as outcomes ({error})") from error
    if not all(types.is_boolean(kind) or types.is_integer(kind) for kind in kinds):
        raise UserError(f"'{path}' has columns of something else than numbers and truth values, not those of outcomes")
    if rows != images or columns > MOST_COLUMNS or unpacked > SIZES[layout.OUTCOMES]:
        raise UserError(f"'{path}' has {rows:,} rows, {columns} columns and {unpacked:,} bytes, not those of outcomes")


def code_of(folder: Path, submission: Submission, method: str) -> Code | None:
    """The code of a method as its text is, None where there is none. Nothing of it is executed."""
    sources = [source for source in submission.code if source.method == method]
    if not sources:
        return None
    modules = [Module(source.module, Path(source.was), bounded(folder / source.file, TEXT_SIZE)) for source in sources]
    return Code(modules[0], tuple(modules[1:]))


def digest(path: Path) -> str:
    """SHA-256 of a document's bytes."""
    return hashlib.sha256(bounded(path, DOCUMENT_SIZE)).hexdigest()
