"""How many labels a representation needs: the linear probe on a few labelled examples of each class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .feature_detectors import check_features
from .probes import Standardiser, linear_probe
from .probes_checks import check_labels, whole_numbers

PER_CLASS = (1, 2, 5, 10, 50, 100)
DRAWS = 5


def few_label_curve(
    train_x: np.ndarray,
    train_y: np.ndarray,
    test_x: np.ndarray,
    test_y: np.ndarray,
    per_class: Sequence[int] = PER_CLASS,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Accuracy of the linear probe, C = 1, on n labelled examples of each class: mean and deviation over draws.

    All training features are there without labels, so they give the statistics to standardise by. Examples depend on
    labels and seed alone, the same ones for every representation. A draw is nested: its examples for n are among those
    for any larger n.

    Arguments:
        train_x, train_y: features (N, D) and integer labels (N,) of at least two classes.
        test_x, test_y: (M, D) and (M,).
        per_class: the n; those that a class has too few examples for are left out.
        draws: at least 2.

    Returns:
        A row for each n: labels_per_class, accuracy (mean over draws), accuracy_std (ddof 1), draws, n (= M), n_train.

    Raises:
        EbmhybridError: unusable features or labels, a single class, n < 1 or fewer than two draws.

    >>> x, y = np.array([[0.0], [1.0], [10.0], [11.0]]), np.array([0, 0, 1, 1])
    >>> [(row["labels_per_class"], row["accuracy"]) for row in few_label_curve(x, y, x, y)]
    [(1, 1.0), (2, 1.0)]
    """
    train = check_features(train_x, what="train_x")
    labels = check_labels(train_y, train, "train_y")
    test = check_features(test_x, train.shape[1], "test_x")
    wanted = check_labels(test_y, test, "test_y")
    (draws,), (seed,) = whole_numbers(draws, "draws", 2), whole_numbers(seed, "seed", 0)
    counts = whole_numbers(per_class, "per_class", 1)
    standardise = Standardiser.of(train)
    rows, shown, orders = standardise(train), standardise(test), [shuffled(labels, seed, i) for i in range(draws)]
    most = min(map(len, orders[0]))
    found = []
    for n in sorted(n for n in set(counts) if n <= most):
        chosen = [np.concatenate([members[:n] for members in order]) for order in orders]
        right = [_accuracy(rows[some], labels[some], shown, wanted) for some in chosen]
        row: dict[str, Any] = {"labels_per_class": n, "accuracy": float(np.mean(right))}
        row |= {"accuracy_std": float(np.std(right, ddof=1)), "draws": draws}
        found.append(row | {"n": len(test), "n_train": len(chosen[0])})
    return found


def shuffled(labels: np.ndarray, seed: int, draw: int) -> list[np.ndarray]:
    """The places of each class's examples in an order of their own, class by class."""
    generator = np.random.default_rng([seed, draw])
    return [generator.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]


def _accuracy(rows: np.ndarray, labels: np.ndarray, test: np.ndarray, wanted: np.ndarray) -> float:
    return float((linear_probe(rows, labels, test, standardised=True).predictions == wanted).mean())
