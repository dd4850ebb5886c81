"""Calibrators, each fitted on held-out logits and labels in float64, never on the test set.

temperature  softmax(f / T)                one number; keeps every decision (Guo et al. 2017)
vector       softmax(w * f + b)            2 C numbers; can change decisions (Guo et al. 2017)
isotonic     g_k(p_k) / sum_j g_j(p_j)     a non-decreasing step function g_k for each class; can change decisions
                                           (Zadrozny & Elkan 2002)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ebmhybrid.errors import EbmhybridError

from .calibration_metrics import Array, as_numpy, check_probabilities, check_targets, nll_of_logits
from .predictions import softmax

_LOG_T_BOUNDS = (math.log(0.01), math.log(100.0))
PRIOR_SD = 10.0


def _checked(logits: Array, labels: Array) -> tuple[np.ndarray, np.ndarray]:
    """(logits float64 (N, C), labels int64 (N,)), or a ValueError."""
    values = as_numpy(logits).astype(np.float64)
    if values.ndim != 2 or values.size == 0 or not np.isfinite(values).all():
        raise EbmhybridError(f"logits must be finite of shape (N, C) with N, C >= 1, got shape {values.shape}")
    return values, check_targets(labels, values)


def fit_temperature(logits: Array, labels: Array) -> float:
    """Temperature T in [0.01, 100] that minimises the NLL of softmax(logits / T) (Guo et al. 2017).

    Bounded search on log T in float64. The NLL is convex in 1/T, so there is one minimum; it lies towards a
    bound when every image is right (T small) or the logits mislead (T = 100). T > 0 leaves every argmax as it is.

    Arguments:
        logits: (N, C) on held-out data, not on the test set; not probabilities.
        labels: (N,) integers in [0, C).

    Raises:
        ValueError: logits that are not finite (N, C), or labels that do not fit.

    >>> logits = np.log([[0.75, 0.25]] * 4)
    >>> round(fit_temperature(3 * logits, np.array([0, 0, 0, 1])), 4)
    3.0
    """
    values, targets = _checked(logits, labels)
    if values.shape[1] == 1:
        return 1.0
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda log_t: nll_of_logits(values / math.exp(log_t), targets),
        bounds=_LOG_T_BOUNDS,
        method="bounded",
        options={"xatol": 1e-8},
    )
    return math.exp(float(found.x))


def unidentified(logits: Array, labels: Array, temperature: float) -> bool:
    """Whether a fitted temperature is no optimum: at a bound of the search the NLL is no worse than there."""
    values, targets = as_numpy(logits).astype(np.float64), as_numpy(labels)
    reached = nll_of_logits(values / temperature, targets)
    return any(nll_of_logits(values / math.exp(bound), targets) <= reached + 1e-9 for bound in _LOG_T_BOUNDS)


@dataclass(frozen=True)
class VectorScaling:
    """A scale and a bias for each class, float64 (C,); calling it maps logits (N, C) to logits scale * f + bias."""

    scale: np.ndarray
    bias: np.ndarray

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        """Calibrated logits, float64 (N, C)."""
        return logits * self.scale + self.bias


def fit_vector(logits: Array, labels: Array) -> VectorScaling:
    r"""Scale w and bias b of each class that minimise the NLL of softmax(w * f + b) (Guo et al. 2017).

    L-BFGS in float64 from temperature scaling, w = 1 / T and b = 0. The NLL alone has no minimum where the held-out
    images can be separated, so a weak normal prior holds (T w - 1, b) to 0 with standard deviation `PRIOR_SD`:

        sum_i NLL_i + (||T w - 1||^2 + ||b||^2) / (2 * 10^2)

    A parameter that moves by 10 costs half a nat, beside an NLL summed over all images.

    Arguments:
        logits: (N, C) on held-out data, not on the test set; not probabilities.
        labels: (N,) integers in [0, C).

    Raises:
        ValueError: logits that are not finite (N, C), or labels that do not fit.

    >>> logits = np.log([[0.75, 0.25]] * 4)
    >>> found = fit_vector(logits, np.array([0, 0, 1, 1]))
    >>> softmax(found(logits))[0].round(2)
    array([0.5, 0.5])
    """
    values, targets = _checked(logits, labels)
    from scipy.optimize import minimize

    temperature = fit_temperature(values, targets)
    scaled = values / temperature
    n, classes = values.shape
    truth = np.eye(classes)[targets]
    start = np.concatenate([np.ones(classes), np.zeros(classes)])

    def objective(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        moved = parameters - start
        outputs = scaled * parameters[:classes] + parameters[classes:]
        error = softmax(outputs) - truth
        slope = np.concatenate([(error * scaled).sum(axis=0), error.sum(axis=0)])
        loss = nll_of_logits(outputs, targets) + np.square(moved).sum() / (2 * PRIOR_SD**2 * n)
        return loss, slope / n + moved / (PRIOR_SD**2 * n)

    found = minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 500, "ftol": 1e-12})
    return VectorScaling(found.x[:classes] / temperature, found.x[classes:])


@dataclass(frozen=True)
class Isotonic:
    """For each class the (inputs, outputs) of a non-decreasing function; calling it maps probabilities (N, C).

    Between two inputs the function is linear, beyond the ends constant.
    """

    steps: tuple[tuple[np.ndarray, np.ndarray], ...]

    def __call__(self, probabilities: np.ndarray) -> np.ndarray:
        """Calibrated probabilities, float64 (N, C). A row that becomes 0 in every class stays as it was."""
        raised = np.stack([np.interp(probabilities[:, k], x, y) for k, (x, y) in enumerate(self.steps)], axis=1)
        total = raised.sum(axis=1, keepdims=True)
        return np.divide(raised, total, out=np.array(probabilities, dtype=np.float64), where=total > 0)


def fit_isotonic(probabilities: Array, labels: Array) -> Isotonic:
    """Isotonic regression of 1[y = k] on p_k for each class, to be normalised (Zadrozny & Elkan 2002).

    A probability can become exactly 0, and the NLL then infinite. With few images a class the steps follow chance.

    Arguments:
        probabilities: (N, C) on held-out data, rows that sum to 1; float32 or float64.
        labels: (N,) integers in [0, C).

    Raises:
        ValueError: logits, half precision, or shapes and labels that do not fit.

    >>> rows = np.array([[0.9, 0.1]] * 4)
    >>> fit_isotonic(rows, np.array([0, 0, 0, 1]))(rows)[0]
    array([0.75, 0.25])
    """
    values, targets = check_probabilities(probabilities, labels)
    from sklearn.isotonic import IsotonicRegression

    steps = []
    for k in range(values.shape[1]):
        fitted = IsotonicRegression(out_of_bounds="clip").fit(values[:, k], (targets == k).astype(np.float64))
        steps.append((fitted.X_thresholds_, fitted.y_thresholds_))
    return Isotonic(tuple(steps))
