"""Detectors of OOD images written out from their definitions: slow, obvious, and independent of the package."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

Rows = Sequence[Sequence[float]]


def logsumexp(row: Sequence[float]) -> float:
    top = max(row)
    return top + math.log(sum(math.exp(value - top) for value in row))


def softmax(row: Sequence[float]) -> list[float]:
    return [math.exp(value - logsumexp(row)) for value in row]


def log_odds(row: Sequence[float], temperature: float) -> float:
    """log p / (1 - p) of the most probable class."""
    top = max(softmax([value / temperature for value in row]))
    return math.log(top / (1 - top))


def logits(weight: np.ndarray, bias: np.ndarray, z: Sequence[float]) -> list[float]:
    return [sum(w * v for w, v in zip(row, z, strict=True)) + b for row, b in zip(weight, bias, strict=True)]


def gen(rows: Rows, gamma: float, top: int) -> list[float]:
    found = []
    for row in rows:
        largest = sorted(softmax(row), reverse=True)[:top]
        found.append(-sum(p**gamma * (1 - p) ** gamma for p in largest))
    return found


def hdge(train: Rows, rows: Rows) -> list[float]:
    found = []
    for row in rows:
        of_class = []
        for y, value in enumerate(row):
            of_class.append(value - math.log(sum(math.exp(other[y]) for other in train)))
        found.append(max(of_class))
    return found


def _squared(difference: np.ndarray, covariance: np.ndarray) -> float:
    return float(difference @ np.linalg.pinv(covariance) @ difference)


def _gaussian(train: np.ndarray, labels: Sequence[int]) -> tuple[dict[int, np.ndarray], np.ndarray]:
    means = {y: np.mean([z for z, label in zip(train, labels, strict=True) if label == y], axis=0) for y in set(labels)}
    covariance = np.zeros((train.shape[1], train.shape[1]))
    for z, y in zip(train, labels, strict=True):
        covariance += np.outer(z - means[y], z - means[y]) / len(train)
    return means, covariance


def mahalanobis(train: np.ndarray, labels: Sequence[int], rows: np.ndarray) -> list[float]:
    means, covariance = _gaussian(train, labels)
    return [-min(_squared(z - mean, covariance) for mean in means.values()) for z in rows]


def relative_mahalanobis(train: np.ndarray, labels: Sequence[int], rows: np.ndarray) -> list[float]:
    whole = mahalanobis(train, [0] * len(train), rows)
    return [near - far for near, far in zip(mahalanobis(train, labels, rows), whole, strict=True)]


def knn(train: Rows, rows: Rows, k: int) -> list[float]:
    def unit(z: Sequence[float]) -> list[float]:
        length = math.sqrt(sum(v * v for v in z))
        return [v / length if length else 0.0 for v in z]

    found = []
    for z in rows:
        distances = sorted(math.dist(unit(z), unit(other)) for other in train)
        found.append(-distances[min(k, len(distances)) - 1])
    return found


def vim(train: np.ndarray, weight: np.ndarray, bias: np.ndarray, dimension: int, rows: np.ndarray) -> list[float]:
    """By the singular value decomposition of the training set, not the eigenvectors of its second moment."""
    origin = -np.linalg.pinv(weight) @ bias
    principal = np.linalg.svd(train - origin)[2][:dimension]

    def residual(z: np.ndarray) -> float:
        shifted = z - origin
        return float(np.linalg.norm(shifted - sum(((shifted @ v) * v for v in principal), np.zeros(len(z)))))

    top = np.mean([max(logits(weight, bias, z)) for z in train])
    alpha = top / np.mean([residual(z) for z in train])
    return [logsumexp(logits(weight, bias, z)) - alpha * residual(z) for z in rows]


def percentile(values: Sequence[float], percent: float) -> float:
    """Linear interpolation between the order statistics at 0 and 100 %."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def react(train: Rows, weight: np.ndarray, bias: np.ndarray, percent: float, rows: Rows) -> list[float]:
    ceiling = percentile([v for z in train for v in z], percent)
    return [logsumexp(logits(weight, bias, [min(v, ceiling) for v in z])) for z in rows]


def _largest(z: Sequence[float], percent: float) -> list[int]:
    kept = max(1, len(z) - round(len(z) * percent / 100))
    return sorted(range(len(z)), key=lambda i: (-z[i], i))[:kept]


def ash(weight: np.ndarray, bias: np.ndarray, percent: float, rows: Rows) -> list[float]:
    found = []
    for z in rows:
        kept = _largest(z, percent)
        new = [sum(z) / len(kept) if i in kept else 0.0 for i in range(len(z))]
        found.append(logsumexp(logits(weight, bias, new)))
    return found


def scale(weight: np.ndarray, bias: np.ndarray, percent: float, rows: Rows) -> list[float]:
    found = []
    for z in rows:
        factor = math.exp(sum(z) / sum(z[i] for i in _largest(z, percent)))
        found.append(logsumexp(logits(weight, bias, [factor * v for v in z])))
    return found


def odin(model: Callable[[list[float]], list[float]], pixels: Sequence[float], temperature: float, eps: float) -> float:
    """The gradient's sign by central differences of the top class's log probability, the class staying as it is."""
    row = model(list(pixels))
    top = row.index(max(row))

    def log_probability(image: list[float]) -> float:
        scaled = [value / temperature for value in model(image)]
        return scaled[top] - logsumexp(scaled)

    moved = list(pixels)
    for i in range(len(pixels)):
        up, down = list(pixels), list(pixels)
        up[i] += 1e-5
        down[i] -= 1e-5
        slope = log_probability(up) - log_probability(down)
        moved[i] += eps if slope > 0 else -eps if slope < 0 else 0.0
    return log_odds(model(moved), temperature)
