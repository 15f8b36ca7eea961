"""What is in a file of weights, read without running any of it: named tensors, or a sentence on what it is instead."""

from __future__ import annotations

import hashlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from adbench.errors import UserError, printable
from adbench.system import files
from adbench.system.file_kinds import HEAD, other_kind, zip_of_others

WRITER = {"writer": "adbench"}
"""In the header of our own files, whose names are taken as they are."""
DIGEST = "weights_sha256"


class Held(NamedTuple):
    """A tensor in a file. container: the keys of the mapping that it lies in, joined by dots."""

    tensor: Tensor
    container: str


@dataclass(frozen=True)
class Content:
    """The tensors of a file by their full names (the keys that lead to them, joined by dots), on the CPU.

    ours: whether adbench wrote it.  summary: what lies at the top, in words.
    """

    tensors: dict[str, Held]
    ours: bool
    summary: str


def read(path: Path, sha256: str | None = None) -> Content:
    """The content of a safetensors or torch file, whatever its name.

    sha256: what the file's hash has to be, in hex.
    Raises UserError for a file that is missing, not the one expected, something else, damaged or without tensors, and
    for one that could run code when loaded.
    """
    if reason := files.no_file(path):
        raise UserError(f"weights '{path}' {reason}; check the path, or download the file first")
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        raise UserError(f"weights '{path}' cannot be read: {error.strerror or error}") from error
    if other := other_kind(head) or (zip_of_others(path, "data.pkl") if head[:2] == b"PK" else None):
        raise UserError(f"weights '{path}': this is {other}")
    if sha256 is not None and (found := files.sha256(path)) != sha256.lower():
        raise UserError(
            f"weights '{path}': its SHA-256 is {found[:12]}..., expected {sha256[:12].lower()}...; "
            f"download it again, or correct the expected hash if the file is right"
        )
    if head[8:9] == b"{":
        content, header = _read_safetensors(path)
    else:
        content, header = _read_torch(path, head), {}
    try:
        tensors, summary = _named(path, content), _summary(content)
    except RecursionError as error:
        raise UserError(f"weights '{path}': its dictionaries are too deeply nested; save one state dict") from error
    if not tensors:
        raise UserError(
            f"weights '{path}': the file holds no named tensors{summary and f' (it holds {summary})'}; save them with "
            f"torch.save(model.state_dict(), ...)"
        )
    ours = header.items() >= WRITER.items()
    if ours and header.get(DIGEST, "") not in ("", state_sha256(content)):
        raise UserError(
            f"weights '{path}': the file is damaged, its weights have another SHA-256 than it states; restore it "
            f"from a copy, or delete its folder to train again"
        )
    return Content(tensors, ours, summary)


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) of names, types, shapes and bytes of a state dict: the same on every device and in every
    file format."""
    digest = hashlib.sha256()
    for key, value in sorted(state.items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and the metadata of the header."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except Exception as error:  # what a damaged file makes of the reader is not bounded
        raise _damaged(path, error) from error


class _Inert:
    """Stands for a value that is not wanted: takes what it would be made of, and is and does nothing."""

    def __new__(cls, *_args: Any, **_more: Any) -> Any:
        return super().__new__(cls)

    def __setstate__(self, _state: Any) -> None:
        pass


class _List(_Inert):
    """A list in place of a container that is filled like one."""

    def __new__(cls, *_args: Any, **_more: Any) -> Any:
        return []


class _Dict(_Inert):
    """A dictionary in place of a container that is filled like one."""

    def __new__(cls, *_args: Any, **_more: Any) -> Any:
        return {}


_BUILTINS = ("bool", "dict", "float", "frozenset", "int", "list", "range", "slice", "str", "tuple")
_PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
_NUMPY = ("multiarray.scalar", "multiarray._reconstruct", "numeric._frombuffer")
_DATA = (
    "numpy.dtype",
    "numpy.ndarray",
    "argparse.Namespace",
    "types.SimpleNamespace",
    "datetime.datetime",
    "datetime.date",
    "datetime.time",
    "datetime.timedelta",
    "datetime.timezone",
    "decimal.Decimal",
    "fractions.Fraction",
    "uuid.UUID",
    *(f"{core}.{name}" for core in ("numpy.core", "numpy._core") for name in _NUMPY),
    *(f"{module}.{name}" for module in ("pathlib", "pathlib._local") for name in _PATHS),
    *(f"builtins.{name}" for name in _BUILTINS),
)
"""Plain data that trainers keep beside the weights. None of it is made: it has stand-ins, since no value is needed."""
_STAND_INS: list[Any] = [
    *((_Inert, name) for name in _DATA),
    (_Dict, "collections.defaultdict"),
    (_List, "collections.deque"),
]


def _read_torch(path: Path, head: bytes) -> Any:
    try:
        # Of an open file, since torch takes some names for other formats.
        with warnings.catch_warnings(), torch.serialization.safe_globals(_STAND_INS), path.open("rb") as file:
            warnings.simplefilter("ignore")  # hints at unsafe ways to load: our error says what to do
            if head[:2] == b"PK":
                _read_whole(file)
            return torch.load(file, weights_only=True, map_location="cpu")
    except Exception as error:  # what a damaged file makes of the reader is not bounded
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        pickled = isinstance(error, pickle.UnpicklingError) and head[:1] == b"\x80"
        if not (wanted or pickled or "TorchScript" in str(error)):
            raise _damaged(path, error) from error
        asked = f" ({printable(wanted[1])})" if wanted else ""
        raise UserError(
            f"weights '{path}': refused, because the file holds Python objects{asked} that could run code "
            f"when loaded; where you trust its origin, load it there and convert it once: "
            f"torch.save(model.state_dict(), ...)"
        ) from error


def _read_whole(file: BinaryIO) -> None:
    """Raise BadZipFile where a part of a torch file has another checksum than it states, which torch does not look at.

    A checksum of 0 is torch's word for none (`torch.serialization.set_crc32_options`).
    """
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if member.CRC:
                with archive.open(member) as content:
                    while content.read(1 << 20):
                        pass
    file.seek(0)


def _damaged(path: Path, error: Exception) -> UserError:
    reason = re.split(r"[.:;\n] |[\n]", str(error).strip(), maxsplit=1)[0].rstrip(".")
    reason = f": {printable(reason)}" if 0 < len(reason) <= 120 else ""
    return UserError(
        f"weights '{path}': the file is truncated or damaged, or not a weights file "
        f"({type(error).__name__}{reason}); download or save it again"
    )


def _named(path: Path, content: Any) -> dict[str, Held]:
    tensors: dict[str, Held] = {}
    for name, held in _walk(content, "", set()):
        if name in tensors and tensors[name].tensor is not held.tensor:
            raise UserError(f"weights '{path}': two tensors are called '{printable(name)}'; save one state dict")
        tensors[name] = held
    return tensors


def _walk(content: Any, container: str, seen: set[int]) -> Iterator[tuple[str, Held]]:
    """Tensors in mappings and sequences; each of these once, also where it contains itself."""
    if id(content) in seen:
        return
    seen.add(id(content))
    items: Any = ()
    if isinstance(content, Mapping):
        items = content.items()
    elif isinstance(content, list | tuple):
        items = enumerate(content)
    for key, value in items:
        name = f"{container}.{key}" if container else str(key)
        if isinstance(value, Tensor):
            # A sequence of tensors has no names.
            if isinstance(content, Mapping):
                yield name, Held(value, container)
        elif isinstance(value, Mapping | list | tuple):
            yield from _walk(value, name, seen)


def _summary(content: Any) -> str:
    """The top of a file in words: its keys, those of mappings with the number of tensors below them."""
    if not isinstance(content, Mapping):
        return ""
    parts, tensors = [], 0
    for key, value in content.items():
        below = sum(1 for _ in _walk(value, "", set())) if isinstance(value, Mapping | list | tuple) else 0
        tensors += isinstance(value, Tensor)
        if not isinstance(value, Tensor):
            parts.append(f"{printable(str(key))} ({below} tensors)" if below else printable(str(key)))
    more = ", ..." if len(parts) > 8 else ""
    return ", ".join(parts[:8] + ([f"{tensors} tensors"] if tensors else [])) + more
