"""Heat maps: accuracies as shades, each with its number."""

from __future__ import annotations

import hashlib

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.textpath import TextPath
from numpy.typing import NDArray

# Darker is more accurate, also in grey; both ends are far enough from the paper, by day and by night.
COLOURS = LinearSegmentedColormap.from_list("accuracy", ["#f3ead2", "#c9d3c0", "#7fb0bf", "#3a7ca8", "#143f6b"])
FONT = 9.0  # points


def width(text: str) -> float:
    """How wide a text on the axes is, in inches."""
    return float(TextPath((0, 0), text, size=FONT, usetex=False).get_extents().width) / 72


def fitted(text: str, inches: float) -> str:
    """A text no wider than `inches`: a longer one is cut, and has a digest at its end that tells it from others."""
    if width(text) <= inches:
        return text
    digest = f"\N{HORIZONTAL ELLIPSIS} #{hashlib.sha256(text.encode()).hexdigest()[:6]}"
    length = max(1, int(len(text) * inches / width(text)))
    while length > 1 and width(text[:length] + digest) > inches:
        length -= 1
    return text[:length] + digest


def cells(panel: Axes, numbers: NDArray[np.float64], scale: Normalize, *, bold: bool = False) -> None:
    """Cells with their numbers; those of the diagonal in bold, if asked."""
    panel.imshow(numbers, cmap=COLOURS, norm=scale, aspect="auto")
    panel.spines[:].set_visible(False)
    # Lines between the cells, in which the paper shows through.
    for edge in range(1, numbers.shape[1]):
        panel.axvline(edge - 0.5, color=mpl.rcParams["figure.facecolor"], linewidth=1)
        if edge < len(numbers):
            panel.axhline(edge - 0.5, color=mpl.rcParams["figure.facecolor"], linewidth=1)
    for (row, column), value in np.ndenumerate(numbers):
        red, green, blue, _ = COLOURS(scale(value))
        light = 0.299 * red + 0.587 * green + 0.114 * blue > 0.55
        panel.text(
            column,
            row,
            f"{value:.1f}",
            ha="center",
            va="center",
            fontsize=8,
            color="#1c1c1a" if light else "#ffffff",
            fontweight="bold" if bold and row == column else "normal",
        )
