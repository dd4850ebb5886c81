"""What surrounds a calibration figure: its interval, its floor, a second opinion. For any metric, one call a draw."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np

from ebmhybrid.errors import EbmhybridError

from .calibration_metrics import (
    Array,
    as_numpy,
    bin_index,
    binned_gap,
    check_probabilities,
    top_class,
)

Metric = Callable[[Array, Array, int], float]


def bootstrap_interval(
    probabilities: Array,
    labels: Array,
    bins: int = 15,
    n: int = 1000,
    level: float = 0.95,
    rng: np.random.Generator | None = None,
    metric: Metric | None = None,
) -> tuple[float, float]:
    """Percentile bootstrap interval of :func:`ece`, or of another metric, over images (Efron 1979).

    Resampling adds noise to every bin, so the interval leans upwards as ECE itself does, and can lie above the point
    estimate of a well calibrated model.

    Arguments:
        n: resamples.
        level: coverage of the interval, in (0, 1).
        rng: source of the resamples; None is a fresh generator with seed 0.
        metric: (probabilities, labels, bins) -> value; None is ECE, by a faster way.

    >>> low, high = bootstrap_interval(np.full((100, 2), 0.5), np.arange(100) % 2)
    >>> 0 <= low < high < 0.2
    True
    """
    if n < 1 or not 0 < level < 1:
        raise EbmhybridError(f"need n >= 1 and 0 < level < 1, got n={n}, level={level}")
    values, targets = check_probabilities(probabilities, labels)
    confidence, correct = top_class(values, targets)
    rng = np.random.default_rng(0) if rng is None else rng
    gaps, index, size = correct - confidence, bin_index(confidence, bins), len(confidence)
    draws = np.empty(n)
    for i in range(n):
        chosen = rng.integers(size, size=size)
        if metric is not None:
            draws[i] = metric(values[chosen], targets[chosen], bins)
        else:
            draws[i] = np.abs(np.bincount(index[chosen], weights=gaps[chosen], minlength=bins)).sum() / size
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def perfect_model_ece(
    confidence: np.ndarray, bins: int = 15, n: int = 200, rng: np.random.Generator | None = None
) -> float:
    """Expected ECE of a perfectly calibrated model with these confidences: what an ECE of "zero" looks like at this N.

    Monte Carlo over correctness a_i ~ Bernoulli(c_i). Falls about as 1 / sqrt(N).

    Arguments:
        confidence: (N,) in [0, 1], of the most probable class.
        n: Monte Carlo draws.
        rng: None is a fresh generator with seed 0.

    >>> perfect_model_ece(np.ones(10))
    0.0
    """
    confidence = np.asarray(confidence, dtype=np.float64)
    if confidence.ndim != 1 or confidence.size == 0 or not ((confidence >= 0) & (confidence <= 1)).all():
        raise EbmhybridError(f"confidence must be a non-empty vector in [0, 1], got shape {confidence.shape}")
    rng = np.random.default_rng(0) if rng is None else rng
    draws = (rng.random(len(confidence)) < confidence for _ in range(n))
    return float(np.mean([binned_gap(confidence, outcome.astype(np.float64), bins) for outcome in draws]))


def perfect_model_value(
    metric: Metric, probabilities: Array, bins: int = 15, n: int = 50, rng: np.random.Generator | None = None
) -> float:
    """Expected value of a metric for a model whose probabilities are true: labels drawn y_i ~ Categorical(p_i).

    >>> from .calibration_metrics import mce
    >>> perfect_model_value(mce, np.array([[1.0, 0.0]] * 10))
    0.0
    """
    values = as_numpy(probabilities).astype(np.float64)
    check_probabilities(values, np.zeros(len(values), dtype=np.int64))
    rng = np.random.default_rng(0) if rng is None else rng
    edges = values.cumsum(axis=1)[:, :-1]
    draws = ((rng.random((len(values), 1)) >= edges).sum(axis=1) for _ in range(n))
    return float(np.mean([metric(values, labels, bins) for labels in draws]))


def netcal_ece(probabilities: Array, labels: Array, bins: int = 15) -> float | None:
    """ECE as netcal computes it, in float64: a second opinion. None where netcal refuses, with two labels or fewer.

    netcal's bins are closed on the left, so a confidence exactly on an edge falls in another bin than in :func:`ece`.
    """
    values, targets = check_probabilities(probabilities, labels)
    if len(np.unique(targets)) <= 2:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from netcal.metrics import ECE

        return float(ECE(bins).measure(values, targets))
