"""Figures of the robustness checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .formats import in_255
from .ood import MACRO_MEAN
from .plots import _STYLE, BLUE, GREEN, ORANGE, _apart, _grid, _legend_below, _plain

_LINES = {
    "ood": ("OOD attacked", BLUE, "-"),
    "id": ("ID attacked", ORANGE, "--"),
    "both": ("both attacked", GREEN, "-."),
}


def draw_detector(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    """AUROC over eps, one line for each attacked side, all from the clean AUROC; below 0.5 is worse than chance."""
    names = [row["ood_set"] for row in rows]
    shown = MACRO_MEAN if MACRO_MEAN in names else names[0]
    rows = [row for row in rows if row["ood_set"] == shown]
    for side, (label, colour, dash) in _LINES.items():
        line = sorted((row for row in rows if row["attacked"] in ("none", side)), key=lambda row: row["eps"])
        x, y = [row["eps"] for row in line], [row["auroc"] for row in line]
        axes.plot(x, y, color=colour, linestyle=dash, marker="o", markersize=4, linewidth=1.6, label=label)
    axes.axhline(0.5, color="#999999", linewidth=0.8)
    norm = rows[0]["norm"]
    axes.set(ylim=(-0.02, 1.02), xlabel=f"eps ({norm})", ylabel=f"AUROC of {rows[0]['score']}")
    axes.set_title(f"{_plain(rows[0]['id_set'])} and {_plain(shown)}")
    if norm == "linf":
        ticks = _apart(sorted({row["eps"] for row in rows}))
        axes.set_xticks(ticks, [in_255(eps) for eps in ticks])
    _legend_below(axes, 3)


@mpl.rc_context(_STYLE)
def detector_curve(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """AUROC under attack over eps: of the mean over the OOD sets where there are several, else of the one."""
    figure, axes = _grid(1, 1)
    draw_detector(axes[0, 0], rows)
    return figure
