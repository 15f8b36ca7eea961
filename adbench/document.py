"""JSON files with a published schema beside this module: records, and what `adbench cross` and `cam` leave."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from adbench.errors import UserError


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
    loaded: dict[str, Any] = json.loads((files("adbench") / f"{kind}.schema.json").read_text(encoding="utf-8"))
    return loaded


def content(path: Path, kind: str, remedy: str) -> dict[str, Any]:
    """What the file says. Raises UserError, with the remedy, unless it is whole and of a version that is understood."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"'{path}' is not a readable {kind} ({error}); {remedy}") from error
    found = data.get("schema_version") if isinstance(data, dict) else None
    understood = schema(kind)["properties"]["schema_version"]["const"]
    if found != understood:
        raise UserError(f"'{path}' has schema version {found!r}; this adbench reads version {understood}")
    if lacking := [key for key in schema(kind)["required"] if key not in data]:
        raise UserError(f"'{path}' is no whole {kind}, it lacks {', '.join(lacking)}; {remedy}")
    whole: dict[str, Any] = data
    return whole
