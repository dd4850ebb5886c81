"""Selective classification: what a model gets wrong when it may decline its least confident answers.

The plain metrics and their formulas live in `selective_metrics` and stand here too: `risk_coverage`, `aurc`, `e_aurc`,
`augrc`, `risk_at_coverage`, `coverage_at_risk`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from . import scores
from .predictions import ImageSet, Model, Predictions, Progress, check_labels, predict
from .resampling import interval, resamples
from .selective_metrics import areas, augrc, aurc, checked, coverage_at_risk, e_aurc, risk_at_coverage, risk_coverage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "CONFIDENCES",
    "SelectiveResult",
    "augrc",
    "aurc",
    "coverage_at_risk",
    "e_aurc",
    "evaluate_selective",
    "margin",
    "risk_at_coverage",
    "risk_coverage",
    "selective_of",
    "thinned",
]

COVERAGES = (0.8, 0.9, 0.95)
MOST_POINTS = 300


def margin(logits: np.ndarray) -> np.ndarray:
    """Largest logit minus the second largest, log p_1 / p_2, float64 (N,); 0 for a single class.

    Of logits, not of probabilities, whose margin is 1.0 for every saturated image.

    >>> margin(np.array([[3.0, 1.0, 0.0]]))
    array([2.])
    """
    values = np.asarray(logits, dtype=np.float64)
    if values.shape[1] == 1:
        return np.zeros(len(values))
    second, top = np.partition(values, -2, axis=1)[:, -2:].T
    return top - second


CONFIDENCES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "msp": scores.msp,
    "margin": margin,
    "energy": scores.energy,
}


@dataclass(frozen=True)
class SelectiveResult:
    """A row of figures for each confidence function of one set.

    Attributes:
        rows: set, score (the confidence function), n, accuracy, aurc and augrc with bootstrap intervals (..._low,
            ..._high), e_aurc, risk_at_80, risk_at_90, risk_at_95 (percent of coverage), coverage_at_1 (percent of
            risk).
        curves: score -> (coverage, selective risk), float64 (n,) each.
    """

    rows: tuple[dict[str, Any], ...]
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]] = field(repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Rows, and at most `MOST_POINTS` points of each curve, ready for JSON."""
        points = {
            name: {"coverage": coverage.tolist(), "risk": risk.tolist()}
            for name, (coverage, risk) in ((name, thinned(*curve)) for name, curve in self.curves.items())
        }
        return {"rows": [dict(row) for row in self.rows], "curves": points}

    def plot(self) -> Figure:
        """Risk over coverage, one line for each confidence function."""
        from .plots_selective import risk_coverage_figure

        return risk_coverage_figure(self)


def thinned(coverage: np.ndarray, risk: np.ndarray, most: int = MOST_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """At most `most` points of a curve, evenly spaced in coverage, the first and the last among them.

    >>> thinned(np.arange(1, 11) / 10, np.zeros(10), most=4)[0]
    array([0.1, 0.4, 0.7, 1. ])
    """
    keep = np.unique(np.linspace(0, len(coverage) - 1, most).round().astype(np.int64))
    return coverage[keep], risk[keep]


def selective_of(predictions: Predictions) -> SelectiveResult:
    """:func:`evaluate_selective` from logits already at hand."""
    check_labels(predictions.labels, predictions.logits.shape[1], predictions.name)
    correct, weights = predictions.correct, resamples(len(predictions))
    rows, curves = [], {}
    for name, function in CONFIDENCES.items():
        confidence = function(predictions.logits)
        row: dict[str, Any] = {
            "set": predictions.name,
            "score": name,
            "n": len(predictions),
            "accuracy": float(correct.mean()),
        }
        figures = zip(("aurc", "augrc"), (aurc, augrc), areas(*checked(confidence, correct), weights), strict=True)
        for key, figure, draws in figures:
            low, high = interval(draws)
            row |= {key: figure(confidence, correct), f"{key}_low": low, f"{key}_high": high}
        row["e_aurc"] = e_aurc(confidence, correct)
        row |= {f"risk_at_{100 * level:.0f}": risk_at_coverage(confidence, correct, level) for level in COVERAGES}
        row["coverage_at_1"] = coverage_at_risk(confidence, correct, 0.01)
        rows.append(row)
        curves[name] = risk_coverage(confidence, correct)
    return SelectiveResult(tuple(rows), curves)


def evaluate_selective(
    model: Model, data: ImageSet, device: torch.device | str | None = None, progress: Progress | None = None
) -> SelectiveResult:
    """Selective classification of a model on a labelled set, by three confidence functions.

    msp (log-odds of the top class, see `scores.msp`), margin (see :func:`margin`) and energy (the log density).

    Arguments:
        model: images in [0, 1] -> logits.
        data: labelled images.
        device, progress: see :func:`ebmhybrid.evaluate.predict`.

    Raises:
        ValueError: a set that :func:`ebmhybrid.evaluate.predict` refuses, or labels outside [0, C).

    >>> data = [(torch.rand(50, 1, 1, 3), torch.arange(50) % 3)]
    >>> [row["score"] for row in evaluate_selective(lambda images: images.flatten(1), data).rows]
    ['msp', 'margin', 'energy']
    """
    return selective_of(predict(model, data, device, progress, labelled=True))
