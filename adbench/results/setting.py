"""How a network was judged: on which images, within which radius, by which attacks. Needs no torch.

Only networks that were judged alike are compared: ranked in one table, averaged over seeds, tested against each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from adbench.experiment.attack_names import takes_step
from adbench.results.record import Record

EXACT = "exact"
"""AutoAttack as its authors' package searches, in float32."""

_UNSTATED = "not stated"
_NO_SETTING = ("name", "implementation")
_NAMES = {"eps": "eps", "step": "step", "start": "start", "seed": "noise seed", "fingerprint": "test images"}


def size(value: object) -> str:
    """A perturbation as printed in the field: 8/255 where it is a whole number of grey levels."""
    try:
        number = Fraction(value) if isinstance(value, int | float | str) else None
    except (ValueError, ZeroDivisionError, OverflowError):
        number = None
    if number is None:
        return str(value)
    levels = round(number * 255)
    whole = levels and abs(Fraction(levels, 255) - number) < 1e-6
    return f"{levels}/255" if whole else f"{value:g}" if isinstance(value, float) else str(value)


def search(definition: Mapping[str, Any]) -> str:
    """How AutoAttack searched: EXACT, what the record says of another search, or that it says nothing."""
    said = str(definition.get("search", _UNSTATED))
    return EXACT if "float32" in said and "bfloat16" not in said else said


@dataclass(frozen=True)
class Setting:
    """Where it was judged: a name and a value for each thing that decides what an accuracy means.

    items: fingerprint (of the data); eps, step, start, seed (of the noise) as the attacks share them; "METRIC n", the
    images of a metric, and "METRIC KEY" for all that its attack's definition says. What a record lacks is not there.
    """

    items: Mapping[str, str]

    @classmethod
    def of(cls, record: Record) -> Setting:
        """The record's, by its metrics; of a failed cell what its configuration says."""
        items: dict[str, str] = {}
        if record.data:
            items["fingerprint"] = record.data.fingerprint
        for name, metric in record.metrics.items():
            items[f"{name} n"] = str(metric.n)
            items = _of_attack(name, metric.attack) | items
        threat, judged = record.config.training.get("threat", {}), record.config.evaluation
        asked = {"eps": threat.get("eps"), "step": judged.get("step") or threat.get("step"), "seed": judged.get("seed")}
        asked = {key: str(value) if key == "seed" else size(value) for key, value in asked.items() if value is not None}
        for proxy, train_id in (judged.get("proxies") or {}).items():
            if any(metric.startswith(f"transfer:{proxy}:") for metric in record.metrics):
                items[f"transfer:{proxy} network"] = str(train_id)
        return cls(asked | items)

    @classmethod
    def merged(cls, settings: Iterable[Setting]) -> Setting:
        """What settings that are alike say together."""
        return cls({key: value for setting in settings for key, value in setting.items.items()})

    def apart(self, other: Setting) -> list[str]:
        """The things in which they differ, of those that both have; one that all attacks share once, not of each."""
        found = [key for key, value in self.items.items() if other.items.get(key, value) != value]
        return [key for key in found if " " not in key or key.rpartition(" ")[2] not in found]

    def images(self) -> str:
        """How many test images, of each attack where they differ: "360", "360 (AA 100)"."""
        return images({key[: -len(" n")]: int(value) for key, value in self.items.items() if key.endswith(" n")})

    def search(self) -> str:
        """How AutoAttack searched; "" where it was not run."""
        return next((value for key, value in self.items.items() if key.endswith(" search")), "")

    def says(self, key: str) -> str:
        """One thing in words: "eps 8/255", "aa search exact"; nothing of what is not there."""
        value = self.items.get(key, "")
        if key == "fingerprint":
            value = f"{value[:8]}..."
        return f"{_NAMES.get(key, key)} {value}" if key in self.items else ""

    def against(self, other: Setting) -> str:
        """Two settings that differ, in words: "eps 28/255, ... against eps 8/255, ..."."""
        keys = self.apart(other)
        return f"{self.describe(keys)} against {other.describe(keys)}"

    def describe(self, keys: Sequence[str] = ()) -> str:
        """The setting in a phrase: eps, step, images, and the things `keys` beside them."""
        told = [self.says(key) for key in ("eps", "step") if key in self.items]
        told += [f"n {self.images()}"] if self.images() else []
        told += [f"AutoAttack: {self.search()}"] if self.search() else []
        told += [self.says(key) for key in keys if key not in ("eps", "step") and not key.endswith((" n", " search"))]
        return ", ".join(filter(None, told))


def images(counts: Mapping[str, int]) -> str:
    """Test images by metric in few words: "360", "360 (AA 100)"; "" for none."""
    most = max(counts.values(), default=0)
    fewer: dict[int, list[str]] = {}
    for metric, n in counts.items():
        if n != most:
            fewer.setdefault(n, []).append("AA" if metric == "aa" else metric)
    rest = ", ".join(f"{'/'.join(metrics)} {n}" for n, metrics in fewer.items())
    return f"{most} ({rest})" if rest else str(most or "")


def _of_attack(metric: str, attack: Mapping[str, Any]) -> dict[str, str]:
    """What an attack's definition says, and of this what all attacks share."""
    own_radius = "@" in metric
    iterated = takes_step(str(attack.get("name"))) and not own_radius
    shared = {"seed": True, "eps": not own_radius, "step": iterated, "start": iterated}
    items = {}
    for key, value in attack.items():
        if key in _NO_SETTING or value is None:
            continue
        text = search(attack) if key == "search" else size(value) if key in ("eps", "step") else str(value)
        items[f"{metric} {key}"] = text
        if shared.get(key):
            items[key] = text
    if "version" in attack:
        items[f"{metric} search"] = search(attack)
    return items


def alike(settings: Sequence[Setting]) -> list[list[int]]:
    """Places of settings that are alike, in groups: in a group no thing has two values. The first come first."""
    groups: list[tuple[dict[str, str], list[int]]] = []
    for place, setting in enumerate(settings):
        for items, places in groups:
            if not setting.apart(Setting(items)):
                items |= setting.items
                places.append(place)
                break
        else:
            groups.append((dict(setting.items), [place]))
    return [places for _, places in groups]
