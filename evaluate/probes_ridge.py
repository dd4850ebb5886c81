"""The ridge probe: a number, such as a molecule's property, from frozen features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ebmhybrid.errors import EbmhybridError

from .feature_detectors import _LARGEST, check_features
from .probes import ALPHA_GRID, Standardiser
from .probes_checks import Pair, check_grid, check_pair


@dataclass(frozen=True)
class RidgeProbe:
    """What ridge regression makes of the test features.

    Attributes:
        predictions: float64 (M,).
        alpha: strength of the penalty.
        r2: 1 - sum (t - p)^2 / sum (t - mean t)^2, at most 1; NaN where the test targets are all the same.
        mae, rmse: mean absolute and root mean square error, in the targets' unit.
    """

    predictions: np.ndarray = field(repr=False)
    alpha: float
    r2: float
    mae: float
    rmse: float


def ridge_probe(
    train_x: np.ndarray,
    train_t: np.ndarray,
    test_x: np.ndarray,
    test_t: np.ndarray,
    validation: Pair | None = None,
    *,
    grid: Sequence[float] = ALPHA_GRID,
) -> RidgeProbe:
    """Ridge regression on standardised features, by scikit-learn.

    Arguments:
        train_x, train_t: features (N, D), N >= 2, and targets (N,).
        test_x, test_t: (M, D) and (M,).
        validation: features and targets that choose alpha from `grid`, by the mean square error; without them it is
            chosen by leaving each training example out in turn.

    Raises:
        EbmhybridError: unusable features or targets, or a single training example; the message names it.

    >>> x = np.arange(6.0)[:, None]
    >>> round(ridge_probe(x, 3 * x[:, 0] + 1, x, 3 * x[:, 0] + 1, grid=[1e-9]).r2, 6)
    1.0
    """
    from sklearn.linear_model import Ridge, RidgeCV

    train = check_features(train_x, what="train_x")
    if len(train) < 2:
        raise EbmhybridError("a ridge probe needs at least 2 training examples, got 1")
    targets = check_targets(train_t, train, "train_t")
    test = check_features(test_x, train.shape[1], "test_x")
    real = check_targets(test_t, test, "test_t")
    standardise = Standardiser.of(train)
    rows, alphas = standardise(train), check_grid(grid)
    if validation is None:
        model = RidgeCV(alphas=alphas).fit(rows, targets)
        alpha = float(model.alpha_)
    else:
        held, numbers = check_pair(validation, train.shape[1])
        held_t = check_targets(numbers, held, "validation targets")
        fitted = {alpha: Ridge(alpha=alpha).fit(rows, targets) for alpha in alphas}
        errors = {alpha: _rmse(model.predict(standardise(held)), held_t) for alpha, model in fitted.items()}
        alpha = min(alphas, key=lambda alpha: errors[alpha])
        model = fitted[alpha]
    found = model.predict(standardise(test))
    spread = float(np.square(real - real.mean()).sum())
    r2 = 1 - float(np.square(real - found).sum()) / spread if spread > 0 else float("nan")
    return RidgeProbe(found, alpha, r2, float(np.abs(real - found).mean()), _rmse(found, real))


def _rmse(found: np.ndarray, real: np.ndarray) -> float:
    return float(np.sqrt(np.square(found - real).mean()))


def check_targets(targets: np.ndarray, features: np.ndarray, name: str) -> np.ndarray:
    """Targets as float64 (N,), of squares that stay finite, or an EbmhybridError that names them."""
    values = np.asarray(targets)
    if values.shape != (len(features),) or values.dtype.kind not in "iuf":
        raise EbmhybridError(f"{name} must be numbers of shape ({len(features)},), got {values.dtype} {values.shape}")
    values = values.astype(np.float64)
    if bad := int((~(np.abs(values) <= _LARGEST)).sum()):
        raise EbmhybridError(f"{name} must be finite and at most {_LARGEST:g} in size, got {bad} beyond, NaN or inf")
    return values
