"""Figures of samples: grids of images, pairs with training images, chains over time, densities of several sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .formats import shortened
from .generation_rows import NAMES, SAMPLES, TEST, TRAIN
from .plots import _STYLE, BLUE, GREEN, ORANGE, PANEL, SCORE_LABELS, _grid, _legend_below, _plain

if TYPE_CHECKING:
    from .generation_result import GenerationResult, Shown

PER_ROW, PAIRS = 10, 8  # pictures in a row without classes, pairs in a row
MOST_CHAINS, MOST_TIMES = 8, 10
_LEAST = 48  # pixels that an image is enlarged to at least, each pixel to a square, so that no viewer blurs it
_GAP, _BETWEEN = 4, (0.6, 0.76, 0.9)  # a colour that no grey image ends in
_LOOKS = {SAMPLES: (ORANGE, "-"), TEST: (BLUE, "--"), TRAIN: (GREEN, "-.")}
_BINS = 40


def mosaic(rows: Sequence[np.ndarray], gap: int = _GAP, between: tuple[float, float, float] = _BETWEEN) -> np.ndarray:
    """Rows of images (K, C, H, W) in [0, 1] as one RGB picture on pale blue, each pixel a square; rows may differ.

    Grey images, and those of other than 3 channels by their mean, become RGB. `gap` pixels of the colour `between`
    stand between two images.

    >>> mosaic([np.zeros((2, 1, 48, 48)), np.zeros((1, 1, 48, 48))]).shape
    (100, 100, 3)
    """
    height, width = rows[0].shape[2:]
    scale = max(1, -(-_LEAST // max(height, width)))
    tall, wide = height * scale + gap, width * scale + gap
    picture = np.full((len(rows) * tall - gap, max(map(len, rows)) * wide - gap, 3), between)
    for i, row in enumerate(rows):
        for k, image in enumerate(row):
            # a resized image may leave [0, 1] by a rounding error
            image = image.clip(0, 1)
            coloured = image if len(image) == 3 else np.repeat(image.mean(axis=0, keepdims=True), 3, axis=0)
            large = coloured.transpose(1, 2, 0).repeat(scale, axis=0).repeat(scale, axis=1)
            picture[i * tall : i * tall + height * scale, k * wide : k * wide + width * scale] = large
    return picture


def draw_images(
    axes: Axes, rows: Sequence[np.ndarray], left: Sequence[str] = (), top: Sequence[str] = (), title: str = ""
) -> None:
    """A mosaic with a label beside each row and above each column, where there are any."""
    picture = mosaic(rows)
    axes.imshow(picture, interpolation="none")  # already enlarged; a backend would smooth it again
    steps = [
        (size + _GAP) / count for size, count in zip(picture.shape, (len(rows), max(map(len, rows))), strict=False)
    ]
    centres = [[(k + 0.5) * step - _GAP / 2 - 0.5 for k in range(100)] for step in steps]
    axes.set_yticks(centres[0][: len(left)], [_plain(shortened(name, 14)) for name in left])
    axes.set_xticks(centres[1][: len(top)], top)
    axes.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False, labelsize=8)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.set_title(title)


def rows_of(shown: Shown) -> tuple[list[np.ndarray], list[str]]:
    """The samples in rows, a class each with its name, or `PER_ROW` in each without classes."""
    if "class" not in shown.rows[0]:
        places = range(0, len(shown.images), PER_ROW)
        return [shown.images[i : i + PER_ROW] for i in places], []
    asked = np.array([row["class"] for row in shown.rows])
    names = list(dict.fromkeys(asked.tolist()))
    return [shown.images[asked == name] for name in names], names


def draw_samples(axes: Axes, shown: Shown) -> None:
    """The grid of samples, a row a class."""
    rows, names = rows_of(shown)
    draw_images(axes, rows, names, title="samples" + ", by the class asked for" * bool(names))


def draw_closest(axes: Axes, shown: Shown) -> None:
    """Samples and, below each, its nearest training image."""
    assert shown.neighbours is not None  # else there is nothing closest to show
    rows, left = [], []
    for i in range(0, len(shown.images), PAIRS):
        rows += [shown.images[i : i + PAIRS], shown.neighbours[i : i + PAIRS]]
        left += ["sample", "training"]
    draw_images(axes, rows, left, title="samples closest to a training image")


def draw_chains(axes: Axes, steps: Sequence[int], images: np.ndarray) -> None:
    """Chains over time, one a row, at no more than `MOST_TIMES` of the steps, the first and the last among them."""
    kept = np.unique(np.linspace(0, len(steps) - 1, MOST_TIMES).round().astype(int))
    rows = [images[kept, chain] for chain in range(min(MOST_CHAINS, images.shape[1]))]
    draw_images(axes, rows, top=[str(steps[k]) for k in kept], title="chains over time; steps above")


def density_edges(densities: Mapping[str, np.ndarray]) -> np.ndarray:
    """The edges of 40 common bins over all log densities."""
    every = np.concatenate(list(densities.values()))
    low, high = every.min(), every.max()
    return np.linspace(low, max(high, low + max(1e-9, 1e-12 * abs(low))), _BINS + 1)


def draw_densities(axes: Axes, densities: Mapping[str, np.ndarray]) -> None:
    """Histograms of the model's log density of each set over common bins."""
    edges = density_edges(densities)
    for name, values in densities.items():
        colour, dash = _LOOKS[name]
        style: Any = {"color": colour, "linestyle": dash, "linewidth": 1.5}
        axes.hist(values, edges.tolist(), density=True, histtype="stepfilled", color=colour, alpha=0.15)
        axes.hist(values, edges.tolist(), density=True, histtype="step", label=NAMES[name], **style)
    axes.locator_params(axis="y", nbins=5)
    axes.set(xlabel=SCORE_LABELS["energy"], ylabel="density", title="log density of samples and data")
    _legend_below(axes, 3)


@mpl.rc_context(_STYLE)
def samples_figure(shown: Shown) -> Figure:
    """The grid of samples alone."""
    rows, _ = rows_of(shown)
    figure, axes = _of_images(len(rows), max(map(len, rows)))
    draw_samples(axes, shown)
    return figure


@mpl.rc_context(_STYLE)
def closest_figure(shown: Shown) -> Figure:
    """The pairs alone."""
    figure, axes = _of_images(2 * -(-len(shown.images) // PAIRS), min(PAIRS, len(shown.images)))
    draw_closest(axes, shown)
    return figure


@mpl.rc_context(_STYLE)
def chains_figure(steps: Sequence[int], images: np.ndarray) -> Figure:
    """Chains over time alone."""
    figure, axes = _of_images(min(MOST_CHAINS, images.shape[1]), min(MOST_TIMES, len(steps)))
    draw_chains(axes, steps, images)
    return figure


@mpl.rc_context(_STYLE)
def density_figure(densities: Mapping[str, np.ndarray]) -> Figure:
    """The histograms alone."""
    figure, axes = _grid(1, 1)
    draw_densities(axes[0, 0], densities)
    return figure


def _of_images(rows: int, columns: int) -> tuple[Figure, Axes]:
    """A figure of the usual width, as high as its rows of images are."""
    tile = PANEL[0] / (max(columns, PAIRS) + 1)
    figure = Figure(figsize=(PANEL[0], rows * tile + 0.5), layout="constrained")
    return figure, figure.subplots()


@mpl.rc_context(_STYLE)
def generation_overview(result: GenerationResult) -> Figure:
    """Side by side: samples; and, where there are any, closest pairs, chains, log densities."""
    draws: list[Any] = [lambda axes: draw_samples(axes, result.grid)]
    if (pairs := result.closest) is not None:
        draws.append(lambda axes: draw_closest(axes, pairs))
    if (chains := result.chains) is not None:
        draws.append(lambda axes: draw_chains(axes, *chains))
    if result.log_densities:
        draws.append(lambda axes: draw_densities(axes, result.log_densities))
    figure, axes = _grid(1, len(draws))
    for panel, draw in zip(axes[0], draws, strict=True):
        draw(panel)
    return figure
