"""The chains of `ebmhybrid.generation.chains` spelled out: one image at a time, with the derivatives by hand.

The model is a mixture of C Gaussians of the same width: f(x)[c] = -|x - m_c|^2 / (2 w), so that
d f(x)[y] / dx = (m_y - x) / w, and d logsumexp f(x) / dx = sum_c softmax(f(x))[c] (m_c - x) / w.
"""

from __future__ import annotations

import math

import numpy as np


def slope(x: np.ndarray, means: np.ndarray, width: float, label: int | None) -> np.ndarray:
    if label is not None:
        return (means[label] - x) / width
    logits = [-float(((x - mean) ** 2).sum()) / (2 * width) for mean in means]
    weights = [math.exp(one - max(logits)) for one in logits]
    return sum(weight / sum(weights) * (mean - x) / width for weight, mean in zip(weights, means, strict=True))


def chain(
    x: np.ndarray,
    noises: np.ndarray,
    means: np.ndarray,
    width: float,
    label: int | None,
    step_size: float,
    clip: float | None,
    clamp: bool,
) -> list[np.ndarray]:
    """All states of one chain, the start included; `noises` are those of its steps, scaled already."""
    states = [x]
    for noise in noises:
        g = slope(x, means, width, label)
        if clip is not None:
            g = np.minimum(np.maximum(g, -clip), clip)
        x = x + step_size * g + noise
        if clamp:
            x = np.minimum(np.maximum(x, 0.0), 1.0)
        states.append(x)
    return states
