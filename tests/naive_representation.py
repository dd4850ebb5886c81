"""Probes written out in loops, straight from their definitions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np


def standardised(train: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Each column less its training mean and over its training deviation; 0 where the training column is constant."""
    found = np.zeros(rows.shape)
    for d in range(train.shape[1]):
        column = train[:, d].astype(np.float64)
        mean = math.fsum(column) / len(column)
        spread = math.sqrt(math.fsum((value - mean) ** 2 for value in column) / len(column))
        for i in range(len(rows)):
            found[i, d] = (rows[i, d] - mean) / spread if spread > 0 else 0.0
    return found


def logistic_gradient(
    rows: np.ndarray, labels: Sequence[int], weight: np.ndarray, bias: np.ndarray, C: float
) -> tuple[np.ndarray, np.ndarray]:
    """Of 1/2 sum_kd W_kd^2 + C sum_i -log p(y_i | z_i), with respect to W and b: both are 0 at the optimum."""
    by_weight, by_bias = weight.copy(), np.zeros(len(bias))
    for z, label in zip(rows, labels, strict=True):
        logits = [sum(w * x for w, x in zip(line, z, strict=True)) + b for line, b in zip(weight, bias, strict=True)]
        total = sum(math.exp(logit - max(logits)) for logit in logits)
        for k, logit in enumerate(logits):
            error = math.exp(logit - max(logits)) / total - (k == label)
            by_weight[k] += C * error * z
            by_bias[k] += C * error
    return by_weight, by_bias


def similarity(a: np.ndarray, b: np.ndarray, metric: str) -> float:
    if metric == "euclidean":
        return -math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)))
    lengths = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(y * y for y in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / lengths if lengths > 0 else 0.0


def knn(train: np.ndarray, labels: Sequence[int], test: np.ndarray, k: int, metric: str) -> list[int]:
    """Most votes; of equally many the larger sum of similarities; of equal ones the smaller label."""
    found = []
    for z in test:
        near = sorted(((similarity(z, other, metric), i) for i, other in enumerate(train)), reverse=True)[:k]
        votes = Counter(int(labels[i]) for _, i in near)
        sums = {label: math.fsum(s for s, i in near if labels[i] == label) for label in votes}
        found.append(min(votes, key=lambda label: (-votes[label], -sums[label], label)))
    return found


def ridge(rows: np.ndarray, targets: np.ndarray, alpha: float) -> tuple[np.ndarray, float]:
    """w and b of min sum_i (t_i - w.z_i - b)^2 + alpha ||w||^2, from the normal equations with b as a column."""
    wide = np.hstack([rows, np.ones((len(rows), 1))])
    penalty = alpha * np.eye(wide.shape[1])
    penalty[-1, -1] = 0.0
    solution = np.linalg.solve(wide.T @ wide + penalty, wide.T @ targets)
    return solution[:-1], float(solution[-1])


def left_out_error(rows: np.ndarray, targets: np.ndarray, alpha: float) -> float:
    """The mean square error of predicting each example from all the others."""
    total = 0.0
    for i in range(len(rows)):
        rest = np.arange(len(rows)) != i
        w, b = ridge(rows[rest], targets[rest], alpha)
        total += (targets[i] - w @ rows[i] - b) ** 2
    return total / len(rows)
