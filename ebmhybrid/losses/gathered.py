"""Rows and log-sums of all processes, with gradients: for a loss that compares a batch's rows with each other.

A batch of N rows lies on R processes of torch.distributed, process r with n_r of them. Each has as its loss L_r the
mean over its own rows, against columns of all N. Since the batch's mean is

    L = sum_r n_r / N L_r = 1/R sum_r (R n_r / N) L_r,

and DistributedDataParallel averages gradients over processes, (R n_r / N) L_r on process r gives the gradient of one
process with the whole batch; with equal shares the factor is 1. For that, backward sums over processes what each asks
of a process's rows. All processes must call these functions, and go backward, the same number of times and in the same
order; otherwise they wait for each other. Without other processes all of them do nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ebmhybrid.messages import all_parts, all_reduced, processes, rank

_shares: tuple[tuple[int, ...], tuple[int, ...]] | None = None


@contextmanager
def known_shares(images: Sequence[int], references: Sequence[int]) -> Iterator[None]:
    """Inside, the processes need not ask each other how many images and reference images each holds, by rank.

    Every process must say the same.
    """
    global _shares
    _shares = tuple(images), tuple(references)
    try:
        yield
    finally:
        _shares = None


def _known(counts: tuple[int, ...]) -> tuple[tuple[int, ...], ...] | None:
    """Of all processes what this one has so many of: views of its images, or images and reference images."""
    if _shares is None:
        return None
    images, references = _shares
    views, over = divmod(counts[0], images[rank()])
    others = references if len(counts) > 1 and counts[1] else (0,) * len(images)
    if over or (len(counts) > 1 and (views != 1 or counts[1] != others[rank()])):
        raise ValueError(f"{counts} rows are not those of {images[rank()]} images and {references[rank()]} others")
    return tuple((views * n, m)[: len(counts)] for n, m in zip(images, others, strict=True))


def row_counts(device: torch.device, *counts: int) -> tuple[tuple[int, ...], ...]:
    """These numbers of each process, by rank.

    They are read on the host: exchanged there too where the group has a backend for it (as `cpu:gloo,cuda:nccl` has),
    else on the device, which is then waited for. Within :func:`known_shares` nothing is exchanged.

    >>> row_counts(torch.device("cpu"), 3, 4)
    ((3, 4),)
    """
    if processes() == 1:
        return (counts,)
    if (known := _known(counts)) is not None:
        return known
    own = torch.tensor(counts, device="cpu" if "cpu:" in dist.get_backend_config() else device)
    return tuple(tuple(part) for part in torch.stack(all_parts(own)).tolist())


def reference_share(images: int, references: int, device: torch.device) -> float:
    """By what a process multiplies its mean over reference images, so that it is weighted as a mean over images is.

    N m_r / (n_r M), for n_r of N images and m_r of M reference images: 1 where all processes hold as many for an image.

    >>> reference_share(4, 2, torch.device("cpu"))
    1.0
    """
    all_images, all_references = (sum(counts) for counts in zip(*row_counts(device, images, references), strict=True))
    return all_images * references / (images * all_references)


class _AllGather(torch.autograd.Function):
    """Every process's rows one below the other; backward sums over processes what each asks of the own rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: Sequence[int]) -> Tensor:
        ctx.first, ctx.count = sum(counts[: rank()]), counts[rank()]
        padding = [0, 0] * (rows.dim() - 1) + [0, max(counts) - len(rows)]
        parts = all_parts(F.pad(rows, padding))
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        total = grad.clone(memory_format=torch.contiguous_format)  # all_reduce writes into what it is given
        all_reduced(total)
        return total.narrow(0, ctx.first, ctx.count), None


def gathered(rows: Tensor, counts: Sequence[int] | None = None) -> tuple[Tensor, int]:
    """The rows (n_r, ...) of all R processes as (N, ...), and where this process's own begin; alone, (rows, 0).

    A process may have no rows if another has some. Where shares differ, the mean of the processes' means must be
    weighted as the module docstring says. The gradient cannot be differentiated again.

    Arguments:
        counts: how many rows each process holds, where that is known already.

    Raises:
        ValueError: on every process, where none of them holds a row.

    >>> gathered(torch.ones(2, 3))[0].shape
    torch.Size([2, 3])
    """
    if counts is None:
        counts = [count for (count,) in row_counts(rows.device, len(rows))]
    if not any(counts):
        raise ValueError(f"some process must hold at least one row, got {list(counts)}")
    if processes() == 1:
        return rows, 0
    return _AllGather.apply(rows, counts), sum(counts[: rank()])


def own_mean(values: Tensor) -> Tensor:
    """The mean over a process's own rows, and 0 with a gradient where it has none, for the others wait for that.

    >>> own_mean(torch.tensor([1.0, 3.0])), own_mean(torch.zeros(0))
    (tensor(2.), tensor(0.))
    """
    return values.mean() if len(values) else values.sum()


class _SharedLogSum(torch.autograd.Function):
    """log sum_r exp(own_r); backward sums over processes what each asks of it, and returns this one's share."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        total = torch.stack(all_parts(own)).logsumexp(0)
        ctx.save_for_backward(own, total)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        own, total = ctx.saved_tensors
        asked = grad.clone(memory_format=torch.contiguous_format)
        all_reduced(asked)
        # A process without rows has a log-sum of -inf, and if all have, inf - inf is NaN.
        return asked * torch.exp(own - total).where(own > -math.inf, own.new_zeros(()))


def shared_log_sum(own: Tensor) -> Tensor:
    """The logsumexp over processes of a tensor of one shape on all: the log-sum of all rows from those of the shares.

    Forward exchanges the tensor and backward its gradient, where gathering the rows would exchange all of them. The
    gradient cannot be differentiated again.

    >>> shared_log_sum(torch.zeros(2))
    tensor([0., 0.])
    """
    return own if processes() == 1 else _SharedLogSum.apply(own)
