"""Figures of representations: probe accuracies, few labels, OOD detection, corruptions, reconstructions, samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from .plots import _STYLE, COLOURS, DASHES, PANEL, _legend_below, _plain
from .plots_corruptions import severity_curve
from .plots_generation import PAIRS, PER_ROW, draw_images
from .plots_points import MARKERS, Point, draw_points, points_figure

if TYPE_CHECKING:
    from .representation_result import RepresentationResult

Points = tuple[list[str], dict[str, list[Point | None]]]
Draw = Callable[[Axes, "RepresentationResult"], None]


def probe_points(result: RepresentationResult) -> Points:
    """The representations, and for each probe the accuracy with its interval that each of them gets."""
    series: dict[str, list[Point | None]] = {}
    names = list(result.about["representations"])
    for row in result.of("probe"):
        label = "linear probe" if row["probe"] == "linear" else f"kNN, k = {row['k']}"
        points = series.setdefault(label, [None] * len(names))
        points[names.index(row["representation"])] = (row["accuracy"], row["accuracy_low"], row["accuracy_high"])
    return names, series


def ood_points(result: RepresentationResult) -> Points:
    """The OOD sets, and for each score the AUROC with its interval on each of them."""
    rows = result.of("ood")
    names = list(dict.fromkeys(row["ood_set"] for row in rows))
    series: dict[str, list[Point | None]] = {}
    for row in rows:
        label = f"{row['representation']}, {row['score']}" if row["representation"] else str(row["score"])
        points = series.setdefault(label, [None] * len(names))
        points[names.index(row["ood_set"])] = (row["auroc"], row.get("auroc_low"), row.get("auroc_high"))
    return names, series


def draw_probes(axes: Axes, result: RepresentationResult) -> None:
    """A line for each representation, on it a point with its interval for each probe."""
    draw_points(axes, *probe_points(result), "accuracy")
    _legend_below(axes, 2)


def draw_ood(axes: Axes, result: RepresentationResult) -> None:
    """A line for each OOD set, on it a point with its interval for each score."""
    draw_points(axes, *ood_points(result), "AUROC")
    _legend_below(axes, 2)


def draw_few_labels(axes: Axes, result: RepresentationResult) -> None:
    """Mean accuracy over the number of labels a class, on a logarithmic axis."""
    ticks: list[int] = []
    for i, name in enumerate(result.about["representations"]):
        rows = result.of("few_labels", name)
        if rows:
            ticks = [row["labels_per_class"] for row in rows]
            y, error = ([row[key] for row in rows] for key in ("accuracy", "accuracy_std"))
            style: Any = _line(i) | {"capsize": 3, "linewidth": 1.6, "label": _plain(name)}
            axes.errorbar(ticks, y, yerr=error, **style)
    axes.set_xscale("log")
    axes.set_xticks(ticks, [str(n) for n in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set(xlabel="labels a class", ylabel="accuracy, mean over draws")
    _legend_below(axes, 2)


def draw_corruptions(axes: Axes, result: RepresentationResult) -> None:
    """Accuracy over severity, the mean over all kinds, a line for each representation."""
    for i, name in enumerate(result.about["representations"]):
        if rows := result.of("corruptions", name):
            axes.plot(*severity_curve(rows, "accuracy"), label=_plain(name), linewidth=1.6, **_line(i))
    axes.set(xlabel="severity (0: clean)", ylabel="accuracy of the linear probe")
    _legend_below(axes, 2)


def _line(i: int) -> dict[str, Any]:
    return {"color": COLOURS[i % 5], "linestyle": DASHES[i % 5], "marker": MARKERS[i % 7], "markersize": 4}


def draw_reconstructions(axes: Axes, result: RepresentationResult) -> None:
    """Test images and, below each, its reconstruction."""
    assert result.pairs is not None
    images, made = result.pairs
    rows, left = [], []
    for i in range(0, len(images), PAIRS):
        rows += [images[i : i + PAIRS], made[i : i + PAIRS]]
        left += ["image", "made of it"]
    draw_images(axes, rows, left, title="reconstructions")


def draw_samples(axes: Axes, result: RepresentationResult) -> None:
    """A grid of the first samples."""
    assert result.samples is not None
    shown = result.samples
    draw_images(axes, [shown[i : i + PER_ROW] for i in range(0, len(shown), PER_ROW)], title="samples")


DRAWS: dict[str, Draw] = {
    "probes": draw_probes,
    "few-labels": draw_few_labels,
    "ood": draw_ood,
    "corruptions": draw_corruptions,
    "reconstructions": draw_reconstructions,
    "samples": draw_samples,
}


def figure(name: str, result: RepresentationResult) -> Figure:
    """One panel, as high as what it shows needs."""
    if name == "probes":
        return points_figure(*probe_points(result), "accuracy")
    if name == "ood":
        return points_figure(*ood_points(result), "AUROC")
    with mpl.rc_context(_STYLE):
        made = Figure(figsize=(PANEL[0], _height(name, result)), layout="constrained")
        DRAWS[name](made.subplots(), result)
    return made


def _height(name: str, result: RepresentationResult) -> float:
    """Inches: pictures need room for each row."""
    if name == "reconstructions" and result.pairs is not None:
        return 0.5 + 2 * -(-result.pairs.shape[1] // PAIRS) * PANEL[0] / (PAIRS + 1)
    if name == "samples" and result.samples is not None:
        return 0.5 + -(-len(result.samples) // PER_ROW) * PANEL[0] / (PER_ROW + 1)
    return PANEL[1]


def figures_for(result: RepresentationResult) -> list[str]:
    """The names of the figures that there is something for."""
    groups = {"probes": "probe", "few-labels": "few_labels", "ood": "ood", "corruptions": "corruptions"}
    pictures = {"reconstructions": result.pairs, "samples": result.samples}
    found = [name for name, group in groups.items() if result.of(group)]
    return found + [name for name, images in pictures.items() if images is not None]


@mpl.rc_context(_STYLE)
def representation_overview(result: RepresentationResult) -> Figure:
    """All figures side by side, an empty one where there is nothing to draw."""
    names = figures_for(result)
    height = max([PANEL[1], *(_height(name, result) for name in names)])
    made = Figure(figsize=(PANEL[0] * max(len(names), 1), height), layout="constrained")
    for i, name in enumerate(names):
        DRAWS[name](made.add_subplot(1, len(names), i + 1), result)
    return made
