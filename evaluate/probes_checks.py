"""What the probes are given, checked: labels, validation examples, strengths and counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ebmhybrid.errors import EbmhybridError

from .feature_detectors import check_features

MOST_CLASSES = 2**16
Pair = tuple[np.ndarray, np.ndarray]


def check_labels(labels: np.ndarray, features: np.ndarray, name: str, classes: int | None = None) -> np.ndarray:
    """Labels as int64 (N,), at least 0 and below `classes`, or an EbmhybridError that names them."""
    values = np.asarray(labels)
    if values.shape != (len(features),) or values.dtype.kind not in "iu":
        raise EbmhybridError(f"{name} must be integers of shape ({len(features)},), got {values.dtype} {values.shape}")
    low, high, end = int(values.min()), int(values.max()), classes or MOST_CLASSES
    if low < 0 or high >= end:
        raise EbmhybridError(f"{name} must lie in [0, {end}), got [{low}, {high}]")
    return values.astype(np.int64)


def check_pair(pair: Pair, width: int) -> Pair:
    """The validation examples, their features checked, or an EbmhybridError."""
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        got = f"{len(pair)} values" if isinstance(pair, (tuple, list)) else type(pair).__name__
        raise EbmhybridError(f"validation must be a pair of features and labels or targets, got {got}")
    return check_features(pair[0], width, "validation features"), pair[1]


def check_grid(grid: Sequence[float]) -> list[float]:
    """The strengths to choose from in ascending order, or an EbmhybridError."""
    values = np.asarray(grid)
    if (
        values.ndim != 1
        or values.dtype.kind not in "iuf"
        or not len(values)
        or not ((values > 0) & (values < np.inf)).all()
    ):
        raise EbmhybridError(f"grid must hold finite numbers above 0, got {grid!r}")
    return sorted(map(float, values))


def whole_numbers(values: Any, name: str, low: int, high: int | None = None) -> list[int]:
    """One or several whole numbers as a list, or an EbmhybridError that names them.

    >>> whole_numbers((1, 5), "k", 1, 10)
    [1, 5]
    """
    given = [values] if np.ndim(values) == 0 else list(values)
    fit = [isinstance(one, (int, np.integer)) and not isinstance(one, bool) and low <= one for one in given]
    if not given or not all(fit) or (high is not None and max(given) > high):
        span = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise EbmhybridError(f"{name} must be whole numbers {span}, got {values!r}")
    return [int(one) for one in given]
