"""JSON files with a published schema beside this module: records, plans, and what `adbench cross` and `cam` leave.

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

from pydantic_core import CoreSchema, SchemaValidator, ValidationError, core_schema, from_json

from adbench.errors import UserError
from adbench.system import files

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

    def at(self, *keys: str) -> Any:
        """The value behind keys that its schema does not ask for. Raises UserError that names those it lacks."""
        value: Any = self.data
        for key in keys:
            if not isinstance(value, dict) or key not in value:
                raise UserError(f"'{self.path}' lacks {'.'.join(keys)}, which is needed here; run its cell again")
            value = value[key]
        return value


@cache
def schema(kind: str) -> dict[str, Any]:
    """The published JSON schema (draft 2020-12) of "record", "cross", "cam", "plan" or "log"."""
    text = (resources.files("adbench.results") / f"{kind}.schema.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def beside(path: Path, name: str) -> Path:
    """The file `name` that the document at `path` speaks of. Raises UserError unless it lies in the document's folder.

    Documents come from anywhere: none of them can have a file read that is not its own.
    """
    folder = path.parent.resolve()
    try:
        file = (folder / name).resolve()
    except (OSError, ValueError, RuntimeError) as error:  # no name of a file, or a loop of links
        raise UserError(f"'{path}' names a file that cannot be ({error})") from error
    if not file.is_relative_to(folder):
        raise UserError(f"'{path}' names '{name}', a file outside its folder; it was not read")
    return path.parent / name


def write(path: Path, data: dict[str, Any]) -> None:
    """Write a document, or any table of JSON, with its digest, atomically."""
    files.write_json(path, sealed(data))


def sealed(data: dict[str, Any]) -> dict[str, Any]:
    """A table of JSON as it will be read, with its digest."""
    # Keys that are numbers become text, tuples lists.
    plain = json.loads(json.dumps({key: value for key, value in data.items() if key != DIGEST}, allow_nan=False))
    return {**plain, DIGEST: files.content_id(plain)}


def parsed(content: bytes | str, *, finite: bool = True) -> Any:
    """JSON, held to what JSON is. finite: no NaN or Infinity. Raises ValueError, also for deep nesting."""
    return from_json(content, allow_inf_nan=not finite)


def opened(path: Path) -> Any:
    """The JSON in the file; of a table without its digest, which older files lack.

    Raises OSError, and ValueError where it is no JSON, or other content than the digest is of.
    """
    data = parsed(files.content(path))
    stated = data.pop(DIGEST, None) if isinstance(data, dict) else None
    # Without a digest too: a number beyond float64's range has no canonical form.
    if files.content_id(data) != stated is not None:
        raise ValueError("it is damaged: its content has another SHA-256 than it states")
    return data


def content(path: Path, kind: str, remedy: str) -> dict[str, Any]:
    """What the file says, without its digest, which older files lack.

    Raises UserError, with the remedy, unless it is whole, unchanged, of a version that is understood, and as its
    schema has it; of a field that is not, the error names it.
    """
    data = stated(path, kind, remedy)
    if said := complaint(kind, data):
        raise UserError(f"'{path}' is no {kind} as its schema has it: {said}; {remedy}")
    return data


def stated(path: Path, kind: str, remedy: str) -> dict[str, Any]:
    """As `content`, but whatever the single fields say."""
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
    if not isinstance(found, int) or isinstance(found, bool):
        raise UserError(f"'{path}' is no {kind}, it has no schema version; {remedy}")
    if found != understood:
        raise OtherVersion(f"'{path}' has schema version {found}; this adbench reads version {understood}")
    if lacking := [key for key in schema(kind)["required"] if key not in data]:
        raise UserError(f"'{path}' is no whole {kind}, it lacks {', '.join(lacking)}; {remedy}")
    whole: dict[str, Any] = data
    return whole


def complaint(kind: str, data: Any) -> str | None:
    """Which field of a document is not what its schema says, and why, or None: "seed is "x", input should be ..."."""
    try:
        _validator(kind).validate_python(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"])) or "the whole"
        if first["type"] in ("missing", "extra_forbidden"):
            return f"{field} is {'missing' if first['type'] == 'missing' else 'unknown'}"
        return f"{field} is {json.dumps(first['input'])[:60]}, {first['msg'][0].lower()}{first['msg'][1:]}"
    return None


@cache
def _validator(kind: str) -> SchemaValidator:
    whole = schema(kind)
    return SchemaValidator(_compiled(whole, whole.get("$defs", {})))


MOST = 2**63 - 1
"""The largest whole number that tables can hold."""


def _compiled(said: dict[str, Any], named: dict[str, Any]) -> CoreSchema:
    """The part of JSON schema that ours are written in, as pydantic-core checks it: some 100 times faster.

    named: the schema's "$defs".
    """
    if "$ref" in said:
        return _compiled(named[said["$ref"].rpartition("/")[2]], named)
    if "oneOf" in said:  # null or something else
        (other,) = (choice for choice in said["oneOf"] if choice != {"type": "null"})
        return core_schema.nullable_schema(_compiled(other, named))
    if isinstance(said.get("type"), list):  # the same
        (kind,) = (kind for kind in said["type"] if kind != "null")
        return core_schema.nullable_schema(_compiled({**said, "type": kind}, named))
    if "const" in said or "enum" in said:
        return core_schema.literal_schema(said.get("enum") or [said["const"]])
    match said.get("type"):
        case "string":
            return core_schema.str_schema(pattern=said.get("pattern"), min_length=said.get("minLength"), strict=True)
        case "integer":
            return core_schema.int_schema(ge=said.get("minimum", -MOST), le=said.get("maximum", MOST), strict=True)
        case "number":
            low, above, high = said.get("minimum"), said.get("exclusiveMinimum"), said.get("maximum")
            return core_schema.float_schema(ge=low, gt=above, le=high, allow_inf_nan=False, strict=True)
        case "boolean":
            return core_schema.bool_schema(strict=True)
        case "array":
            items, least, most = said.get("items", {}), said.get("minItems"), said.get("maxItems")
            return core_schema.list_schema(_compiled(items, named), min_length=least, max_length=most, strict=True)
        case "object":
            return _object(said, named)
        case _:
            return core_schema.any_schema()


def _object(said: dict[str, Any], named: dict[str, Any]) -> CoreSchema:
    others = said.get("additionalProperties", True)
    extra = _compiled(others if isinstance(others, dict) else {}, named)
    required = said.get("required", ())
    known: dict[str, Any] = {key: {} for key in required} | said.get("properties", {})
    if not known:
        return core_schema.dict_schema(core_schema.str_schema(), extra, strict=True)
    fields = {
        key: core_schema.typed_dict_field(_compiled(value, named), required=key in required)
        for key, value in known.items()
    }
    if others is False:
        return core_schema.typed_dict_schema(fields, extra_behavior="forbid", strict=True)
    return core_schema.typed_dict_schema(fields, extra_behavior="allow", extras_schema=extra, strict=True)
