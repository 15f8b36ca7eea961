"""Records into runs: the same experiment over its seeds, in the order in which the paper prints methods."""

from __future__ import annotations

import hashlib
import math
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from adbench.registry import GROUPS
from adbench.results import quantities
from adbench.results.fields import Metric
from adbench.results.record import Record
from adbench.results.setting import Setting, alike
from adbench.results.stats import student_t
from adbench.system.files import content_id

METHODS = {
    "pgd-at": "PGD-AT",
    "trades": "TRADES",
    "las-at": "LAS-AT",
    "ard": "ARD",
    "iad": "IAD",
    "rslad": "RSLAD",
    "mtard": "MTARD",
    "adaad": "AdaAD",
    "smaraad": "SmaraAD",
    "smaraad-pp": "SmaraAD++",
}
"""Registry names of the paper's ten methods, in its order, and the names it prints."""

ABLATION = ("kd", "kd-align", "slack", "smaraad")
"""Registry names of the variants in the paper's Figure 4, in its order."""

STUDENTS = {"rn18": "resnet18", "mn-v2": "mobilenetv2"}
"""Registry names of the paper's two students, in its order, and their names in its tables' CSV files."""

ATTACKS = {"clean": "Clean", "fgsm": "FGSM", "pgd20": "PGD-20", "cw": "C&W∞", "aa": "AA"}
"""Metric keys of the white-box evaluation in the paper's order, and their headings."""

_ORDER = tuple(dict.fromkeys((*METHODS, *ABLATION, *GROUPS["every"])))


def place_of(method: str | None) -> int:
    """Where a method stands among those that adbench knows; others come last."""
    return _ORDER.index(method) if method in _ORDER else len(_ORDER)


# What makes no other experiment: which of its seeds this is, and whether its examples were stored.
_REPEATED = frozenset({"training.seed", "evaluation.keep_adversarial"})
# Where a cell stands in a table: two cells that differ in these alone ran with the same settings.
_PLACE = _REPEATED | {f"training.{key}" for key in ("teacher", "natural", "architecture", "normalisation")}


CI, STD = "ci", "std"
SPREADS = (CI, STD)
"""What may stand after a plus-minus sign: the 95% interval's half-width, or the standard deviation over seeds."""


@dataclass(frozen=True)
class Spread:
    """How far seeds scatter: a number in points (nan for one seed), and which number that is."""

    value: float = math.nan
    name: str = ""

    @property
    def text(self) -> str:
        return "" if math.isnan(self.value) else f"{self.value:.2f}"


@dataclass(frozen=True)
class Estimate:
    """Accuracy in percent over seeds: mean, half-width of its 95% Student-t interval, standard deviation.

    The last two are nan for one seed.
    """

    mean: float
    half: float
    std: float
    seeds: int

    @classmethod
    def over(cls, values: Sequence[float]) -> Estimate:
        """Of one value a seed. Raises ValueError for none."""
        mean, half = student_t(values)
        return cls(mean, half, statistics.stdev(values) if len(values) > 1 else math.nan, len(values))

    def spread(self, kind: str = CI) -> Spread:
        """CI: the interval's half-width from three seeds on, of two their standard deviation; STD: that of all.

        With two seeds the interval is 9 times the standard deviation, and says nothing about the method.
        """
        if self.seeds < 2:
            return Spread()
        return Spread(self.half, "95% interval") if kind == CI and self.seeds > 2 else Spread(self.std, "std")

    def reach(self) -> tuple[float, float]:
        """What an error bar spans: the 95% interval, of two seeds their range."""
        half = self.half if self.seeds > 2 else self.std / math.sqrt(2)
        return self.mean - half, self.mean + half


@dataclass(frozen=True)
class Run:
    """All seeds of one experiment: equal data set, student, teacher, label and settings.

    differs: where a digest in the label stands for settings, these, as far as others of the label have other ones.
    last: of the same networks' last epochs, by the `id()` of a finished record, where `beside_last` set them apart.
    """

    dataset: str
    student: str
    teacher: str | None
    method: str | None
    label: str
    done: tuple[Record, ...]
    failed: tuple[Record, ...]
    differs: str = ""
    last: Mapping[int, Record] = field(default_factory=dict)

    @property
    def order(self) -> tuple[int, str, str]:
        """The paper's methods first and in its order, then adbench's later ones in the registry's, then by name."""
        return (place_of(self.method), self.label.lower(), self.label)

    def metrics(self, name: str) -> list[Metric]:
        """The metric `name` of every finished seed that has it."""
        return [metric for record in self.done if (metric := record.metrics.get(name))]

    @cached_property
    def setting(self) -> Setting:
        """How it was judged, every seed alike; of one that failed, how it was to be."""
        return Setting.merged(map(Setting.of, (*self.failed, *self.done)))

    def last_of(self, record: Record) -> Record | None:
        """The record of the same network's last epoch; itself, where that is what was judged."""
        if record.network.checkpoint == "last":
            return record
        return self.last.get(id(record))

    def value(self, record: Record, name: str) -> float | None:
        """What one of its finished seeds has in a column: an attack's accuracy in percent, or a quantity.

        None where its records do not tell.
        """
        key = name, record.seed
        if key not in self._values:
            self._values[key] = quantities.value(record, self.last_of(record), name)
        return self._values[key]

    def estimate(self, name: str) -> Estimate | None:
        """Accuracy under `name` in percent, or another quantity; None where no finished seed has it."""
        if name not in self._known:
            values = [value for record in self.done if (value := self.value(record, name)) is not None]
            self._known[name] = Estimate.over(values) if values else None
        return self._known[name]

    @cached_property
    def _values(self) -> dict[tuple[str, int | None], float | None]:
        return {}

    @cached_property
    def _known(self) -> dict[str, Estimate | None]:
        return {}

    def interval(self, name: str) -> tuple[float, float]:
        """What an error bar spans, in its units: the interval over seeds, of two their range, of one over test images.

        nan where there are no outcomes that it follows from.
        """
        estimate = self.estimate(name)
        assert estimate is not None, f"{self.label} was not evaluated under {name}"
        if estimate.seeds > 1:
            return estimate.reach()
        record = next(record for record in self.done if self.value(record, name) is not None)
        return quantities.interval(record, self.last_of(record), name) or (math.nan, math.nan)


def collect(records: Iterable[Record], kind: str, last: Mapping[int, Record] | None = None) -> list[Run]:
    """The runs of one kind of record, by data set, student, method and teacher.

    Seeds are averaged only within equal settings. Where one label was run on a student with several settings
    (two presets in one results folder, a study), each becomes a run of its own, its label followed by the
    settings in which they differ, or, where these are many or have no name, by "#" and a digest of all. A
    seed found twice counts once: the one that finished last. last: of the networks' last epochs, as `beside_last` has
    them.
    """
    epochs = last or {}
    groups: dict[tuple[str, str, str | None, str], dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    # All settings of a label on a student, whatever the teacher, so that rows are named alike under every teacher.
    families: dict[tuple[str, str, str], dict[str, Record]] = defaultdict(dict)
    for record in records:
        if record.kind == kind:
            dataset, student, label = record.dataset, record.student, record.label
            groups[(dataset, student, record.teacher, label)][_settings(record)].append(record)
            families[(dataset, student, label)][_settings(record, _PLACE)] = record
    names = {family: _differences(variants) for family, variants in families.items()}
    runs = []
    for (dataset, student, teacher, label), variants in groups.items():
        family = (dataset, student, label)
        digests = {key: _settings(variant[0], _PLACE) for key, variant in variants.items()}
        # Variants may differ in nothing but their place: the same method from two teachers of one name.
        twins = len(set(digests.values())) < len(digests)
        for key, variant in _judged_alike(variants):
            members = _one_per_seed(variant)
            run = Run(
                dataset=dataset,
                student=student,
                teacher=teacher,
                method=members[0].method,
                label=label,
                done=tuple(r for r in members if r.done),
                failed=tuple(r for r in members if not r.done),
                last={id(r): epochs[id(r)] for r in members if id(r) in epochs},
            )
            if twins:
                told = _told({key: variant[0] for key, variant in variants.items()}, _REPEATED)[key]
                run = replace(run, label=f"{label} #{key[:6]}", differs=told)
            elif len(families[family]) > 1:
                digest = digests[key]
                apart = names[family].get(digest, f"#{digest[:6]}")
                told = "" if digest in names[family] else _told(families[family], _PLACE)[digest]
                run = replace(run, label=f"{label} {apart}", differs=told)
            runs.append(run)
    return sorted(
        runs, key=lambda r: (natural(r.dataset), _student_order(r.student), r.order, natural(r.teacher or ""))
    )


def _judged_alike(variants: Mapping[str, list[Record]]) -> Iterator[tuple[str, list[Record]]]:
    """The records of each variant that were judged alike: seeds that AutoAttack searched otherwise are not averaged."""
    for key, variant in variants.items():
        for places in alike([Setting.of(record) for record in variant]):
            yield key, [variant[i] for i in places]


def natural(name: str) -> tuple[tuple[int, str], ...]:
    """Sort key under which cifar100 follows cifar10 and wrn-28-10 precedes wrn-34-10."""
    parts = re.findall(r"[0-9]{1,18}|[^0-9]+", name)
    return tuple((int(part), "") if part[0] in "0123456789" else (-1, part) for part in parts)


def _student_order(name: str) -> tuple[int, tuple[tuple[int, str], ...]]:
    known = list(STUDENTS)
    return (known.index(name) if name in known else len(known), natural(name))


LONGEST = 32
"""Characters of a name that a file name holds; what is cut is told apart by a digest."""


def slug(*names: str) -> str:
    """A file name and LaTeX label made of `names`; different names never share one, and long ones are cut."""

    def part(name: str) -> str:
        plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:LONGEST].rstrip("-")
        return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"

    return "_".join(part(name) for name in names)


def attacks_of(runs: Sequence[Run], everywhere: bool = False) -> list[str]:
    """White-box metrics that any of `runs` has, the paper's first; the paper's five when none has any.

    Attacks at a radius of their own ("pgd20@4/255") are left out unless `everywhere`: no table sets them beside others.
    """
    found = {name for run in runs for r in run.done for name in r.metrics if not name.startswith("transfer:")}
    if not everywhere:
        found = {name for name in found if "@" not in name}
    return [*(a for a in ATTACKS if a in found), *sorted(found - set(ATTACKS))] or list(ATTACKS)


def strongest(runs: Sequence[Run], among: Sequence[str]) -> str:
    """AutoAttack where a run has it, else the attack with the lowest accuracy over the runs; "" without attacks."""
    attacks = [m for m in among if m != "clean" and any(run.metrics(m) for run in runs)]
    if "aa" in attacks:
        return "aa"

    def accuracy(metric: str) -> float:
        return statistics.fmean(m.value for run in runs for m in run.metrics(metric))

    return min(attacks, key=accuracy, default="")


def beside_last(records: Iterable[Record]) -> tuple[list[Record], dict[int, Record]]:
    """Records without those of a last epoch whose best one was judged alike; these, by the `id()` of the best one's."""
    every = list(records)

    def key(record: Record) -> str:
        judged = {name: value for name, value in record.config.evaluation.items() if name != "checkpoint"}
        return content_id([record.kind, record.dataset, record.train_id, judged])

    best = {key(record): record for record in every if record.done and record.network.checkpoint == "best"}
    last = {key(record): record for record in every if record.done and record.network.checkpoint == "last"}
    twins = {id(best[name]): record for name, record in last.items() if name in best}
    apart = set(map(id, twins.values()))
    return [record for record in every if id(record) not in apart], twins


def proxy_and_attack(key: str) -> tuple[str, str]:
    """The metric "transfer:<proxy>:<attack>" as proxy and attack; a proxy's name may have any character."""
    proxy, _, attack = key.partition(":")[2].rpartition(":")
    return proxy, attack


def heading(attack: str) -> str:
    """How a column is printed; one of transfer with its proxy, one at a radius of its own with that."""
    quantity, behind = quantities.split(attack)
    if quantity:
        return quantities.QUANTITIES[quantity].heading.format(heading(behind))
    proxy, whole = proxy_and_attack(attack) if attack.startswith("transfer:") else ("", attack)
    base, _, eps = whole.partition("@")
    return (
        {**ATTACKS, "aa-square": "Square"}.get(base, base)
        + (f" at ε = {eps}" if eps else "")
        + (f" from {proxy}" if proxy else "")
    )


def _one_per_seed(records: list[Record]) -> list[Record]:
    by_seed: dict[int, Record] = {}
    for record in sorted(records, key=lambda r: (r.done, r.provenance.finished, str(r.path))):
        by_seed[-1 if record.seed is None else record.seed] = record
    return [by_seed[seed] for seed in sorted(by_seed)]


MOST_NAMED = 3
"""Variants that differ in more settings than these are told apart by a digest."""


def _differences(variants: dict[str, Record]) -> dict[str, str]:
    """For each variant, the settings in which they differ, as "(gamma 10, cam_norm none)".

    {} where they are many, or where one has no name that says anything: hashes of data, source or proxies.
    """
    return differences({key: record.config.table() for key, record in variants.items()})


def differences(configurations: Mapping[str, dict[str, Any]]) -> dict[str, str]:
    """The same of configurations, as records have them."""
    flat = {key: dict(_leaves(_stripped(table, _PLACE))) for key, table in configurations.items()}
    paths = {path: None for leaves in flat.values() for path in leaves}
    apart = [path for path in paths if len({repr(leaves.get(path)) for leaves in flat.values()}) > 1]
    # The seed of the attacks is not the one that a table has its seeds by.
    names = ["eval.seed" if path == ".evaluation.seed" else path.rpartition(".")[2] for path in apart]
    if not 0 < len(apart) <= MOST_NAMED or len(set(names)) < len(names):
        return {}
    if any(re.fullmatch("[0-9a-f]{16,}", str(leaves.get(path))) for path in apart for leaves in flat.values()):
        return {}
    return {
        key: f"({', '.join(f'{name} {_spelt(leaves.get(path))}' for name, path in zip(names, apart, strict=True))})"
        for key, leaves in flat.items()
    }


MOST_TOLD = 8
"""Settings that a footnote spells out."""


def _told(variants: Mapping[str, Record], ignored: frozenset[str]) -> dict[str, str]:
    """For each variant, its values of the settings in which they differ, in words; hashes by their beginning."""
    flat = {key: dict(_leaves(_stripped(record.config.table(), ignored))) for key, record in variants.items()}
    paths = {path: None for leaves in flat.values() for path in leaves}
    apart = [path for path in paths if len({repr(leaves.get(path)) for leaves in flat.values()}) > 1]
    more = f" and {len(apart) - MOST_TOLD} more settings" if len(apart) > MOST_TOLD else ""
    return {
        key: ", ".join(
            f"{'.'.join(path.split('.')[-2:]).lstrip('.')} {_short(_spelt(leaves.get(path)))}"
            for path in apart[:MOST_TOLD]
        )
        + more
        for key, leaves in flat.items()
    }


def _short(text: str) -> str:
    return f"{text[:8]}..." if re.fullmatch("[0-9a-f]{16,}", text) else text


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}")
    else:
        yield path, value


def _spelt(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return "unset" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _settings(record: Record, ignored: frozenset[str] = _REPEATED) -> str:
    """A digest of the record's configuration without what lies at the paths `ignored` ("training.seed")."""
    return content_id(_stripped(record.config.table(), ignored))


def _stripped(value: Any, ignored: frozenset[str], path: str = "") -> Any:
    if not isinstance(value, dict):
        return value
    inside = {f"{path}.{key}".lstrip("."): key for key in value}
    return {key: _stripped(value[key], ignored, at) for at, key in inside.items() if at not in ignored}
