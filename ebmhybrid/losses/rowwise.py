r"""Losses that look at one row of logits at a time, all from the same statistics of the row (:mod:`ebmhybrid.kernels`).

    cross-entropy   -log q(y|x) = lse - pick;   smoothed by s: lse - (1 - s) pick - s sum / C
    z-loss          lse^2 = (log Z(x))^2, which keeps logits from drifting (PaLM, Chowdhery et al. 2022)
    unit logit      f_y / ||f||_2 = pick / sqrt(sq), the positive of the normalised contrast

Where a fused path pays one `row_stats` call feeds those of a loss; elsewhere each takes torch's own function for it,
which for small logits, and for cross-entropy on a CPU, is the faster way.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ebmhybrid.energies import check_logits
from ebmhybrid.kernels import NAMES, RowStats, choose, row_stats
from ebmhybrid.kernels.support import triton_runs_on

# As in F.normalize: a row of zeros has unit logits of zero. Added to a norm it costs one kernel less than a maximum.
EPS = 1e-12
# On a CPU torch's own cross-entropy beats the operator's, until autograd's buffers for the unit logit outweigh that.
ONE_READ_ENTRIES = 2**20


def cross_entropy(stats: RowStats, classes: int, label_smoothing: float = 0.0) -> Tensor:
    """-log q(y|x) of each row, (N,) in nats >= 0, smoothed over all C classes as torch's is.

    >>> stats = row_stats(torch.zeros(1, 4), torch.tensor([2]))
    >>> cross_entropy(stats, 4).exp(), cross_entropy(stats, 4, 0.1).exp()
    (tensor([4.]), tensor([4.]))
    """
    assert stats.lse is not None
    assert stats.pick is not None
    if not label_smoothing:
        return stats.lse - stats.pick
    assert stats.sum is not None
    return stats.lse - (1 - label_smoothing) * stats.pick - (label_smoothing / classes) * stats.sum


def unit_logit(stats: RowStats) -> Tensor:
    """f_y / ||f||_2 of each row, (N,) in [-1, 1].

    >>> unit_logit(row_stats(torch.tensor([[3.0, 4.0]]), torch.tensor([0])))
    tensor([0.6000])
    """
    assert stats.pick is not None
    assert stats.sq is not None
    return stats.pick / stats.sq.clamp_min(EPS**2).sqrt()


def weighted_sum(*terms: tuple[float, Tensor | None]) -> Tensor:
    """The sum of weight x term. One of weight 0 is left out, since 0 times its infinities would be NaN; not all may be.

    >>> weighted_sum((2.0, torch.tensor(3.0)), (0.0, torch.tensor(float("inf"))))
    tensor(6.)
    """
    total = None
    for weight, term in terms:
        if weight and term is not None:
            part = term if weight == 1 else weight * term
            total = part if total is None else total + part
    assert total is not None
    return total


class RowTerms(NamedTuple):
    """Mean cross-entropy and mean z-loss (scalars), the rows' own logits (N, 1); None where not asked for."""

    ce: Tensor | None
    own: Tensor | None = None
    z: Tensor | None = None


def _one_read_pays(logits: Tensor, want: tuple[str, ...], own: str | None) -> bool:
    if choose(logits, want) == "composite":
        return False
    return triton_runs_on(logits) or (own == "l2" and logits.numel() >= ONE_READ_ENTRIES)


def row_terms(
    logits: Tensor,
    y: Tensor,
    *,
    label_smoothing: float = 0.0,
    ce: bool = True,
    own: str | None = None,
    z: bool = False,
) -> RowTerms:
    """The row-wise parts of an objective.

    Arguments:
        logits: (N, C) floating point. y: int64 (N,), or probabilities (N, C), which have no logit of their own.
        ce, z: whether cross-entropy and z-loss are wanted.
        own: which logit at the label is wanted: "none" as it is, "l2" of unit length, None not at all.

    >>> row_terms(torch.zeros(2, 4), torch.tensor([0, 1]), z=True).z.sqrt().exp()
    tensor(4.)
    """
    want = NAMES if own == "l2" else ("lse", "pick", "sum")
    if y.dim() == 1 and _one_read_pays(logits, want, own):
        stats = row_stats(logits, y, want=want)
        assert stats.lse is not None
        assert stats.pick is not None
        value = unit_logit(stats) if own == "l2" else stats.pick
        return RowTerms(
            ce=cross_entropy(stats, logits.shape[1], label_smoothing).mean() if ce else None,
            own=None if own is None else value.unsqueeze(1),
            z=stats.lse.square().mean() if z else None,
        )
    logits = check_logits(logits)
    unit = None
    if own is not None:
        unit = logits.gather(1, y.unsqueeze(1))
        if own == "l2":
            unit = unit / (torch.linalg.vector_norm(logits, dim=1, keepdim=True) + EPS)
    return RowTerms(
        ce=F.cross_entropy(logits, y, label_smoothing=label_smoothing) if ce else None,
        own=unit,
        z=logits.logsumexp(1).square().mean() if z else None,
    )
