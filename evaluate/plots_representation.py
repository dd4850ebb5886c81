"""Figures of representations: probe accuracies, few labels, OOD detection, corruptions, reconstructions, samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from .plots import _STYLE, COLOURS, DASHES, PANEL, _legend_below, _plain
from .plots_corruptions import severity_curve
from .plots_generation import PAIRS, PER_ROW, draw_images
from .plots_points import MARKERS, Point, draw_points, points_figure
from .report_representation_tables import MODEL

if TYPE_CHECKING:
    from .representation_result import RepresentationResult, Row

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
        points = series.setdefault(_ood_label(row), [None] * len(names))
        points[names.index(row["ood_set"])] = (row["auroc"], row.get("auroc_low"), row.get("auroc_high"))
    return names, series


def _ood_label(row: Row) -> str:
    return f"{row['representation']}, {row['score']}" if row["representation"] else str(row["score"])


def draw_probes(axes: Axes, result: RepresentationResult) -> None:
    """A line for each representation, on it a point with its interval for each probe."""
    draw_points(axes, *probe_points(result), "accuracy")
    _legend_below(axes, 2)


def draw_ood(axes: Axes, result: RepresentationResult) -> None:
    """A line for each OOD set, on it a point with its interval for each score."""
    names, series = ood_points(result)
    colours, markers = _ood_keys(result)
    styles = {}
    for row in result.of("ood"):
        style = {"color": colours[row["representation"]], "marker": markers[row["score"]]}
        styles[_ood_label(row)] = style
    draw_points(axes, names, series, "AUROC", styles)
    keys = [Line2D([], [], color=colour, linewidth=4, label=_plain(name or MODEL)) for name, colour in colours.items()]
    shapes = [Line2D([], [], color="#222222", linestyle="none", marker=m, label=name) for name, m in markers.items()]
    axes.legend(handles=[*keys, *shapes], loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, borderaxespad=0)


def _ood_keys(result: RepresentationResult) -> tuple[dict[str | None, str], dict[str, str]]:
    """A colour for each representation, black for the model itself, and a marker for each score."""
    found = dict.fromkeys(row["representation"] for row in result.of("ood"))
    places = list(result.about["representations"])
    colours = {name: COLOURS[places.index(name) % 5] if name else "#222222" for name in found}
    scores = dict.fromkeys(str(row["score"]) for row in result.of("ood"))
    return colours, dict(zip(scores, MARKERS, strict=False))


def draw_few_labels(axes: Axes, result: RepresentationResult) -> None:
    """Mean accuracy over the number of labels a class, on a logarithmic axis."""
    ticks: list[int] = []
    for i, name in enumerate(result.about["representations"]):
        rows = result.of("few_labels", name)
        if rows:
            ticks = [row["labels_per_class"] for row in rows]
            y, error = (np.array([row[key] for row in rows]) for key in ("accuracy", "accuracy_std"))
            ends = np.minimum(error, y), np.minimum(error, 1 - y)  # a share ends at 0 and at 1
            style: Any = _line(i) | {"capsize": 3, "linewidth": 1.6, "label": _plain(name)}
            axes.errorbar(ticks, y, yerr=ends, clip_on=False, **style)
    axes.set_xscale("log")
    axes.set_xticks(ticks, [str(n) for n in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(top=min(axes.get_ylim()[1], 1))
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
        left += ["image", "reconstruction"]
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
    if name == "ood":
        names, series = ood_points(result)
        keys = sum(len(part) for part in _ood_keys(result))
        return 1.1 + 0.13 * max(len(names) * (1 + 0.5 * len(series)), 4) + 0.22 * -(-keys // 2)
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
