r"""Calibration metrics of probabilities (N, C) against labels (N,): plain functions in float64.

With confidence c_i = max_k p_ik, correctness a_i = 1[argmax_k p_ik = y_i] and bins B_1..B_M of the confidences,

    ECE = sum_b |B_b| / N |mean_b(a) - mean_b(c)| = sum_b |sum_b (a_i - c_i)| / N
    MCE = max over non-empty bins of |mean_b(a) - mean_b(c)|

(Naeini et al. 2015; Guo et al. 2017).

Equal-width bins are closed on the right, (k/M, (k+1)/M], and the first one holds 0: half-open bins lose confidence 1.0.
ECE is biased upwards: a perfectly calibrated model shows more than 0 at any finite N, depending on its confidences.
Read it beside `calibration.perfect_model_ece` and `calibration.bootstrap_interval`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ebmhybrid.errors import EbmhybridError

Array = np.ndarray | Tensor


@dataclass(frozen=True)
class ReliabilityBins:
    """What a reliability diagram shows: bin edges (M + 1,), and a count, mean confidence and accuracy a bin (M,).

    Empty bins have count 0 and NaN as confidence and accuracy.
    """

    edges: np.ndarray
    count: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray


def as_numpy(values: Array | Any) -> np.ndarray:
    """A numpy array of a tensor or of anything like an array."""
    return np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)


def check_probabilities(probabilities: Array, labels: Array) -> tuple[np.ndarray, np.ndarray]:
    """(probabilities float64 (N, C), labels int64 (N,)), or a ValueError.

    Rows must sum to 1 within 1e-6 (1e-4 for float32) and lie in [0, 1], so that logits are refused; so is half
    precision, in which a row of probabilities does not sum to 1.
    """
    if str(probabilities.dtype).removeprefix("torch.") not in ("float32", "float64"):
        raise EbmhybridError(f"probabilities must be float32 or float64, got {probabilities.dtype}")
    values = as_numpy(probabilities)
    slack = 1e-4 if values.dtype == np.float32 else 1e-6
    values = values.astype(np.float64)
    if values.ndim != 2 or values.size == 0:
        raise EbmhybridError(f"probabilities must have shape (N, C) with N, C >= 1, got {values.shape}")
    off = ~(np.abs(values.sum(axis=1) - 1) <= slack) | ~((values >= -slack) & (values <= 1 + slack)).all(axis=1)
    if off.any():
        row = int(np.flatnonzero(off)[0])
        raise EbmhybridError(
            f"probabilities must lie in [0, 1] and sum to 1 in each row, got row {row} = {np.round(values[row, :4], 4)}"
            f" with sum {values[row].sum():.4g}; are these logits? Apply softmax first"
        )
    return np.clip(values, 0, 1), check_targets(labels, values)


def check_targets(labels: Array, values: np.ndarray) -> np.ndarray:
    """Labels as int64 (N,) in [0, C) that fit values (N, C), or a ValueError."""
    targets = as_numpy(labels)
    if targets.shape != values.shape[:1] or targets.dtype.kind not in "iu":
        raise EbmhybridError(f"labels must be integers of shape ({len(values)},), got {targets.dtype} {targets.shape}")
    if targets.min() < 0 or targets.max() >= values.shape[1]:
        raise EbmhybridError(f"labels must lie in [0, {values.shape[1]}), got [{targets.min()}, {targets.max()}]")
    return targets.astype(np.int64)


def top_class(probabilities: Array, labels: Array) -> tuple[np.ndarray, np.ndarray]:
    """(confidence (N,), correctness (N,) as 0.0 or 1.0) of the most probable class."""
    values, targets = check_probabilities(probabilities, labels)
    return values.max(axis=1), (values.argmax(axis=1) == targets).astype(np.float64)


def bin_index(confidence: np.ndarray, bins: int) -> np.ndarray:
    """Index of the equal-width bin (k/M, (k+1)/M] of each confidence in [0, 1]; 0 falls in the first bin.

    >>> bin_index(np.array([0.0, 0.2, 0.21, 1.0]), 5)
    array([0, 0, 1, 4])
    """
    if bins < 1:
        raise EbmhybridError(f"bins must be at least 1, got {bins}")
    # compares with the rounded quotient k / M, where ceil(confidence * M) would put 0.07 of 100 bins into the eighth
    return np.searchsorted(np.arange(1, bins) / bins, confidence, side="left")


def binned_gap(confidence: np.ndarray, outcome: np.ndarray, bins: int) -> float:
    """sum_b |sum_b (outcome - confidence)| / N over equal-width bins."""
    gaps = np.bincount(bin_index(confidence, bins), weights=outcome - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


def reliability_bins(probabilities: Array, labels: Array, bins: int = 15) -> ReliabilityBins:
    """Count, mean confidence and accuracy of the most probable class in equal-width bins.

    >>> reliability_bins(np.array([[1.0, 0.0], [0.4, 0.6]]), np.array([0, 0]), bins=2).accuracy
    array([nan, 0.5])
    """
    confidence, correct = top_class(probabilities, labels)
    index = bin_index(confidence, bins)
    count = np.bincount(index, minlength=bins)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(index, weights=values, minlength=bins) / count for values in (confidence, correct)]
    return ReliabilityBins(np.arange(bins + 1) / bins, count, *means)


def ece(probabilities: Array, labels: Array, bins: int = 15) -> float:
    """Expected calibration error over equal-width bins closed on the right, in [0, 1].

    Arguments:
        probabilities: (N, C), rows that sum to 1; float32 or float64.
        labels: (N,) integers in [0, C).
        bins: number of bins; 15 is the custom, the HDGE paper has 20.

    Raises:
        ValueError: logits, half precision, or shapes and labels that do not fit.

    >>> round(ece(np.array([[0.7, 0.3], [0.7, 0.3]]), np.array([0, 1])), 6)
    0.2
    """
    return binned_gap(*top_class(probabilities, labels), bins)


def equal_mass_ece(probabilities: Array, labels: Array, bins: int = 15) -> float:
    """ECE over bins of equal size, by splitting the sorted confidences (Nguyen & O'Connor 2015), in [0, 1].

    Equal confidences share their mean correctness, so that the order of the set cannot matter where a split falls
    among them, as it does when many confidences saturate at 1.0.

    >>> round(equal_mass_ece(np.array([[0.7, 0.3], [0.7, 0.3]]), np.array([0, 1])), 6)
    0.2
    """
    if bins < 1:
        raise EbmhybridError(f"bins must be at least 1, got {bins}")
    confidence, correct = top_class(probabilities, labels)
    values, index, count = np.unique(confidence, return_inverse=True, return_counts=True)
    gaps = np.repeat(np.bincount(index, weights=correct) / count - values, count)
    return float(sum(abs(part.sum()) for part in np.array_split(gaps, bins)) / len(gaps))


def classwise_ece(probabilities: Array, labels: Array, bins: int = 15) -> float:
    """Mean over classes k of the ECE of p_k as a forecast of 1[y = k] (Kull et al. 2019), in [0, 1].

    >>> round(classwise_ece(np.array([[0.7, 0.3], [0.7, 0.3]]), np.array([0, 1])), 6)
    0.2
    """
    values, targets = check_probabilities(probabilities, labels)
    classes = range(values.shape[1])
    return float(np.mean([binned_gap(values[:, k], (targets == k).astype(np.float64), bins) for k in classes]))


def mce(probabilities: Array, labels: Array, bins: int = 15) -> float:
    """Maximum calibration error: the largest |accuracy - confidence| of a non-empty bin, in [0, 1].

    A bin with one image can set it, so it says little at small N.

    >>> round(mce(np.array([[0.7, 0.3], [0.7, 0.3]]), np.array([0, 1])), 6)
    0.2
    """
    table = reliability_bins(probabilities, labels, bins)
    return float(np.nanmax(np.abs(table.accuracy - table.confidence)))


def nll(probabilities: Array, labels: Array) -> float:
    """Mean -log p_y in nats, in [0, inf]; inf if a label has probability 0. From logits: :func:`nll_of_logits`.

    >>> round(nll(np.array([[0.5, 0.5]]), np.array([0])), 4)
    0.6931
    """
    values, targets = check_probabilities(probabilities, labels)
    with np.errstate(divide="ignore"):
        return float(-np.log(values[np.arange(len(targets)), targets]).mean())


def nll_of_logits(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean of logsumexp_k f_k - f_y in nats: the NLL of softmax(logits), finite where p_y underflows to 0.

    >>> nll_of_logits(np.array([[1e4, 0.0]]), np.array([1]))
    10000.0
    """
    shifted = logits - logits.max(axis=1, keepdims=True)
    return float(np.mean(np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]))


def brier(probabilities: Array, labels: Array) -> float:
    """Mean of sum_k (p_k - 1[y = k])^2, in [0, 2] (Brier 1950).

    >>> brier(np.array([[0.5, 0.5]]), np.array([0]))
    0.5
    """
    values, targets = check_probabilities(probabilities, labels)
    return float(np.square(values - np.eye(values.shape[1])[targets]).sum(axis=1).mean())
