r"""Logits read as energies: the one place with the maths and the signs.

A classifier's logits f(x) in R^C define a joint energy-based model at temperature T (Grathwohl et al. 2020,
Liu & Abbeel 2020):

    E(x, y)      = -f(x)[y]
    p(x, y)      = exp(f(x)[y] / T) / Z
    log p(x)     = logsumexp_y f(x)[y] / T - log Z
    log p(y | x) = f(x)[y] / T - logsumexp_y f(x)[y] / T

Three signs follow, used everywhere in the package:

    log_density(f) =  T logsumexp(f / T)     higher = more in-distribution
    energy(f)      = -log_density(f)         lower  = more in-distribution
    joint_energy(f, y) = -f_y

log Z is unknown, so a density is known up to a constant: differences and rankings mean something, values do not.
The module is not called `energy`, because `ebmhybrid.energy` is the function.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ebmhybrid.kernels import at_least_float32, row_stats


def require_logits(logits: Tensor, name: str = "logits") -> None:
    """A ValueError that says what came under that name, unless it is logits: floating point (N, C)."""
    if not isinstance(logits, Tensor) or not logits.is_floating_point() or logits.dim() != 2 or logits.shape[1] == 0:
        what = f"{logits.dtype} {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"{name} must be floating point of shape (N, C) with C >= 1, got {what}")


def check_logits(logits: Tensor) -> Tensor:
    """Logits as (N, C) of at least float32, or a ValueError that says what came instead."""
    require_logits(logits)
    return at_least_float32(logits)


def log_density(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Unnormalised log density of x under the classifier, T logsumexp_y(f / T) = log p(x) + const.

    Source: Grathwohl et al. 2020 (JEM), Liu et al. 2020 (energy score).

    Arguments:
        logits: (N, C), any floating dtype; half precision is computed and returned in float32.
        temperature: T > 0.

    Returns:
        (N,), in nats times T, unbounded. Higher = more in-distribution.

    Raises:
        ValueError: logits that are not (N, C) floating point, or T that is not a positive number.

    >>> import torch
    >>> log_density(torch.zeros(2, 4)).exp()
    tensor([4., 4.])
    """
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature must be a positive number, got {temperature}")
    require_logits(logits)
    lse = row_stats(logits, temperature=temperature, want=("lse",)).lse
    assert lse is not None
    return lse if temperature == 1 else temperature * lse


def energy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Free energy E(x) = -T logsumexp_y(f / T): the negative of :func:`log_density`, lower = more in-distribution.

    >>> import torch
    >>> energy(torch.tensor([[3.0]]))
    tensor([-3.])
    """
    return -log_density(logits, temperature)


def joint_energy(logits: Tensor, labels: Tensor) -> Tensor:
    """Joint energy E(x, y) = -f(x)[y].

    Arguments:
        logits: (N, C).
        labels: (N,) int64 in [0, C).

    Returns:
        (N,). Lower = the pair (x, y) is more likely.

    Raises:
        ValueError: shapes or dtypes that do not fit.

    >>> import torch
    >>> joint_energy(torch.tensor([[1.0, 5.0]]), torch.tensor([1]))
    tensor([-5.])
    """
    logits = check_logits(logits)
    if labels.dtype != torch.int64 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"labels must be int64 of shape ({logits.shape[0]},), got {labels.dtype} {tuple(labels.shape)}"
        )
    eager = labels.device.type == "cpu" and labels.numel() and not torch.compiler.is_compiling()
    if eager and not (0 <= labels.min() <= labels.max() < logits.shape[1]):
        raise ValueError(f"labels must lie in [0, {logits.shape[1] - 1}], got [{labels.min()}, {labels.max()}]")
    return -logits.gather(1, labels[:, None]).squeeze(1)
