"""Which records a report is of, and what it shows of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from adbench.errors import unknown
from adbench.results import analyses, networks
from adbench.results.analyses import A
from adbench.results.record import Record
from adbench.results.runs import CI, Run, attacks_of, proxy_and_attack

FORMATS = ("html", "latex", "markdown", "csv", "parquet", "figures")

GROUPS = ("student", "teacher", "method")
"""What rows of a table may be grouped by; the first is the paper's way."""


@dataclass(frozen=True)
class View:
    """Records below `results`, and the options of `adbench report`.

    columns: attacks to show, in this order; () for all. group_by: one of GROUPS. against: the method (registry name or
    label) that the others are tested against. spread: what the number after a plus-minus sign is, one of SPREADS.
    left_out: hears of what is damaged and therefore left out; without it, that is a UserError.
    """

    results: Path
    records: Sequence[Record]
    columns: tuple[str, ...] = ()
    group_by: str = GROUPS[0]
    against: str | None = None
    spread: str = CI
    left_out: Callable[[str], object] | None = None

    @cached_property
    def teachers(self) -> list[Record]:
        """The finished teachers' records."""
        return [record for record in self.records if record.done and record.kind == "teacher"]

    def metrics(self, runs: Sequence[Run]) -> list[str]:
        """White-box metrics of `runs` to show, in order; those at radii of their own only where they are asked for."""
        if not self.columns:
            return attacks_of(runs)
        known = set(attacks_of(runs, everywhere=True))
        return [name for name in self.columns if name in known]

    def transferred(self, runs: Sequence[Run]) -> list[tuple[str, str]]:
        """Proxies and attacks of black-box metrics of `runs` to show."""
        keys = {key for run in runs for r in run.done for key in r.metrics if key.startswith("transfer:")}
        pairs = map(proxy_and_attack, keys)
        return [pair for pair in pairs if not self.columns or pair[1] in self.columns]

    def analyses(self, kind: type[A]) -> list[tuple[A, list[str]]]:
        """The analyses of a kind to show, with their networks' names in the report.

        Those whose networks are all in the report, the latest of equal or fewer networks.
        """
        written = analyses.latest(analyses.read_all(self.results, kind, self.left_out))
        # Records need not be grouped where there is nothing to find in them.
        groups = {
            (g.fingerprint, g.setting): g for g in (networks.groups(self.records, self.left_out) if written else ())
        }
        named = []
        for one in written:
            group = groups.get((one.data.fingerprint, one.setting))
            there = {network.weights: network for network in (group.networks if group else ())}
            if all(network.weights_sha256 in there for network in one.networks):
                named.append((one, networks.names([there[network.weights_sha256] for network in one.networks])))
        return named

    @cached_property
    def names(self) -> dict[int, str]:
        """The path below the results folder of every record, by the record's `id()`."""
        return {id(record): record.path.relative_to(self.results).as_posix() for record in self.records}

    def where(self, runs: Sequence[Run]) -> tuple[str, ...]:
        """Paths, below the results folder, of the finished records of `runs`."""
        return tuple(self.names[id(record)] for run in runs for record in run.done)

    def check(self) -> None:
        """Raise UserError for a column or a method that no finished record has."""
        done = [record for record in self.records if record.done]
        attacks = {name.rpartition(":")[2] for record in done for name in record.metrics}
        for name in self.columns:
            if name not in attacks:
                raise unknown("column", name, attacks, f"the attacks in '{self.results}'")
        if self.against is not None:
            methods = {name for r in done if r.kind == "student" for name in (r.method, r.label) if name}
            if self.against not in methods:
                raise unknown("method", self.against, methods, f"in '{self.results}'")
