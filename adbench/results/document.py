"""JSON files with a published schema: records, plans, and what `adbench cross` and `cam` leave.

Each kind is a dataclass, which says of every field what it may be: an annotation, with limits as pydantic-core names
them and a description beside it. From it come the reader that fills it (`validator`) and the schema that is published
(`schema`). pydantic itself is not imported to read: it would double the time that `adbench status` takes to start.

Each file carries the SHA-256 of its content, so that one which a disk or a transfer changed is not believed. That
proves nothing about who wrote it: whoever can write the file can write its digest.
"""

from __future__ import annotations

import dataclasses
import json
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic_core import CoreSchema, SchemaValidator, ValidationError, core_schema, from_json

from adbench.errors import UserError
from adbench.system import files

DIGEST = "digest"
SCHEMA_VERSION = 1
"""Of all kinds of documents."""
MOST = 2**63 - 1
"""The largest whole number that tables can hold."""


class Limits(dict[str, Any]):
    """A note on what a field may be: limits as pydantic-core names them, or a whole schema of its."""

    __hash__ = object.__hash__  # type: ignore[assignment]


Identity = Annotated[str, Limits(pattern="^[0-9a-f]{16}$")]
Sha256 = Annotated[str, Limits(pattern="^[0-9a-f]{64}$")]
Text = Annotated[str, Limits(min_length=1)]
Share = Annotated[float, Limits(ge=0, le=1)]
Seconds = Annotated[float, Limits(ge=0)]
Count = Annotated[int, Limits(ge=0)]
Positive = Annotated[int, Limits(ge=1)]
Interval = Annotated[list[Share], Limits(min_length=2, max_length=2)]
Size = Annotated[
    str,
    Limits(pattern="^([0-9]+/0*[1-9][0-9]*|[0-9]*[.]?[0-9]+([eE]-?[0-9]{1,3})?)$"),
    "of a perturbation, as a share of the image range: a fraction or a decimal",
]
Kind = Literal["student", "teacher", "checkpoint"]


class OtherVersion(UserError):
    """A document that another adbench wrote: not damaged, and not to be written over."""


class Malformed(UserError):
    """A document of which a field is not as its schema has it; `complaint` says which and why."""

    def __init__(self, message: str, complaint: str = "") -> None:
        super().__init__(message)
        self.complaint = complaint


@dataclass(slots=True)
class Document:
    """One file's content, and where it lies. The class's name, in small letters, is the kind of document."""

    path: Path = field(init=False, compare=False)


D = TypeVar("D", bound=Document)
T = TypeVar("T")
R = TypeVar("R")


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


def readable(things: Iterable[T], reading: Callable[[T], R], left_out: Callable[[str], object] | None) -> Iterator[R]:
    """Each of the things, files or records, as `reading` gives it. left_out: hears, in a sentence, of each that it
    refuses, and the rest is read; without it that is a UserError."""
    for thing in things:
        try:
            found = reading(thing)
        except UserError as error:
            if left_out is None:
                raise
            left_out(str(error))
        else:
            yield found


def read(path: Path, kind: type[D], remedy: str) -> D:
    """The document in the file.

    Raises UserError, with the remedy, unless it is whole, unchanged, of a version that is understood, and as its
    schema has it (else Malformed, which names the field).
    """
    name = kind.__name__.lower()
    try:
        data = opened(path)
    except FileNotFoundError:
        raise UserError(f"there is no {name} '{path}'; give the path of one") from None
    except IsADirectoryError:
        raise UserError(f"'{path}' is a folder; give the path of a {name} in it") from None
    except (OSError, ValueError) as error:
        raise UserError(f"'{path}' is not a readable {name} ({error}); {remedy}") from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if not isinstance(version, int) or isinstance(version, bool):
        raise UserError(f"'{path}' is no {name}, it has no schema version; {remedy}")
    if version != SCHEMA_VERSION:
        raise OtherVersion(f"'{path}' has schema version {version}; this adbench reads version {SCHEMA_VERSION}")
    if lacking := [one.name for one in _content(kind) if one.default is dataclasses.MISSING and one.name not in data]:
        raise UserError(f"'{path}' is no whole {name}, it lacks {', '.join(lacking)}; {remedy}")
    try:
        document: D = validator(kind).validate_python(data)  # type: ignore[arg-type]
    except ValidationError as error:
        why = complaint(error)
        raise Malformed(f"'{path}' is no {name} as its schema has it: {why}; {remedy}", why) from error
    document.path = path
    return document


def complaint(error: ValidationError) -> str:
    """Which field is not what its schema says, and why: "seed is "x", input should be ..."."""
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"])) or "the whole"
    match first["type"]:
        case "missing":
            return f"{where} is missing"
        case "extra_forbidden" | "unexpected_keyword_argument":
            return f"{where} is unknown"
        case _:
            return f"{where} is {json.dumps(first['input'])[:60]}, {first['msg'][0].lower()}{first['msg'][1:]}"


@cache
def validator(kind: Any) -> SchemaValidator:
    """What turns parsed JSON into a `kind`: a dataclass, or any annotation of one's field."""
    return SchemaValidator(_compiled(kind))


def schema(kind: Any) -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a kind of document, as it is published beside this module."""
    from pydantic.json_schema import GenerateJsonSchema  # slow to import, and nothing that reads needs it

    made = GenerateJsonSchema().generate(_compiled(kind))
    if dataclasses.is_dataclass(kind):
        made["properties"][DIGEST] = {
            "type": "string",
            "pattern": "^[0-9a-f]{64}$",
            "description": "SHA-256 of everything else, as JSON with sorted keys and no spaces; older files lack it",
        }
    return {"$schema": GenerateJsonSchema.schema_dialect, **made}


def table(required: Mapping[str, Any] = {}, others: Any = Any, **optional: Any) -> Limits:
    """A note on a dictionary: what some of its fields must be, and what all others."""
    fields = {
        name: core_schema.typed_dict_field(_compiled(hint), required=name in required)
        for name, hint in {**required, **optional}.items()
    }
    return Limits(
        **core_schema.typed_dict_schema(fields, extra_behavior="allow", extras_schema=_compiled(others), strict=True)
    )


def _compiled(hint: Any) -> Any:
    """An annotation as pydantic-core checks it. Nothing is converted: numbers are numbers, text is text."""
    notes: tuple[Any, ...] = ()
    if get_origin(hint) is Annotated:
        hint, *rest = get_args(hint)
        notes = tuple(rest)
    limits = [note for note in notes if isinstance(note, Limits)]
    whole: list[Any] = [note for note in limits if "type" in note]
    compiled: Any = whole[0] if whole else _plain(hint, {key: note[key] for note in limits for key in note})
    if descriptions := [note for note in notes if isinstance(note, str)]:
        compiled = {**compiled, "metadata": {"pydantic_js_updates": {"description": descriptions[0]}}}
    return compiled


def _plain(hint: Any, limits: dict[str, Any]) -> CoreSchema:
    kind, inside = get_origin(hint) or hint, get_args(hint)
    if dataclasses.is_dataclass(kind):
        return _fields(kind)
    if kind in (Union, types.UnionType):  # or None
        return core_schema.nullable_schema(_compiled(inside[0]))
    if kind is Literal:
        return core_schema.literal_schema([*inside])
    if kind is list:
        return core_schema.list_schema(_compiled(inside[0]), strict=True, **limits)
    if kind is dict:
        return core_schema.dict_schema(core_schema.str_schema(), _compiled(inside[1]), strict=True)
    if kind is int:
        return core_schema.int_schema(strict=True, **{"ge": -MOST, "le": MOST, **limits})
    if kind is float:
        return core_schema.float_schema(allow_inf_nan=False, strict=True, **limits)
    if kind is str:
        return core_schema.str_schema(strict=True, **limits)
    return core_schema.bool_schema(strict=True) if kind is bool else core_schema.any_schema()


def _fields(kind: Any) -> CoreSchema:
    hints, fields = get_type_hints(kind, include_extras=True), _content(kind)
    arguments = []
    for one in fields:
        checked = _compiled(hints[one.name])
        if one.default is not dataclasses.MISSING:
            checked = core_schema.with_default_schema(checked, default=one.default)
        elif one.default_factory is not dataclasses.MISSING:
            checked = core_schema.with_default_schema(checked, default_factory=one.default_factory)
        arguments.append(core_schema.dataclass_field(one.name, checked))
    extras: Any = getattr(kind, "EXTRAS", "forbid")
    return core_schema.dataclass_schema(
        kind,
        core_schema.dataclass_args_schema(kind.__name__, arguments, extra_behavior=extras),
        [one.name for one in fields],
        slots="__slots__" in vars(kind),
    )


def _content(kind: Any) -> list[dataclasses.Field[Any]]:
    """The fields that a file has: all but its path."""
    return [one for one in dataclasses.fields(kind) if one.init]
