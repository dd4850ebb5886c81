"""Points with intervals, a line for each name and a marker for each series: for comparing many figures of one kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .plots import _STYLE, COLOURS, PANEL, _plain

MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # 7 with 5 colours: no pair comes back before 35 series
Point = tuple[float, float | None, float | None]  # value and interval


def draw_points(
    axes: Axes,
    names: Sequence[str],
    series: Mapping[str, Sequence[Point | None]],
    label: str,
    styles: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """A line of the panel for each name, on it a point with its interval for each series; None leaves a gap.

    `styles` are colours and markers by series, where they are not to take turns.
    """
    step = 0.6 / max(len(series), 1)
    for i, (name, points) in enumerate(series.items()):
        places = np.arange(len(names)) + step * (i - (len(series) - 1) / 2)
        shown = [(y, *point) for y, point in zip(places, points, strict=True) if point is not None]
        x = np.array([value for _, value, _, _ in shown])
        low = np.array([value if bound is None else bound for _, value, bound, _ in shown])
        high = np.array([value if bound is None else bound for _, value, _, bound in shown])
        # rounding can put a bound a hair inside the estimate
        errors = np.clip([x - low, high - x], 0, None)
        style: Any = {"color": COLOURS[i % 5], "marker": MARKERS[i % 7], "label": _plain(name)}
        style |= styles[name] if styles else {}
        y = [line for line, *_ in shown]
        axes.errorbar(x, y, xerr=errors, linestyle="none", markersize=5, capsize=2, linewidth=1.4, **style)
    axes.set_yticks(range(len(names)), [_plain(name) for name in names])
    axes.set(ylim=(len(names) - 0.4, -0.6), xlabel=label)
    axes.locator_params(axis="x", nbins=5)


@mpl.rc_context(_STYLE)
def points_figure(
    names: Sequence[str], series: Mapping[str, Sequence[Point | None]], label: str, title: str = ""
) -> Figure:
    """One panel, taller for more names, with a legend above it where there are several series."""
    lines = max(len(names) * (1 + 0.5 * len(series)), 4)
    several = len(series) > 1
    figure = Figure(figsize=(PANEL[0], 1.1 + 0.13 * lines + 0.22 * len(series) * several), layout="constrained")
    axes = figure.subplots()
    draw_points(axes, names, series, label)
    axes.set_title(_plain(title))
    if several:
        figure.legend(loc="outside upper left", ncols=1)
    return figure
