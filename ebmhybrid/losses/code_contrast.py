r"""Contrast of a batch's codes with each other: is a code told from the others? By one positive and M negatives.

    s_ij = cos(z_i, p_j) = z_i . p_j / (||z_i|| ||p_j||),    p = z where there is no second view, and then s_ii = 1

    cMIM      log p(k=1|z_i,x_i) = log[ e^{1/t} / ( e^{1/t} + 1/M sum_{j != i} e^{s_ij/t} ) ]
    InfoNCE   log softmax_j(s_ij / t) at j = i

cMIM sets the positive against the *mean* over the negatives, InfoNCE against their *sum*. Without a second view they
differ by that alone: the log odds of InfoNCE are those of cMIM less log M.

Sources: Livne 2025, arXiv 2502.19642 (cMIM); van den Oord et al. 2018, arXiv 1807.03748 (InfoNCE).
"""

from __future__ import annotations

import math
import sys

import torch
import torch.nn.functional as F
from torch import Tensor

from ebmhybrid.kernels import at_least_float32
from ebmhybrid.losses.gathered import gathered

LEAST_TEMPERATURE = 1e-6  # 1 / t, and sums of exp(s / t), stay far from the ends of float32


def contrastive_log_prob(z: Tensor, temperature: float = 0.1, *, gather: bool = False) -> Tensor:
    """cMIM's log p(k=1|z_i,x_i) of each row, as in the module docstring.

    Source: Livne 2025. Gradients reach z_i and every z_j.

    Arguments:
        z: (N, D) samples of q(z|x), of any length; half precision, and autocast, are computed in float32. At a row of
            zeros, whose cosines count as 0, the gradient is finite but of the order 1e12 / t.
        temperature: t >= 1e-6.
        gather: negatives from all processes of torch.distributed (:mod:`ebmhybrid.losses.gathered`).

    Returns:
        (N,) in nats, of O(N^2) memory. In [-log 2, 0], since no s_ij is above s_ii = 1: -log 2 where all codes point
        one way, -4.5e-5 where they are orthogonal and t = 0.1. Exactly 0 for a batch of one, without negatives.

    Raises:
        ValueError: codes or a temperature that do not fit.

    >>> contrastive_log_prob(torch.ones(3, 2)).exp().round(decimals=4)
    tensor([0.5000, 0.5000, 0.5000])
    """
    check_number("temperature", temperature, LEAST_TEMPERATURE)
    z = checked_codes(z, least=0 if gather else 1)
    _, others, count = _compared(z, z, temperature, gather)
    return F.logsigmoid(1 / temperature - (others - math.log(max(count, 1))))


def infonce_log_prob(
    z: Tensor, positives: Tensor | None = None, temperature: float = 0.1, *, gather: bool = False
) -> Tensor:
    """InfoNCE: log softmax_j( cos(z_i, p_j) / t ) at j = i, of each row among the positives of all rows.

    Source: van den Oord et al. 2018, equation 4, with cos / t for the logarithm of the density ratio. One-sided:
    SimCLR (Chen et al. 2020) has the other anchors among the columns too, and the mean of both directions.

    Arguments:
        z: (N, D) anchors. Lengths, zeros and half precision are as in :func:`contrastive_log_prob`.
        positives: (N, D), the codes of a second view, say; None: the codes themselves, with s_ii = 1.
        temperature: t >= 1e-6.
        gather: columns from all processes of torch.distributed (:mod:`ebmhybrid.losses.gathered`).

    Returns:
        (N,) in nats, of O(N^2) memory. In [-log N, 0] without positives, since then no s_ij is above s_ii; with them
        at least -log(1 + (N - 1) e^{2/t}). Exactly 0 for a batch of one.

    Raises:
        ValueError: codes or a temperature that do not fit.

    >>> infonce_log_prob(torch.ones(4, 2)).exp().round(decimals=4)
    tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """
    check_number("temperature", temperature, LEAST_TEMPERATURE)
    z = checked_codes(z, least=0 if gather else 1)
    columns = z if positives is None else checked_like("positives", positives, z.shape)
    own, others, _ = _compared(z, columns, temperature, gather)
    return F.logsigmoid((1 / temperature if positives is None else own) - others)


def _compared(anchors: Tensor, columns: Tensor, temperature: float, gather: bool) -> tuple[Tensor, Tensor, int]:
    """cos / t of each anchor with its own column (N,), the log-sum over the M other columns (N,), and M."""
    anchors, columns = F.normalize(scaled(anchors), dim=1), F.normalize(scaled(columns), dim=1)
    columns, first = gathered(columns) if gather else (columns, 0)
    # In bfloat16 a cosine is off by up to .004, and 1 / t makes that .04.
    with torch.autocast(anchors.device.type, enabled=False):
        scores = anchors @ columns.T / temperature
    rows, places = (torch.arange(len(x), device=x.device) for x in (anchors, columns))
    own = rows[:, None] + first == places
    # Of no others the log-sum is -inf, with zero gradient: the log odds become inf and the log probability 0.
    return scores.diagonal(first), scores.masked_fill(own, -math.inf).logsumexp(1), len(columns) - 1


def scaled(rows: Tensor) -> Tensor:
    """Rows (N, D) whose largest component is +-1, so that no square in their length overflows or vanishes.

    Rows of zeros stay. A row's direction, and its gradient, are as they were.
    """
    largest = rows.detach().abs().amax(1, keepdim=True)
    return rows / largest.where(largest > 0, 1)


def checked_codes(z: object, least: int = 1) -> Tensor:
    """Codes (N, D) in float32 or wider, or a ValueError that says what came: floating point, D >= 1, N >= least.

    With gather, a process without rows must not stop here, where the others would wait: `gathered` tells them all.
    """
    if not (isinstance(z, Tensor) and z.is_floating_point() and z.dim() == 2 and z.shape[1] and len(z) >= least):
        raise ValueError(f"z must be codes, floating point (N, D) with N >= 1 and D >= 1, got {described(z)}")
    return at_least_float32(z)


def checked_like(name: str, value: object, shape: torch.Size) -> Tensor:
    """What belongs to codes, in float32 or wider, or a ValueError: floating point, of the shape that z asks for."""
    if not (isinstance(value, Tensor) and value.is_floating_point() and value.shape == shape):
        raise ValueError(f"{name} must be floating point {tuple(shape)}, as z is, got {described(value)}")
    return at_least_float32(value)


def described(value: object) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def check_number(name: str, value: object, least: float) -> None:
    """A ValueError unless the value is a finite number of at least `least`; True and 10^400 are none."""
    fits = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (fits and least <= value <= sys.float_info.max):  # type: ignore[operator]
        raise ValueError(f"{name} must be a finite number from {least:g} up, got {value!r}")
