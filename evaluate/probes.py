r"""Probes of a representation: what simple predictors make of frozen features. The pure functions.

    linear   argmin_W,b  1/2 ||W||^2 + C sum_i -log softmax(W z_i + b)[y_i]
    kNN      the class with most votes among the k most similar training features
    ridge    argmin_w,b  sum_i (t_i - w.z_i - b)^2 + alpha ||w||^2

With two classes the linear probe is 1/2 ||w||^2 + C sum_i -log sigmoid(+-(w.z_i + b)), as scikit-learn has it.
Features are arrays (N, D) of one row an example. The linear and the ridge probe see them standardised: less the mean of
the training features and over their standard deviation, so that the penalty does not depend on a feature's unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ebmhybrid.errors import EbmhybridError

from .feature_detectors import check_features
from .predictions import softmax
from .probes_checks import Pair, check_grid, check_labels, check_pair, whole_numbers

C_GRID = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
ALPHA_GRID = (1e-2, 1e-1, 1.0, 10.0, 100.0, 1e3, 1e4)
_ITERATIONS = 2000
_TOLERANCE = 1e-6  # of the largest component of the gradient of the objective, over C N


class Standardiser(NamedTuple):
    """Mean and scale of each training feature, (D,); the scale of a constant one is 1, so that it becomes 0."""

    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> Standardiser:
        """The statistics of features (N, D), in float64."""
        rows = features.astype(np.float64)
        mean, spread = rows.mean(axis=0), rows.std(axis=0)
        # rounding leaves a constant column a spread of its size times the precision it was computed in
        single = features.dtype.itemsize < 8 and features.dtype.kind == "f"
        constant = spread <= (1e-6 if single else 1e-12) * np.abs(mean)
        return cls(np.where(constant, rows[0], mean), np.where(constant, 1.0, spread))

    @classmethod
    def none(cls, width: int) -> Standardiser:
        """Leaves features of this width as they are."""
        return cls(np.zeros(width), np.ones(width))

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """(z - mean) / scale, float64 (N, D)."""
        return (features.astype(np.float64) - self.mean) / self.scale


@dataclass(frozen=True)
class LinearProbe:
    """A fitted linear probe and what it says of the test features.

    Attributes:
        logits: float64 (M, K) on the test features, K the number of classes; -inf for a class without training example.
        C: the inverse strength of the penalty.
        weight, bias: (K, D) and (K,) on standardised features; logits of any others come of calling the probe.
        converged: whether L-BFGS reached its tolerance.
    """

    logits: np.ndarray = field(repr=False)
    C: float
    weight: np.ndarray = field(repr=False)
    bias: np.ndarray = field(repr=False)
    standardise: Standardiser = field(repr=False)
    converged: bool = True

    @property
    def probabilities(self) -> np.ndarray:
        """softmax of the logits, float64 (M, K)."""
        return softmax(self.logits)

    @property
    def predictions(self) -> np.ndarray:
        """The most probable class of each test example, int64 (M,)."""
        return self.logits.argmax(axis=1)

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Logits (N, K) of features (N, D)."""
        rows = check_features(features, self.weight.shape[1])
        return self.standardise(rows) @ self.weight.T + self.bias


def linear_probe(
    train_x: np.ndarray,
    train_y: np.ndarray,
    test_x: np.ndarray,
    validation: Pair | None = None,
    *,
    num_classes: int | None = None,
    grid: Sequence[float] = C_GRID,
    standardised: bool = False,
) -> LinearProbe:
    """Multinomial logistic regression on standardised features, by scikit-learn's L-BFGS.

    Arguments:
        train_x, train_y: features (N, D) and integer labels (N,) of at least two classes.
        test_x: (M, D).
        validation: features and labels that choose C from `grid`: the highest accuracy, of equal ones the lowest NLL.
            Without them C is 1. The probe is not fitted anew with them.
        num_classes: K, the columns of the logits; None is the largest training label + 1.
        standardised: the features are standardised already, by more than these.

    Raises:
        EbmhybridError: unusable features or labels, a single class, or another number of features.

    >>> x = np.array([[0.0, 7.0], [1.0, 7.0], [10.0, 7.0], [11.0, 7.0]])
    >>> linear_probe(x, np.array([0, 0, 1, 1]), np.array([[2.0, 7.0], [9.0, 7.0]])).predictions
    array([0, 1])
    """
    train = check_features(train_x, what="train_x")
    labels = check_labels(train_y, train, "train_y")
    test = check_features(test_x, train.shape[1], "test_x")
    strengths = check_grid(grid)
    classes = np.unique(labels)
    if len(classes) < 2:
        raise EbmhybridError(f"a probe needs training labels of at least 2 classes, got {classes[0]} alone")
    columns = int(classes[-1]) + 1 if num_classes is None else whole_numbers(num_classes, "num_classes", 1)[0]
    if columns <= classes[-1]:
        raise EbmhybridError(f"train_y must lie in [0, {columns}), got {classes[-1]}")
    standardise = Standardiser.none(train.shape[1]) if standardised else Standardiser.of(train)
    fitted = fit_logistic(standardise(train), labels, [1.0] if validation is None else strengths)
    probes = [_probe(one, classes, columns, standardise, test) for one in fitted]
    return probes[0] if validation is None else _chosen(probes, validation, train.shape[1])


def fit_logistic(rows: np.ndarray, labels: np.ndarray, grid: Sequence[float]) -> list[tuple[float, Any, bool]]:
    """(C, scikit-learn's fitted model, whether it converged) for each C, each fit starting from the one before."""
    import warnings
    from copy import deepcopy

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model, found = LogisticRegression(max_iter=_ITERATIONS, tol=_TOLERANCE, warm_start=True), []
    for C in grid:
        with warnings.catch_warnings(record=True) as raised:
            warnings.simplefilter("always", ConvergenceWarning)
            model.set_params(C=C).fit(rows, labels)
        stopped = any(issubclass(one.category, ConvergenceWarning) for one in raised)
        found.append((C, deepcopy(model), not stopped))
    return found


def _probe(
    fitted: tuple[float, Any, bool], classes: np.ndarray, columns: int, standardise: Standardiser, test: np.ndarray
) -> LinearProbe:
    """The model's weights under the labels as columns."""
    C, model, converged = fitted
    weight, bias = np.zeros((columns, test.shape[1])), np.full(columns, -np.inf)
    # of two classes scikit-learn keeps the second one's logit alone, the first one's being 0
    weight[classes[-len(model.coef_) :]] = model.coef_
    bias[classes] = 0.0
    bias[classes[-len(model.coef_) :]] = model.intercept_
    return LinearProbe(standardise(test) @ weight.T + bias, C, weight, bias, standardise, converged)


def _chosen(probes: Sequence[LinearProbe], validation: Pair, width: int) -> LinearProbe:
    """The probe that does best on the validation examples."""
    from .calibration_metrics import nll_of_logits

    held_x, labels = check_pair(validation, width)
    held_y = check_labels(labels, held_x, "validation labels", len(probes[0].bias))

    def merit(probe: LinearProbe) -> tuple[float, float]:
        logits = probe(held_x)
        return float((logits.argmax(axis=1) == held_y).mean()), -nll_of_logits(logits, held_y)

    return max(probes, key=merit)
