"""The samplers written out from their papers, one chain and one number at a time, and a Gaussian's known chain.

A chain is a list of floats, a log density a function of such a list; slopes are central differences, so that nothing
here depends on automatic differentiation. float64 throughout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

Density = Callable[[Sequence[float]], float]
Map = Callable[[Sequence[float]], list[float]]


def slope(density: Density, x: Sequence[float], h: float = 1e-5) -> list[float]:
    found = []
    for i in range(len(x)):
        above, below = list(x), list(x)
        above[i] += h
        below[i] -= h
        found.append((density(above) - density(below)) / (2 * h))
    return found


def bounded(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def sgld(
    density: Density,
    x: Sequence[float],
    noises: Sequence[Sequence[float]],
    step: float,
    std: float,
    *,
    clamp: tuple[float, float] = (-math.inf, math.inf),
    clip: float = math.inf,
    anneal: float = 1.0,
) -> list[list[float]]:
    """Welling & Teh 2011 with JEM's two constants: x_1 .. x_K for the given standard normal draws."""
    path, here = [], list(x)
    for k, z in enumerate(noises):
        factor = 1.0 if len(noises) == 1 else anneal ** (k / (len(noises) - 1))
        g = slope(density, here)
        for i in range(len(here)):
            move = factor * step * bounded(g[i], -clip, clip) + math.sqrt(factor) * std * z[i]
            here[i] = bounded(here[i] + move, *clamp)
        path.append(list(here))
    return path


def psgld(
    density: Density,
    x: Sequence[float],
    noises: Sequence[Sequence[float]],
    step: float,
    std: float,
    decay: float,
    damping: float,
    clip: float = math.inf,
) -> list[float]:
    """Li et al. 2016, algorithm 1 with RMSprop's matrix, without Gamma; V_0 is the first squared slope.

    Their step eps moves by eps / 2 G g + N(0, eps G): step = eps / 2 and std = sqrt(eps) here.
    """
    here, squares = list(x), [bounded(v, -clip, clip) ** 2 for v in slope(density, x)]
    for z in noises:
        g = [bounded(v, -clip, clip) for v in slope(density, here)]
        for i in range(len(here)):
            squares[i] = decay * squares[i] + (1 - decay) * g[i] ** 2
            preconditioner = 1 / (damping + math.sqrt(squares[i]))
            here[i] += step * preconditioner * g[i] + std * math.sqrt(preconditioner) * z[i]
    return here


def proximal(
    first: Map,
    rest: Density,
    x: Sequence[float],
    noises: Sequence[Sequence[float]],
    step: float,
    std: float,
    inner_steps: int,
    inner_step: float,
    clip: float,
    clamp: tuple[float, float],
) -> list[float]:
    """JEM++ (Yang & Ji 2021): outer steps keep p = d rest / du, inner ones follow J(x)^T p, J a full matrix."""
    here = list(x)
    for z in noises:
        costate = slope(rest, first(here))
        outer = pull(first, here, costate)
        here = [v + step * g for v, g in zip(here, outer, strict=True)]
        for _ in range(inner_steps):
            g = pull(first, here, costate)
            here = [bounded(v + inner_step * bounded(d, -clip, clip), *clamp) for v, d in zip(here, g, strict=True)]
        here = [bounded(v + std * w, *clamp) for v, w in zip(here, z, strict=True)]
    return here


def pull(first: Map, x: Sequence[float], costate: Sequence[float]) -> list[float]:
    """J(x)^T p from the Jacobian, entry by entry."""
    units = range(len(costate))
    jacobian = [slope(lambda y, unit=unit: first(y)[unit], x) for unit in units]  # type: ignore[misc]
    return [sum(jacobian[unit][i] * costate[unit] for unit in units) for i in range(len(x))]


def chain_variance(precision: float, step: float, std: float) -> float:
    """Stationary variance of x' = (1 - a lambda) x + s z, the chain on a quadratic energy: exact for every step.

    v = (1 - a lambda)^2 v + s^2. With s^2 = 2 a it tends to 1 / lambda as a -> 0.
    """
    return std**2 / (1 - (1 - step * precision) ** 2)


def chain_law(
    slope_at: Callable[[float], float], start: float, steps: int, step: float, std: float, edge: float, cells: int
) -> tuple[list[float], list[float]]:
    """Grid points on [-edge, edge] and the probability of each after K steps of a chain in one dimension.

    The transition N(x'; x + a slope(x), s^2) is tabulated and multiplied out: the law of the discretised chain itself,
    whatever the step, up to the grid.
    """
    width = 2 * edge / (cells - 1)
    grid = [-edge + width * i for i in range(cells)]
    kernel = []
    for x in grid:
        target = x + step * slope_at(x)
        row = np.array([math.exp(-(((y - target) / std) ** 2) / 2) for y in grid])
        kernel.append(row / row.sum())
    table = np.stack(kernel)
    law = np.zeros(cells)
    law[min(range(cells), key=lambda i: abs(grid[i] - start))] = 1.0
    for _ in range(steps):
        law = law @ table
    return grid, law.tolist()
