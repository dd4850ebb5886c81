"""Metrics written out from their definitions with plain loops: slow, obvious, and independent of the package."""

from __future__ import annotations

import math
from collections.abc import Sequence


def auroc(inside: Sequence[float], outside: Sequence[float]) -> float:
    """Share of (ID, OOD) pairs in which ID scores higher; a tie is half a pair."""
    wins = 0.0
    for i in inside:
        for o in outside:
            wins += 1.0 if i > o else 0.5 if i == o else 0.0
    return wins / (len(inside) * len(outside))


def aupr(positive: Sequence[float], negative: Sequence[float]) -> float:
    """Sum over thresholds, from the highest down, of (recall gained) times precision."""
    area = last_recall = 0.0
    for threshold in sorted({*positive, *negative}, reverse=True):
        hits = sum(1 for p in positive if p >= threshold)
        alarms = sum(1 for n in negative if n >= threshold)
        recall = hits / len(positive)
        area += (recall - last_recall) * hits / (hits + alarms)
        last_recall = recall
    return area


def fpr95(positive: Sequence[float], negative: Sequence[float]) -> float:
    """Share of negatives at or above the highest threshold that keeps at least 95 % of the positives."""
    for threshold in sorted({*positive, *negative}, reverse=True):
        if 20 * sum(1 for p in positive if p >= threshold) >= 19 * len(positive):
            return sum(1 for n in negative if n >= threshold) / len(negative)
    raise AssertionError("the lowest threshold keeps everything")


def _top(rows: Sequence[Sequence[float]], labels: Sequence[int]) -> list[tuple[float, float]]:
    pairs = []
    for row, label in zip(rows, labels, strict=True):
        best = max(row)
        pairs.append((best, 1.0 if list(row).index(best) == label else 0.0))
    return pairs


def _gap(members: Sequence[tuple[float, float]]) -> float:
    confidence = sum(c for c, _ in members) / len(members)
    accuracy = sum(a for _, a in members) / len(members)
    return abs(accuracy - confidence)


def _width_bins(pairs: Sequence[tuple[float, float]], bins: int) -> list[list[tuple[float, float]]]:
    found = []
    for k in range(bins):
        low, high = k / bins, (k + 1) / bins
        members = [(c, a) for c, a in pairs if low < c <= high or (k == 0 and c == 0)]
        if members:
            found.append(members)
    return found


def ece(rows: Sequence[Sequence[float]], labels: Sequence[int], bins: int) -> float:
    pairs = _top(rows, labels)
    return sum(len(members) / len(pairs) * _gap(members) for members in _width_bins(pairs, bins))


def mce(rows: Sequence[Sequence[float]], labels: Sequence[int], bins: int) -> float:
    return max(_gap(members) for members in _width_bins(_top(rows, labels), bins))


def equal_mass_ece(rows: Sequence[Sequence[float]], labels: Sequence[int], bins: int) -> float:
    """Without ties: the sorted list cut into `bins` parts, the first len % bins of which have one member more."""
    pairs = sorted(_top(rows, labels))
    size, longer = divmod(len(pairs), bins)
    total, start = 0.0, 0
    for k in range(bins):
        stop = start + size + (1 if k < longer else 0)
        if stop > start:
            total += (stop - start) / len(pairs) * _gap(pairs[start:stop])
        start = stop
    return total


def classwise_ece(rows: Sequence[Sequence[float]], labels: Sequence[int], bins: int) -> float:
    classes, n = len(rows[0]), len(rows)
    total = 0.0
    for k in range(classes):
        pairs = [(row[k], 1.0 if label == k else 0.0) for row, label in zip(rows, labels, strict=True)]
        total += sum(len(members) / n * _gap(members) for members in _width_bins(pairs, bins)) / classes
    return total


def nll(rows: Sequence[Sequence[float]], labels: Sequence[int]) -> float:
    return sum(-math.log(row[label]) for row, label in zip(rows, labels, strict=True)) / len(rows)


def brier(rows: Sequence[Sequence[float]], labels: Sequence[int]) -> float:
    total = 0.0
    for row, label in zip(rows, labels, strict=True):
        for k, p in enumerate(row):
            total += (p - (1.0 if k == label else 0.0)) ** 2
    return total / len(rows)


def wilson(successes: int, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Closed form of the Wilson score interval."""
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return centre - half, centre + half
