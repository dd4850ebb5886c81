"""Reliability diagrams of all variants of a calibration result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure

from .formats import variant_name
from .plots import _STYLE, _grid, draw_reliability

if TYPE_CHECKING:
    from .calibration import CalibrationResult


def reliability_title(row: Mapping[str, Any]) -> str:
    """What was done and the ECE it has.

    >>> reliability_title({"variant": "temperature", "temperature": 1.5, "ece_15": 0.01, "n": 2000})
    'temperature 1.5: ECE 0.0100, n = 2,000'
    """
    scaled = row["variant"] == "temperature"
    variant = f"temperature {row['temperature']:.3g}" if scaled else variant_name(row["variant"])
    return f"{variant}: ECE {row['ece_15']:.4f}, n = {row['n']:,}"


@mpl.rc_context(_STYLE)
def reliability_overview(result: CalibrationResult) -> Figure:
    """A reliability diagram for each variant, two in a line."""
    figure, axes = _grid((len(result.rows) + 1) // 2, min(len(result.rows), 2))
    for panel, row in zip(axes.ravel(), result.rows, strict=True):
        draw_reliability(panel, result.diagrams[row["variant"]], reliability_title(row))
    return figure
