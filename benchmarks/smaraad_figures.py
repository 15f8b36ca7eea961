"""Figures and tables of docs/smaraad.md, from the records that benchmarks/smaraad_study.sh leaves.

    python benchmarks/smaraad_figures.py results/smaraad docs/figures

Prints the tables; writes smaraad_gamma.png, smaraad_gradient.png and smaraad_norm.png.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from adbench.losses import soft_rank, spearman
from adbench.results.record import read_all
from adbench.results.runs import Run, attacks_of, collect, heading

GAMMAS = (3.0, 10.0, 30.0, 100.0, 1000.0)
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")


def hyper(run: Run, key: str) -> object:
    return (run.done or run.failed)[0].config.training["hyper"].get(key)


def setting(run: Run, key: str) -> object:
    return (run.done or run.failed)[0].config.training["train"][key]


def spelt(run: Run, attack: str) -> str:
    estimate = run.estimate(attack)
    if estimate is None:
        return "-"
    return f"{estimate.mean:.1f}" + ("" if math.isnan(estimate.half) else f" ± {estimate.half:.1f}")


def tables(runs: list[Run]) -> None:
    """A Markdown table a data set and student: mean and 95% Student-t interval over seeds, and each seed's accuracy."""
    for dataset, student in dict.fromkeys((run.dataset, run.student) for run in runs):
        group = [run for run in runs if (run.dataset, run.student) == (dataset, student)]
        attacks = attacks_of(group)
        print(f"\n{dataset}, {student}\n")
        print("| " + " | ".join(["run", "seeds", *map(heading, attacks), "clean, seed by seed"]) + " |")
        print("| " + " | ".join(["---", *["---:"] * (len(attacks) + 1), "---"]) + " |")
        for run in group:
            each = ", ".join(f"{100 * r.metrics['clean'].value:.1f}" for r in run.done)
            failed = [f"failed: {r.failure.message.partition('. Batch')[0]}" for r in run.failed]
            cells = [run.label, f"{len(run.done)}/{len(run.done) + len(run.failed)}"]
            print("| " + " | ".join([*cells, *(spelt(run, a) for a in attacks), "; ".join([each, *failed])]) + " |")


def errorbars(axes: Axes, points: list[tuple[float, Run]], attack: str, label: str, colour: str, marker: str) -> None:
    points = sorted((x, run) for x, run in points if run.estimate(attack)) if points else []
    estimates = [run.estimate(attack) for _, run in points]
    known = [(x, e) for (x, _), e in zip(points, estimates, strict=True) if e is not None]
    halves = [0.0 if math.isnan(e.half) else e.half for _, e in known]
    xs, ys = [x for x, _ in known], [e.mean for _, e in known]
    axes.errorbar(xs, ys, halves, label=label, color=colour, marker=marker, capsize=3, elinewidth=0.9)


def by_gamma(runs: list[Run]) -> Figure:
    """Accuracy against gamma, the maps normalised."""
    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    for axes, attack in zip(figure.subplots(1, 2), ("clean", "pgd20"), strict=True):
        for number, (dataset, epochs) in enumerate((("digits", 20), ("cifar10", 8))):
            points = [
                (float(str(hyper(run, "gamma"))), run)
                for run in runs
                if (run.dataset, run.method, run.student) == (dataset, "smaraad", "cnn-16")
                and hyper(run, "cam_norm") == "minmax"
                and setting(run, "epochs") == epochs
            ]
            label = f"{dataset}, {epochs} epochs"
            errorbars(axes, points, attack, label, COLOURS[number], "os"[number])
        axes.set_xscale("log")
        axes.set_ylim(0, 100)
        axes.set_xlabel("gamma")
        axes.set_ylabel(f"{heading(attack)} accuracy (%)")
        axes.grid(axis="y", linewidth=0.5)
    axes.legend(frameon=False)
    return figure


def pull(gamma: float, confidence: float, images: int = 4000, classes: int = 10) -> float:
    """Mean derivative of L_sm in the student's highest logit, where that class is not the teacher's first.

    Teacher logits are N(0, 4); the student's N(0, 0.25) but for one wrong class, raised until its probability is
    `confidence`. Positive: a step downhill lowers the wrong class.
    """
    draw = torch.Generator().manual_seed(0)
    teacher = 2 * torch.randn(images, classes, generator=draw)
    student = 0.5 * torch.randn(images, classes, generator=draw)
    shift = torch.randint(1, classes, (images,), generator=draw)
    rows, wrong = torch.arange(images), (teacher.argmax(1) + shift) % classes
    others = student.clone()
    others[rows, wrong] = -torch.inf
    student[rows, wrong] = others.logsumexp(1) + math.log(confidence / (1 - confidence))
    student.requires_grad_()
    loss = -spearman(soft_rank(student.softmax(1), gamma), soft_rank(teacher.softmax(1), gamma))
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    return float(gradient[rows, wrong].mean())


def pulls() -> Figure:
    """What L_sm does to a wrong class by how sure the student is of it."""
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.add_subplot()
    confidences = [0.15 + 0.05 * i for i in range(17)]
    print("\nMean derivative of L_sm in the logit of a wrong class of probability p\n")
    shown = (0.2, 0.4, 0.6, 0.8, 0.95)
    print("| gamma | " + " | ".join(f"p = {p:g}" for p in shown) + " |\n| ---: |" + " ---: |" * len(shown))
    for gamma, colour, marker in zip(GAMMAS, COLOURS, "os^Dv", strict=True):
        axes.plot(
            confidences,
            [pull(gamma, p) for p in confidences],
            color=colour,
            marker=marker,
            markersize=4,
            label=f"gamma {gamma:g}",
        )
        print(f"| {gamma:g} | " + " | ".join(f"{pull(gamma, p):+.3f}" for p in shown) + " |")
    axes.axhline(0, color="#1c1c1a", linewidth=0.8)
    axes.set_xlabel("Student's probability of a wrong class")
    axes.set_ylabel("Derivative of L_sm in its logit")
    figure.legend(loc="outside right upper", frameon=False)
    axes.grid(axis="y", linewidth=0.5)
    return figure


def norms(runs: list[Run]) -> Figure:
    """Held-out accuracy by epoch on CIFAR-10, maps normalised and not."""
    figure = Figure(figsize=(7.2, 3.5), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    wanted = [(g, n) for g in (10.0, 1000.0) for n in ("minmax", "none")]
    for axes, key, title in zip(panels, ("val_clean", "val_robust"), ("natural", "under attack"), strict=True):
        for (gamma, norm), colour in zip(wanted, COLOURS, strict=False):
            of_both = [
                run
                for run in runs
                if (run.dataset, run.method, run.student) == ("cifar10", "smaraad", "cnn-16")
                and (hyper(run, "gamma"), hyper(run, "cam_norm")) == (gamma, norm)
            ]
            label: str | None = f"gamma {gamma:g}, {norm}"
            for record in (record for run in of_both for record in run.done):
                lines = [(line["epoch"], 100 * line[key]) for line in record.log() if line[key] is not None]
                style = "-" if norm == "minmax" else "--"
                axes.plot(*zip(*lines, strict=True), color=colour, linestyle=style, linewidth=1.2, label=label)
                label = None
        axes.set_xlabel("Epoch")
        axes.set_title(title, loc="left", fontsize=9)
        axes.grid(axis="y", linewidth=0.5)
    panels[0].set_ylabel("Held-out accuracy (%)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def main(results: Path, out: Path) -> None:
    runs = collect(read_all(results), "student")
    tables(runs)
    out.mkdir(parents=True, exist_ok=True)
    for name, figure in (("gamma", by_gamma(runs)), ("gradient", pulls()), ("norm", norms(runs))):
        figure.savefig(out / f"smaraad_{name}.png", dpi=150, metadata={"Software": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
