"""Figures of accuracy and calibration under corruptions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .corruption_kinds import FAMILIES
from .plots import _STYLE, COLOURS, DASHES, _grid, _legend_below, _plain

Rows = Sequence[Mapping[str, Any]]
LABELS = {"accuracy": "accuracy", "nll": "NLL (nats)", "ece_15": "ECE, 15 bins"}
_BLACK = "#222222"


def severity_curve(rows: Rows, metric: str, family: str | None = None) -> tuple[list[int], list[float]]:
    """Severities, from 0 for clean images, and at each the mean of a metric over the corruptions of a family.

    None as family is the mean over all, which leaves "extra" corruptions out.
    """
    if family is None:
        points = {row["severity"]: [row[metric]] for row in rows if row["corruption"] in ("none", "mean")}
        points.pop(None, None)
    else:
        points = {row["severity"]: [row[metric]] for row in rows if row["corruption"] == "none"}
        for row in rows:
            if row["family"] == family and row["severity"] is not None:
                points.setdefault(row["severity"], []).append(row[metric])
    levels = sorted(points)
    return levels, [float(np.mean(points[level])) for level in levels]


def draw_corruptions(axes: Axes, rows: Rows, metric: str) -> None:
    """A metric over severity: a line for each family, a thick one for the mean over all.

    With a temperature the mean ECE after scaling is there too.
    """
    for i, family in enumerate(FAMILIES):
        if any(row["family"] == family for row in rows):
            style: Any = {"color": COLOURS[i], "linestyle": DASHES[i], "linewidth": 1.4, "marker": "o", "markersize": 3}
            axes.plot(*severity_curve(rows, metric, family), label=family, **style)
    axes.plot(*severity_curve(rows, metric), color=_BLACK, linewidth=2.2, marker="o", markersize=4, label="mean")
    if metric == "ece_15" and "ece_15_scaled" in rows[0]:
        scaled: Any = {"color": _BLACK, "linewidth": 1.4, "linestyle": DASHES[4], "marker": "s", "markersize": 4}
        axes.plot(*severity_curve(rows, "ece_15_scaled"), label="mean, temperature-scaled", **scaled)
    axes.set(xlabel="severity (0: clean)", ylabel=LABELS[metric])
    axes.set_xticks(sorted({row["severity"] for row in rows} - {None}))
    axes.set_ylim(-0.02, 1.02) if metric == "accuracy" else axes.set_ylim(bottom=0)
    axes.set_title(f"{_plain(rows[0]['set'])}, n = {rows[0]['n']:,}")
    _legend_below(axes, 2)


@mpl.rc_context(_STYLE)
def corruption_figure(rows: Rows, metric: str = "accuracy") -> Figure:
    """One panel: "accuracy", "nll" or "ece_15" over severity."""
    figure, axes = _grid(1, 1)
    draw_corruptions(axes[0, 0], rows, metric)
    return figure


@mpl.rc_context(_STYLE)
def corruption_overview(rows: Rows) -> Figure:
    """Accuracy and ECE over severity, side by side."""
    figure, axes = _grid(1, 2)
    for panel, metric in zip(axes[0], ("accuracy", "ece_15"), strict=True):
        draw_corruptions(panel, rows, metric)
    return figure
