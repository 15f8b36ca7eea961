"""Weights in and out of files. Nothing in a file is ever executed."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from adbench.errors import UserError, printable, warn
from adbench.results import document
from adbench.system import files
from adbench.weights import file_reader
from adbench.weights.file_reader import DIGEST, WRITER, Content, Held, state_sha256

NORMALISATION = dict.fromkeys(("mean", "mu", "new_mean", "_mean", "image_mean", "pixel_mean", "norm_mean"), "mean")
NORMALISATION |= dict.fromkeys(("std", "sigma", "new_std", "_std", "image_std", "pixel_std", "norm_std"), "std")
"""What published files call the two parts of a normalisation."""

CARD_SAYS = re.compile("SHA-256 of the weights in adbench: ([^. ]+)")
"""In the footnote of an exported card, whose other fields are RobustBench's."""

# What torch puts around a module and so into its keys: by compile, by FSDP, by activation checkpointing.
_AROUND = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# DataParallel around a part of a network.
_AROUND_PART = re.compile(r"(?<=\.)module\.")


def save_weights(path: Path, network: nn.Module, metadata: dict[str, str]) -> None:
    """Write the state dict of `network` to `path` (see `save_state`)."""
    save_state(path, network.state_dict(), metadata)


def save_state(path: Path, state: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write `state` to `path` as safetensors with `metadata` and its own SHA-256 in the header, atomically.

    Raises UserError where the file cannot be written.
    """
    # Cloned, because the format refuses tensors that share memory.
    plain = {key: value.detach().cpu().clone().contiguous() for key, value in state.items()}
    content = safetensors.torch.save(plain, metadata | WRITER | {DIGEST: state_sha256(plain)})
    files.write_bytes(path, _in_order(content))


def _in_order(content: bytes) -> bytes:
    """A safetensors file with its metadata in the order of their keys, where the package has another one every time:
    equal weights are equal files."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    padded = text + b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8
    return len(padded).to_bytes(8, "little") + padded + content[8 + size :]


def serialised(state: dict[str, Any]) -> memoryview:
    """`state` as torch writes it. By way of memory: on a full disk torch.save itself ends in an error that does not
    say so."""
    content = io.BytesIO()
    torch.save(state, content)
    return content.getbuffer()


def weights_sha256(network: nn.Module) -> str:
    """SHA-256 (hex) of a network's weights (see `state_sha256`)."""
    return state_sha256(network.state_dict())


def load(
    network: nn.Module,
    path: Path,
    *,
    sha256: str | None = None,
    key: str | None = None,
    prefer: str | None = None,
    optional: Iterable[str] = (),
) -> None:
    """Fill `network` with the weights of a file, in which anything may stand before the network's own names.

    The names are looked for in all mappings of the file, behind one prefix ('state_dict', 'module', ...).
    sha256: what the file's hash has to be, in hex.  key: the prefix that is meant, or its beginning.  prefer: the same,
    where several networks fit and no key is given.  optional: names that may be absent.
    Raises UserError where the file cannot be read (see `file_reader.read`), and where no network in it fits, or
    several do that differ.  Warns of tensors beside the network's that may have been a part of it.
    """
    content = file_reader.read(path, sha256)
    if content.ours:
        load_into(network, {name: held.tensor for name, held in content.tensors.items()}, str(path))
        _check_card(path, network)
        return
    expected = network.state_dict()
    found = _Found(content, {name: expected[name] for name in _required(expected, optional)})
    prefix = found.choose(path, key, prefer)
    state, unused = found.state(prefix)
    holds = "" if prefix in found.whole else f" (it holds {content.summary})"
    load_into(network, state, f"{path}{holds}", optional)
    _check_card(path, network)
    if unused:
        names = ", ".join(printable(name) for name in unused[:3]) + (", ..." if len(unused) > 3 else "")
        warn(f"weights '{path}': {len(unused)} tensors are not the network's and are left out: {names}")


def _check_card(path: Path, network: nn.Module) -> None:
    """Raise UserError where the card that `adbench export` wrote beside the file is another network's.

    Somebody else's file of that name, or one that cannot be read, says nothing.
    """
    card = path.with_suffix(".json")
    try:
        stated = CARD_SAYS.search(document.parsed(files.content(card))["footnote"])
    except (OSError, ValueError, LookupError, TypeError):
        return
    if stated and stated[1] != (found := weights_sha256(network)):
        raise UserError(
            f"weights '{path}': their SHA-256 is {found[:12]}..., the card '{card}' states {stated[1][:12]}...; "
            f"export the network again, or remove the card"
        )


def metadata(path: Path) -> dict[str, str]:
    """What the header of a safetensors file says beside its tensors; nothing of another file."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError, ValueError):
        return {}


def load_into(network: nn.Module, state: Mapping[str, Tensor], source: str, optional: Iterable[str] = ()) -> None:
    """Copy `state` into `network`; every key has to fit.

    Only counts of batches that BN keeps and keys that are `optional` may be absent; keys that the network declares as
    ignored, counters and metrics may be there in addition. source: where the state comes from, for the error.
    Raises UserError that names the keys that do not fit, the tensors that are not plain numbers or not finite, or the
    normalisation that the network lacks.
    """
    expected = network.state_dict()
    ignored: tuple[str, ...] = getattr(network, "ignored_keys", ())
    unexpected = [key for key in state if key not in expected and not key.startswith(ignored)]
    normalisation = {key: NORMALISATION[leaf] for key in unexpected if (leaf := _leaf(key)) in NORMALISATION}
    unexpected = [key for key in unexpected if key not in normalisation and not _counts(state[key])]
    missing = [key for key in _required(expected, optional) if key not in state]
    shapes = {
        key: (tuple(state[key].shape), tuple(value.shape))
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    }
    problems = [
        *_listed("missing", missing),
        *_listed("unexpected", [printable(key) for key in unexpected]),
        *_listed("of wrong shape", [f"{k}: {found}, expected {want}" for k, (found, want) in shapes.items()]),
    ]
    if problems:
        foreign = 2 * len(missing) > len(expected)
        hint = "; is it another architecture?" if foreign else _hint(network, shapes)
        raise UserError(f"{source}: the keys of the file do not fit ({'; '.join(problems)}){hint}")
    taken = {key: state[key] for key in expected if key in state}
    if odd := [f"{key} ({kind})" for key, value in taken.items() if (kind := _odd(value, expected[key]))]:
        listed = "; ".join(_listed("tensors are not plain numbers", odd))
        raise UserError(f"{source}: {listed}; save them dense and as floating-point numbers")
    _check_normalisation(network, {key: state[key] for key in normalisation}, normalisation, source)
    network.load_state_dict(taken, strict=False)
    _check_finite(network, source)


class _Found:
    """Where in a file the names of a network are: `whole` are the prefixes behind which all of them stand."""

    def __init__(self, content: Content, required: Mapping[str, Tensor]) -> None:
        self.required, self.content = required, content
        self._look(content.tensors)
        for around in (_AROUND, _AROUND_PART):
            shorter = {around.sub("", name): held for name, held in self.tensors.items()}
            # Two tensors that would then have one name keep their names.
            if len(shorter) == len(self.tensors) and (around is _AROUND or not self.whole):
                self._look(shorter)

    def _look(self, tensors: dict[str, Held]) -> None:
        self.tensors = tensors
        self.matches: Counter[str] = Counter()
        for name in tensors:
            parts = name.split(".")
            for i in range(len(parts)):
                if ".".join(parts[i:]) in self.required:
                    self.matches["".join(f"{part}." for part in parts[:i])] += 1
        self.whole = [prefix for prefix, count in self.matches.items() if count == len(self.required)]

    def choose(self, path: Path, key: str | None, prefer: str | None) -> str:
        """The prefix of the network that is meant, or where none fits of what comes closest to one."""
        shaped = [p for p in self.whole if all(self._of(p, n).shape == v.shape for n, v in self.required.items())]
        fitting = self._distinct([p for p in shaped if _under(p, key)])
        if key is None and prefer and len(fitting) > 1:
            fitting = [p for p in fitting if _under(p, prefer)] or fitting
        if len(fitting) > 1:
            exact = [p for p in fitting if p.rstrip(".") == key]
            names = [printable(p.rstrip(".")) for p in fitting]
            if not exact:
                raise UserError(
                    f"weights '{path}': it holds {len(fitting)} different networks of this architecture "
                    f"({', '.join(names)}); say which one: '{path}#{names[-1]}' (a name may be empty)"
                )
            fitting = exact
        near = fitting or [p for p, _ in self.matches.most_common() if _under(p, key)]
        if key is not None and not near:
            raise UserError(f"weights '{path}': no network lies under '{key}'; it holds {self.content.summary}")
        return near[0] if near else ""

    def state(self, prefix: str) -> tuple[dict[str, Tensor], list[str]]:
        """The tensors behind a prefix without it, with any normalisation; and what lies beside them in its mapping."""
        homes = {self.tensors[prefix + name].container for name in self.required if prefix + name in self.tensors}
        others = tuple(p for p in self.whole if not prefix.startswith(p))
        around = {p + name for p in self.whole if p != prefix for name in self.required}
        state, beside = {}, []
        for name, (tensor, container) in self.tensors.items():
            if name.startswith(others) or name in around:
                continue
            if name.startswith(prefix) and (container in homes or not homes):
                state[name.removeprefix(prefix)] = tensor
            elif _leaf(name) in NORMALISATION:
                state[name] = tensor
            elif container in homes and not _counts(tensor):
                beside.append(name)
        return state, beside

    def _of(self, prefix: str, name: str) -> Tensor:
        return self.tensors[prefix + name].tensor

    def _distinct(self, prefixes: list[str]) -> list[str]:
        """Of networks with equal weights the first."""
        kept: list[str] = []
        for prefix in prefixes:
            if not any(all(_equal(self._of(prefix, n), self._of(p, n)) for n in self.required) for p in kept):
                kept.append(prefix)
        return kept


def _under(prefix: str, key: str | None) -> bool:
    """Whether a prefix is the one that is asked for, or goes on from there."""
    return key is None or f"{prefix}.".startswith(_AROUND.sub("", f"{key.rstrip('.')}."))


def _equal(a: Tensor, b: Tensor) -> bool:
    return a is b or (a.dtype == b.dtype and not _odd(a, a) and not _odd(b, b) and torch.equal(a, b))


def _required(expected: Iterable[str], optional: Iterable[str]) -> list[str]:
    absent = set(optional)
    return [key for key in expected if _leaf(key) != "num_batches_tracked" and key not in absent]


def _counts(value: Tensor) -> bool:
    """Whether a tensor is a counter or the state of a metric rather than a weight: whole numbers, or one number."""
    return value.ndim == 0 or not (value.is_floating_point() or value.is_complex() or value.is_quantized)


def _odd(value: Tensor, expected: Tensor) -> str | None:
    """What keeps a tensor from being numbers like those expected, in a word; None where nothing does."""
    if value.is_meta:
        return "meta, without values"
    if value.is_quantized:
        return "quantised"
    if value.layout is not torch.strided or value.is_nested:
        return "sparse"
    plain = value.is_floating_point() or not (value.is_complex() or expected.is_floating_point())
    return None if plain else str(value.dtype).removeprefix("torch.")


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


def _check_finite(network: nn.Module, source: str) -> None:
    """Such a network was trained until it diverged, or overflowed in half precision: its logits say nothing."""
    state = network.state_dict()
    wrong = [key for key, value in state.items() if not value.isfinite().all()]
    if wrong:
        named = f"{', '.join(wrong[:3])}{', ...' if len(wrong) > 3 else ''}"
        raise UserError(
            f"weights '{source}' hold values that are not finite ({named}; {len(wrong)} of {len(state)} tensors); "
            f"give weights from before the training diverged, or save them in float32"
        )


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
