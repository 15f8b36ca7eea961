"""Which records a report is of, and what it shows of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path

from adbench import registry
from adbench.errors import UserError, unknown
from adbench.results import analyses, networks, quantities
from adbench.results.analyses import A
from adbench.results.quantities import QUANTITIES
from adbench.results.record import Record
from adbench.results.runs import CI, Run, attacks_of, proxy_and_attack, strongest

FORMATS = ("html", "latex", "markdown", "csv", "parquet", "figures")

GROUPS = ("student", "teacher", "method")
"""What rows of a table may be grouped by; the first is the paper's way."""


@dataclass(frozen=True)
class View:
    """Records below `results`, and the options of `adbench report`.

    columns: attacks, and quantities beside their accuracies (`quantities.QUANTITIES`), to show in this order; () for
    all attacks, and the class spread where fairness methods are among the rows. group_by: one of GROUPS. against: the
    method (registry name or label) that the others are tested against. spread: what the number after a plus-minus sign
    is, one of SPREADS.
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
        plain = attacks_of(runs)
        asked = self.columns
        if not asked:
            fair = any(run.method in registry.GROUPS["fairness"] and run.done for run in runs)
            asked = (*plain, *(quantities.SPREAD if fair else ()))
        known = set(attacks_of(runs, everywhere=True))
        columns = quantities.spelt_out(asked, strongest(runs, plain))
        # A quantity that none of these has is no column of theirs.
        known |= {name for name in columns if quantities.split(name)[0] and _has(runs, name)}
        return [name for name in columns if name in (*plain, *known)]

    @cached_property
    def beside_last(self) -> bool:
        """Whether last epochs are to stand beside the best ones, and not in rows of their own."""
        return any(quantities.split(name)[0] in quantities.OVERFITTING for name in self._spelt_out)

    @cached_property
    def _spelt_out(self) -> list[str]:
        return quantities.spelt_out(self.columns, "any")

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

    def where(self, runs: Sequence[Run], last: bool = False) -> tuple[str, ...]:
        """Paths, below the results folder, of the finished records of `runs`; last: and of their last epochs."""
        records = [record for run in runs for record in (*run.done, *(run.last.values() if last else ()))]
        return tuple(self.names[id(record)] for record in records)

    def check(self) -> None:
        """Raise UserError for a column or a method that no finished record has."""
        done = [record for record in self.records if record.done]
        attacks = {name.rpartition(":")[2] for record in done for name in record.metrics}
        spelt = {f"{quantity}:{name}" for quantity in QUANTITIES for name in attacks}
        pointless = {f"{quantity}:clean" for quantity in quantities.TRADE_OFF}
        known = {*attacks, *QUANTITIES, *spelt} - pointless
        for name in self.columns:
            if name not in known:
                raise _unknown_column(name, attacks, known, self.results)
        if self.beside_last and not any(record.network.checkpoint == "last" for record in done):
            raise UserError(
                f"no network in '{self.results}' was judged at its last epoch, which columns last and diff are of; run "
                f"its cells again with {quantities.JUDGE_BOTH}, which trains nothing again"
            )
        if self.against is not None:
            methods = {name for r in done if r.kind == "student" for name in (r.method, r.label) if name}
            if self.against not in methods:
                raise unknown("method", self.against, methods, f"in '{self.results}'")


def _has(runs: Sequence[Run], column: str) -> bool:
    return any(run.value(record, column) is not None for run in runs for record in run.done)


def _unknown_column(name: str, attacks: set[str], known: set[str], results: Path) -> UserError:
    """The error for a column that there is not: the nearest one, or what columns there are."""
    if get_close_matches(name.lower(), known, n=1, cutoff=0.5):
        return unknown("column", name, known, f"in '{results}'")
    return UserError(
        f"unknown column '{name}'; known are the attacks in '{results}', {', '.join(sorted(attacks))}, and "
        f"{', '.join(QUANTITIES)}, of one of them as in worst:{max(attacks, default='aa')} or by themselves"
    )
