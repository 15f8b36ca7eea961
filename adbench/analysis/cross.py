"""`adbench cross`: adversarial examples of every network against every other one, the full matrix of transfer.

Examples that are made on the target itself (the diagonal) are white-box; where a target falls to those of others but
not to its own, its gradients are masked. An image that the target misclassifies as it is counts as broken, as in
`evaluate`: the image itself lies in the ball.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adbench.analysis.common import Testbed, load_all, named
from adbench.errors import UserError
from adbench.execution.place import Place
from adbench.models import Network
from adbench.models.names import ONNX
from adbench.results import analyses, document
from adbench.results.analyses import Accuracy, Cross
from adbench.results.networks import Finished, Group
from adbench.results.provenance import now, provenance
from adbench.results.stats import wilson
from adbench.system import locks, terminal

KIND = "cross"

Loaded = Sequence[tuple[Finished, Network]]


def lines(
    groups: Sequence[Group], place: Place, *, attack: str, images: int | None, skip_missing: bool
) -> Iterator[str]:
    """Compute the matrix of every group that is not there yet; what the command prints, as it goes.

    attack: the name of a gradient attack; images: how many test images, by default `testbed.IMAGES`. A finished
    source is on disk before its line comes. Raises UserError for an attack that makes no x', where no group has two
    networks, and for weights that are not there.
    """
    for group in groups:
        named(group, attack)
    forward_only = [one for group in groups for one in group.networks if one.record.student == ONNX]
    groups = [
        replace(group, networks=tuple(one for one in group.networks if one not in forward_only)) for group in groups
    ]
    for one in forward_only:
        yield f"left out: '{one.record.path}' is of an ONNX file, which has no gradients to make x' with"
    if all(len(group.networks) < 2 for group in groups):
        there = "; ".join(f"{group}: {_count(len(group.networks))}" for group in groups)
        raise UserError(f"a matrix needs two finished networks of one dataset and setting; {there}")
    made = False
    for group in groups:
        if len(group.networks) < 2:
            yield f"{group}: {_count(len(group.networks))}, no matrix"
            continue
        made |= yield from _matrix(Testbed.of(group, place, attack, images), skip_missing)
    if not made:
        raise UserError("a matrix needs two networks that have their weights; none is made")


def _count(networks: int) -> str:
    return f"{networks} finished network{'s' if networks != 1 else ''}"


def _matrix(bed: Testbed, skip_missing: bool) -> Generator[str, None, bool]:
    """One group's matrix, printed; returns whether there is one."""
    yield f"{bed.group}: {bed.attack.name} on {len(bed.y)} test images"
    path, identity = bed.path(KIND, sorted(one.weights for one in bed.group.networks))
    if not path.is_file():
        loaded, left_out = load_all(bed.group.networks, bed, skip_missing)
        yield from left_out
        if len(loaded) < 2:
            yield f"  {_count(len(loaded))} with weights, no matrix"
            return False
        path, identity = bed.path(KIND, sorted(one.weights for one, _ in loaded))
        with locks.locked(path.parent):
            # Another process may have finished it while this one waited.
            if not path.is_file():
                yield from _compute(bed, loaded, path, identity)
    yield from table(analyses.read(path, Cross))
    return True


def _compute(bed: Testbed, loaded: Loaded, path: Path, identity: str) -> Iterator[str]:
    """Fill the matrix source by source and write it; a line for each source that was not on disk."""
    started = now()
    networks = [one for one, _ in loaded]
    head = bed.head(identity, networks)
    clean = []
    for _, network in loaded:
        with bed.holding(network):
            clean.append(bed.right(network, bed.x))
    rows, seconds = [], []
    for number, (source, network) in enumerate(loaded):
        part = path.parent / f"source-{source.weights[:16]}.json"
        found = _part(part, identity, [one.weights for one in networks], len(bed.y))
        if found is None:
            begun = time.perf_counter()
            right = against(bed, network, [target for _, target in loaded], clean)
            found = {
                "id": identity,
                "correct": {one.weights: int(r.sum()) for one, r in zip(networks, right, strict=True)},
                "seconds": time.perf_counter() - begun,
            }
            document.write(part, found)
            name = head["networks"][number]["name"]
            yield f"  [{number + 1}/{len(loaded)}] made on {name} ({found['seconds']:.1f} s)"
        rows.append([_share(found["correct"][one.weights], len(bed.y)) for one in networks])
        seconds.append(found["seconds"])
    for entry, verdict in zip(head["networks"], clean, strict=True):
        entry["clean"] = _share(int(verdict.sum()), len(bed.y))
    origin = provenance(bed.place.describe(), torch.get_num_threads(), None, started)
    document.write(path, {**head, "matrix": rows, "seconds": seconds, "provenance": origin})
    for passing in (*path.parent.glob("source-*.json"), *path.parent.glob(".*.tmp")):
        passing.unlink(missing_ok=True)


def against(bed: Testbed, source: Network, targets: Sequence[Network], clean: Sequence[Tensor]) -> list[Tensor]:
    """For each target the images (n,) on which it is right as they are (`clean`, (n,)) and at every x' of the source.

    x' is made once a restart, for every image, whatever source and targets predict on it.
    """
    right = [verdict.clone() for verdict in clean]
    for restart in range(bed.attack.restarts):
        with bed.holding(source):
            x_adv = bed.crafted(source, restart)
        for target, verdict in zip(targets, right, strict=True):
            with bed.holding(target):
                verdict &= bed.right(target, x_adv)
    return right


def _part(path: Path, identity: str, weights: Sequence[str], images: int) -> dict[str, Any] | None:
    """What an interrupted run found for one source; None where it did not come so far, or left something else."""
    try:
        found: dict[str, Any] = document.opened(path)
        counts = [found["correct"][one] for one in weights]
        whole = found["id"] == identity and found["seconds"] >= 0
        whole &= all(type(count) is int and 0 <= count <= images for count in counts)
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return found if whole else None


def _share(correct: int, n: int) -> dict[str, Any]:
    return {"correct": correct, "n": n, "ci_test": list(wilson(correct, n))}


def table(one: Cross) -> Iterator[str]:
    """The matrix for a terminal: a row a source, a numbered column a target, accuracies in percent."""

    def row(name: str, entries: Sequence[Accuracy]) -> tuple[str, ...]:
        return (name, *(f"{100 * entry.correct / entry.n:.2f}" for entry in entries))

    names = [f"{number}  {network.name}" for number, network in enumerate(one.networks, 1)]
    yield "  accuracy (%) of each network, by column, on images made on each network, by row"
    yield from terminal.table(
        [
            ("made on", *(str(number + 1) for number in range(len(names)))),
            row("-  (clean images)", [network.clean for network in one.networks]),
            *(row(name, entries) for name, entries in zip(names, one.matrix, strict=True)),
        ]
    )
    yield f"  in {one.path}"
