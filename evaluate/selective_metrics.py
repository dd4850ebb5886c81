r"""Metrics of selective classification, plain functions of (confidence, correctness) in float64.

Sort the images by falling confidence and let e_k be the number of wrong ones among the first k of n:

    coverage k / n      selective risk R_k = e_k / k      generalised risk G_k = e_k / n, risk and coverage together
    AURC    = 1/n sum_k R_k                             (Geifman & El-Yaniv 2017; Geifman et al. 2019)
    E-AURC  = AURC - AURC of the order with every wrong image last              (Geifman et al. 2019)
    AUGRC   = area under G over coverage, from (0, 0)   (Traub et al. 2024)
            = 1/n^2 sum_ij wrong_i (1[c_i > c_j] + 1[c_i = c_j] / 2) = (1 - AUROC) acc (1 - acc) + (1 - acc)^2 / 2

with AUROC that of the confidence for right against wrong. All lie in [0, 1] and are better low. Images of equal
confidence enter in random order and e_k is its expectation, so no figure depends on the order of the set.
"""

from __future__ import annotations

import math

import numpy as np

from ebmhybrid.errors import EbmhybridError

from .calibration_metrics import Array, as_numpy


def checked(confidence: Array, correct: Array) -> tuple[np.ndarray, np.ndarray]:
    """(confidence float64 (N,), wrong as 0.0 or 1.0 (N,)), or a ValueError."""
    values, right = as_numpy(confidence), as_numpy(correct)
    if str(confidence.dtype).removeprefix("torch.") in ("float16", "bfloat16"):
        raise EbmhybridError("confidence is in half precision, whose ties change the ranking; compute it in float32")
    if values.ndim != 1 or values.size == 0 or right.shape != values.shape:
        raise EbmhybridError(
            f"confidence and correct must be vectors of one length >= 1, got {values.shape} and {right.shape}"
        )
    if not np.isin(right, (0, 1)).all():
        raise EbmhybridError(f"correct must hold True and False or 1 and 0, got {right[~np.isin(right, (0, 1))][0]}")
    values = values.astype(np.float64)
    if missing := int(np.isnan(values).sum()):
        raise EbmhybridError(f"confidence holds {missing} NaN of {values.size}")
    return values, 1.0 - right.astype(np.float64)


def _groups(confidence: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(order of falling confidence, where each group of equal confidence starts in it)."""
    order = np.argsort(-confidence, kind="stable")
    ranked = confidence[order]
    return order, np.flatnonzero(np.append(True, ranked[1:] != ranked[:-1]))


def risk_coverage(confidence: Array, correct: Array) -> tuple[np.ndarray, np.ndarray]:
    """Coverage k / n and selective risk e_k / k for k = 1..n, both float64 (n,).

    Arguments:
        confidence: (n,), higher = surer; float32 or float64, +-inf allowed.
        correct: (n,), bool or 0 and 1: whether the decision is the label.

    Raises:
        ValueError: vectors that are empty or do not fit, NaN, half precision, or values of `correct` but 0 and 1.

    >>> risk_coverage(np.array([3.0, 2.0, 1.0]), np.array([True, False, True]))[1].round(3)
    array([0.   , 0.5  , 0.333])
    """
    values, wrong = checked(confidence, correct)
    order, starts = _groups(values)
    size = np.diff(np.append(starts, len(values)))
    rate = np.add.reduceat(wrong[order], starts) / size
    k = np.arange(1, len(values) + 1)
    return k / len(values), np.cumsum(np.repeat(rate, size)) / k


def areas(values: np.ndarray, wrong: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(AURC, AUGRC) of each resample (draws, n) of the images, both (draws,).

    A group of m images with e wrong after a images with E wrong adds sum_{j=1..m} (E + j e / m) / (a + j)
    = e + (E - a e / m) (H_{a+m} - H_a) to n AURC, H the harmonic numbers, and m (E + e / 2) to n^2 AUGRC. Neighbouring
    groups that are all right, or all wrong, add up to the same as one group, which leaves few of them.
    """
    n = len(values)
    order, starts = _groups(values)
    wrong = wrong[order]
    rate = np.add.reduceat(wrong, starts) / np.diff(np.append(starts, n))
    starts = starts[np.append(True, (rate[1:] != rate[:-1]) | ((rate[1:] > 0) & (rate[1:] < 1)))]
    harmonic = np.append(0.0, np.cumsum(1 / np.arange(1, n + 1)))
    found = np.empty((2, len(weights)))
    for i, chosen in enumerate(weights):
        chosen = chosen[order]
        size, errors = np.add.reduceat(chosen, starts), np.add.reduceat(chosen * wrong, starts)
        after = np.cumsum(size)
        before, errors_before = after - size, np.cumsum(errors) - errors
        share = errors / np.maximum(size, 1)
        growth = harmonic[after.astype(np.int64)] - harmonic[before.astype(np.int64)]
        found[0, i] = (errors + (errors_before - before * share) * growth).sum() / n
        found[1, i] = (size * (errors_before + errors / 2)).sum() / n**2
    return found[0], found[1]


def aurc(confidence: Array, correct: Array) -> float:
    """Area under the risk-coverage curve, the mean of the n selective risks, in [0, 1] (Geifman & El-Yaniv 2017).

    The risk of the first few images enters with full weight, so a single sure mistake can set it; see :func:`augrc`.

    >>> round(aurc(np.array([3.0, 2.0, 1.0]), np.array([True, False, True])), 4)
    0.2778
    """
    return float(risk_coverage(confidence, correct)[1].mean())


def e_aurc(confidence: Array, correct: Array) -> float:
    """AURC minus that of the best order with the same errors, in [0, 1) (Geifman et al. 2019); 0 for a perfect order.

    The best order's area is the exact sum, not its limit r + (1 - r) ln(1 - r) for many images.

    >>> e_aurc(np.array([2.0, 3.0, 1.0]), np.array([True, True, False]))
    0.0
    """
    values, wrong = checked(confidence, correct)
    return max(0.0, aurc(values, 1 - wrong) - aurc(-wrong, 1 - wrong))


def augrc(confidence: Array, correct: Array) -> float:
    """Area under the generalised risk-coverage curve, in [0, 1/2] (Traub et al. 2024).

    The mean over thresholds of the probability that an image is accepted and wrong.

    >>> round(augrc(np.array([3.0, 2.0, 1.0]), np.array([True, False, True])), 4)
    0.1667
    """
    values, wrong = checked(confidence, correct)
    return float(areas(values, wrong, np.ones((1, len(values))))[1][0])


def risk_at_coverage(confidence: Array, correct: Array, coverage: float) -> float:
    """Selective risk of the smallest share of images, the surest first, that is at least `coverage`, in [0, 1].

    Raises:
        ValueError: coverage outside (0, 1], or what :func:`risk_coverage` refuses.

    >>> risk_at_coverage(np.array([3.0, 2.0, 1.0]), np.array([True, False, True]), 0.5)
    0.5
    """
    if not 0 < coverage <= 1:
        raise EbmhybridError(f"coverage must lie in (0, 1], got {coverage}")
    _, risk = risk_coverage(confidence, correct)
    # 0.07 * 100 is 7.000000000000001 in float64
    return float(risk[math.ceil(coverage * len(risk) - 1e-9) - 1])


def coverage_at_risk(confidence: Array, correct: Array, risk: float) -> float:
    """The largest coverage whose selective risk is at most `risk`, in [0, 1]; 0 where there is none.

    Raises:
        ValueError: risk outside [0, 1], or what :func:`risk_coverage` refuses.

    >>> coverage_at_risk(np.array([4.0, 3.0, 2.0, 1.0]), np.array([True, False, True, False]), 0.4)
    0.75
    """
    if not 0 <= risk <= 1:
        raise EbmhybridError(f"risk must lie in [0, 1], got {risk}")
    coverage, risks = risk_coverage(confidence, correct)
    return float(coverage[risks <= risk + 1e-12].max(initial=0.0))
