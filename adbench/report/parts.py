"""Runs by data set and setting: networks that were not judged alike share no table or figure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import update_wrapper
from itertools import groupby
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

from adbench.report.captions import taught
from adbench.report.model import About, Table, about
from adbench.results.runs import Run, heading, natural, slug
from adbench.results.setting import Setting, alike

P = ParamSpec("P")
Shown = TypeVar("Shown", bound=Any)
"""A Table or a Plot."""


@dataclass(frozen=True)
class ReportPart:
    """Runs of one data set that were judged alike. apart: in words what no other part of the data set has."""

    dataset: str
    runs: tuple[Run, ...]
    setting: Setting
    apart: str = ""

    @property
    def title(self) -> str:
        return f"{self.dataset}, {self.apart}" if self.apart else self.dataset

    def named(self, shown: Shown) -> Shown:
        """A table or figure of these runs, under a name of its own."""
        if isinstance(shown, Table):
            shown = replace(shown, setting=self.setting.describe())
        if not self.apart:
            return shown
        return replace(
            shown,
            label=f"{shown.label}_{slug(self.apart)}",
            title=f"{shown.title}, {self.apart}",
            caption=f"Of the networks judged with {self.apart}. {shown.caption}",
            about=(*shown.about, *about(setting=self.apart)),
        )


def parts(runs: Sequence[Run]) -> list[ReportPart]:
    """The runs, sorted by data set, in parts of one data set and setting; each part in the order of the runs."""
    result = []
    for dataset, members in groupby(runs, key=lambda run: run.dataset):
        of_dataset = list(members)
        split = [tuple(of_dataset[i] for i in places) for places in alike([run.setting for run in of_dataset])]
        settings = [Setting.merged(run.setting for run in part) for part in split]
        names = [_words(setting, settings) for setting in settings]
        # Parts that no word of theirs tells apart are numbered: each has a name of its own.
        names = [f"{name}, setting {i}" if names.count(name) > 1 else name for i, name in enumerate(names, 1)]
        if len(split) == 1:
            names = [""]
        made = [ReportPart(dataset, *each) for each in zip(split, settings, names, strict=True)]
        result += sorted(made, key=lambda part: natural(part.apart))
    return result


def _words(setting: Setting, settings: Sequence[Setting]) -> str:
    """In what a setting differs from any of the others."""
    keys = {key for other in settings for key in setting.apart(other)}
    words = []
    for key in sorted(keys):
        metric, _, what = key.rpartition(" ")
        if key in ("eps", "step"):
            words.append(f"{'ε' if key == 'eps' else 'step'} = {setting.items[key]}")
        elif what == "n" and f"n = {setting.images()}" not in words:
            words.append(f"n = {setting.images()}")
        elif what == "search":
            words.append(f"AutoAttack: {setting.search()}")
        elif metric and what not in ("n", "step"):
            words.append(f"{heading(metric)} {what} {setting.items[key]}")
        elif not metric:
            words.append(setting.says(key))
    return ", ".join(dict.fromkeys(words))


def by_setting(
    make: Callable[Concatenate[Sequence[Run], P], list[Shown]],
) -> Callable[Concatenate[Sequence[Run], P], list[Shown]]:
    """Let a maker of tables or figures see the runs of one data set and setting at a time."""

    def split(runs: Sequence[Run], /, *args: P.args, **kwargs: P.kwargs) -> list[Shown]:
        return [part.named(shown) for part in parts(runs) for shown in make(part.runs, *args, **kwargs)]

    return update_wrapper(split, make)


def titles(runs: Sequence[Run]) -> dict[int, str]:
    """The data set of every run, by its `id()`, with what sets its setting apart: for blocks of a table of networks."""
    return {id(run): title for title, run in _titled(runs)}


def _titled(runs: Sequence[Run]) -> Iterator[tuple[str, Run]]:
    for part in parts(runs):
        for run in part.runs:
            yield part.title, run


class Setup(NamedTuple):
    """A data set, a student and its teacher, where there is one."""

    dataset: str
    student: str
    teacher: str | None

    @classmethod
    def of(cls, runs: Sequence[Run]) -> Setup:
        """Where these runs, of which some may have no teacher, stand together."""
        run = next((run for run in runs if run.teacher), runs[0])
        return cls(run.dataset, run.student, run.teacher)

    def __str__(self) -> str:
        return f"{self.dataset}, {taught(self.student, self.teacher)}"

    def label(self, *kind: str) -> str:
        """The name of a figure's file."""
        return slug(*kind, *filter(None, self))

    @property
    def about(self) -> About:
        return about(dataset=self.dataset, student=self.student, teacher=self.teacher)


def by_place(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs by data set, student and teacher; those without a teacher stand with every teacher's."""
    groups = []
    for _, members in groupby(runs, key=lambda run: (run.dataset, run.student)):
        of_student = list(members)
        teachers = sorted({run.teacher for run in of_student if run.teacher}, key=natural)
        groups += [[run for run in of_student if (run.teacher or teacher) == teacher] for teacher in teachers or [""]]
    return groups
