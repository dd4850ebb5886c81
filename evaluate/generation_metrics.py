r"""Distances between two sets of features, a score of class probabilities, nearest neighbours: the plain metrics.

    Frechet distance   ||mu_a - mu_b||^2 + tr(A + B - 2 (A B)^(1/2))        of means and covariances, >= 0
    kernel distance    E k(a, a') + E k(b, b') - 2 E k(a, b)                k(x, y) = (x.y / D + 1)^3, unbiased
    class score        exp( E_x KL( p(y|x) || E_x p(y|x) ) )                in [1, C]

They are called FID, KID and Inception score where the features and the classes are those of one network, Inception v3
with its published weights, and nowhere else: the values depend on the features. All are in float64.
"""

from __future__ import annotations

from numbers import Integral
from typing import NamedTuple

import numpy as np
from torch import Tensor

from ebmhybrid.errors import EbmhybridError

Values = np.ndarray | Tensor
_CHUNK = 1024  # rows of a matrix of pairs: 1024 x 8192 float64 are 64 MB
_WIDE = 8192
_LARGEST = 1e20  # of a feature: the jackknife takes its 12th power, and float64 ends at 1e308


class Estimate(NamedTuple):
    """A figure and how far it scatters: a standard error, or a standard deviation over splits, as the maker says."""

    value: float
    error: float


def checked_rows(values: Values, name: str, least: int = 2) -> np.ndarray:
    """Values as float64 (N, D) with N >= `least`, finite and at most 1e20, or an EbmhybridError that names them."""
    if isinstance(values, Tensor):  # numpy has no bfloat16
        values = (values if values.is_complex() else values.double()).detach().cpu().numpy()
    rows = np.asarray(values)
    if rows.dtype.kind not in "biuf":
        raise EbmhybridError(f"{name} must be real numbers, got {rows.dtype}")
    rows = rows.astype(np.float64)
    if rows.ndim != 2 or rows.shape[1] == 0 or len(rows) < least:
        raise EbmhybridError(f"{name} must be (N, D) with N >= {least} and D >= 1, got shape {rows.shape}")
    if bad := int((~np.isfinite(rows)).sum()):
        raise EbmhybridError(f"{name} must be finite, got {bad} NaN or inf of {rows.size}")
    if (largest := float(np.abs(rows).max())) > _LARGEST:
        raise EbmhybridError(f"{name} must be at most {_LARGEST:g} in size, got {largest:g}: figures would overflow")
    return rows


def _pair(features_a: Values, features_b: Values) -> tuple[np.ndarray, np.ndarray]:
    a, b = checked_rows(features_a, "features_a"), checked_rows(features_b, "features_b")
    if a.shape[1] != b.shape[1]:
        raise EbmhybridError(f"features must have the same D, got {a.shape[1]} in a and {b.shape[1]} in b")
    return a, b


def frechet_distance(features_a: Values, features_b: Values) -> float:
    """||mu_a - mu_b||^2 + tr(A + B - 2 (A B)^(1/2)), the squared W2 distance of Gaussians with these moments.

    Source: Dowson & Landau 1982; FID with features of Inception (Heusel et al. 2017). Covariances A and B divide by
    N - 1. With fewer rows than columns it still has its value; it is biased upwards, the more the smaller N is, so only
    figures of the same N compare.

    Arguments:
        features_a, features_b: (N, D) and (M, D).

    Returns:
        In squared units of the features, >= 0; what rounding leaves below 0 is 0.

    Raises:
        EbmhybridError: other than two finite matrices of the same D with at least 2 rows each.

    >>> a = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 2.0]])
    >>> round(frechet_distance(a, a + 3), 9)
    18.0
    """
    a, b = _pair(features_a, features_b)
    shift = a.mean(axis=0) - b.mean(axis=0)
    root_a, root_b = _root(a), _root(b)
    # A = R_a^T R_a and B = R_b^T R_b, so the non-zero eigenvalues of A B are those of (R_a R_b^T)(R_a R_b^T)^T: the
    # trace of the root is the sum of singular values. No root of a matrix, nothing complex, full accuracy at rank < D.
    common = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    return max(0.0, float(shift @ shift + (root_a**2).sum() + (root_b**2).sum() - 2 * common))


def _root(rows: np.ndarray) -> np.ndarray:
    """R (min(N, D), D) with R^T R the covariance of the rows."""
    return np.linalg.qr(rows - rows.mean(axis=0), mode="r") / np.sqrt(len(rows) - 1)


def kernel_distance(features_a: Values, features_b: Values) -> Estimate:
    """The unbiased estimate of MMD^2 under the kernel (x.y / D + 1)^3, with its jackknife standard error.

    Source: Binkowski et al. 2018 (KID, with features of Inception). Their code averages over random subsets of 1000;
    this is the estimate over all pairs at once, which has the same mean and less variance. It may be below 0. The
    standard error comes of leaving each row out in turn; where both sides have one distribution it is too large.

    Arguments:
        features_a, features_b: (N, D) and (M, D).

    Returns:
        Estimate(value, standard error), in units of the cubed kernel.

    Raises:
        EbmhybridError: other than two finite matrices of the same D with at least 2 rows each.

    >>> a = np.array([[0.0], [2.0]])
    >>> kernel_distance(a, a).value  # k(0, 2) twice, minus 2 means over all four pairs
    -62.0
    """
    a, b = _pair(features_a, features_b)
    n, m = len(a), len(b)
    own_a, own_b = (_kernel_sums(rows, rows)[0] - (np.square(rows).mean(axis=1) + 1) ** 3 for rows in (a, b))
    cross_a, cross_b = _kernel_sums(a, b)
    value = own_a.sum() / (n * (n - 1)) + own_b.sum() / (m * (m - 1)) - 2 * cross_a.sum() / (n * m)
    variance = _jackknife(own_a, cross_a, m) + _jackknife(own_b, cross_b, n)
    return Estimate(float(value), float(np.sqrt(variance)))


def _kernel_sums(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums of k(a_i, b_j) over j (N,) and over i (M,)."""
    of_a, of_b = np.zeros(len(a)), np.zeros(len(b))
    for i in range(0, len(a), _CHUNK):
        for j in range(0, len(b), _WIDE):
            kernel = (a[i : i + _CHUNK] @ b[j : j + _WIDE].T / a.shape[1] + 1) ** 3
            of_a[i : i + _CHUNK] += kernel.sum(axis=1)
            of_b[j : j + _WIDE] += kernel.sum(axis=0)
    return of_a, of_b


def _jackknife(own: np.ndarray, cross: np.ndarray, others: int) -> float:
    """The variance that one side's rows bring: (n - 1) / n sum (theta_-i - mean)^2, theta_-i without row i.

    With two rows there is no pair left without one of them; the variance is then unknown.
    """
    n = len(own)
    if n < 3:
        return float("nan")
    within = (own.sum() - 2 * own) / ((n - 1) * (n - 2))
    between = (cross.sum() - cross) / ((n - 1) * others)
    left_out = within - 2 * between
    return float((n - 1) / n * np.square(left_out - left_out.mean()).sum())


def inception_score(probabilities: Values, splits: int = 10, rng: np.random.Generator | None = None) -> Estimate:
    """exp( E_x KL( p(y|x) || E_x p(y|x) ) ), the mean over splits of the rows: sure decisions, evenly spread classes.

    Source: Salimans et al. 2016, with the classes of Inception and 10 splits. It knows nothing of real images, and says
    nothing about variety within a class. Few rows a split lower it.

    Arguments:
        probabilities: (N, C), rows that sum to 1.
        splits: in [1, N].
        rng: shuffles the rows, which often come ordered by class; None is a fresh generator with seed 0.

    Returns:
        Estimate(mean, standard deviation over the splits), the mean in [1, C].

    Raises:
        EbmhybridError: rows that are no probabilities, or splits outside [1, N].

    >>> inception_score(np.eye(4), splits=1).value, inception_score(np.full((4, 2), 0.5), splits=2).value
    (4.0, 1.0)
    """
    rows = checked_rows(probabilities, "probabilities", least=1)
    if (rows < 0).any() or (np.abs(rows.sum(axis=1) - 1) > 1e-4).any():
        raise EbmhybridError("probabilities must be at least 0 and each row must sum to 1")
    if not isinstance(splits, Integral) or not 1 <= splits <= len(rows):
        raise EbmhybridError(f"splits must be a whole number in [1, {len(rows)}], the number of rows, got {splits}")
    order = (np.random.default_rng(0) if rng is None else rng).permutation(len(rows))
    scores = [_score_of(part) for part in np.array_split(rows[order], splits)]
    return Estimate(float(np.mean(scores)), float(np.std(scores)))


def _score_of(rows: np.ndarray) -> float:
    mean = rows.mean(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):  # 0 log 0 is 0
        terms = np.where(rows > 0, rows * np.log(rows / mean), 0.0)
    return float(np.exp(terms.sum(axis=1).mean()))


def nearest(queries: Values, pool: Values, *, others: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The smallest Euclidean distance of each row to a row of a pool, and which row that is, by scikit-learn.

    Arguments:
        queries: (N, D). pool: (M, D).
        others: queries and pool are the same rows, and a row is no neighbour of itself.

    Returns:
        Distances, float64 (N,), and places in the pool, int64 (N,); of several equally near ones any.

    Raises:
        EbmhybridError: other than two finite matrices of the same D, an empty pool, or no other row.

    >>> nearest(np.array([[0.0, 0.0]]), np.array([[9.0, 9.0], [3.0, 4.0]]))
    (array([5.]), array([1]))
    """
    rows, those = checked_rows(queries, "queries", least=1), checked_rows(pool, "pool", least=1 + others)
    if rows.shape[1] != those.shape[1]:
        raise EbmhybridError(f"queries and pool must have the same D, got {rows.shape[1]} and {those.shape[1]}")
    from sklearn.neighbors import NearestNeighbors

    index = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(those)
    place = index.kneighbors(None if others else rows, return_distance=False)[:, 0]  # None: all but the row itself
    # From the pair itself: the library's difference of large squares would leave a copy a distance above 0.
    return np.linalg.norm(rows - those[place], axis=1), place
