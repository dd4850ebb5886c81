"""Bootstrap resamples as weights, which serve every figure and variant of one set, and the interval they give."""

from __future__ import annotations

import numpy as np

from ebmhybrid.errors import EbmhybridError

DRAWS = 200


def resamples(n: int, draws: int = DRAWS, rng: np.random.Generator | None = None) -> np.ndarray:
    """How often each of n images is drawn in a bootstrap resample of n (Efron 1979), float64 (draws, n).

    Arguments:
        rng: None is a fresh generator with seed 0.

    >>> resamples(3, draws=2).sum(axis=1)
    array([3., 3.])
    """
    if n < 1 or draws < 1:
        raise EbmhybridError(f"need n >= 1 and draws >= 1, got n={n}, draws={draws}")
    rng = np.random.default_rng(0) if rng is None else rng
    weights = np.empty((draws, n))
    for row in weights:
        row[:] = np.bincount(rng.integers(n, size=n), minlength=n)
    return weights


def interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of bootstrap values (draws,): the central `level` of them.

    >>> interval(np.arange(101.0), level=0.5)
    (25.0, 75.0)
    """
    if not 0 < level < 1:
        raise EbmhybridError(f"level must lie in (0, 1), got {level}")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
