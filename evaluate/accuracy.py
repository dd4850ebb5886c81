"""Accuracy with its interval, beside NLL and Brier score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ebmhybrid.errors import EbmhybridError

from .calibration_metrics import brier, nll_of_logits
from .predictions import ImageSet, Model, Predictions, Progress, check_labels, predict


def wilson_interval(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a proportion (Wilson 1927): stays in [0, 1] and has a width at 0 and n successes too.

    Raises:
        ValueError: n < 1, or successes outside [0, n].

    >>> [round(bound, 4) for bound in wilson_interval(0, 10)]
    [0.0, 0.2775]
    """
    if n < 1 or not 0 <= successes <= n:
        raise EbmhybridError(f"need 0 <= successes <= n and n >= 1, got {successes} of {n}")
    from scipy.stats import binomtest

    interval = binomtest(int(successes), int(n)).proportion_ci(confidence_level=level, method="wilson")
    return float(interval.low), float(interval.high)


@dataclass(frozen=True)
class AccuracyResult:
    """Accuracy of one set: `rows` holds a single row."""

    rows: tuple[dict[str, Any], ...]

    def as_dict(self) -> dict[str, Any]:
        """The rows, ready for JSON."""
        return {"rows": [dict(row) for row in self.rows]}


def accuracy_of(predictions: Predictions) -> AccuracyResult:
    """Accuracy with its 95 % Wilson interval, NLL in nats and Brier score in [0, 2], from logits already at hand."""
    check_labels(predictions.labels, predictions.logits.shape[1], predictions.name)
    n, right = len(predictions), int(predictions.correct.sum())
    low, high = wilson_interval(right, n)
    row = {
        "set": predictions.name,
        "n": n,
        "accuracy": right / n,
        "accuracy_low": low,
        "accuracy_high": high,
        "nll": nll_of_logits(predictions.logits, predictions.labels),
        "brier": brier(predictions.probabilities, predictions.labels),
    }
    return AccuracyResult((row,))


def evaluate_accuracy(
    model: Model, data: ImageSet, device: torch.device | str | None = None, progress: Progress | None = None
) -> AccuracyResult:
    """Accuracy of a model on a labelled set; see :func:`accuracy_of`.

    >>> data = [(torch.tensor([[[[0.0, 1.0]]], [[[1.0, 0.0]]]]), torch.tensor([1, 1]))]
    >>> evaluate_accuracy(lambda images: images.flatten(1), data).rows[0]["accuracy"]
    0.5
    """
    return accuracy_of(predict(model, data, device, progress, labelled=True))
