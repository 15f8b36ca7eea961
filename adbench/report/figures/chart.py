"""Charts as data: matplotlib draws them for print, the page's script for readers who hover over points."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Point:
    """A value at (x, y), in the axes' units; low, high: its interval, where it has one. note: more, on asking."""

    x: float
    y: float
    low: float = math.nan
    high: float = math.nan
    note: str = ""


@dataclass(frozen=True)
class Series:
    """The points of one method. look: its place among a report's methods, which decides colour, marker and dashes.

    style: points joined by a line, points alone, a level: one point whose y holds at every x, or a step: the corners of
    a line that belongs to no method and is drawn thin.
    """

    name: str
    look: int
    points: tuple[Point, ...]
    style: Literal["line", "points", "level", "step"] = "line"


@dataclass(frozen=True)
class Axis:
    """ticks: named places, as (value, text), where the axis is not a scale of numbers.

    nudged: points stand a little beside their place, so that where one stands is no value to be read.
    """

    title: str
    log: bool = False
    ticks: tuple[tuple[float, str], ...] = ()
    nudged: bool = False


@dataclass(frozen=True)
class Panel:
    """One pair of axes."""

    x: Axis
    y: Axis
    series: tuple[Series, ...]
    title: str = ""


@dataclass(frozen=True)
class Chart:
    """Panels side by side that share their methods, so that one legend serves all."""

    panels: tuple[Panel, ...]

    def plain(self) -> list[dict[str, Any]]:
        """The chart as JSON-able values, with five significant digits, more than a screen can show."""
        return [
            {
                "title": panel.title,
                "x": _axis(panel.x),
                "y": _axis(panel.y),
                "series": [
                    {"name": s.name, "look": s.look, "style": s.style, "points": [_point(p) for p in s.points]}
                    for s in panel.series
                ],
            }
            for panel in self.panels
        ]


def _axis(axis: Axis) -> dict[str, Any]:
    return {"title": axis.title, "log": axis.log, "ticks": axis.ticks, "nudged": axis.nudged}


def _point(point: Point) -> list[Any]:
    values = [float(f"{v:.5g}") if math.isfinite(v) else None for v in (point.x, point.y, point.low, point.high)]
    tail = [*values[2:], point.note]
    while tail and not tail[-1]:
        tail.pop()
    return [*values[:2], *tail]
