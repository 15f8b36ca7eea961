"""The attribution maps of `adbench cam`, as Figure 2 of SmaraAD (CVPR 2024) and as a table."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from numpy.typing import NDArray

from adbench.errors import UserError
from adbench.report import captions
from adbench.report.figures.plot import NARROWEST, Plot
from adbench.report.model import MISSING, Column, Row, Table, TableCell
from adbench.report.view import View
from adbench.results.analyses import Agreement, Cam, Example, Mean
from adbench.results.document import beside
from adbench.results.runs import slug
from adbench.system.files import sha256

_KINDS = {"adversarial": "Adversarial images", "clean": "Clean images"}
_COLOURS = "inferno"
"""Rises in lightness throughout, so it reads the same to everyone and in grey."""

_DIMMED = 0.75

Array = NDArray[Any]


def contents(view: View) -> tuple[tuple[Table, ...], tuple[Plot, ...]]:
    """A table and a figure of every teacher and its students, where all these networks are in the report."""
    tables, plots = [], []
    seen: set[str] = set()
    for one, names in view.analyses(Cam):
        label = slug("attribution", one.dataset, names[0])
        if label in seen:
            label = slug("attribution", one.dataset, names[0], one.id[:8])
        seen.add(label)
        tables.append(_table(one, names, label))
        try:
            plots += [_plot(one, names, label)] if one.examples.images else []
        except UserError as error:
            if view.left_out is None:
                raise
            view.left_out(str(error))
    return tuple(tables), tuple(plots)


def _made(one: Cam, names: Sequence[str]) -> str:
    """Which images the maps are of."""
    return f"adversarial images made on {names[0]} by {captions.attack(one.attack)}, the same for all networks"


def _title(one: Cam, names: Sequence[str]) -> str:
    return f"Attribution maps, {one.dataset}, {names[0]}"


def _table(one: Cam, names: Sequence[str], label: str) -> Table:
    columns = (
        Column("Student", numeric=False),
        *(Column(title, group) for group in _KINDS.values() for title in ("Cosine", "MSE")),
    )
    rows = [
        Row((TableCell(name), *(_mean(mean) for kind in _KINDS for mean in _similarity(agreement, kind))))
        for name, agreement in zip(names[1:], one.agreement, strict=True)
    ]
    caption = (
        f"How closely students look where {names[0]} looks on {one.dataset}: cosine similarity (1: the same map) "
        "and mean squared error (0: the same map) of class activation maps of the label's class (SmaraAD, Eq. 6), "
        "resized to the larger map and brought to [0, 1] each, as in Eq. 7. Means over "
        f"n = {captions.whole(one.data.images)} test images ± half-width of the 95% Student-t interval over "
        f"them; clean images, and {_made(one, names)}. Computed with adbench {one.provenance['adbench']}."
    )
    return Table(label, _title(one, names), caption, columns, tuple(rows), _notes(one, names))


def _similarity(agreement: Agreement, kind: str) -> tuple[Mean, Mean]:
    """Cosine and squared error, on adversarial or on clean images."""
    similarity = agreement.adversarial if kind == "adversarial" else agreement.clean
    return similarity.cosine, similarity.mse


def _mean(found: Mean) -> TableCell:
    if found.mean is None:
        return MISSING
    low, high = found.ci_test or (found.mean, found.mean)
    return TableCell(f"{found.mean:.4f}", f"{(high - low) / 2:.4f}" if found.ci_test else "")


def _notes(one: Cam, names: Sequence[str]) -> tuple[str, ...]:
    notes = []
    for name, agreement in zip(names[1:], one.agreement, strict=True):
        for kind, title in _KINDS.items():
            cosine, mse = _similarity(agreement, kind)
            without = mse.n - cosine.n
            if without:
                notes.append(
                    f"{name}, {title.lower()}: on {captions.whole(without)} a map is constant, which has no cosine."
                )
    return tuple(notes)


def _plot(one: Cam, names: Sequence[str], label: str) -> Plot:
    arrays = _examples(one)
    shown_images = one.examples.images
    classes = captions.listed(image.label for image in shown_images)
    caption = (
        f"Where {names[0]} and its students look on {one.dataset}: class activation maps of the label's class over "
        f"{_made(one, names)}. Bright: high, each map by itself. Below each map its cosine similarity with that of "
        f"{names[0]}. Of the first classes the first test image each that {names[0]} gets right unattacked."
    )
    alt = f"Rows: one test image each of {classes}. Columns: adversarial image, {', '.join(names)}. " + " ".join(
        f"{name}: cosine {captions.listed(_cosine(image.cosine[i]) for image in shown_images)}."
        for i, name in enumerate(names[1:])
    )
    inches = (max(NARROWEST, 0.8 * (1 + len(names)) + 0.9), 0.92 * len(shown_images) + 0.45)
    return Plot(label, _title(one, names), caption, alt, _draw(arrays, shown_images, names), inches)


def _cosine(value: float | None) -> str:
    return MISSING.text if value is None else f"{value:.2f}"


def _examples(one: Cam) -> dict[str, Array]:
    """The images and maps beside the analysis. Raises UserError where they are not what it says, or none."""
    path = beside(one.path, one.examples.file)
    if not path.is_file() or sha256(path) != one.examples.sha256:
        raise UserError(f"'{path}' is not there or was changed; delete '{one.path}' and run `adbench cam` again")
    images, maps = len(one.examples.images), [f"map{place}" for place in range(len(one.networks))]
    try:
        with np.load(path, allow_pickle=False) as content:
            arrays = {name: np.asarray(content[name], dtype=np.float64) for name in ("x_adv", *maps)}
        if arrays["x_adv"].ndim != 4 or arrays["x_adv"].shape[1] not in (1, 3):
            raise ValueError("x_adv holds no images")
        if any(arrays[name].ndim != 3 for name in maps) or any(len(array) != images for array in arrays.values()):
            raise ValueError(f"it has not a map (h, w) of each network on {images} images")
    except Exception as error:  # a damaged zip can make numpy raise anything
        raise UserError(
            f"'{path}' cannot be read ({error}); delete '{one.path}' and run `adbench cam` again"
        ) from error
    return arrays


def _draw(arrays: dict[str, Array], images: Sequence[Example], names: Sequence[str]) -> Callable[[Figure], None]:
    def draw(figure: Figure) -> None:
        figure.set_layout_engine("compressed")  # images are square, whatever room there is
        grid = figure.subplots(len(images), 1 + len(names), squeeze=False)
        for row, image in enumerate(images):
            x = arrays["x_adv"][row].transpose(1, 2, 0)
            _image(grid[row, 0], x)
            grid[row, 0].set_ylabel(image.label, rotation=0, ha="right", va="center")
            for column in range(len(names)):
                axes = grid[row, 1 + column]
                _overlay(axes, x, arrays[f"map{column}"][row])
                if column:
                    axes.set_xlabel(_cosine(image.cosine[column - 1]), fontsize=7.5, labelpad=2)
        for axes, title in zip(grid[0], ("Adversarial image", *names), strict=True):
            axes.set_title(_wrapped(title), fontsize=8, va="bottom")

        key = figure.colorbar(
            ScalarMappable(cmap=_COLOURS), ax=grid, ticks=[0, 1], aspect=40, fraction=0.02, pad=0.01, shrink=0.6
        )
        key.set_ticklabels(["low", "high"])
        key.outline.set_visible(False)
        key.ax.tick_params(length=0)

    return draw


def _wrapped(name: str) -> str:
    """A name in short lines, broken also behind its underscores."""
    return "\n".join(line.replace("_ ", "_") for line in textwrap.wrap(name.replace("_", "_ "), 13))


def _image(axes: Axes, x: Array) -> None:
    """An image (H, W, C) in [0, 1] without ticks; one of one channel in grey."""
    axes.imshow(x if x.shape[2] == 3 else x[:, :, 0], cmap="gray", vmin=0, vmax=1, extent=_extent(x))
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def _overlay(axes: Axes, x: Array, values: Array) -> None:
    """A map (h, w) from its lowest (dark) to its highest value (bright), half transparent over the image in grey."""
    # The image is there to find one's way by: darkened, so that brightness is the map's.
    _image(axes, _DIMMED * x.mean(axis=2, keepdims=True))
    axes.imshow(values, cmap=_COLOURS, alpha=0.7, interpolation="bilinear", extent=_extent(x))


def _extent(x: Array) -> tuple[float, float, float, float]:
    return 0, x.shape[1], x.shape[0], 0
