"""Calibration of a model: its probabilities as they are, and after calibrators fitted on held-out data.

The plain metrics live in `calibration_metrics` and `calibration_smooth` and stand here too: `ece`, `equal_mass_ece`,
`classwise_ece`, `mce`, `smooth_ece`, `nll`, `brier`, `reliability_bins`. Energies and OOD scores always use the logits
as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ebmhybrid.errors import EbmhybridError

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
from .calibration_resampling import family_row
from .calibration_smooth import smooth_ece
from .calibration_tools import bootstrap_interval, netcal_ece, perfect_model_ece, perfect_model_value
from .calibrators import fit_isotonic, fit_temperature, fit_vector, unidentified
from .predictions import ImageSet, Model, Predictions, Progress, check_labels, predict, softmax
from .resampling import resamples

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
    "fit_isotonic",
    "fit_temperature",
    "fit_vector",
    "mce",
    "netcal_ece",
    "nll",
    "perfect_model_ece",
    "perfect_model_value",
    "reliability_bins",
    "shift_rows",
    "smooth_ece",
]


@dataclass(frozen=True)
class CalibrationResult:
    """A row of figures as the model is, `variant` "raw", and with held-out data "temperature", "vector", "isotonic".

    Attributes:
        rows: variant, set, n, n_validation, temperature (None where there is no single one), temperature_unidentified,
            accuracy, accuracy_raw, decisions_changed (images whose decision differs from the raw one), nll, brier,
            ece_20, netcal_ece_15; and ece_15, equal_mass_ece_15, classwise_ece_15, mce_15, smooth_ece, each with its
            bootstrap interval (..._low, ..._high) and what a perfect model shows (..._perfect).
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
        """Reliability diagrams before and after each calibrator."""
        from .plots_calibration import reliability_overview

        return reliability_overview(self)


def _row(
    variant: str, probabilities: np.ndarray, raw: Predictions, negative_log: float, weights: np.ndarray
) -> dict[str, Any]:
    """The figures of one variant that depend on its probabilities."""
    labels, decisions = raw.labels, probabilities.argmax(axis=1)
    return {
        "variant": variant,
        "set": raw.name,
        "n": len(labels),
        "accuracy": float((decisions == labels).mean()),
        "accuracy_raw": float(raw.correct.mean()),
        "decisions_changed": int((decisions != raw.logits.argmax(axis=1)).sum()),
        "nll": negative_log,
        "brier": brier(probabilities, labels),
        "ece_20": ece(probabilities, labels, bins=20),
        "netcal_ece_15": netcal_ece(probabilities, labels),
        **family_row(probabilities, labels, weights),
    }


def calibration_of(test: Predictions, validation: Predictions | None = None) -> CalibrationResult:
    """:func:`evaluate_calibration` from logits already at hand."""
    for predictions in (test, *([validation] if validation else [])):
        check_labels(predictions.labels, predictions.logits.shape[1], predictions.name)
    weights = resamples(len(test))
    rows, diagrams = [], {}

    def add(variant: str, probabilities: np.ndarray, negative_log: float, **fit: Any) -> None:
        facts = {"temperature": None, "temperature_unidentified": False, "n_validation": None} | fit
        rows.append(_row(variant, probabilities, test, negative_log, weights) | facts)
        diagrams[variant] = reliability_bins(probabilities, test.labels)

    def add_logits(variant: str, logits: np.ndarray, **fit: Any) -> None:
        add(variant, softmax(logits), nll_of_logits(logits, test.labels), **fit)

    add_logits("raw", test.logits, temperature=1.0)
    if validation is not None:
        held_out, n = (validation.logits, validation.labels), {"n_validation": len(validation)}
        temperature = fit_temperature(*held_out)
        unknown = unidentified(*held_out, temperature)
        add_logits(
            "temperature", test.logits / temperature, temperature=temperature, temperature_unidentified=unknown, **n
        )
        add_logits("vector", fit_vector(*held_out)(test.logits), **n)
        isotonic = fit_isotonic(validation.probabilities, validation.labels)(test.probabilities)
        add("isotonic", isotonic, nll(isotonic, test.labels), **n)
    return CalibrationResult(tuple(rows), diagrams)


def shift_rows(sets: Mapping[str, Predictions], temperature: float = 1.0) -> tuple[dict[str, Any], ...]:
    """Accuracy, NLL and ECE of a model on shifted sets, as it is and at a temperature fitted without shift.

    Arguments:
        sets: name -> labelled predictions, such as one for each corruption and severity.
        temperature: T > 0 from :func:`fit_temperature` on held-out images without shift.

    Returns:
        One row a set: set, n, accuracy, nll, ece_15, temperature, nll_scaled, ece_15_scaled.

    Raises:
        ValueError: a temperature that is not positive and finite, or labels outside [0, C).

    >>> logits = np.log([[0.75, 0.25]] * 4)
    >>> [row] = shift_rows({"fog": Predictions(3 * logits, np.array([0, 0, 0, 1]))}, temperature=3.0)
    >>> round(row["ece_15"], 3), round(row["ece_15_scaled"], 3)
    (0.214, 0.0)
    """
    if not (temperature > 0 and math.isfinite(temperature)):
        raise EbmhybridError(f"temperature must be positive and finite, got {temperature}")
    rows = []
    for name, predictions in sets.items():
        labels, scaled = predictions.labels, predictions.logits / temperature
        check_labels(labels, scaled.shape[1], name)
        rows.append(
            {
                "set": name,
                "n": len(labels),
                "accuracy": float(predictions.correct.mean()),
                "nll": nll_of_logits(predictions.logits, labels),
                "ece_15": ece(predictions.probabilities, labels),
                "temperature": temperature,
                "nll_scaled": nll_of_logits(scaled, labels),
                "ece_15_scaled": ece(softmax(scaled), labels),
            }
        )
    return tuple(rows)


def evaluate_calibration(
    model: Model,
    test_set: ImageSet,
    validation: ImageSet | None = None,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> CalibrationResult:
    """Calibration on a test set, as the model is and with calibrators fitted on held-out data.

    Arguments:
        model: images in [0, 1] -> logits.
        test_set: labelled images for every figure.
        validation: labelled images, not the test set, to fit temperature, vector scaling and isotonic regression on;
            None leaves them out.
        device, progress: see :func:`ebmhybrid.evaluate.predict`.

    Raises:
        ValueError: a set that :func:`ebmhybrid.evaluate.predict` refuses, or labels outside [0, C).

    >>> data = [(torch.rand(50, 1, 1, 3), torch.arange(50) % 3)]
    >>> [row["variant"] for row in evaluate_calibration(lambda x: x.flatten(1), data, validation=data).rows]
    ['raw', 'temperature', 'vector', 'isotonic']
    """
    test = predict(model, test_set, device, progress, labelled=True)
    held_out = predict(model, validation, device, progress, labelled=True) if validation is not None else None
    return calibration_of(test, held_out)
