"""Weights in and out of files. Nothing in a file is ever executed."""

from __future__ import annotations

import hashlib
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from adbench import files
from adbench.errors import UserError

# Where published files keep the state dict, and what DataParallel, wrapper modules and
# Sequential(normalise, network) put before its keys.
WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
PREFIXES = ("module", "model", "0", "1")
NORMALISATION = {"mean": "mean", "mu": "mean", "std": "std", "sigma": "std"}
# In the header of our own files, whose keys are taken as they are.
_WRITER = {"writer": "adbench"}
_DIGEST = "weights_sha256"


def save_weights(path: Path, network: nn.Module, metadata: dict[str, str]) -> None:
    """Write the state dict of `network` to `path` (see `save_state`)."""
    save_state(path, network.state_dict(), metadata)


def save_state(path: Path, state: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write `state` to `path` as safetensors with `metadata` and its own SHA-256 in the header, atomically.

    Raises UserError where the file cannot be written.
    """
    # Cloned, because the format refuses tensors that share memory.
    plain = {key: value.detach().cpu().clone().contiguous() for key, value in state.items()}
    files.write_bytes(path, safetensors.torch.save(plain, metadata | _WRITER | {_DIGEST: state_sha256(plain)}))


def weights_sha256(network: nn.Module) -> str:
    """SHA-256 (hex) of a network's weights (see `state_sha256`)."""
    return state_sha256(network.state_dict())


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) of names, types, shapes and bytes of a state dict: the same on every device and in every
    file format."""
    digest = hashlib.sha256()
    for key, value in sorted(state.items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_state_dict(path: Path, sha256: str | None = None) -> dict[str, Tensor]:
    """The tensors of a safetensors or torch file, on the CPU, under the names a plain network gives them.

    Dictionaries around the state dict ('state_dict', 'model', ...) are opened, and prefixes ('module.', ...)
    that stand before every key are removed; buffers of a normalisation stay, for `load_into` to judge.
    sha256: what the file's hash has to be, in hex.
    Raises UserError for a file that is missing, not the one expected, a web page, damaged or without tensors,
    and for one that could run code when loaded.
    """
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except FileNotFoundError:
        raise UserError(f"weights '{path}': no such file; check the path or download it first") from None
    except OSError as error:
        raise UserError(f"weights '{path}' cannot be read: {error.strerror or error}") from error
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UserError(
            f"weights '{path}': this is a web page, not weights; the link led to a log-in or a warning, "
            f"so download the file itself"
        )
    if sha256 is not None and (found := files.sha256(path)) != sha256.lower():
        raise UserError(
            f"weights '{path}': its SHA-256 is {found[:12]}..., expected {sha256[:12].lower()}...; "
            f"download it again, or correct the expected hash if the file is right"
        )
    if head[8:9] == b"{":
        state, ours = _read_safetensors(path)
    else:
        state, ours = _tensors(_read_torch(path, head)), False
    if not state:
        raise UserError(
            f"weights '{path}': the file holds no named tensors; save them with torch.save(model.state_dict(), ...)"
        )
    return state if ours else _strip(state)


def metadata(path: Path) -> dict[str, str]:
    """What the header of a safetensors file says beside its tensors; nothing of another file."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError, ValueError):
        return {}


def load_into(network: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Copy `state` into `network`; every key has to fit.

    Only counts of batches that BN keeps may be absent, and keys that the network declares as ignored may be
    there in addition. source: where the state comes from, for the error.
    Raises UserError that names the keys that do not fit, or the normalisation that the network lacks.
    """
    expected = network.state_dict()
    ignored: tuple[str, ...] = getattr(network, "ignored_keys", ())
    unexpected = [key for key in state if key not in expected and not key.startswith(ignored)]
    normalisation = {key: NORMALISATION[leaf] for key in unexpected if (leaf := _leaf(key)) in NORMALISATION}
    unexpected = [key for key in unexpected if key not in normalisation]
    missing = [key for key in expected if key not in state and _leaf(key) != "num_batches_tracked"]
    shapes = {
        key: (tuple(state[key].shape), tuple(value.shape))
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    }
    problems = [
        *_listed("missing", missing),
        *_listed("unexpected", unexpected),
        *_listed("of wrong shape", [f"{k}: {found}, expected {want}" for k, (found, want) in shapes.items()]),
    ]
    if problems:
        foreign = 2 * len(missing) > len(expected)
        hint = "; is it another architecture?" if foreign else _hint(network, shapes)
        raise UserError(f"{source}: the keys of the file do not fit ({'; '.join(problems)}){hint}")
    _check_normalisation(network, {key: state[key] for key in normalisation}, normalisation, source)
    network.load_state_dict({key: state[key] for key in expected if key in state}, strict=False)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], bool]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            said = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, error) from error
    ours = said.items() >= _WRITER.items()
    if ours and said.get(_DIGEST, "") not in ("", state_sha256(state)):
        raise UserError(
            f"weights '{path}': the file is damaged, its weights have another SHA-256 than it states; restore it "
            f"from a copy, or delete its folder to train again"
        )
    return state, ours


def _read_torch(path: Path, head: bytes) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # hints at unsafe ways to load: our error says what to do
            return torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # what a damaged file makes of the reader is not bounded
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        pickled = isinstance(error, pickle.UnpicklingError) and head[:1] == b"\x80"
        if not (wanted or pickled or "TorchScript" in str(error)):
            raise _damaged(path, error) from error
        asked = f" ({wanted[1]})" if wanted else ""
        raise UserError(
            f"weights '{path}': refused, because the file holds Python objects{asked} that could run code "
            f"when loaded; where you trust its origin, load it there and convert it once: "
            f"torch.save(model.state_dict(), ...)"
        ) from error


def _damaged(path: Path, error: Exception) -> UserError:
    reason = (str(error).splitlines() or [""])[0].strip().rstrip(".")[:120]
    return UserError(
        f"weights '{path}': the file is truncated or damaged, or not a weights file "
        f"({type(error).__name__}{': ' if reason else ''}{reason}); download or save it again"
    )


def _tensors(content: Any) -> dict[str, Tensor]:
    """The state dict inside the wrappers, with a normalisation that lay beside it."""
    beside: dict[str, Tensor] = {}
    while isinstance(content, Mapping):
        tensors = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
        inner = [content[name] for name in WRAPPERS if isinstance(content.get(name), Mapping)]
        if not inner:
            return beside | tensors
        beside |= {key: value for key, value in tensors.items() if key in NORMALISATION}
        content = inner[0]
    return {}


def _strip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove prefixes that every key has, but for a normalisation that lies beside the network."""
    while True:
        heads = {key.partition(".")[0] for key in state if _leaf(key) not in NORMALISATION}
        if len(heads) != 1 or not heads <= set(PREFIXES):
            return state
        prefix = f"{heads.pop()}."
        state = {key.removeprefix(prefix): value for key, value in state.items()}


def _leaf(key: str) -> str:
    return key.rpartition(".")[2]


def _listed(kind: str, items: list[str]) -> list[str]:
    more = ", ..." if len(items) > 3 else ""
    return [f"{len(items)} {kind}: {', '.join(items[:3])}{more}"] if items else []


def _hint(network: nn.Module, shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]) -> str:
    """The likely reason of wrong shapes (found, expected), where it is evident."""
    heads = {id(value) for value in getattr(network, "classifier", nn.Module()).parameters()}
    head_keys = {key for key, value in network.named_parameters() if id(value) in heads}
    for key, (found, want) in shapes.items():
        if len(found) == len(want) == 4 and found[0] == want[0] and {found[1], want[1]} == {1, 3}:
            return f"; is it a model for {'grey' if found[1] == 1 else 'colour'} images?"
        if key in head_keys and shapes.keys() <= head_keys and found[1:] == want[1:]:
            return f"; is it a {found[0]}-class model?"
    return ""


def _check_normalisation(network: nn.Module, found: dict[str, Tensor], roles: dict[str, str], source: str) -> None:
    """A file's normalisation has to be the one inside the network: without it every logit would change."""
    wrong = []
    for key, value in found.items():
        have = getattr(network, roles[key], None)
        numbers = value.flatten().float()
        inside = have.flatten().cpu().float() if isinstance(have, Tensor) else torch.empty(0)
        if inside.shape != numbers.shape or not torch.allclose(inside, numbers, atol=1e-4):
            wrong.append(f"{key} = {[round(v, 4) for v in numbers[:3].tolist()]}")
    if wrong:
        raise UserError(
            f"{source}: the file holds a normalisation of its inputs that the network does not have "
            f"({', '.join(wrong)}); give these numbers to the teacher as its mean and std"
        )
