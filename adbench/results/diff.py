"""What sets two configurations apart, in the words of the settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from adbench import plugin_code
from adbench.errors import UserError
from adbench.registry import DATASETS, METHODS, MODELS, Registry

Network = Callable[[str], dict[str, Any] | None]
"""The configuration of the training that an id stands for, where it is known."""

# Entries of an identity that are no settings.
NAMED = {
    "revision": "adbench's revision (it computes otherwise since)",
    "source": "code of the method (it was edited)",
    "data.content": "content of the dataset",
    "data.source": "code of the dataset (it was edited)",
    "network": "code of the architecture (it was edited)",
    "eval.revision": "adbench's revision (it judges otherwise since)",
    "eval.pyautoattack": "version of pyautoattack",
    "eval.fast_search": "adbench's fast search of AutoAttack (it searches otherwise since)",
}
NETWORKS = ("teacher", "natural")


def differences(there: dict[str, Any], here: dict[str, Any], network: Network, prefix: str = "") -> list[str]:
    """One line a setting that differs: "train.epochs: 30 there, 50 here". prefix: of the settings' names.

    Two teachers that differ are explained by what sets them apart, where `network` knows both.
    """
    a, b = dict(_flat(there, prefix)), dict(_flat(here, prefix))
    lines = []
    for key in dict.fromkeys([*a, *b]):
        one, other = a.get(key), b.get(key)
        if one == other:
            continue
        # Proxies of the transfer attacks are networks as well, by name.
        if (key in NETWORKS or key.startswith("eval.proxies.")) and isinstance(one, str) and isinstance(other, str):
            lines.append(_networks(key, one, other, network))
        else:
            lines.append(f"{NAMED.get(key, key)}: {_short(one)} there, {_short(other)} here")
    return lines


def _networks(key: str, one: str, other: str, network: Network) -> str:
    known, wanted = network(one), network(other)
    if known is None or wanted is None:
        return f"{key}: other weights ({one[:8]} there, {other[:8]} here)"
    return f"{key}: another one, which differs in " + "; ".join(differences(known, wanted, network))


def _flat(value: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        if isinstance(item, dict):
            yield from _flat(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item


def _short(value: Any) -> str:
    text = "not set" if value is None else str(value)
    # Hashes are told apart by their beginning.
    return f"{text[:12]}..." if len(text) == 64 and set(text) <= set("0123456789abcdef") else text


TREES_SINCE = 2
"""The revision from which on an identity holds hashes of code; before, of a file's bytes, and of foreign files only."""


def edited(training: Mapping[str, Any], file_sha256: str | None = None, plugins: Mapping[str, str] = {}) -> list[str]:
    """What the configuration of a training was made with and is other code here today: ["method 'rslad'"].

    What is not installed here is not spoken of. file_sha256: of the method's file, in a record. plugins: method files
    that were added then, by name.
    """
    method, dataset = training.get("method"), training.get("data") or {}
    parts: list[tuple[Registry, str | None, str | None]] = [
        (METHODS, method, training.get("source") or file_sha256),
        (MODELS, training.get("architecture"), training.get("network")),
        (DATASETS, dataset.get("name"), dataset.get("source")),
    ]
    bytes_ = training.get("revision", 1) < TREES_SINCE
    return [
        f"{registry.kind} '{name}'"
        for registry, name, then in parts
        if name and then and (today := _today(registry, name, plugins, bytes_)) and today != then
    ]


def _today(registry: Registry, name: str, plugins: Mapping[str, str], bytes_: bool) -> str:
    """The hash of what defines `name` here; "" for nothing."""
    try:
        if registry is METHODS and name in plugins:
            code = plugin_code.read(Path(plugins[name]))
            return code.main.sha256 if bytes_ else code.sha256
        if name in registry:
            return registry.source_hash(name) if bytes_ else registry.code(name).sha256
    except (OSError, UserError):
        pass
    return ""
