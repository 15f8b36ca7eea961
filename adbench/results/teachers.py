"""Which record tells how robust a student's teacher, or a proxy, is itself.

A network may have several records: the full evaluation beside one from `adbench teachers NAME --verify`, two
presets in one folder. Students name their teacher by its weights, so lookups go by these, never by a row's label.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from copy import copy
from typing import Any

from adbench.results.record import Record
from adbench.results.runs import Run
from adbench.results.setting import Setting


def named_apart(records: Sequence[Record]) -> list[Record]:
    """The records as reports name them: with a digest beside each name that several teachers have, "best #5e0775", and
    students whose weights were perturbed in training apart from the others of their method, "TRADES-AWP".

    The digest is the beginning of the teacher's `train_id`, which its folder bears too; the same for the teacher's own
    records and for its students'.
    """
    ids: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    for record in records:
        if (known := _teacher_of(record)) is not None:
            dataset, name, weights, train_id = known
            ids[dataset, name, weights].add(train_id or weights)
    several = Counter((dataset, name) for dataset, name, _ in ids)
    found = []
    for record in records:
        known = _teacher_of(record)
        if known is not None and several[known[:2]] > 1:
            key = "label" if record.kind == "teacher" else "teacher"
            digest = min(ids[known[:3]])[:6]
            record = copy(record)
            setattr(record, key, f"{known[1]} #{digest}")
        if record.kind == "student" and record.perturbed:
            record = copy(record)
            record.label = f"{record.label}-AWP"
        found.append(record)
    return found


def _teacher_of(record: Record) -> tuple[str, str, str, str] | None:
    """Data set, name, weights and, where it is said, train_id of the teacher that a record is of, or is taught by."""
    if record.kind == "teacher" and record.model:
        return record.dataset, record.label, record.model.weights_sha256, record.train_id
    robust = record.teachers.robust
    if record.kind == "student" and record.teacher and robust:
        told = record.config.training.get("teacher")
        return record.dataset, record.teacher, robust.weights_sha256, told if isinstance(told, str) else ""
    return None


def shown(records: Iterable[Record]) -> list[Record]:
    """Teachers' records to print, one a network: its fullest evaluation, or a failure where it has none."""
    teachers = [r for r in records if r.kind == "teacher"]
    finished = {r.train_id for r in teachers if r.done}
    found: dict[tuple[str, ...], Record] = {}
    for record in sorted(teachers, key=fullness):
        if record.done:
            found[record.dataset, record.label, _weights(record)] = record
        elif record.train_id not in finished:
            found[record.dataset, record.label, record.train_id] = record
    return list(found.values())


def teacher_accuracy(run: Run, records: Iterable[Record], metric: str) -> float | None:
    """Accuracy (%) under `metric` of the network that taught `run`; None where no record has it."""
    taught = {r.teachers.robust.weights_sha256 for r in run.done if r.teachers.robust}
    return _accuracy([r for r in _finished(records, run.dataset) if _weights(r) in taught], metric, run.done)


def proxy_accuracy(name: str, runs: Sequence[Run], records: Iterable[Record], metric: str) -> float | None:
    """Accuracy (%) under `metric` of the proxy `name` of `runs`; None where no record, or no single network, has it."""
    students = [record for run in runs for record in run.done]
    # The train_id that students recorded tells the proxy from another network of its name.
    used = {proxies[name] for r in students if name in (proxies := r.config.evaluation.get("proxies", {}))}
    found = [
        r
        for r in _finished(records, runs[0].dataset)
        if r.label == name and (not used or r.train_id in used) and metric in r.metrics
    ]
    return _accuracy(found, metric, students) if len(set(map(_weights, found))) == 1 else None


def _accuracy(found: Sequence[Record], metric: str, students: Sequence[Record]) -> float | None:
    """From the record evaluated as the students were, else from the fullest that was attacked as they were."""
    alike = [_judged(record) for record in students]
    settings = [Setting.of(record) for record in students]
    having = [r for r in found if metric in r.metrics and _attacked_alike(Setting.of(r), settings, metric)]
    if not having:
        return None
    best = max(having, key=lambda record: (_judged(record) in alike, fullness(record)))
    return 100 * best.metrics[metric].value


def _attacked_alike(own: Setting, settings: Sequence[Setting], metric: str) -> bool:
    """Whether a network was attacked under `metric` as any of the others, on however many images."""
    return not settings or any(
        all(
            own.items[key] == other.items.get(key, own.items[key])
            for key in own.items
            if key == "eps" or (key.startswith(f"{metric} ") and not key.endswith((" n", " seed")))
        )
        for other in settings
    )


def _finished(records: Iterable[Record], dataset: str) -> list[Record]:
    return [r for r in records if r.kind == "teacher" and r.done and r.dataset == dataset]


def _weights(record: Record) -> str:
    return record.network.weights_sha256


def fullness(record: Record) -> tuple[int, int, str, str]:
    """More metrics first, then more test images; the rest only makes the order total."""
    metrics = record.metrics.values()
    return len(metrics), sum(m.n for m in metrics), record.provenance.finished, str(record.path)


def _judged(record: Record) -> dict[str, Any]:
    # Teachers have no proxies and are always judged by their best epoch; neither changes the attacks themselves.
    return {key: value for key, value in record.config.evaluation.items() if key not in ("proxies", "checkpoint")}
