"""The matrix of `adbench cross` as a heat map and a table: sources are rows, targets columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from adbench.report import captions
from adbench.report.figures import heat
from adbench.report.figures.plot import NARROWEST, Plot
from adbench.report.model import Column, Row, Table, TableCell, about
from adbench.report.view import View
from adbench.results.analyses import Accuracy, Cross
from adbench.results.runs import slug
from adbench.results.setting import size

_CLEAN = "Clean images"
_AXES = ("Accuracy (%) of →", "Images made on ↓")
_CELL, _GAP = 0.5, 0.08  # inches


def contents(view: View) -> tuple[tuple[Table, ...], tuple[Plot, ...]]:
    """A table and a figure of every matrix whose networks are all in the report."""
    analyses = view.analyses(Cross)
    several: dict[str, int] = {}
    tables, plots = [], []
    for one, names in analyses:
        number = several[one.dataset] = several.get(one.dataset, 0) + 1
        label = slug("cross", one.dataset, *([str(number)] if number > 1 else []))
        tables.append(_table(one, names, label))
        plots.append(_plot(one, names, label))
    return tuple(tables), tuple(plots)


def _percent(accuracy: Accuracy) -> float:
    return 100 * accuracy.correct / accuracy.n


def _title(one: Cross) -> str:
    return f"Cross-transfer, {one.dataset}, ε = {size(one.setting.eps)}"


def _caption(one: Cross) -> str:
    halves = [50 * (e.ci_test[1] - e.ci_test[0]) for row in one.matrix for e in row]
    return (
        f"Cross-transfer on {one.dataset}: accuracy (%) of each network (columns) on adversarial examples made on "
        f"each (rows) by {captions.attack(one.attack)}. On the diagonal the attacker has the network itself "
        f"(white-box). n = {captions.whole(one.data.images)} test images; 95% Wilson interval over them: at most "
        f"±{max(halves):.2f} points. Computed with adbench {one.provenance['adbench']}."
    )


def _notes(one: Cross, names: Sequence[str]) -> tuple[str, ...]:
    """Networks that fall to others' examples more often than to their own."""
    notes = []
    for target, name in enumerate(names):
        column = [row[target].correct for row in one.matrix]
        source = min(range(len(names)), key=column.__getitem__)
        if column[source] < column[target]:
            theirs, own = (_percent(one.matrix[i][target]) for i in (source, target))
            notes.append(
                f"{name} is right on fewer images made on {names[source]} than on its own ({theirs:.2f} against "
                f"{own:.2f}): an attack on its own gradients does not find all there is."
            )
    return tuple(notes)


def _table(one: Cross, names: Sequence[str], label: str) -> Table:
    columns = (Column("Made on", numeric=False), *(Column(name, "Accuracy of") for name in names))
    clean = Row((TableCell(_CLEAN), *(TableCell(f"{_percent(network.clean):.2f}") for network in one.networks)))
    rows = [
        Row((TableCell(name), *(TableCell(f"{_percent(entry):.2f}") for entry in entries)), "Adversarial images")
        for name, entries in zip(names, one.matrix, strict=True)
    ]
    facets = about(dataset=one.dataset)
    return Table(label, _title(one), _caption(one), columns, (clean, *rows), _notes(one, names), facets)


def _plot(one: Cross, names: Sequence[str], label: str) -> Plot:
    values = np.array([[_percent(entry) for entry in row] for row in one.matrix])
    clean = np.array([[_percent(network.clean) for network in one.networks]])
    white = "; ".join(f"{name} {values[i, i]:.1f}" for i, name in enumerate(names))
    others = values[~np.eye(len(names), dtype=bool)]
    alt = (
        f"Matrix of accuracy in percent, {len(names)} sources by {len(names)} targets. White-box: {white}. "
        f"Off the diagonal: {others.min():.1f} to {others.max():.1f}."
    )
    names = [heat.fitted(name, 2.5) for name in names]
    layout = _Layout.of(names)
    facets = about(dataset=one.dataset)
    draw = _draw(values, clean, names, layout)
    return Plot(label, _title(one), _caption(one), alt, draw, layout.inches, about=facets)


@dataclass(frozen=True)
class _Layout:
    """Inches: names to the left of the matrix, and slanted above it, have the room that they take."""

    side: float
    left: float
    above: float
    right: float

    @classmethod
    def of(cls, names: Sequence[str]) -> _Layout:
        widths = [heat.width(name) for name in names]
        slanted = [0.5**0.5 * width for width in widths]
        # Each column's name begins over the middle of its cell.
        over = max(reach - (len(names) - i - 0.5) * _CELL for i, reach in enumerate(slanted))
        side = _CELL * len(names)
        left, right = max(*widths, *map(heat.width, (_CLEAN, *_AXES))) + 0.2, max(over, 0.0) + 0.15
        # Figures are shown as wide as the text: a small matrix stands in the middle of it.
        spare = max(0.0, NARROWEST - left - side - right) / 2
        return cls(side, left + spare, max(*slanted, 0.4) + 0.25, right + spare)

    @property
    def inches(self) -> tuple[float, float]:
        return self.left + self.side + self.right, self.above + _CELL + _GAP + self.side + 0.1

    def axes(self, figure: Figure) -> tuple[Axes, Axes]:
        """Those of the clean row and those of the matrix, with square cells."""
        figure.set_layout_engine("none")
        width, height = self.inches
        wide, left = self.side / width, self.left / width
        clean = figure.add_axes((left, (0.1 + self.side + _GAP) / height, wide, _CELL / height))
        return clean, figure.add_axes((left, 0.1 / height, wide, self.side / height))


def _draw(
    values: NDArray[np.float64], clean: NDArray[np.float64], names: Sequence[str], layout: _Layout
) -> Callable[[Figure], None]:
    everything = np.concatenate([values, clean])
    low, high = float(everything.min()), float(everything.max())
    scale = Normalize(low, max(high, low + 1))

    def draw(figure: Figure) -> None:
        above, axes = layout.axes(figure)
        for panel, numbers in ((above, clean), (axes, values)):
            heat.cells(panel, numbers, scale, bold=panel is axes)
        for i in range(len(names)):
            box = Rectangle((i - 0.5, i - 0.5), 1, 1, fill=False, edgecolor=mpl.rcParams["text.color"], linewidth=1.5)
            # Over the lines between cells, and whole at the matrix's corners.
            box.set(zorder=3, clip_on=False)
            axes.add_patch(box)
        above.set_yticks([0], [_CLEAN], fontsize=heat.FONT)
        above.xaxis.tick_top()
        above.set_xticks(
            range(len(names)), names, rotation=45, ha="left", va="bottom", rotation_mode="anchor", fontsize=heat.FONT
        )
        axes.set_xticks([])
        axes.set_yticks(range(len(names)), names, fontsize=heat.FONT)
        for panel in (above, axes):
            panel.tick_params(length=0, pad=4)
        above.annotate(
            "\n".join(_AXES),
            (0, 1),
            (-4, 7),
            xycoords="axes fraction",
            textcoords="offset points",
            ha="right",
            va="bottom",
            fontsize=heat.FONT,
            linespacing=1.4,
        )

    return draw
