"""The finished networks of a results folder: those judged alike together, each once, named as the tables name them.

What `adbench cross` and `adbench cam` compute on.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adbench.errors import Nothing, UserError, unknown
from adbench.registry import members
from adbench.results import document
from adbench.results.analyses import AttackSetting
from adbench.results.record import Record, read_all
from adbench.results.runs import collect, natural
from adbench.results.teachers import fullness, named_apart

KINDS = ("teacher", "student", "checkpoint")
"""Kinds of network in the order in which they are listed."""


@dataclass(frozen=True)
class Finished:
    """One network: its record (the fullest one, if it was judged more than once) and its label in the report."""

    record: Record
    label: str

    @property
    def kind(self) -> str:
        return self.record.kind

    @property
    def weights(self) -> str:
        """SHA-256 of its weights, by which it is known."""
        return self.record.network.weights_sha256

    @property
    def taught_by(self) -> str | None:
        """SHA-256 of its teacher's weights; None for a network that no robust teacher taught."""
        robust = self.record.teachers.robust
        return robust.weights_sha256 if robust else None

    @property
    def run(self) -> tuple[str, str, str]:
        """What it has in common with the same experiment's other seeds."""
        return self.label, self.record.student, self.record.teacher or ""

    def entry(self, name: str, results: Path) -> dict[str, Any]:
        """What an analysis writes down of it."""
        keys = ("kind", "method", "student", "teacher", "seed")
        where = self.record.path.relative_to(results).as_posix()
        own = {key: getattr(self.record, key) for key in keys}
        return {"name": name, **own, "weights_sha256": self.weights, "record": where}


@dataclass(frozen=True)
class Group:
    """The networks of one dataset that were judged in one setting. Only these are compared with each other."""

    dataset: str
    fingerprint: str
    setting: AttackSetting
    networks: tuple[Finished, ...]

    def __str__(self) -> str:
        start = "" if self.setting.start == "uniform" else f", start {self.setting.start}"
        seed = "" if self.setting.seed == 0 else f", noise {self.setting.seed}"
        return f"{self.dataset}, eps {self.setting.eps}, step {self.setting.step}{start}{seed}"


@dataclass(frozen=True)
class Wanted:
    """Which networks are asked for; empty or None means all, but of a student's seeds only the lowest.

    methods: registry names, groups of them, or labels of students; students: their architectures. seed: a number, or
    "all".
    """

    datasets: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    students: tuple[str, ...] = ()
    seed: int | str | None = None


def groups(records: Iterable[Record], left_out: Callable[[str], object] | None = None) -> list[Group]:
    """Finished networks by dataset and setting; in each group teachers first, then students as the tables list them.

    left_out: as of `record.read_all`, of records that do not say how they were judged.
    """
    found: dict[tuple[str, str, AttackSetting], list[Record]] = defaultdict(list)
    done = (record for record in records if record.done)
    for record, setting in document.readable(done, lambda one: (one, _setting(one)), left_out):
        found[record.dataset, record.images.fingerprint, setting].append(record)
    ordered = sorted(found.items(), key=lambda item: (natural(item[0][0]), item[0][1], str(item[0][2])))
    return [Group(*key, tuple(_networks(members))) for key, members in ordered]


def _setting(record: Record) -> AttackSetting:
    threat, judged = record.at("training", "threat"), record.config.evaluation
    # Unset, or from before the setting was there.
    return AttackSetting(
        eps=threat["eps"],
        step=judged.get("step") or threat["step"],
        start=judged.get("start") or "uniform",
        seed=record.at("evaluation", "seed"),
    )


def _networks(records: Sequence[Record]) -> Iterator[Finished]:
    once: dict[str, Record] = {}
    for record in sorted(records, key=lambda r: (-KINDS.index(r.kind), fullness(r))):
        once[record.network.weights_sha256] = record
    for kind in KINDS:
        for run in collect(once.values(), kind):
            for record in run.done:
                yield Finished(record, run.label)


def select(results: Path, wanted: Wanted, left_out: Callable[[str], object] | None = None) -> list[Group]:
    """The groups below `results` with the networks that are asked for. left_out: as of `record.read_all`.

    Raises UserError where there is no finished network, and for a name or seed that no network has.
    """
    found = groups(named_apart(list(read_all(results, left_out))), left_out)
    if not found:
        raise Nothing(f"no finished network in '{results}'; `adbench run` makes them")
    check_names("dataset", wanted.datasets, [{group.dataset} for group in found], results)
    found = [group for group in found if not wanted.datasets or group.dataset in wanted.datasets]
    students = [n for group in found for n in group.networks if n.kind == "student"]
    check_names("method", wanted.methods, [{n.record.method, n.label} for n in students], results)
    check_names("student", wanted.students, [{n.record.student} for n in students], results)
    if isinstance(wanted.seed, int) and wanted.seed not in {n.record.seed for n in students}:
        raise UserError(f"no finished student in '{results}' has the seed {wanted.seed}")
    return [replace(group, networks=tuple(_chosen(group.networks, wanted))) for group in found]


def check_names(kind: str, asked: Sequence[str], there: Sequence[set[str | None]], results: Path) -> None:
    """Raise UserError for a name, or a group of methods, of which nothing is there. there: of each record its names."""
    known = {name for names in there for name in names if name}
    for name in asked:
        if known.isdisjoint(members([name]) if kind == "method" else [name]):
            raise unknown(kind, name, known, f"in '{results}'")


def _chosen(networks: Sequence[Finished], wanted: Wanted) -> Iterator[Finished]:
    lowest: dict[tuple[str, str, str], int] = {}
    for network in networks:
        if network.kind == "student":
            seed = network.record.seed or 0
            lowest[network.run] = min(seed, lowest.get(network.run, seed))
    for network in networks:
        if network.kind != "student":
            yield network
            continue
        chosen = lowest[network.run] if wanted.seed is None else wanted.seed
        named = {network.record.method, network.label}
        if (
            (not wanted.methods or named & set(members(wanted.methods)))
            and (not wanted.students or network.record.student in wanted.students)
            and chosen in ("all", network.record.seed)
        ):
            yield network


def names(networks: Sequence[Finished]) -> list[str]:
    """A name for each: its label, and what else tells these networks apart (architecture, teacher, seed)."""
    students = [n for n in networks if n.kind == "student"]
    architectures = {n.record.student for n in students}
    teachers = {n.record.teacher for n in students if n.record.teacher}
    several_seeds = len({n.run for n in students}) < len(students)

    def name(network: Finished) -> str:
        if network.kind != "student":
            return f"{network.kind} {network.label}"
        taught = network.record.teacher if len(teachers) > 1 else None
        parts = [network.label, *([network.record.student] if len(architectures) > 1 else [])]
        parts += [f"from {taught}"] if taught else []
        parts += [f"seed {network.record.seed}"] if several_seeds else []
        return ", ".join(parts)

    found = [name(network) for network in networks]
    return [
        f"{text} #{network.weights[:6]}" if found.count(text) > 1 else text
        for text, network in zip(found, networks, strict=True)
    ]
