"""Quality of samples written out from the papers' equations with plain loops and matrix functions."""

from __future__ import annotations

import math

import numpy as np
from scipy.linalg import sqrtm


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Heusel et al. 2017, equation 6, with the principal root of the product of covariances."""
    mean_a, mean_b = a.sum(axis=0) / len(a), b.sum(axis=0) / len(b)
    cov_a, cov_b = covariance(a), covariance(b)
    root = sqrtm(cov_a @ cov_b)
    return float(np.sum((mean_a - mean_b) ** 2) + np.trace(cov_a + cov_b - 2 * root).real)


def covariance(rows: np.ndarray) -> np.ndarray:
    """Divided by N - 1, one outer product at a time."""
    mean = rows.sum(axis=0) / len(rows)
    total = np.zeros((rows.shape[1], rows.shape[1]))
    for row in rows:
        total += np.outer(row - mean, row - mean)
    return total / (len(rows) - 1)


def kernel(x: np.ndarray, y: np.ndarray) -> float:
    return float((sum(p * q for p, q in zip(x, y, strict=True)) / len(x) + 1) ** 3)


def mmd2(a: np.ndarray, b: np.ndarray) -> float:
    """Binkowski et al. 2018, equation 4: three means over pairs, without the pairs of a row with itself."""
    n, m = len(a), len(b)
    within_a = sum(kernel(a[i], a[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within_b = sum(kernel(b[i], b[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    between = sum(kernel(x, y) for x in a for y in b) / (n * m)
    return within_a + within_b - 2 * between


def jackknife_error(a: np.ndarray, b: np.ndarray) -> float:
    """Root of the summed variances of both sides' rows, each left out in turn."""
    variance = 0.0
    for side in (0, 1):
        rows = (a, b)[side]
        values = []
        for i in range(len(rows)):
            rest = np.delete(rows, i, axis=0)
            values.append(mmd2(rest, b) if side == 0 else mmd2(a, rest))
        mean = sum(values) / len(values)
        variance += (len(rows) - 1) / len(rows) * sum((value - mean) ** 2 for value in values)
    return math.sqrt(variance)


def class_score(rows: np.ndarray) -> float:
    """Salimans et al. 2016: exp of the mean divergence from the mean distribution."""
    mean = [sum(row[c] for row in rows) / len(rows) for c in range(rows.shape[1])]
    divergences = [
        sum(p * (math.log(p) - math.log(q)) for p, q in zip(row, mean, strict=True) if p > 0) for row in rows
    ]
    return math.exp(sum(divergences) / len(divergences))


def nearest(queries: np.ndarray, pool: np.ndarray, others: bool = False) -> list[tuple[float, int]]:
    """Distance and place of the nearest row, pair by pair."""
    found = []
    for i, row in enumerate(queries):
        pairs = [(math.dist(row, other), j) for j, other in enumerate(pool) if not (others and i == j)]
        found.append(min(pairs))
    return found
