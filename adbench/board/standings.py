"""Rows of a board and which of them are told apart. Imports no torch.

A row is one method of one submission, on one student, over its seeds. Its best-known accuracy counts the test images on
which a network is right under every attack of its record, and that no challenge has broken since. Rows of one table are
put into groups by paired tests, Holm-corrected for all pairs of the table.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adbench.board import folders, rules
from adbench.board.evidence import Challenge, CheckResult, Evidence
from adbench.board.folders import Rules, Submission
from adbench.errors import UserError
from adbench.registry import METHODS
from adbench.results import layout, record
from adbench.results.fields import Metric
from adbench.results.paired import LEVEL
from adbench.results.record import Record
from adbench.results.runs import Estimate, Run, collect
from adbench.results.setting import Setting
from adbench.results.stats import mcnemar, overlap, t_test, wilson

CLAIMED, ATTACKED, REPRODUCED = "claimed", "re-attacked", "reproduced"
LEVELS = (CLAIMED, ATTACKED, REPRODUCED)
TESTED_OVER_SEEDS = 3
"""Of so many seeds that two rows share, their difference is tested over seeds; of fewer, on the images."""


@dataclass(frozen=True)
class Entry:
    """A submission that was read. folder: its path within the board."""

    folder: str
    said: Submission
    records: tuple[Record, ...]


@dataclass(frozen=True)
class BoardNetwork:
    """One network of a row. stands: on which test images it is right under every attack of its record, (n,)."""

    record: Record
    stands: NDArray[np.bool_]
    challenges: tuple[Challenge, ...]
    verdicts: tuple[CheckResult, ...]
    reproduced: str
    """By whom, as the folders of reproductions have it; "" by nobody."""

    @cached_property
    def best(self) -> NDArray[np.bool_]:
        """`stands` without what challenges have broken since."""
        best = self.stands.copy()
        for challenge in self.challenges:
            best[[index for index in challenge.broken if index < len(best)]] = False
        return best

    @property
    def wrong(self) -> tuple[str, ...]:
        """What contradicts the record, a sentence each."""
        return tuple(dict.fromkeys(text for verdict in self.verdicts for text in verdict.wrong))

    @property
    def level(self) -> str:
        if self.reproduced:
            return REPRODUCED
        return ATTACKED if any(verdict.attacked for verdict in self.verdicts) else CLAIMED


@dataclass(frozen=True)
class BoardRow:
    """One row."""

    entry: Entry
    run: Run
    networks: tuple[BoardNetwork, ...]

    @cached_property
    def best(self) -> Estimate:
        """Best-known accuracy in percent, over seeds."""
        return Estimate.over([100 * float(network.best.mean()) for network in self.networks])

    @cached_property
    def claimed(self) -> Estimate:
        """The same before any challenge."""
        return Estimate.over([100 * float(network.stands.mean()) for network in self.networks])

    @property
    def level(self) -> str:
        """What all its networks have reached."""
        return LEVELS[min(LEVELS.index(network.level) for network in self.networks)]

    @property
    def wrong(self) -> tuple[str, ...]:
        return tuple(f"seed {one.record.seed}: {text}" for one in self.networks for text in one.wrong)

    @cached_property
    def place(self) -> tuple[str, str, tuple[tuple[str, str], ...]]:
        """Dataset, student and how it was judged: rows of one place are compared."""
        items = Setting.of(self.networks[0].record).items
        kept = {key: value for key, value in items.items() if not key.startswith("transfer:")}
        kept = {key: value for key, value in kept.items() if key.rpartition(" ")[2] != "seed"}
        return self.run.dataset, self.run.student, tuple(sorted(kept.items()))


class Board:
    """All that a board's folder holds. left_out: what cannot be used, a sentence each."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise UserError(f"board '{folder}' does not exist; docs/board.md says how to begin one")
        self.folder = folder
        self.rules: Rules = folders.rules(folder)
        self.left_out: list[str] = []
        self.entries = self._entries(folders.SUBMISSIONS)
        unusable: list[str] = []
        self.evidence = Evidence(folder, unusable)
        self.left_out += map(self._told, unusable)
        again = self._entries(folders.REPRODUCTIONS)
        self._again = [(entry.said.label, found) for entry in again for found in entry.records]
        self.lines = sorted(self._lines(), key=lambda line: (*_rank(line), line.run.label))

    def _entries(self, kind: str) -> list[Entry]:
        entries = []
        for name in folders.inside(self.folder / kind):
            if name.startswith("."):
                continue
            try:
                entry, left_out = read(self.folder / kind / name, f"{kind}/{name}", self.rules)
            except (UserError, OSError) as error:
                self.left_out.append(f"{kind}/{name}: {self._told(error)}")
                continue
            except Exception as error:  # of a stranger's files; the others are shown
                self.left_out.append(f"{kind}/{name}: it cannot be read ({type(error).__name__}: {self._told(error)})")
                continue
            self.left_out += [f"{kind}/{name}: {self._told(why)}" for why in left_out]
            if entry.records:
                entries.append(entry)
        return entries

    def _told(self, why: object) -> str:
        """A complaint without where the board lies on this machine."""
        return str(why).replace(f"{self.folder}/", "")

    def _lines(self) -> Iterator[BoardRow]:
        for entry in self.entries:
            for run in collect(entry.records, "student"):
                networks = []
                for found in run.done:
                    try:
                        networks.append(self._network(found, entry.said.label))
                    except UserError as error:
                        self.left_out.append(f"{entry.folder}: {self._told(error)}")
                    except Exception as error:
                        why = f"{type(error).__name__}: {self._told(error)}"
                        self.left_out.append(f"{entry.folder}: seed {found.seed} cannot be shown ({why})")
                if networks:
                    yield BoardRow(entry, run, tuple(networks))

    def _network(self, found: Record, label: str) -> BoardNetwork:
        return BoardNetwork(
            found,
            stands(found),
            tuple(self.evidence.broken(found)),
            tuple(self.evidence.verdicts(found, folders.digest(found.path))),
            ", ".join(sorted({by for by, again in self._again if by != label and _alike(found, again)})),
        )

    @property
    def ranked(self) -> dict[tuple[str, str, tuple[tuple[str, str], ...]], list[BoardRow]]:
        """The rows that nothing contradicts, by place, the best first."""
        places: dict[tuple[str, str, tuple[tuple[str, str], ...]], list[BoardRow]] = {}
        for line in self.lines:
            if not line.wrong:
                places.setdefault(line.place, []).append(line)
        return dict(sorted(places.items()))

    @property
    def false(self) -> list[BoardRow]:
        """The rows that a check contradicts."""
        return [line for line in self.lines if line.wrong]


def read(folder: Path, name: str, known: Rules) -> tuple[Entry, list[str]]:
    """A submission's folder, and why records of it are left out. Raises UserError where it is none."""
    paths = folders.check(folder)
    said = folders.described(folder)
    records, left_out = [], []
    for path in paths:
        if path.name != layout.RECORD:
            continue
        try:
            found = record.read(path)
            if found.kind == "teacher":  # beside its students, for verify
                continue
            if reasons := [*rules.unranked(found, known.teachers), *_without_code(folder, said, found)]:
                left_out.append(f"{path.relative_to(folder)}: {'; '.join(reasons)}")
                continue
            folders.check_outcomes(path.parent / layout.OUTCOMES, found.images.test_images)
            found.check_outcomes()
        except UserError as error:
            left_out.append(str(error))
            continue
        records.append(found)
    if not records and not left_out:
        left_out.append("it has no record of a student")
    return Entry(name, said, tuple(records)), left_out


def _without_code(folder: Path, said: Submission, found: Record) -> list[str]:
    """What is lacking of the code of a method that is not adbench's own."""
    method = str(found.method)
    if method in METHODS and METHODS.built_in(method):
        return []
    code = folders.code_of(folder, said, method)
    if code is None:
        return [f"the source of method '{method}' is not in {folders.CODE}"]
    stated = found.config.training.get("source")
    return [] if code.sha256 == stated else [f"the source of method '{method}' is not the one that it was made with"]


def stands(found: Record) -> NDArray[np.bool_]:
    """On which test images a record's network is right under every attack within the ball: (n,) booleans.

    Raises UserError where its outcomes are not those of its figures.
    """
    right = found.right("clean").copy()
    for name in found.metrics:
        if name != "clean" and "@" not in name:
            under = found.right(name)
            right[: len(under)] &= under
    return right


def _alike(found: Record, again: Record) -> bool:
    """Whether a cell that was trained again came out as recorded: in the same bits, or each figure in its interval."""
    if found.id != again.id or found.images.fingerprint != again.images.fingerprint:
        return False
    if folders.digest(found.path) == folders.digest(again.path):  # the same file, which nobody made again
        return False
    if found.network.weights_sha256 == again.network.weights_sha256:
        return {k: m.correct for k, m in found.metrics.items()} == {k: m.correct for k, m in again.metrics.items()}
    return all(_overlap(metric, again.metrics.get(name)) for name, metric in found.metrics.items())


def _overlap(one: Metric, other: Metric | None) -> bool:
    """Whether the intervals over test images of two accuracies overlap; computed, whatever the records say."""
    if other is None or one.n != other.n:
        return False
    return overlap(wilson(one.correct, one.n), wilson(other.correct, other.n))


def groups(lines: Sequence[BoardRow]) -> list[int]:
    """The group of each row, from 1: rows that are not told apart from the first row of a group belong to it.

    lines: of one place, the best first. No row stands below one that it is not told apart from for want of data.
    """
    apart = holm({(i, j): compared(lines[i], lines[j]) for i, j in combinations(range(len(lines)), 2)})
    leaders: list[int] = []
    found = []
    for row in range(len(lines)):
        group = next((k for k, leader in enumerate(leaders) if (leader, row) not in apart), len(leaders))
        if group == len(leaders):
            leaders.append(row)
        found.append(group + 1)
    return found


def holm(p_values: Mapping[tuple[int, int], float]) -> set[tuple[int, int]]:
    """The pairs that differ, at a family-wise error of LEVEL over all pairs (Holm, Scand. J. Statist. 1979)."""
    different = set()
    for rank, (pair, p_value) in enumerate(sorted(p_values.items(), key=lambda item: (item[1], item[0]))):
        if p_value > LEVEL / (len(p_values) - rank):
            break
        different.add(pair)
    return different


def compared(better: BoardRow, other: BoardRow) -> float:
    """The p-value that two rows are equally robust; 1 where the test is for the row with the lower mean.

    Of three seeds or more that both have: a paired t-test, and McNemar's exact test on the images of all pairs at once,
    the larger p counting, since to the first alone equal differences on few images would be certain. Of fewer:
    McNemar's for each pair of networks, the largest p counting, and 1 where one pair is the other way round. Rows
    without a seed in common are paired in the order of their seeds.
    """
    pairs = _paired(better.networks, other.networks)
    differences = [100 * float(a.best.mean() - b.best.mean()) for a, b in pairs]
    alone = [(int((a.best & ~b.best).sum()), int((b.best & ~a.best).sum())) for a, b in pairs]
    if math.fsum(differences) <= 0:
        return 1.0
    if len(pairs) >= TESTED_OVER_SEEDS:
        return max(t_test(differences), mcnemar(*map(sum, zip(*alone, strict=True))))
    return 1.0 if min(differences) <= 0 else max(mcnemar(*counts) for counts in alone)


def _paired(first: Sequence[BoardNetwork], second: Sequence[BoardNetwork]) -> list[tuple[BoardNetwork, BoardNetwork]]:
    other = {network.record.seed: network for network in second}
    shared = [(one, other[one.record.seed]) for one in first if one.record.seed in other]
    return shared or list(zip(first, second, strict=False))


def _rank(line: BoardRow) -> tuple[float, str]:
    return -line.best.mean, line.entry.folder
