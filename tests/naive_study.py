"""Slow literal statistics, independent of the package and of scipy."""

from __future__ import annotations

import math


def t_tail(t: float, freedom: int, steps: int = 20_000) -> float:
    """P(|T| >= t) of Student's t, by Simpson's rule over its density in [0, t]."""
    constant = math.gamma((freedom + 1) / 2) / (math.sqrt(freedom * math.pi) * math.gamma(freedom / 2))

    def density(x: float) -> float:
        return constant * (1 + x * x / freedom) ** (-(freedom + 1) / 2)

    width = abs(t) / steps
    total = density(0.0) + density(abs(t))
    for i in range(1, steps):
        total += (4 if i % 2 else 2) * density(i * width)
    return 1 - 2 * total * width / 3


def paired_p(ours: list[float], theirs: list[float], shift: float = 0.0) -> float:
    """p-value of a paired t-test that ours - theirs has the mean `shift`."""
    n = len(ours)
    apart = [a - b - shift for a, b in zip(ours, theirs, strict=True)]
    mean = sum(apart) / n
    variance = sum((value - mean) ** 2 for value in apart) / (n - 1)
    return t_tail(mean / math.sqrt(variance / n), n - 1)


def holm_rejects(p_values: dict[str, float], alpha: float) -> set[str]:
    """What Holm's procedure rejects: ascending, each against alpha over how many are left, up to the first failure."""
    rejected: set[str] = set()
    for name in sorted(p_values, key=lambda name: p_values[name]):
        if p_values[name] > alpha / (len(p_values) - len(rejected)):
            break
        rejected.add(name)
    return rejected
