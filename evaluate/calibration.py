"""Calibration of a model: its probabilities as they are, and after temperature scaling on held-out data.

The plain metrics live in `calibration_metrics` and stand here too: `ece`, `equal_mass_ece`, `classwise_ece`, `mce`,
`nll`, `brier`, `reliability_bins`. Energies and OOD scores always use the logits as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .calibration_metrics import (
    ReliabilityBins,
    brier,
    classwise_ece,
    ece,
    equal_mass_ece,
    mce,
    nll,
    nll_of_logits,
    reliability_bins,
)
from .calibration_tools import (
    bootstrap_interval,
    fit_temperature,
    netcal_ece,
    perfect_model_ece,
    perfect_model_value,
    unidentified,
)
from .predictions import ImageSet, Model, Predictions, Progress, check_labels, predict, softmax

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "CalibrationResult",
    "ReliabilityBins",
    "bootstrap_interval",
    "brier",
    "calibration_of",
    "classwise_ece",
    "ece",
    "equal_mass_ece",
    "evaluate_calibration",
    "fit_temperature",
    "mce",
    "netcal_ece",
    "nll",
    "perfect_model_ece",
    "perfect_model_value",
    "reliability_bins",
]


# Each with a bootstrap interval and what a perfectly calibrated model would show.
FAMILY = {"ece_15": ece, "equal_mass_ece_15": equal_mass_ece, "classwise_ece_15": classwise_ece, "mce_15": mce}


@dataclass(frozen=True)
class CalibrationResult:
    """A row of figures as the model is, `variant` "raw", and with held-out data one "temperature" row.

    Attributes:
        rows: variant, set, n, temperature, n_validation, accuracy, nll, brier, ece_20, netcal_ece_15; and ece_15,
            equal_mass_ece_15, classwise_ece_15, mce_15, each with its bootstrap interval (..._low, ..._high) and what
            a perfect model shows (..._perfect).
        diagrams: variant -> reliability bins.
    """

    rows: tuple[dict[str, Any], ...]
    diagrams: Mapping[str, ReliabilityBins] = field(repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Rows and reliability bins, ready for JSON; an empty bin's means are None."""
        bins = {
            variant: {
                "edges": table.edges.tolist(),
                "count": table.count.tolist(),
                "confidence": [None if math.isnan(value) else value for value in table.confidence.tolist()],
                "accuracy": [None if math.isnan(value) else value for value in table.accuracy.tolist()],
            }
            for variant, table in self.diagrams.items()
        }
        return {"rows": [dict(row) for row in self.rows], "reliability": bins}

    def plot(self) -> Figure:
        """Reliability diagrams side by side, before and after."""
        from .plots import reliability_overview

        return reliability_overview(self)


def _row(variant: str, logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """The figures of one variant that depend on its probabilities."""
    probabilities = softmax(logits)
    row: dict[str, Any] = {
        "variant": variant,
        "n": len(labels),
        "accuracy": float((logits.argmax(axis=1) == labels).mean()),
        "nll": nll_of_logits(logits, labels),
        "brier": brier(probabilities, labels),
        "ece_20": ece(probabilities, labels, bins=20),
        "netcal_ece_15": netcal_ece(probabilities, labels),
    }
    for name, metric in FAMILY.items():
        fast = metric is ece
        low, high = bootstrap_interval(probabilities, labels, n=1000 if fast else 200, metric=None if fast else metric)
        row[name] = metric(probabilities, labels, 15)
        row |= {f"{name}_low": low, f"{name}_high": high}
        row[f"{name}_perfect"] = perfect_model_value(metric, probabilities)
    row["ece_15_perfect"] = perfect_model_ece(probabilities.max(axis=1))
    return row


def calibration_of(test: Predictions, validation: Predictions | None = None) -> CalibrationResult:
    """:func:`evaluate_calibration` from logits already at hand."""
    for predictions in (test, *([validation] if validation else [])):
        check_labels(predictions.labels, predictions.logits.shape[1], predictions.name)
    variants: list[tuple[str, float, Predictions | None]] = [("raw", 1.0, None)]
    if validation is not None:
        variants.append(("temperature", fit_temperature(validation.logits, validation.labels), validation))
    rows, diagrams = [], {}
    for variant, temperature, held_out in variants:
        logits = test.logits / temperature
        fit = {
            "set": test.name,
            "temperature": temperature,
            "temperature_unidentified": held_out is not None
            and unidentified(held_out.logits, held_out.labels, temperature),
            "n_validation": None if held_out is None else len(held_out),
        }
        rows.append(_row(variant, logits, test.labels) | fit)
        diagrams[variant] = reliability_bins(softmax(logits), test.labels)
    return CalibrationResult(tuple(rows), diagrams)


def evaluate_calibration(
    model: Model,
    test_set: ImageSet,
    validation: ImageSet | None = None,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> CalibrationResult:
    """Calibration on a test set, as the model is and with the temperature that suits held-out data best.

    Arguments:
        model: images in [0, 1] -> logits.
        test_set: labelled images for every figure.
        validation: labelled images, not the test set, to fit the temperature on; None leaves it out.
        device, progress: see :func:`ebmhybrid.evaluate.predict`.

    Raises:
        ValueError: a set that :func:`ebmhybrid.evaluate.predict` refuses, or labels outside [0, C).

    >>> data = [(torch.rand(50, 1, 1, 3), torch.arange(50) % 3)]
    >>> [row["variant"] for row in evaluate_calibration(lambda x: x.flatten(1), data, validation=data).rows]
    ['raw', 'temperature']
    """
    test = predict(model, test_set, device, progress, labelled=True)
    held_out = predict(model, validation, device, progress, labelled=True) if validation is not None else None
    return calibration_of(test, held_out)
