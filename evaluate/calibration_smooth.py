r"""Smooth ECE (Blasiok & Nakkiran 2023): calibration error of a kernel smoother instead of bins.

With confidence c_i, correctness a_i and K_s the Gaussian kernel of bandwidth s reflected at 0 and 1,

    smECE_s = integral_0^1 | sum_i K_s(t, c_i) (a_i - c_i) / N | dt,      smECE = the s with smECE_s = s

smECE_s never rises with s, so there is one fixed point: no number of bins to choose, and the figure is continuous in
the confidences, which a binned one is not.

On [0, 1] the reflected Gaussian is diagonal in the cosine basis, K_s(t, c) = 1 + 2 sum_k exp(-(pi k s)^2 / 2)
cos(pi k t) cos(pi k c), all reflections included. The gaps a_i - c_i are put on a grid of `CELLS` cells, each shared by
its two nearest nodes; smoothing is then a discrete cosine transform. Errors below the width of a cell are not resolved.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .calibration_metrics import Array, top_class

CELLS = 1024


def smooth_ece(probabilities: Array, labels: Array) -> float:
    """Smooth ECE of the most probable class, in [0, 1]; see the module for the formula.

    Arguments:
        probabilities: (N, C), rows that sum to 1; float32 or float64.
        labels: (N,) integers in [0, C).

    Raises:
        ValueError: logits, half precision, or shapes and labels that do not fit.

    >>> round(smooth_ece(np.array([[0.7, 0.3], [0.7, 0.3]]), np.array([0, 1])), 4)
    0.2
    """
    confidence, correct = top_class(probabilities, labels)
    gaps = (correct - confidence) @ nodes(confidence)
    return float(fixed_points(gaps[None] / len(confidence), tolerance=1e-8)[0])


def nodes(confidence: np.ndarray) -> Any:
    """Sparse (N, CELLS + 1): the shares of each confidence in its two nearest nodes k / CELLS."""
    from scipy.sparse import csr_array

    position = confidence * CELLS
    left = np.minimum(position.astype(np.int64), CELLS - 1)
    share = position - left
    n = len(confidence)
    columns = np.stack([left, left + 1], axis=1).ravel()
    return csr_array(
        (np.stack([1 - share, share], axis=1).ravel(), columns, np.arange(n + 1) * 2), shape=(n, CELLS + 1)
    )


def fixed_points(gaps: np.ndarray, tolerance: float = 1e-4) -> np.ndarray:
    """The bandwidth s = smECE_s of each row of node sums over N (draws, CELLS + 1), to +-tolerance / 2; (draws,).

    smECE_s falls with s, so that s and smECE_s enclose the fixed point: both ends close in.
    """
    from scipy.fft import dct

    ends = np.ones(gaps.shape[1])  # weights of the trapezoidal rule
    ends[[0, -1]] = 0.5
    spectrum = dct(gaps / (2 * ends), type=1)
    decay = -np.square(np.pi * np.arange(gaps.shape[1])) / 2

    def smoothed(bandwidth: np.ndarray) -> np.ndarray:
        density = dct(spectrum * np.exp(decay * np.square(bandwidth)[:, None]), type=1)
        return np.abs(density) @ ends / CELLS

    low, high = np.abs(gaps.sum(axis=1)), np.abs(gaps).sum(axis=1)
    while (high - low).max() > tolerance:
        bandwidth = (low + high) / 2
        value = smoothed(bandwidth)
        low, high = np.maximum(low, np.minimum(bandwidth, value)), np.minimum(high, np.maximum(bandwidth, value))
    return (low + high) / 2
