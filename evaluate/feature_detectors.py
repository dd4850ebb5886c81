r"""Detectors that compare an image's features with those of the training set: distances and subspaces.

Features are what the last linear layer is given (`features.captured`), float (N, D). Each function fits on the training
set and returns a function from features to scores (N,), higher = more in-distribution:

    mahalanobis           -min_c (z - mu_c)' S^+ (z - mu_c), one covariance S for all classes (Lee et al. 2018)
    relative_mahalanobis  the same less the distance to one Gaussian of the whole training set (Ren et al. 2021)
    knn                   minus the distance of z / ||z|| to the k-th nearest of the training set (Sun et al. 2022)
    vim                   logsumexp f less the scaled norm of z outside the principal subspace (Wang et al. 2022)

Everything is computed in float64, a block of rows at a time; knn keeps the training set's unit vectors in float64.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ebmhybrid.errors import EbmhybridError

from .features import Head
from .scores import energy

FeatureScore = Callable[[np.ndarray], np.ndarray]

_BLOCK = 4096  # rows in float64 at a time
_LARGEST = 1e100  # squares and their sums stay finite
_ROUNDING = 1e-10  # a residual that is so small a part of the features' norm is 0 but for rounding


def check_features(features: np.ndarray, width: int | None = None, what: str = "features") -> np.ndarray:
    """The features, or a ValueError unless they are finite float32 or float64 (N, D) with N, D >= 1, and D = width."""
    if not isinstance(features, np.ndarray) or features.dtype not in (np.float32, np.float64) or features.ndim != 2:
        kind = f"{features.dtype} {features.shape}" if isinstance(features, np.ndarray) else type(features).__name__
        raise EbmhybridError(f"{what} must be a float32 or float64 array of shape (N, D), got {kind}")
    if features.size == 0:
        raise EbmhybridError(f"{what} are empty, of shape {features.shape}")
    if width is not None and features.shape[1] != width:
        raise EbmhybridError(f"{what} must have the {width} columns fitted on, got shape {features.shape}")
    wrong = ~np.isfinite(features) if features.dtype == np.float32 else ~(np.abs(features) <= _LARGEST)
    if bad := int(wrong.sum()):
        raise EbmhybridError(f"{what} must be finite and at most {_LARGEST:g} in size, got {bad} beyond, NaN or inf")
    return features


def in_blocks(score: FeatureScore, features: np.ndarray) -> np.ndarray:
    """score(features), a block of rows in float64 at a time."""
    starts = range(0, len(features), _BLOCK)
    return np.concatenate([score(features[start : start + _BLOCK].astype(np.float64)) for start in starts])


def _second_moment(features: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """sum over rows of (z - centre)(z - centre)', float64 (D, D)."""
    total = np.zeros((features.shape[1], features.shape[1]))
    for start in range(0, len(features), _BLOCK):
        block = features[start : start + _BLOCK].astype(np.float64) - centre
        total += block.T @ block
    return total


def _whitening(covariance: np.ndarray) -> np.ndarray:
    """W (D, rank) with W W' the pseudo-inverse of the covariance: directions without variance are left out."""
    variances, directions = np.linalg.eigh(covariance)
    kept = variances > variances[-1] * len(variances) * np.finfo(np.float64).eps
    return directions[:, kept] / np.sqrt(variances[kept])


def _squared_distance(features: np.ndarray, labels: np.ndarray) -> FeatureScore:
    """z -> min_c (z - mu_c)' S^+ (z - mu_c), with S = 1/N sum_i (z_i - mu_{y_i})(z_i - mu_{y_i})'."""
    from scipy.spatial.distance import cdist

    means, scatter = [], np.zeros((features.shape[1], features.shape[1]))
    for label in np.unique(labels):
        members = features[labels == label]
        means.append(members.mean(axis=0, dtype=np.float64))
        scatter += _second_moment(members, means[-1])
    white = _whitening(scatter / len(features))
    centres = np.stack(means) @ white
    if white.shape[1] == 0:
        return lambda rows: np.zeros(len(rows))
    return lambda rows: cdist(rows @ white, centres, "sqeuclidean").min(axis=1)


def _check_labels(labels: np.ndarray, features: np.ndarray) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.shape != (len(features),) or not np.issubdtype(labels.dtype, np.integer):
        got = f"{labels.dtype} {labels.shape}"
        raise EbmhybridError(f"train_labels must be integers of shape ({len(features)},), got {got}")
    return labels


def mahalanobis(train_features: np.ndarray, train_labels: np.ndarray) -> FeatureScore:
    """Minus the squared Mahalanobis distance to the nearest class mean, with one covariance for all classes, <= 0.

    -min_c (z - mu_c)' S^+ (z - mu_c), S = 1/N sum_i (z_i - mu_{y_i})(z_i - mu_{y_i})'. Source: Lee et al., NeurIPS
    2018, on the last layer's input alone, without their input step and sum over layers, which are tuned on OOD images.
    S^+ is the pseudo-inverse, as there: directions in which no class varies (D > N) cost nothing. A class with one
    training image has its mean and adds nothing to S; a class without any is no candidate.

    Arguments:
        train_features: (N, D); train_labels: (N,) integers, the only labels that are looked at.

    Raises:
        ValueError: features that are not finite float (N, D), or of another width than those fitted on; labels.

    >>> train = np.array([[-1.0], [1.0], [9.0], [11.0]])
    >>> mahalanobis(train, np.array([0, 0, 1, 1]))(np.array([[0.5], [7.0]]))
    array([-0.25, -9.  ])
    """
    train = check_features(train_features, what="train_features")
    distance = _squared_distance(train, _check_labels(train_labels, train))
    return lambda features: -in_blocks(distance, check_features(features, train.shape[1]))


def relative_mahalanobis(train_features: np.ndarray, train_labels: np.ndarray) -> FeatureScore:
    """How much nearer z lies to a class than to the whole training set: d_0(z) - min_c d_c(z).

    d_c is the squared distance of :func:`mahalanobis`, d_0 that to the mean of all training features with their own
    covariance. Source: Ren et al. 2021. With a single class both are the same and the score is 0.

    >>> train = np.array([[-1.0], [1.0], [9.0], [11.0]])
    >>> relative_mahalanobis(train, np.array([0, 0, 1, 1]))(np.array([[0.0], [5.0]])).round(2)
    array([  0.96, -25.  ])
    """
    train = check_features(train_features, what="train_features")
    nearest = _squared_distance(train, _check_labels(train_labels, train))
    whole = _squared_distance(train, np.zeros(len(train), dtype=np.int64))

    def score(features: np.ndarray) -> np.ndarray:
        return in_blocks(lambda rows: whole(rows) - nearest(rows), check_features(features, train.shape[1]))

    return score


def _unit(features: np.ndarray) -> np.ndarray:
    """Rows of length 1; a row of zeros stays, at distance 1 from every direction."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.where(lengths > 0, lengths, 1.0)


def knn(train_features: np.ndarray, k: int = 50) -> FeatureScore:
    """Minus the distance to the k-th nearest training image, features scaled to length 1, in [-2, 0].

    Source: Sun et al., ICML 2022, whose k for CIFAR-10 is the default (200 for CIFAR-100, 1000 for ImageNet). With
    fewer than k training images it is the farthest one.

    Raises:
        ValueError: k < 1, or unusable features.

    >>> knn(np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]]), k=2)(np.array([[3.0, 0.0], [0.0, 5.0]])).round(3)
    array([-0.   , -1.414])
    """
    from sklearn.neighbors import NearestNeighbors

    if k < 1:
        raise EbmhybridError(f"k must be at least 1, got {k}")
    train = check_features(train_features, what="train_features")
    index = NearestNeighbors(n_neighbors=min(k, len(train)), algorithm="brute").fit(in_blocks(_unit, train))

    def distance(rows: np.ndarray) -> np.ndarray:
        return index.kneighbors(_unit(rows))[0][:, -1]

    return lambda features: -in_blocks(distance, check_features(features, train.shape[1]))


def vim_dimension(width: int) -> int:
    """Size of the principal subspace: the authors' 1000 from 2048 features on and 512 below, but at most half of them.

    >>> [vim_dimension(width) for width in (64, 640, 1024, 2048)]
    [32, 320, 512, 1000]
    """
    return 1000 if width >= 2048 else min(512, width // 2)


def vim(
    train_features: np.ndarray, head: Head, dimension: int | None = None
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """logsumexp_y f_y - alpha ||R'(z - u)||, the energy less a virtual logit (ViM); a function of features and logits.

    u = -W^+ b is the point nearest the origin where every logit is 0. R spans what the first `dimension` eigenvectors
    of the training set's second moment about u leave, and alpha = mean_i max_y f_y(x_i) / mean_i ||R'(z_i - u)|| over
    the training set. Source: Wang et al., CVPR 2022. Not invariant to adding a constant to the logits: alpha changes.

    Arguments:
        train_features: (N, D). head: the last layer, with (C, D) weights.
        dimension: of the principal subspace, in [0, D); None is :func:`vim_dimension`.

    Raises:
        ValueError: unusable features; or no positive alpha, because the training features lie within the subspace (too
            few images) or their largest logit is not positive on average.

    >>> head = Head(np.array([[1.0, 0.0]]), np.zeros(1))
    >>> vim(np.array([[4.0, 1.0], [4.0, -1.0]]), head)(np.array([[4.0, 0.0], [4.0, 2.0]]), np.array([[4.0], [4.0]]))
    array([ 4., -4.])
    """
    train = check_features(train_features, head.weight.shape[1], "train_features")
    width = train.shape[1]
    dimension = vim_dimension(width) if dimension is None else dimension
    if not 0 <= dimension < width:
        raise EbmhybridError(f"dimension must lie in [0, {width}), got {dimension}")
    origin = -np.linalg.pinv(head.weight) @ head.bias
    variances, directions = np.linalg.eigh(_second_moment(train, origin) / len(train))
    residual = directions[:, : width - dimension]

    def virtual(rows: np.ndarray) -> np.ndarray:
        return np.linalg.norm((rows - origin) @ residual, axis=1)

    outside = in_blocks(virtual, train).mean()
    top = in_blocks(lambda rows: head(rows).max(axis=1), train).mean()
    if outside <= _ROUNDING * np.sqrt(variances.sum()) or top <= 0:
        raise EbmhybridError(
            f"score 'vim' cannot be fitted: the mean largest training logit, {top:.4g}, and the mean norm of training"
            f" features outside their {dimension} principal directions, {outside:.4g}, must both be above 0"
        )
    alpha = top / outside

    def score(features: np.ndarray, logits: np.ndarray) -> np.ndarray:
        return energy(logits) - alpha * in_blocks(virtual, check_features(features, width))

    return score
