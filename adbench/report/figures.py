"""Figure 1 (does a stronger teacher make a stronger student?), Figure 4 (ablation) and training curves.

Every method has one look throughout a report: a colour of the Okabe-Ito palette, a marker and a dash
pattern, so that it can be told apart in black and white and by colour-blind readers. The bytes of a figure
depend on the records alone: no dates, no random identifiers.
"""

from __future__ import annotations

import io
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from adbench.record import Record
from adbench.report.captions import whole
from adbench.report.chart import Axis, Chart, Panel, Point, Series
from adbench.report.model import About, about
from adbench.report.runs import ABLATION, METHODS, Run, attacks_of, heading, natural, slug
from adbench.report.teachers import teacher_accuracy

_MARKERS = "osD^vP*Xph<>"
_DASHES: tuple[Any, ...] = (
    "-",
    (0, (5, 1.5)),
    (0, (1.5, 1.2)),
    (0, (6, 1.5, 1.5, 1.5)),
    (0, (3, 1, 1, 1, 1, 1)),
)
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
    "svg.fonttype": "path",
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
    """A figure and its words; `draw` builds it from data already at hand. `data`: the same for the page to draw."""

    label: str
    title: str
    caption: str
    alt: str
    draw: Callable[[Figure], None]
    inches: tuple[float, float]
    data: Chart | None = None
    about: About = ()

    def render(self, form: str, dark: bool = False) -> bytes:
        """The figure as png, pdf or svg; the same bytes every time."""
        colours = _NIGHT if dark else _DAY
        rc: dict[Any, Any] = _RC | dict.fromkeys(_INKED, colours["ink"]) | {"grid.color": colours["grid"]}
        rc |= dict.fromkeys(("figure.facecolor", "axes.facecolor"), colours["paper"])
        out = io.BytesIO()
        with mpl.rc_context(rc):
            figure = Figure(figsize=self.inches, layout="constrained")
            self.draw(figure)
            figure.savefig(out, format=form, dpi=200, metadata=_METADATA[form])
        return out.getvalue()


def look(label: str, labels: Sequence[str]) -> dict[str, Any]:
    """The line, marker and colour of one method among all of a report."""
    i = labels.index(label)
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


def teacher_student(runs: Sequence[Run], records: Sequence[Record]) -> list[Plot]:
    """Figure 1: AutoAttack accuracy of students against their teachers', one a data set and student."""
    labels = labels_of(runs)
    plots = []
    for (dataset, student), members in groupby(runs, key=lambda run: (run.dataset, run.student)):
        group = [run for run in members if run.estimate("aa")]
        taught = [(x, run) for run in group if (x := teacher_accuracy(run, records, "aa")) is not None]
        if not taught:
            continue
        alone = [run for run in group if run.teacher is None]
        lines: dict[str, list[tuple[float, Run]]] = defaultdict(list)
        for x, run in taught:
            lines[run.label].append((x, run))
        for points in lines.values():
            points.sort(key=lambda point: point[0])
        seeds = any(len(run.done) > 1 for run in group)
        bars = "95% intervals over seeds where there are several, else over test images (Wilson)"
        caption = (
            f"AutoAttack accuracy of {student} students on {dataset} against that of their teachers. Bars: "
            f"{bars if seeds else '95% Wilson intervals over test images'}; points are nudged sideways so "
            "that bars stay apart." + (" Dashed: methods without a teacher." if alone else "")
        )
        said = [
            f"{label}: " + ", ".join(f"{_mean(run, 'aa'):.1f} at teacher {x:.1f}" for x, run in points)
            for label, points in lines.items()
        ]
        said += [f"{run.label} without a teacher: {_mean(run, 'aa'):.1f}" for run in alone]
        plots.append(
            Plot(
                slug("teacher-student", dataset, student),
                f"Teacher against student, {dataset}, {student}",
                caption,
                "Student against teacher AutoAttack accuracy in percent. " + "; ".join(said) + ".",
                _teacher_student(dict(lines), alone, labels),
                (6.6, 4.0),
                _teacher_student_data(lines, alone, labels),
                about(dataset=dataset, student=student),
            )
        )
    return plots


def ablation(runs: Sequence[Run]) -> list[Plot]:
    """Figure 4: what SmaraAD's parts are worth, one figure a data set, student and teacher."""
    labels = labels_of(runs)
    plots = []
    ordered = sorted(runs, key=lambda run: (natural(run.dataset), run.student, natural(run.teacher or "")))
    for (dataset, student, teacher), members in groupby(ordered, key=lambda r: (r.dataset, r.student, r.teacher)):
        group = sorted(
            (r for r in members if r.method in ABLATION and r.done), key=lambda r: ABLATION.index(str(r.method))
        )
        if len({run.method for run in group}) < 2:
            continue
        attacks = [a for a in attacks_of(group) if all(run.estimate(a) for run in group)]
        if not attacks:
            continue
        where = f"{dataset}, {student}" + (f" taught by {teacher}" if teacher else "")
        seeds = sorted({len(run.done) for run in group})
        bars = (
            "95% intervals over seeds"
            if seeds[0] > 1
            else "95% intervals over seeds, or over test images of single runs"
        )
        said = [f"{run.label}: " + ", ".join(f"{heading(a)} {_mean(run, a):.1f}" for a in attacks) for run in group]
        plots.append(
            Plot(
                slug("ablation", dataset, student, *([teacher] if teacher else [])),
                f"Ablation of SmaraAD, {where}",
                f"Accuracy of SmaraAD and of its variants on {where}. Bars: {bars}.",
                "Accuracy in percent. " + "; ".join(said) + ".",
                _ablation(group, attacks, labels),
                (6.6, 3.4),
                _ablation_data(group, attacks, labels),
                about(dataset=dataset, student=student, teacher=teacher),
            )
        )
    return plots


def _mean(run: Run, attack: str) -> float:
    estimate = run.estimate(attack)
    assert estimate is not None
    return estimate.mean


def _point(x: float, run: Run, attack: str, note: str = "") -> Point:
    """A run's accuracy with its interval, and over what that spans."""
    low, high = run.interval(attack)
    (first, *others) = run.metrics(attack)
    over = f"{1 + len(others)} seeds" if others else f"{whole(first['n'])} test images"
    return Point(x, _mean(run, attack), low, high, f"{note}95% interval over {over}")


def _bars(ys: Sequence[float], spans: Sequence[tuple[float, float]]) -> list[list[float]]:
    """Intervals as matplotlib's error bars: the lengths below and above each y."""
    return [
        [y - low for y, (low, _) in zip(ys, spans, strict=True)],
        [high - y for y, (_, high) in zip(ys, spans, strict=True)],
    ]


def _ablation_data(group: Sequence[Run], attacks: Sequence[str], labels: Sequence[str]) -> Chart:
    named = tuple((place, heading(attack)) for place, attack in enumerate(attacks))
    series = (
        Series(
            run.label,
            labels.index(run.label),
            tuple(_point(place, run, attack) for place, attack in enumerate(attacks)),
            "points",
        )
        for run in group
    )
    return Chart((Panel(Axis("Attack", ticks=named), Axis("Accuracy (%)"), tuple(series)),))


def _ablation(group: Sequence[Run], attacks: Sequence[str], labels: Sequence[str]) -> Callable[[Figure], None]:
    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for place, run in enumerate(group):
            xs = [number + 0.6 * ((place + 0.5) / len(group) - 0.5) for number in range(len(attacks))]
            ys = [_mean(run, attack) for attack in attacks]
            errors = _bars(ys, [run.interval(attack) for attack in attacks])
            style = look(run.label, labels) | {"linestyle": ""}
            axes.errorbar(xs, ys, errors, capsize=2.5, elinewidth=0.9, label=run.label, **style)
        axes.set_xticks(range(len(attacks)), [heading(attack) for attack in attacks])
        axes.set_xlim(-0.5, len(attacks) - 0.5)
        axes.set_ylabel("Accuracy (%)")
        axes.grid(axis="y", linewidth=0.5)
        axes.set_axisbelow(True)
        figure.legend(loc="outside right upper", frameon=False)

    return draw


def curves(runs: Sequence[Run]) -> list[Plot]:
    """Loss and held-out accuracy by epoch, one figure a data set, student and teacher; seeds averaged."""
    labels = labels_of(runs)
    plots = []
    for (dataset, student), of_student in groupby(runs, key=lambda run: (run.dataset, run.student)):
        members = list(of_student)
        taught = sorted({run.teacher for run in members if run.teacher}, key=natural)
        for teacher in taught or [""]:
            logs = {run.label: log for run in members if (run.teacher or teacher) == teacher and (log := _log(run))}
            if not logs:
                continue
            where = f"{dataset}, {student}" + (f" taught by {teacher}" if teacher else "")
            caption = (
                f"Training on {where}: loss (log scale; each method's is a quantity of its own), and "
                "accuracy on the held-out split, natural and under attack. Means over seeds."
            )
            last = "; ".join(
                f"{label} ends at loss {log['loss'][-1][1]:.3g}" for label, log in logs.items() if log["loss"]
            )
            plots.append(
                Plot(
                    slug("curves", dataset, student, *([teacher] if teacher else [])),
                    f"Training, {where}",
                    caption,
                    f"Panels by epoch: loss, held-out natural accuracy, held-out robust accuracy. {last}.",
                    _curves(logs, labels),
                    (7.2, 3.3 + 0.18 * math.ceil(len(logs) / 5)),
                    _curves_data(logs, labels),
                    about(dataset=dataset, student=student, teacher=teacher or None),
                )
            )
    return plots


_Log = dict[str, list[tuple[int, float]]]


def _teacher_student_data(
    lines: dict[str, list[tuple[float, Run]]], alone: Sequence[Run], labels: Sequence[str]
) -> Chart:
    series = [
        Series(
            label,
            labels.index(label),
            tuple(_point(x, run, "aa", f"Taught by {run.teacher}; ") for x, run in points),
        )
        for label, points in lines.items()
    ]
    series += [
        Series(run.label, labels.index(run.label), (_point(0, run, "aa", "No teacher; "),), "level") for run in alone
    ]
    # Read downwards like the right-hand ends of the lines.
    series.sort(key=lambda one: -one.points[-1].y)
    x, y = Axis("Teacher: AutoAttack accuracy (%)"), Axis("Student: AutoAttack accuracy (%)")
    return Chart((Panel(x, y, tuple(series)),))


def _teacher_student(
    lines: dict[str, list[tuple[float, Run]]], alone: Sequence[Run], labels: Sequence[str]
) -> Callable[[Figure], None]:
    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        xs = [x for points in lines.values() for x, _ in points]
        span = max(xs) - min(xs)
        # Wide enough that a method's neighbours at the same teacher do not hide its bar.
        nudge = 0.012 * span * 8 / max(8, len(lines)) if span else 1.0
        ends: list[tuple[float, Any, str]] = []
        for number, (label, points) in enumerate(lines.items()):
            shift = nudge * (number - (len(lines) - 1) / 2)
            ys = [_mean(run, "aa") for _, run in points]
            errors = _bars(ys, [run.interval("aa") for _, run in points])
            artist = axes.errorbar(
                [x + shift for x, _ in points], ys, errors, capsize=2.2, elinewidth=0.8, **look(label, labels)
            )
            ends.append((ys[-1], artist, label))
        low, high = axes.get_ylim()
        reach = max(high - low, 5.0)
        for place, run in enumerate(alone):
            if not low - reach < _mean(run, "aa") < high + reach:
                # One weak baseline must not flatten what the figure is about.
                off = Line2D([], [], linestyle="")
                ends.append((_mean(run, "aa"), off, f"{run.label}: {_mean(run, 'aa'):.1f}, not drawn"))
                continue
            style = look(run.label, labels) | {"marker": "", "linestyle": (0, (7, 3)), "linewidth": 1.1}
            axes.axhline(_mean(run, "aa"), zorder=1, **style)
            # A marker near the line's left end, so that black-and-white prints still tell lines apart; each a
            # little further right, so that close lines do not hide each other's.
            mark = look(run.label, labels) | {"linestyle": ""}
            axes.plot(
                [0.012 + 0.03 * (place % 4)],
                [_mean(run, "aa")],
                transform=axes.get_yaxis_transform(),
                clip_on=False,
                **mark,
            )
            key = Line2D([], [], **{**mark, "linestyle": (0, (7, 3)), "linewidth": 1.1})
            ends.append((_mean(run, "aa"), key, f"{run.label} (no teacher)"))
        if not span:
            # One teacher: the axis has no scale, methods stand side by side above its one accuracy.
            half = len(lines) / 2 + 1
            axes.set_xlim(xs[0] - half, xs[0] + half)
            axes.set_xticks([xs[0]], [f"{xs[0]:.2f}"])
        axes.set_xlabel("Teacher: AutoAttack accuracy (%)")
        axes.set_ylabel("Student: AutoAttack accuracy (%)")
        axes.grid(axis="y", linewidth=0.5)
        axes.set_axisbelow(True)
        # Read downwards like the right-hand ends of the lines.
        ends.sort(key=lambda end: -end[0])
        figure.legend(
            [artist for _, artist, _ in ends], [label for *_, label in ends],
            loc="outside right upper", frameon=False, handlelength=3.4,
        )  # fmt: skip

    return draw


_CURVES = {"loss": "Training loss", "val_clean": "Held-out natural (%)", "val_robust": "Held-out robust (%)"}


def _curves_data(logs: dict[str, _Log], labels: Sequence[str]) -> Chart:
    def panel(key: str, title: str) -> Panel:
        scale = 1 if key == "loss" else 100
        series = tuple(
            Series(label, labels.index(label), tuple(Point(epoch, scale * value) for epoch, value in log[key]))
            for label, log in logs.items()
        )
        return Panel(Axis("Epoch"), Axis(title, log=key == "loss" and _positive(logs)), series)

    return Chart(tuple(panel(key, title) for key, title in _CURVES.items()))


def _positive(logs: dict[str, _Log]) -> bool:
    return all(value > 0 for log in logs.values() for _, value in log["loss"])


def _curves(logs: dict[str, _Log], labels: Sequence[str]) -> Callable[[Figure], None]:
    def draw(figure: Figure) -> None:
        grid = figure.subplots(1, len(_CURVES), sharex=True, squeeze=False)[0]
        for axes, (key, title) in zip(grid, _CURVES.items(), strict=True):
            _panel(axes, key, title, logs, labels)
        handles = [Line2D([], [], markersize=4, **look(label, labels)) for label in logs]
        figure.legend(handles, list(logs), loc="outside lower center", ncols=5, frameon=False, handlelength=3.4)

    return draw


def _panel(axes: Axes, key: str, title: str, logs: dict[str, _Log], labels: Sequence[str]) -> None:
    for label, log in logs.items():
        points = log[key]
        scale = 1 if key == "loss" else 100
        every = max(1, math.ceil(len(points) / 6))
        axes.plot(
            [epoch for epoch, _ in points], [scale * value for _, value in points],
            label=label, markevery=(labels.index(label) % every, every), markersize=4, **look(label, labels),
        )  # fmt: skip
    if key == "loss" and _positive(logs):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
    if not any(log[key] for log in logs.values()):
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", va="center")
    axes.set_title(title, loc="left")
    axes.set_xlabel("Epoch")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.grid(axis="y", linewidth=0.5)
    axes.set_axisbelow(True)


def _log(run: Run) -> _Log:
    """Each logged quantity as (epoch, mean over seeds); {} when no seed has a log."""
    seen: dict[str, dict[int, list[float]]] = {key: defaultdict(list) for key in ("loss", "val_clean", "val_robust")}
    for record in run.done:
        for line in record.log():
            for key, by_epoch in seen.items():
                value = line.get(key)
                if value is not None and math.isfinite(value):
                    by_epoch[line["epoch"]].append(value)
    log = {key: [(e, math.fsum(v) / len(v)) for e, v in sorted(by_epoch.items())] for key, by_epoch in seen.items()}
    return log if any(log.values()) else {}
