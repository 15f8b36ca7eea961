"""JSON files with a published schema beside this module: records, and what `adbench cross` and `cam` leave.

Each carries the SHA-256 of its content, so that a file which a disk or a transfer changed is not believed. That proves
nothing about who wrote it: whoever can write the file can write its digest.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from adbench import files
from adbench.errors import UserError

DIGEST = "digest"


class OtherVersion(UserError):
    """A document that another adbench wrote: not damaged, and not to be written over."""


@dataclass(frozen=True)
class Document:
    """The content of one file and where it lies."""

    path: Path
    data: dict[str, Any]

    def __getitem__(self, key: str) -> Any:
        return self.data[key]


@cache
def schema(kind: str) -> dict[str, Any]:
    """The published JSON schema (draft 2020-12) of "record", "cross" or "cam"."""
    text = (resources.files("adbench") / f"{kind}.schema.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def beside(path: Path, name: str) -> Path:
    """The file `name` that the document at `path` speaks of. Raises UserError unless it lies in the document's folder.

    Documents come from anywhere: none of them can have a file read that is not its own.
    """
    folder = path.parent.resolve()
    file = (folder / name).resolve()
    if not file.is_relative_to(folder):
        raise UserError(f"'{path}' names '{name}', a file outside its folder; it was not read")
    return path.parent / name


def write(path: Path, data: dict[str, Any]) -> None:
    """Write a document, or any table of JSON, with its digest, atomically."""
    # As it will be read: keys that are numbers become text, tuples lists.
    plain = json.loads(json.dumps({key: value for key, value in data.items() if key != DIGEST}, allow_nan=False))
    files.write_json(path, {**plain, DIGEST: files.content_id(plain)})


def opened(path: Path) -> Any:
    """The JSON in the file; of a table without its digest, which older files lack.

    Raises OSError, and ValueError where it is no JSON, or other content than the digest is of.
    """
    data = json.loads(path.read_text(encoding="utf-8"))
    stated = data.pop(DIGEST, None) if isinstance(data, dict) else None
    if stated is not None and stated != files.content_id(data):
        raise ValueError("it is damaged: its content has another SHA-256 than it states")
    return data


def content(path: Path, kind: str, remedy: str) -> dict[str, Any]:
    """What the file says, without its digest, which older files lack.

    Raises UserError, with the remedy, unless it is whole, unchanged and of a version that is understood.
    """
    try:
        data = opened(path)
    except FileNotFoundError:
        raise UserError(f"there is no {kind} '{path}'; give the path of one") from None
    except IsADirectoryError:
        raise UserError(f"'{path}' is a folder; give the path of a {kind} in it") from None
    except (OSError, ValueError) as error:
        raise UserError(f"'{path}' is not a readable {kind} ({error}); {remedy}") from error
    found = data.get("schema_version") if isinstance(data, dict) else None
    understood = schema(kind)["properties"]["schema_version"]["const"]
    if isinstance(found, int) and found != understood:
        raise OtherVersion(f"'{path}' has schema version {found}; this adbench reads version {understood}")
    if found != understood:
        raise UserError(f"'{path}' is no {kind}, it has no schema version; {remedy}")
    if lacking := [key for key in schema(kind)["required"] if key not in data]:
        raise UserError(f"'{path}' is no whole {kind}, it lacks {', '.join(lacking)}; {remedy}")
    whole: dict[str, Any] = data
    return whole
