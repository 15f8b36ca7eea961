"""Figure 1 (does a stronger teacher make a stronger student?), Figure 4 (ablation), cost and radius.

Each is built as a `Chart`, which matplotlib draws for print and the page for a screen.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from fractions import Fraction
from itertools import groupby

from adbench.report.captions import whole
from adbench.report.figures.chart import Axis, Chart, Panel, Point, Series
from adbench.report.figures.plot import FRONT, Plot, labels_of
from adbench.report.model import about
from adbench.report.parts import Setup, by_place, by_setting
from adbench.report.tables import costs
from adbench.report.tables.robustness import variants
from adbench.report.view import View
from adbench.results.runs import Run, attacks_of, heading, slug
from adbench.results.teachers import teacher_accuracy


@by_setting
def teacher_student(runs: Sequence[Run], view: View) -> list[Plot]:
    """Figure 1: AutoAttack accuracy of students against their teachers', one a data set and student."""
    labels = labels_of(runs)
    plots = []
    for (dataset, student), members in groupby(runs, key=lambda run: (run.dataset, run.student)):
        group = [run for run in members if run.estimate("aa")]
        taught = [(x, run) for run in group if (x := teacher_accuracy(run, view.teachers, "aa")) is not None]
        if not taught:
            continue
        alone = [run for run in group if run.teacher is None]
        lines: dict[str, list[tuple[float, Run]]] = defaultdict(list)
        for x, run in taught:
            lines[run.label].append((x, run))
        for points in lines.values():
            points.sort(key=lambda point: point[0])
        caption = (
            f"AutoAttack accuracy of {student} students on {dataset} against that of their teachers. "
            f"{bars_are(group)}; points are nudged sideways so that bars stay apart."
            + (" Dashed: methods without a teacher." if alone else "")
        )
        accuracies = [
            f"{label}: " + ", ".join(f"{_mean(run, 'aa'):.1f} at teacher {x:.1f}" for x, run in points)
            for label, points in lines.items()
        ]
        accuracies += [f"{run.label} without a teacher: {_mean(run, 'aa'):.1f}" for run in alone]
        plots.append(
            Plot.of_chart(
                slug("teacher-student", dataset, student),
                f"Teacher against student, {dataset}, {student}",
                caption,
                "Student against teacher AutoAttack accuracy in percent. " + "; ".join(accuracies) + ".",
                Chart((Panel(*_teacher_axes(taught), _teacher_series(lines, alone, labels)),)),
                about(dataset=dataset, student=student),
            )
        )
    return plots


def _teacher_axes(taught: Sequence[tuple[float, Run]]) -> tuple[Axis, Axis]:
    xs = {x for x, _ in taught}
    # One teacher: the axis has no scale, methods stand side by side above its one accuracy.
    ticks = ((x := xs.pop(), f"{x:.2f}"),) if len(xs) == 1 else ()
    return Axis("Teacher: AutoAttack accuracy (%)", ticks=ticks, nudged=True), Axis("Student: AutoAttack accuracy (%)")


def _teacher_series(
    lines: dict[str, list[tuple[float, Run]]], alone: Sequence[Run], labels: Sequence[str]
) -> tuple[Series, ...]:
    xs = [x for points in lines.values() for x, _ in points]
    span = max(xs) - min(xs)
    # Wide enough that a method's neighbours at the same teacher do not hide its bar.
    nudge = 0.012 * span * 8 / max(8, len(lines)) if span else 0.08
    series = []
    for number, (label, points) in enumerate(lines.items()):
        shift = nudge * (number - (len(lines) - 1) / 2)
        series.append(
            Series(
                label,
                labels.index(label),
                tuple(point(x + shift, run, "aa", f"taught by {run.teacher}, AA {x:.2f}") for x, run in points),
            )
        )
    levels = [
        Series(run.label, labels.index(run.label), (point(min(xs), run, "aa", "no teacher"),), "level") for run in alone
    ]
    return (*series, *levels)


@by_setting
def ablation(runs: Sequence[Run]) -> list[Plot]:
    """Figure 4: what SmaraAD's parts are worth, one figure a data set, student and teacher."""
    labels = labels_of(runs)
    plots = []
    for group in variants(runs):
        attacks = [a for a in attacks_of(group) if all(run.estimate(a) for run in group)]
        if not attacks:
            continue
        place = Setup.of(group)
        accuracies = [
            f"{run.label}: " + ", ".join(f"{heading(a)} {_mean(run, a):.1f}" for a in attacks) for run in group
        ]
        series = [
            Series(
                run.label,
                labels.index(run.label),
                tuple(
                    point(at + 0.6 * ((number + 0.5) / len(group) - 0.5), run, attack, heading(attack))
                    for at, attack in enumerate(attacks)
                ),
                "points",
            )
            for number, run in enumerate(group)
        ]
        ticks = tuple((float(number), heading(attack)) for number, attack in enumerate(attacks))
        plots.append(
            Plot.of_chart(
                place.label("ablation"),
                f"Ablation of SmaraAD, {place}",
                f"Accuracy of SmaraAD and of its variants on {place}. {bars_are(group)}.",
                "Accuracy in percent. " + "; ".join(accuracies) + ".",
                Chart((Panel(Axis("", ticks=ticks, nudged=True), Axis("Accuracy (%)"), tuple(series)),)),
                place.about,
                inches=(6.6, 3.4),
            )
        )
    return plots


@by_setting
def costly(runs: Sequence[Run]) -> list[Plot]:
    """Robustness against training cost with the Pareto front, one figure a data set, student and teacher."""
    labels = labels_of(runs)
    plots = []
    for members in by_place(runs):
        attack = next((a for a in ("aa", "pgd20") if sum(bool(run.estimate(a)) for run in members) > 1), None)
        priced = [(cost, run) for run in members if attack and run.estimate(attack) and (cost := _cost(run))]
        if attack is None or len(priced) < 2:
            continue
        place = Setup.of([run for _, run in priced])
        front = _front([(cost, _mean(run, attack), run) for cost, run in priced])
        unit, scale = _unit([cost for cost, _ in priced], [run for _, run in priced])
        series = [
            Series(
                run.label,
                labels.index(run.label),
                (point(cost / scale, run, attack, "on the Pareto front" if run in front else ""),),
                "points",
            )
            for cost, run in priced
        ]
        ends = [
            Point(cost / scale, _mean(run, attack)) for cost, run in sorted(priced, key=lambda p: p[0]) if run in front
        ]
        # The front goes on at its last height to where the dearest method stands.
        ends.append(Point(max(cost for cost, _ in priced) / scale, ends[-1].y))
        series.append(Series(FRONT, len(labels), tuple(ends), "step"))
        named = ", ".join(run.label for run in front)
        accuracy = Axis(f"{heading(attack)} accuracy (%)")
        plots.append(
            Plot.of_chart(
                place.label("cost"),
                f"Robustness against training cost, {place}",
                f"{heading(attack)} accuracy on {place} against what training cost (log scale; means over seeds). "
                f"{bars_are([run for _, run in priced])}. Dotted: the Pareto front, methods that none is both cheaper "
                "and more robust than. Times compare only where nothing else ran on the machine.",
                f"Accuracy in percent against training in {unit}. On the Pareto front: {named}.",
                Chart((Panel(Axis(f"Training ({unit})", log=True), accuracy, tuple(series)),)),
                place.about,
            )
        )
    return plots


def _cost(run: Run) -> float:
    """Seconds of training, the mean over seeds; 0 where none was measured."""
    seconds = [record.training.seconds for record in run.done if record.training]
    return math.fsum(seconds) / len(seconds) if seconds else 0.0


def _unit(costs_: Sequence[float], runs: Sequence[Run]) -> tuple[str, float]:
    gpu = "GPU-" if costs.on_gpu([record for run in runs for record in run.done]) else ""
    return (f"{gpu}hours", costs.HOUR) if max(costs_) >= costs.HOUR else (f"{gpu}seconds", 1)


def _front(priced: Sequence[tuple[float, float, Run]]) -> list[Run]:
    """Of (cost, accuracy, run), the runs that no other beats in both, the cheapest first."""
    front: list[Run] = []
    best = -math.inf
    for _, value, run in sorted(priced, key=lambda each: (each[0], -each[1])):
        if value > best:
            front.append(run)
            best = value
    return front


@by_setting
def radii(runs: Sequence[Run]) -> list[Plot]:
    """Accuracy against eps, one figure an attack, data set, student and teacher, where it was run at several radii."""
    labels = labels_of(runs)
    plots = []
    for members in by_place(runs):
        attacks = sorted({m.partition("@")[0] for m in attacks_of(members, everywhere=True) if "@" in m})
        for attack in attacks:
            lines = [(run, points) for run in members if len(points := _by_radius(run, attack)) > 1]
            if not lines:
                continue
            place = Setup.of([run for run, _ in lines])
            series = [Series(run.label, labels.index(run.label), tuple(points)) for run, points in lines]
            accuracies = [
                f"{run.label}: " + ", ".join(f"{p.y:.1f} at {p.x:g}/255" for p in points) for run, points in lines
            ]
            plots.append(
                Plot.of_chart(
                    place.label("radius", attack),
                    f"Accuracy against ε, {heading(attack)}, {place}",
                    f"Accuracy on {place} under {heading(attack)} within ε in L∞ (0: clean images); the step grows "
                    f"with ε. {bars_are([run for run, _ in lines])}.",
                    "Accuracy in percent. " + "; ".join(accuracies) + ".",
                    Chart((Panel(Axis("ε (in 1/255)"), Axis("Accuracy (%)"), tuple(series)),)),
                    place.about,
                )
            )
    return plots


def _by_radius(run: Run, attack: str) -> list[Point]:
    """Accuracy on clean images, at the threat model's radius and at radii of the attack's own, from small to large."""
    points: dict[Fraction, Point] = {}
    for metric in attacks_of([run], everywhere=True):
        if metric != "clean" and metric.partition("@")[0] != attack:
            continue
        if metrics := run.metrics(metric):
            eps = Fraction(0) if metric == "clean" else Fraction(str(metrics[0].attack["eps"]))
            # The threat model's own radius wins over the same one named by itself.
            if eps not in points or "@" not in metric:
                points[eps] = point(float(255 * eps), run, metric, "")
    return [points[eps] for eps in sorted(points)]


def point(x: float, run: Run, metric: str, note: str) -> Point:
    """A run's accuracy with its interval, and over what that spans."""
    low, high = run.interval(metric)
    (first, *others) = run.metrics(metric)
    over = f"95% interval over {1 + len(others)} seeds" if others else f"95% interval over {whole(first.n)} test images"
    over = "range of two seeds" if len(others) == 1 else over
    return Point(x, _mean(run, metric), low, high, "; ".join(filter(None, (note, over))))


def _mean(run: Run, attack: str) -> float:
    estimate = run.estimate(attack)
    assert estimate is not None
    return estimate.mean


def bars_are(runs: Sequence[Run]) -> str:
    """What error bars span."""
    seeds = {len(run.done) for run in runs}
    several = {count > 1 for count in seeds}
    two = " (of two seeds, their range)" if 2 in seeds else ""
    if several == {True}:
        return f"Bars: 95% intervals over seeds{two}"
    if True in several:
        return f"Bars: 95% intervals over seeds where there are several{two}, else over test images (Wilson)"
    return "Bars: 95% Wilson intervals over test images"
