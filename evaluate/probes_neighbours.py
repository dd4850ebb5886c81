"""The kNN probe: the label that most of an example's nearest training features have."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ebmhybrid.errors import UsageError, nearest

from .feature_detectors import _unit as unit
from .feature_detectors import check_features, in_blocks
from .probes_checks import check_labels, whole_numbers

METRICS = ("cosine", "euclidean")
NEIGHBOURS = (1, 5, 20)
_PAIRS = 2**24  # similarities at a time: 128 MB


def knn_probe(
    train_x: np.ndarray,
    train_y: np.ndarray,
    test_x: np.ndarray,
    k: int | Sequence[int] = NEIGHBOURS,
    metric: str = "cosine",
) -> dict[int, np.ndarray]:
    """The class with most votes among the k most similar training features, one vote each; k -> predictions (M,).

    Classes with equally many votes are told apart by the sum of their voters' similarities, then the smaller label
    wins. Of training examples that are equally similar any may be among the k.

    Arguments:
        train_x, train_y: features (N, D) and integer labels (N,).
        test_x: (M, D).
        k: one or several, each in [1, N].
        metric: "cosine", z.z' / (||z|| ||z'||) and 0 for a row of zeros; or "euclidean", whose similarity is minus the
            distance.

    Raises:
        EbmhybridError: unusable features or labels, or k outside [1, N]. UsageError: another metric.

    >>> train, labels = np.array([[1.0, 0.0], [1.0, 0.2], [0.0, 1.0]]), np.array([2, 2, 5])
    >>> knn_probe(train, labels, np.array([[0.1, 3.0]]), k=(1, 3))
    {1: array([5]), 3: array([2])}
    """
    train = check_features(train_x, what="train_x")
    test = check_features(test_x, train.shape[1], "test_x")
    labels = check_labels(train_y, train, "train_y")
    if metric not in METRICS:
        raise UsageError(f"unknown metric {metric!r}: {nearest(str(metric), METRICS)}")
    counts = whole_numbers(k, "k", 1, len(train))  # no more than there are neighbours
    classes, places = np.unique(labels, return_inverse=True)
    similar, found = neighbours(train, test, max(counts), metric)
    return {count: classes[_voted(places[found[:, :count]], similar[:, :count], len(classes))] for count in counts}


def neighbours(train: np.ndarray, test: np.ndarray, k: int, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Similarities, descending, and places of the k most similar training rows of each test row, (M, k) each."""
    if metric == "cosine":
        train, test = in_blocks(unit, train), in_blocks(unit, test)
    pool, queries = torch.from_numpy(train).double(), torch.from_numpy(test).double()
    similar, places = [], []
    for rows in queries.split(max(1, _PAIRS // len(pool))):
        # not by ||a||^2 + ||b||^2 - 2 a.b, whose rounding would keep equal rows apart
        exact = "donot_use_mm_for_euclid_dist"
        every = rows @ pool.T if metric == "cosine" else -torch.cdist(rows, pool, compute_mode=exact)
        best = every.topk(k, dim=1)
        similar.append(best.values)
        places.append(best.indices)
    return torch.cat(similar).numpy(), torch.cat(places).numpy()


def _voted(labels: np.ndarray, similar: np.ndarray, classes: int) -> np.ndarray:
    """The place of the winning class of each row of votes (M, k)."""
    rows = np.arange(len(labels))[:, None]
    votes, sums = np.zeros((2, len(labels), classes))
    np.add.at(votes, (rows, labels), 1.0)
    np.add.at(sums, (rows, labels), similar)
    tied = votes == votes.max(axis=1, keepdims=True)
    return np.where(tied, sums, -np.inf).argmax(axis=1)
