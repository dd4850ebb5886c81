"""Likelihoods of an image, one pixel at a time, from their definitions, in Python's numbers and in decimals."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import numpy as np
from scipy import stats


def floored(raw: float, floor: float) -> float:
    """floor + softplus(raw - floor)."""
    return floor + math.log(1 + math.exp(raw - floor))


def bernoulli(logits: np.ndarray, image: np.ndarray) -> float:
    """sum x log p + (1 - x) log(1 - p), all (C, H, W)."""
    total = 0.0
    for at, x in np.ndenumerate(image):
        p = 1 / (1 + math.exp(-logits[at]))
        total += x * math.log(p) + (1 - x) * math.log(1 - p)
    return total


def logistic(location: np.ndarray, raw: np.ndarray, image: np.ndarray) -> float:
    """sum log P(level) over the pixels."""
    total = 0.0
    for at, x in np.ndenumerate(image):
        total += log_probability_of_a_level(location[at], floored(raw[at], -7.0), math.floor(255 * x + 0.5))
    return total


def log_probability_of_a_level(location: float, log_scale: float, level: int, digits: int = 60) -> float:
    """log [ F(upper end) - F(lower end) ] of the level's bin on [-1, 1], its ends at infinity for levels 0 and 255.

    With so many digits that a difference of two numbers near 1 keeps enough of them.
    """
    with localcontext() as context:
        context.prec = digits
        centre, scale = Decimal(2 * level) / 255 - 1 - Decimal(location), Decimal(log_scale).exp()
        upper = 1 / (1 + (-(centre + Decimal(1) / 255) / scale).exp()) if level < 255 else Decimal(1)
        lower = 1 / (1 + (-(centre - Decimal(1) / 255) / scale).exp()) if level > 0 else Decimal(0)
        return float((upper - lower).ln())


def gaussian(mean: np.ndarray, raw: np.ndarray, image: np.ndarray) -> float:
    """sum log N(x; m, s^2)."""
    return sum(
        float(stats.norm.logpdf(x, mean[at], math.exp(floored(raw[at], -6.0)))) for at, x in np.ndenumerate(image)
    )
