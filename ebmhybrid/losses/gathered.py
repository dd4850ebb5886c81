"""Rows of all processes, with gradients: for a loss that compares a batch's rows with each other."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _AllGather(torch.autograd.Function):
    """Every process's rows one below the other; backward sums over processes what each asks of the own rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        ctx.count = len(rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.clone(memory_format=torch.contiguous_format)  # all_reduce writes into what it is given
        dist.all_reduce(total)
        return total.narrow(0, dist.get_rank() * ctx.count, ctx.count)


def gathered(rows: Tensor) -> tuple[Tensor, int]:
    """The rows (N, ...) of all R processes as (R N, ...), and where this process's own begin; alone, (rows, 0).

    A loss that is a mean over a process's rows against these columns then has, averaged over processes as
    DistributedDataParallel averages gradients, the value and gradient of one process with the whole batch. All
    processes must call it, and go backward, the same number of times; otherwise they wait for each other.

    Raises:
        ValueError: on every process, where they hold different numbers of rows or none: the mean over processes of
            their means would then not be the mean over rows.

    >>> gathered(torch.ones(2, 3))[0].shape
    torch.Size([2, 3])
    """
    alone = not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1)
    sizes = [len(rows)] if alone else _counts(rows)
    if len(set(sizes)) > 1:
        raise ValueError(f"every process must hold as many rows as the others, got {sizes}: drop the last, short batch")
    if not sizes[0]:
        raise ValueError(f"every process must hold at least one row, got {sizes}")
    return (rows, 0) if alone else (_AllGather.apply(rows), dist.get_rank() * len(rows))


def _counts(rows: Tensor) -> list[int]:
    count = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.empty_like(count) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, count)
    return torch.cat(counts).tolist()
