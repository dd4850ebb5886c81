r"""Detectors of logits that are fitted on other logits: a function that fits returns a function of scores.

    temperature  log-odds of the top class at the temperature that calibrates validation logits (Guo et al. 2017)
    hdge         max_y log q(x|y), the contrast of HDGE with the training set as negatives (Liu & Abbeel 2020)

Scores are float64 (N,), higher = more in-distribution.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from ebmhybrid.errors import EbmhybridError

from .calibrators import fit_temperature
from .scores import as_double, msp

LogitScore = Callable[[np.ndarray], np.ndarray]


def temperature(validation_logits: np.ndarray | Tensor, validation_labels: np.ndarray | Tensor) -> LogitScore:
    """Log-odds of the top class of softmax(f / T), T being fitted on held-out logits.

    Ranks as max_y softmax(f / T)_y without its ties. The detector is "TempScale" of OpenOOD, the temperature that of
    :func:`ebmhybrid.evaluate.calibration.fit_temperature` (Guo et al. 2017). With two classes it ranks as `msp`.

    >>> logits, labels = np.log([[0.75, 0.25]] * 4), np.array([0, 0, 0, 1])
    >>> temperature(3 * logits, labels)(np.array([[6.0, 0.0]])).round(4)
    array([2.])
    """
    fitted = fit_temperature(validation_logits, validation_labels)
    return lambda logits: msp(as_double(logits) / fitted)


def hdge(train_logits: np.ndarray | Tensor) -> LogitScore:
    """max_y log q(x|y), log q(x|y) = f_y(x) - logsumexp_k f_y(x_k) over the training set: no label is needed.

    The contrastive approximation of Liu & Abbeel 2020 on raw logits, as their equation has it, read at the class that
    suits the image best. It is `max_logit` with every class on its own scale: adding a number to one class's logits
    everywhere changes nothing. The mean over classes, log sum_y p(y) q(x|y), is left out, because the objective's
    optimum makes it constant on the data: there q(x|y) is p(x|y) / p(x) up to a factor.

    Arguments:
        train_logits: (K, C), the negatives.

    >>> train = np.log([[1.0, 3.0], [3.0, 1.0]])
    >>> hdge(train)(np.log([[4.0, 2.0], [1.0, 1.0]])).round(4)
    array([ 0.    , -1.3863])
    """
    bank = as_double(train_logits)
    if len(bank) == 0:
        raise EbmhybridError("score 'hdge' needs at least one training image as a negative, got none")
    normaliser = bank.logsumexp(dim=0)

    def score(logits: np.ndarray | Tensor) -> np.ndarray:
        values = as_double(logits)
        if values.shape[1] != len(normaliser):
            raise EbmhybridError(f"logits must have the {len(normaliser)} columns fitted on, got {tuple(values.shape)}")
        return (values - normaliser).amax(dim=1).numpy()

    return score
