"""The order of an epoch, cut into batches and each batch into the shares of the processes that train together.

The order depends on the generator alone, not on how many processes there are: R of them with shares of a batch see
what one process with the whole batch sees, and each image comes once an epoch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ebmhybrid.errors import DataError

LEAST = 2  # images a process and batch: BatchNorm cannot train on one value a channel


def count_batches(n: int, batch_size: int, processes: int = 1) -> int:
    """The number of batches that n images are cut into; a rest of less than two images a process joins the last one.

    Raises:
        DataError: no images, or a batch_size below 1.

    >>> count_batches(9, 4), count_batches(10, 4), count_batches(10, 4, processes=2)
    (2, 3, 2)
    """
    if n < 1 or batch_size < 1:
        raise DataError(f"there must be images and a batch_size of at least 1, got {n} images and {batch_size}")
    full, rest = divmod(n, batch_size)
    return max(1, full + (rest >= LEAST * processes))


def batch_sizes(n: int, batch_size: int, processes: int = 1) -> list[int]:
    """The images of each batch, of all processes together.

    >>> batch_sizes(9, 4), batch_sizes(10, 4)
    ([4, 5], [4, 4, 2])
    """
    count = count_batches(n, batch_size, processes)
    return [batch_size] * (count - 1) + [n - batch_size * (count - 1)]


def share_of(total: int, rank: int, processes: int) -> tuple[int, int]:
    """Where the share of a process begins in a batch, and where it ends: near-equal shares, the first the larger.

    >>> [share_of(7, rank, 3) for rank in range(3)]
    [(0, 3), (3, 5), (5, 7)]
    """
    share, over = divmod(total, processes)
    begin = rank * share + min(rank, over)
    return begin, begin + share + (rank < over)


def batch_indices(
    n: int,
    batch_size: int,
    *,
    generator: torch.Generator | None,
    start: int = 0,
    rank: int = 0,
    processes: int = 1,
) -> list[Tensor]:
    """One epoch of batches in an order drawn from the generator, as indices: what this process takes of each.

    Arguments:
        n: images of the set.
        batch_size: images a batch, of all processes together.
        generator: decides the order; with its state set back, the order is the same.
        start: batches of this order to pass over, to resume within an epoch.
        rank, processes: which share of each batch; a process has at least two images of it, if there are that many.

    Returns:
        One int64 tensor a batch; together those of all processes hold each of 0..n-1 once.

    Raises:
        DataError: sizes out of range.

    >>> [len(index) for index in batch_indices(9, 4, generator=None)]
    [4, 5]
    """
    if start < 0:
        raise DataError(f"start must be at least 0, got {start}")
    if not 0 <= rank < processes:
        raise DataError(f"rank must lie in 0..{processes - 1}, got {rank}")
    sizes = batch_sizes(n, batch_size, processes)
    device = "cpu" if generator is None else generator.device
    order = torch.randperm(n, generator=generator, device=device)
    shares = []
    for batch in order.split(sizes)[start:]:
        begin, end = share_of(len(batch), rank, processes)
        shares.append(batch[begin:end])
    return shares
