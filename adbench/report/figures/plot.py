"""Figures: one look a method, and bytes that depend on the records alone.

Every method has one look throughout a report: a colour of the Okabe-Ito palette, a marker and a dash pattern, so that
it can be told apart in black and white and by colour-blind readers. No dates, no random identifiers.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from adbench.report.figures import heat
from adbench.report.figures.chart import Chart, Panel, Series
from adbench.report.model import About
from adbench.results.runs import METHODS, Run

_MARKERS = "osD^vP*Xph<>"
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)), (0, (3, 1, 1, 1, 1, 1)))
_DAY = {"paper": "#ffffff", "ink": "#1c1c1a", "grid": "#dcdcd6"}
_NIGHT = {"paper": "#161718", "ink": "#dfdfda", "grid": "#3a3b3d"}
_INKED = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
_OKABE_ITO = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
NARROWEST = 6.6
"""Inches: figures are shown as wide as the text, so that letters in a narrower one would be larger."""

_RC = {
    "font.size": 9,
    "axes.titlesize": 9,
    "legend.fontsize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "lines.linewidth": 1.5,
    "lines.markersize": 5.5,
    "pdf.fonttype": 42,
    "svg.hashsalt": "adbench",
    # Labels come from records: a $ in one is a dollar, not the start of a formula.
    "text.parse_math": False,
}
_METADATA: dict[str, dict[str, Any]] = {
    "png": {"Software": None},
    "pdf": {"Creator": None, "Producer": None, "CreationDate": None},
    "svg": {"Creator": None, "Date": None, "Format": None, "Type": None},
}


@dataclass(frozen=True)
class Plot:
    """A figure with its words. draw: builds it with matplotlib.

    data: the same numbers for the page's script; None for pictures and heat maps. about: as in `Table`.
    """

    label: str
    title: str
    caption: str
    alt: str
    draw: Callable[[Figure], None]
    inches: tuple[float, float]
    data: Chart | None = None
    about: About = ()

    @classmethod
    def of_chart(
        cls,
        label: str,
        title: str,
        caption: str,
        alt: str,
        chart: Chart,
        about: About,
        inches: tuple[float, float] = (6.6, 4.0),
        legend: Literal["right", "below"] = "right",
    ) -> Plot:
        return cls(label, title, caption, alt, drawn(chart, legend), inches, chart, about)

    def render(self, form: str, dark: bool = False) -> bytes:
        """The figure as png, pdf or svg; the same bytes every time."""
        return self.forms((form,), dark)[form]

    def forms(self, forms: Iterable[str], dark: bool = False) -> dict[str, bytes]:
        """The figure in several forms, drawn and laid out once. In an svg letters are text, in the reader's fonts."""
        colours = _NIGHT if dark else _DAY
        rc: dict[Any, Any] = _RC | dict.fromkeys(_INKED, colours["ink"]) | {"grid.color": colours["grid"]}
        rc |= dict.fromkeys(("figure.facecolor", "axes.facecolor"), colours["paper"])
        pictures = {}
        with mpl.rc_context(rc):
            figure = Figure(figsize=self.inches, layout="constrained", dpi=_DPI)
            self.draw(figure)
            # Laid out once, at one resolution: every form has the same layout, and the others do not pay for it.
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
            for form in forms:
                out = io.BytesIO()
                with mpl.rc_context(_TEXT if form == "svg" else {}):
                    figure.savefig(out, format=form, dpi=_DPI, metadata=_METADATA[form])
                pictures[form] = _smaller(out.getvalue()) if form == "svg" else out.getvalue()
        return pictures


_TEXT: dict[Any, Any] = {"svg.fonttype": "none", "font.sans-serif": ["DejaVu Sans", "Verdana"]}


def _smaller(picture: bytes) -> bytes:
    """An svg in fewer characters that looks the same on a screen."""
    svg = picture.decode()
    svg = re.sub(r"<!--.*?-->|<\?xml.*?\?>|<!DOCTYPE.*?>|<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # A hundredth of a point is less than a screen can show. What is between tags is text, and stays.
    svg = re.sub(r"<[^>]*>", _shorter, svg)
    return _MARKS.sub(_styled_once, re.sub(r"\s+", " ", svg).strip()).encode()


_DPI = 200


def _shorter(tag: re.Match[str]) -> str:
    """A tag of a picture in fewer characters, of which an address needs three for a double quote."""
    short = re.sub(r"(\.\d\d)\d+", r"\1", tag.group())
    # After a move or a line, further points are lines.
    short = re.sub(r' d="[ML\d .z-]*"', lambda path: path.group().replace(" L ", " "), short)
    # Nothing refers to a group, and no rotation is none.
    short = re.sub(r'(?<=^<g) id="[^"]*"| transform="rotate\(-0 [^"]*"', "", short)
    return re.sub(r"""="([^"']*)\"""", r"='\1'", short)


_MARKS = re.compile(r"(?:<use [^>]*style='[^']*'/> ?){2,}")
"""The markers of a line, as matplotlib writes them: each with the same style."""


def _styled_once(marks: re.Match[str]) -> str:
    """A line's markers with their style on the group around them, which is most of their size."""
    parts = []
    for style, run in groupby(re.findall(r"<use ([^>]*) style='([^']*)'/>", marks.group()), key=lambda mark: mark[1]):
        uses = "".join(f"<use {place}/>" for place, _ in run)
        parts.append(f"<g style='{style}'>{uses}</g>")
    return "".join(parts)


MOST_MARKED = 25
"""A line of more points has a marker at so many of them."""

FRONT = "Pareto front"
"""The name of the one series that is of no method."""


def look(label: str, labels: Sequence[str]) -> dict[str, Any]:
    """The line, marker and colour of one method among all of a report."""
    return look_of(labels.index(label))


def look_of(i: int) -> dict[str, Any]:
    """The line, marker and colour of the method at place `i` of a report's."""
    colours = (*_OKABE_ITO, mpl.rcParams["text.color"])
    return {
        "color": colours[i % len(colours)],
        "marker": _MARKERS[i % len(_MARKERS)],
        "linestyle": _DASHES[i % len(_DASHES)],
        # Every second marker is hollow: neighbours differ even where shapes look alike.
        "markerfacecolor": colours[i % len(colours)] if i % 2 == 0 else mpl.rcParams["axes.facecolor"],
    }


def labels_of(runs: Sequence[Run]) -> list[str]:
    """Every method's label in the order in which looks are given out: the paper's ten keep theirs."""
    others = sorted({run.order for run in runs if run.label not in METHODS.values()})
    return [*METHODS.values(), *dict.fromkeys(label for *_, label in others)]


def drawn(chart: Chart, legend: Literal["right", "below"] = "right") -> Callable[[Figure], None]:
    """How matplotlib draws a chart: its panels side by side, one legend for all."""

    def draw(figure: Figure) -> None:
        grid = figure.subplots(1, len(chart.panels), squeeze=False)[0]
        keys: dict[str, tuple[float, Any]] = {}
        for axes, panel in zip(grid, chart.panels, strict=True):
            for name, height, artist in _panel(axes, panel, crowded=len(chart.panels) > 1):
                keys.setdefault(name, (height, artist))
        ordered = list(keys.items())
        if legend == "right":  # read downwards like the right-hand ends of the lines
            ordered.sort(key=lambda item: -item[1][0])
        figure.legend(
            [artist for _, (_, artist) in ordered],
            [heat.fitted(name, 2.0) for name, _ in ordered],
            loc="outside right upper" if legend == "right" else "outside lower center",
            ncols=1 if legend == "right" else 5,
            frameon=False,
            handlelength=3.4,
        )

    return draw


_Key = tuple[str, float, Any]


def _panel(axes: Axes, panel: Panel, *, crowded: bool) -> list[_Key]:
    """Draw one panel; of each series its name in the legend, its height at the right end, and what the legend shows."""
    keys: list[_Key] = []
    if panel.x.log:
        axes.set_xscale("log")
        _log_axis(axes.xaxis, [p.x for s in panel.series for p in s.points])
    if panel.y.log:
        axes.set_yscale("log")
        _log_axis(axes.yaxis, [p.y for s in panel.series for p in s.points])
    for series in panel.series:
        if series.style != "level" and series.points:
            keys.append((series.name, series.points[-1].y, _points(axes, series, crowded)))
    low, high = axes.get_ylim()
    reach = max(high - low, 5.0)
    levels = [series for series in panel.series if series.style == "level"]
    for place, series in enumerate(levels):
        y = series.points[0].y
        if low - reach < y < high + reach or len(levels) == len(panel.series):
            keys.append((f"{series.name} (no teacher)", y, _level(axes, series.look, y, place)))
        else:  # one weak baseline must not flatten what the figure is about
            keys.append((f"{series.name}: {y:.1f}, not drawn", y, Line2D([], [], linestyle="")))
    if panel.x.ticks:
        axes.set_xticks([at for at, _ in panel.x.ticks], [text for _, text in panel.x.ticks])
        ends = [at for at, _ in panel.x.ticks]
        inside = [point.x for series in panel.series for point in series.points if series.style != "level"]
        axes.set_xlim(min(ends[0] - 0.5, *inside) - 0.1, max(ends[-1] + 0.5, *inside) + 0.1)
    elif not panel.x.log:
        axes.xaxis.set_major_locator(MaxNLocator(5 if crowded else 8, integer=crowded))
    if not any(series.points for series in panel.series):
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", va="center")
    axes.set_title(panel.title, loc="left")
    axes.set_xlabel(panel.x.title)
    axes.set_ylabel(panel.y.title)
    axes.grid(axis="y", linewidth=0.5)
    axes.set_axisbelow(True)
    return keys


def _log_axis(axis: Axis, values: Sequence[float]) -> None:
    """As many numbers on a logarithmic axis as its span has room for."""
    decades = math.log10(max(values) / min(values)) if values else 1
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2.5 else (1,)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())


def _points(axes: Axes, series: Series, crowded: bool) -> Any:
    xs, ys = [point.x for point in series.points], [point.y for point in series.points]
    if series.style == "step":
        style: dict[str, Any] = {"color": mpl.rcParams["text.color"], "linestyle": (0, (1, 2)), "linewidth": 1.1}
        return axes.step(xs, ys, where="post", zorder=1, **style)[0]
    style = look_of(series.look) | ({"linestyle": ""} if series.style == "points" else {})
    if any(math.isfinite(point.low) for point in series.points):
        # A point whose interval is not known stands alone.
        spans = [(p.low, p.high) if math.isfinite(p.low) else (p.y, p.y) for p in series.points]
        return axes.errorbar(xs, ys, bars(ys, spans), capsize=2.2, elinewidth=0.8, **style)
    if crowded or len(xs) > MOST_MARKED:
        every = max(1, math.ceil(len(xs) / (6 if crowded else MOST_MARKED)))
        style |= {"markevery": (series.look % every, every), "markersize": 4}
    return axes.plot(xs, ys, **style)[0]


def _level(axes: Axes, look: int, y: float, place: int) -> Line2D:
    style = look_of(look) | {"linestyle": (0, (7, 3)), "linewidth": 1.1}
    axes.axhline(y, zorder=1, **style | {"marker": ""})
    # A marker near the line's left end, so that black-and-white prints still tell lines apart; each a little further
    # right, so that close lines do not hide each other's.
    at = [0.012 + 0.03 * (place % 4)]
    axes.plot(at, [y], transform=axes.get_yaxis_transform(), clip_on=False, **style | {"linestyle": ""})
    return Line2D([], [], **style)


def bars(ys: Sequence[float], spans: Sequence[tuple[float, float]]) -> list[list[float]]:
    """Intervals as matplotlib's error bars: the lengths below and above each y."""
    return [
        [max(0.0, y - low) for y, (low, _) in zip(ys, spans, strict=True)],
        [max(0.0, high - y) for y, (_, high) in zip(ys, spans, strict=True)],
    ]
