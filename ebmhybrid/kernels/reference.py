r"""The row statistics in plain torch: the definition of correct, the path of the CPU, and the oracle of every other.

With T the temperature, for each row n of x (N, C) and label y_n:

    lse_n  = log sum_c exp(x_nc / T)        E(x) = -T lse
    pick_n = x[n, y_n]                      cross-entropy = lse - pick at T = 1
    sum_n  = sum_c x_nc                     smoothed cross-entropy = lse - (1 - s) pick - s sum / C
    sq_n   = sum_c x_nc^2                   the normalised logit of class y = pick / sqrt(sq)

    gradient:  gx_nc = (g_lse / T) exp(x_nc / T - lse_n) + g_pick [c = y_n] + g_sum + 2 g_sq x_nc

Half precision is computed in float32 and float32 comes out, since bfloat16 loses 3e-2 of a logsumexp; float64 stays.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor

NAMES = ("lse", "pick", "sum", "sq")


class RowStats(NamedTuple):
    """The statistics of each row, each (N,) or None where it was not asked for."""

    lse: Tensor | None = None
    pick: Tensor | None = None
    sum: Tensor | None = None
    sq: Tensor | None = None


def at_least_float32(x: Tensor) -> Tensor:
    """float16 and bfloat16 become float32; float32 and float64 stay. logsumexp in bfloat16 is off by 3e-2."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def scaled(x: Tensor, temperature: float) -> Tensor:
    return x if temperature == 1 else x / temperature


def row_stats(x: Tensor, y: Tensor | None, temperature: float, want: Collection[str] = NAMES) -> RowStats:
    """The wanted statistics, differentiable by autograd. `pick` needs y."""
    x = at_least_float32(x)
    return RowStats(
        lse=scaled(x, temperature).logsumexp(1) if "lse" in want else None,
        pick=x.gather(1, y[:, None]).squeeze(1) if "pick" in want and y is not None else None,
        sum=x.sum(1) if "sum" in want else None,
        sq=x.square().sum(1) if "sq" in want else None,
    )


def row_stats_backward(
    x: Tensor,
    y: Tensor | None,
    lse: Tensor,
    g_lse: Tensor | None,
    g_pick: Tensor | None,
    g_sum: Tensor | None,
    g_sq: Tensor | None,
    temperature: float,
) -> Tensor:
    """gx of the module docstring in one buffer, where autograd would add up four; in x's dtype and contiguous."""
    wide = at_least_float32(x)
    if g_lse is None:
        gx = torch.zeros_like(wide, memory_format=torch.contiguous_format)
    else:
        gx = (scaled(wide, temperature) - lse[:, None]).exp_().mul_(g_lse[:, None] / temperature)
    if g_sq is not None:
        gx.addcmul_(wide, g_sq[:, None], value=2)
    if g_sum is not None:
        gx.add_(g_sum[:, None])
    if g_pick is not None and y is not None:
        gx.scatter_add_(1, y[:, None], g_pick[:, None])
    return gx.to(x.dtype).contiguous()


def row_stats_second(
    x: Tensor, y: Tensor | None, gg: Tensor, g_lse: Tensor | None, g_sq: Tensor | None, temperature: float
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor, Tensor]:
    """Derivatives of <gg, gx> by x, g_lse, g_pick, g_sum and g_sq, differentiable to any order."""
    wide, gg = at_least_float32(x), at_least_float32(gg)
    by_x, by_lse = torch.zeros_like(wide), None
    if g_lse is not None:
        p = torch.softmax(scaled(wide, temperature), 1)
        mean = (gg * p).sum(1)
        by_lse = mean / temperature
        by_x = by_x + (g_lse / temperature**2)[:, None] * p * (gg - mean[:, None])
    if g_sq is not None:
        by_x = by_x + 2 * g_sq[:, None] * gg
    by_pick = gg.gather(1, y[:, None]).squeeze(1) if y is not None else None
    return by_x.to(x.dtype), by_lse, by_pick, gg.sum(1), 2 * (gg * wide).sum(1)
