"""Risk-coverage curves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .plots import _STYLE, COLOURS, DASHES, _grid, _legend_below, _plain
from .selective import thinned

if TYPE_CHECKING:
    from .selective import SelectiveResult


def draw_risk_coverage(axes: Axes, curves: Mapping[str, tuple[np.ndarray, np.ndarray]], labels: list[str]) -> None:
    """Selective risk over coverage of each confidence function, above the curve of the best possible order."""
    coverage, risk = next(iter(curves.values()))
    best = np.maximum(0.0, coverage - (1 - risk[-1])) / coverage
    axes.plot(*thinned(coverage, best), color="#777777", linewidth=1, label="every wrong image last")
    for i, (curve, label) in enumerate(zip(curves.values(), labels, strict=True)):
        style: Any = {"color": COLOURS[i % 5], "linestyle": DASHES[i % 5], "linewidth": 1.6, "label": label}
        axes.plot(*thinned(*curve), **style)
    axes.set(xlim=(-0.01, 1.01), xlabel="coverage", ylabel="selective risk")
    axes.set_ylim(bottom=0)
    _legend_below(axes, 2, "confidence (AURC x 1000)")


@mpl.rc_context(_STYLE)
def risk_coverage_figure(result: SelectiveResult) -> Figure:
    """Risk over coverage of one set."""
    figure, axes = _grid(1, 1)
    draw_risk_coverage(axes[0, 0], result.curves, [f"{row['score']} ({1000 * row['aurc']:.2f})" for row in result.rows])
    axes[0, 0].set_title(f"{_plain(result.rows[0]['set'])}, n = {result.rows[0]['n']:,}")
    return figure
