r"""Detectors that change an image's features before the last layer and take the energy of the logits that follow.

    react   features clipped at a percentile of the training set's (Sun et al. 2021)
    ash     the largest features of each image kept and made equal, the others 0: ASH-B (Djurisic et al. 2023)
    scale   all features multiplied by exp(sum of all / sum of the largest) (Xu et al. 2024)

All three were made for features that a ReLU leaves, >= 0. With negative ones (LeakyReLU) the formulas are applied as
they stand. Scores are logsumexp_y of the new logits, (N,), higher = more in-distribution; an addition to every bias
shifts them all and ranks them as before.
"""

from __future__ import annotations

import numpy as np

from ebmhybrid.errors import EbmhybridError

from .feature_detectors import FeatureScore, check_features, in_blocks
from .features import Head
from .scores import energy


def _check_percentile(percentile: float) -> None:
    if not 0 <= percentile <= 100:
        raise EbmhybridError(f"percentile must lie in [0, 100], got {percentile}")


def react(train_features: np.ndarray, head: Head, percentile: float = 90.0) -> FeatureScore:
    """Energy with every feature clipped at a percentile of all training features: ReAct.

    logsumexp_y f_y(min(z, c)). Source: Sun, Guo & Li, NeurIPS 2021, whose percentile is the default.

    Arguments:
        train_features: (N, D); their N x D values together give one c.
        head: the last layer.
        percentile: in [0, 100], linearly interpolated; 100 clips only what no training image reaches.

    Raises:
        ValueError: features that are not finite float (N, D), another D than the head's, or a percentile.

    >>> head = Head(np.eye(2), np.zeros(2))
    >>> react(np.array([[0.0, 1.0]]), head, percentile=100)(np.array([[5.0, 1.0]])).round(3)
    array([1.693])
    """
    _check_percentile(percentile)
    width = head.weight.shape[1]
    ceiling = float(np.percentile(check_features(train_features, width, "train_features"), percentile))

    def score(features: np.ndarray) -> np.ndarray:
        return in_blocks(lambda rows: energy(head(np.minimum(rows, ceiling))), check_features(features, width))

    return score


def _largest(features: np.ndarray, percentile: float) -> np.ndarray:
    """Indices (N, k) of each row's largest features, all but `percentile` % of them and at least one; ties by index."""
    width = features.shape[1]
    kept = max(1, width - round(width * percentile / 100))
    return np.argsort(-features, axis=1, kind="stable")[:, :kept]


def ash(head: Head, percentile: float = 90.0) -> FeatureScore:
    """Energy with each image's largest features made equal and the others 0: ASH-B.

    The k = D - round(D percentile / 100) largest become (sum of all D features) / k. Source: Djurisic et al., ICLR
    2023. Variant, percentile and place, after pooling, are OpenOOD's, but without its search for a percentile on OOD
    validation images.

    Raises:
        ValueError: as :func:`react`.

    >>> ash(Head(np.eye(2), np.zeros(2)), percentile=50)(np.array([[3.0, 1.0]])).round(3)
    array([4.018])
    """
    _check_percentile(percentile)

    def shaped(rows: np.ndarray) -> np.ndarray:
        index = _largest(rows, percentile)
        level = rows.sum(axis=1, keepdims=True) / index.shape[1]
        new = np.zeros_like(rows)
        np.put_along_axis(new, index, level, axis=1)
        return energy(head(new))

    return lambda features: in_blocks(shaped, check_features(features, head.weight.shape[1]))


def scale(head: Head, percentile: float = 85.0) -> FeatureScore:
    """Energy with each image's features multiplied by exp(r), r = sum of all features / sum of the largest: SCALE.

    The largest are those that :func:`ash` keeps, and nothing is set to 0. Source: Xu et al., ICLR 2024, with the
    percentile of OpenOOD. r is in [1, D / k] for features >= 0. Where the largest sum to 0 or less, which needs
    features <= 0, r has no meaning and the features stay as they are.

    Raises:
        ValueError: as :func:`react`.

    >>> scale(Head(np.eye(2), np.zeros(2)), percentile=50)(np.array([[1.0, 0.0]])).round(3)
    array([2.782])
    """
    _check_percentile(percentile)

    def scaled(rows: np.ndarray) -> np.ndarray:
        largest = np.take_along_axis(rows, _largest(rows, percentile), axis=1).sum(axis=1)
        usable = largest > 0
        ratio = np.where(usable, rows.sum(axis=1) / np.where(usable, largest, 1.0), 0.0)
        return energy(head(rows * np.exp(ratio)[:, None]))

    return lambda features: in_blocks(scaled, check_features(features, head.weight.shape[1]))
