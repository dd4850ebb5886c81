r"""A memory bank of negatives that stores sums instead of vectors.

With hard labels the contrastive term needs of K banked examples only the class-conditional denominators

    log D_c = logsumexp_{k=1..K} phi_c(b_k),     c = 1..C

so the bank keeps the log-sum of each block of examples and forgets the examples: a ring of rows
R[r, c] = logsumexp_{k in block r} phi_c(b_k). A second level holds the log-sum of each group of rows, so that pushing
a batch of N and summing log D costs O((N + sqrt(R)) C) for R rows, whatever K is. Nothing is ever subtracted, so
nothing drifts; pointer and counts are tensors on the device, so nothing waits for the host.

Several processes keep one bank, each a copy of it. Each cuts its share of a batch where the rows of the whole batch
end, and all exchange the log-sums of their pieces, not the scores: the rows are those that one process makes of the
whole batch, whatever the shares are, and the same on all processes to the last bit.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ebmhybrid.messages import all_parts, rank

MAX_ROWS = 4096

Counts = tuple[tuple[int, ...], ...]  # examples of each part of a batch, for each process


def block_sums(scores: Tensor, begin: int, block: int) -> Tensor:
    """Column log-sums of the blocks that scores (N, C) touch, if the first stands at place `begin`; (rows, C).

    >>> block_sums(torch.zeros(3, 1), begin=1, block=2).exp()
    tensor([[1.],
            [2.]])
    """
    before = begin % block
    after = -(before + len(scores)) % block
    padded = F.pad(scores, (0, 0, before, after), value=-math.inf)
    return padded.view(-1, block, scores.shape[1]).logsumexp(1)


@lru_cache(maxsize=16)
def places(counts: Counts, capacity: int) -> tuple[tuple[tuple[int, int], ...], ...]:
    """Where each part of each process begins and ends in the whole batch, of which the last `capacity` are counted.

    The first parts of all processes come first, in the order of ranks, then the second parts.

    >>> places(((3, 1), (2, 1)), capacity=6)  # of 7 the oldest is left out
    (((0, 2), (4, 5)), ((2, 4), (5, 6)))
    """
    spans: list[list[tuple[int, int]]] = [[] for _ in counts]
    begin = min(0, capacity - sum(map(sum, counts)))
    for part in zip(*counts, strict=True):
        for span, count in zip(spans, part, strict=True):
            span.append((max(begin, 0), max(begin + count, 0)))
            begin += count
    return tuple(map(tuple, spans))


@lru_cache(maxsize=16)
def row_members(counts: Counts, block: int, capacity: int, device: torch.device) -> tuple[int, Tensor]:
    """Of what the whole batch's rows are made: from R processes with W rows each, `block_sums` of their parts.

    Returns:
        W, to which a process with fewer rows fills up; and for each row of the batch which of the R W rows, one process
        after the other, belong to it, (rows, most), filled up with R W.

    >>> row_members(((3,), (3,)), 2, 100, torch.device("cpu"))  # the second row has an example of each
    (2, tensor([[0, 4],
            [1, 2],
            [3, 4]]))
    """
    spans = places(counts, capacity)
    touched = [[row for b, e in own if b < e for row in range(b // block, (e - 1) // block + 1)] for own in spans]
    width = max(map(len, touched))
    members: list[list[int]] = [[] for _ in range(math.ceil(min(capacity, sum(map(sum, counts))) / block))]
    for process, rows in enumerate(touched):
        for place, row in enumerate(rows):
            members[row].append(process * width + place)
    most, nothing = max(map(len, members), default=0), len(counts) * width
    filled = [row + [nothing] * (most - len(row)) for row in members]
    return width, torch.tensor(filled, dtype=torch.int64, device=device)


class Bank(nn.Module):
    """The K newest examples' scores as class-conditional log-sums, first in, first out.

    Examples are dropped a row at a time. A row holds g = ceil(K / 4096) examples, so the bank equals a queue of K
    examples exactly where K is a multiple of g and batch sizes are too: always for K up to 4096, and at K = 65536 for
    batches of a multiple of 16. A batch that is no multiple leaves its last row part-filled: the bank then holds fewer
    than K examples and `count()` says how many. At most `capacity` = g * floor(K / g) examples are held.

    Arguments:
        num_classes: C >= 1.
        size: K >= 1.
        block: g, 1 <= g <= K, if not ceil(K / 4096): larger makes the bank smaller, and what processes exchange.

    Raises:
        ValueError: sizes out of range.

    >>> bank = Bank(num_classes=2, size=3)
    >>> bank.push(torch.zeros(2, 2))
    >>> bank.log_sum().exp(), int(bank.count())
    (tensor([2., 2.]), 2)
    """

    rows: Tensor
    groups: Tensor
    total: Tensor
    counts: Tensor
    pointer: Tensor

    def __init__(self, num_classes: int, size: int, block: int | None = None) -> None:
        super().__init__()
        if num_classes < 1 or size < 1:
            raise ValueError(f"num_classes and size must be at least 1, got {num_classes} and {size}")
        if block is None:
            block = math.ceil(size / MAX_ROWS)
        if not isinstance(block, int) or isinstance(block, bool) or not 1 <= block <= size:
            raise ValueError(f"block must be an integer from 1 to the bank's size of {size}, got {block!r}")
        self.num_classes = num_classes
        self.block = block
        self.num_rows = size // self.block
        self.capacity = self.num_rows * self.block
        self.group = math.ceil(math.sqrt(self.num_rows))
        num_groups = math.ceil(self.num_rows / self.group)
        # Rows past num_rows only pad the last group: they stay at log 0.
        self.register_buffer("rows", torch.full((num_groups * self.group, num_classes), -math.inf))
        self.register_buffer("groups", torch.full((num_groups, num_classes), -math.inf))
        self.register_buffer("total", torch.full((num_classes,), -math.inf))
        self.register_buffer("counts", torch.zeros(self.num_rows, dtype=torch.int64))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    def log_sum(self) -> Tensor:
        """log D, (C,): the log-sum of every banked score, -inf while the bank is empty."""
        return self.total.clone()  # the next push overwrites it

    def count(self) -> Tensor:
        """How many examples the bank holds, an int64 scalar on the device."""
        return self.counts.sum()

    def weight(self) -> Tensor:
        """Of how many examples the log-sum is, each counted once."""
        return self.count()

    @torch.no_grad()
    def push(self, *parts: Tensor, counts: Counts | None = None) -> None:
        """Replace the oldest rows by this batch's scores (N, C), given whole or in parts.

        A batch with a non-finite score (an overflow under mixed precision) is left out whole: one infinity would
        poison log D until the ring has gone round.

        Arguments:
            counts: :func:`row_counts` of the parts, if the batch is that of all processes. All must then push, and a
                non-finite score on one of them leaves out the batch on all.

        Raises:
            ValueError: scores that are not (N, C).
        """
        for scores in parts:
            if scores.dim() != 2 or scores.shape[1] != self.num_classes:
                raise ValueError(f"scores must be (N, {self.num_classes}), got {tuple(scores.shape)}")
        n = min(self.capacity, sum(map(len, parts) if counts is None else map(sum, counts)))
        if n == 0:
            return
        if counts is None:
            kept = torch.cat(parts)[-self.capacity :].to(self.rows.dtype)
            log_sums, finite = block_sums(kept, 0, self.block), torch.isfinite(kept).all()
        else:
            log_sums, finite = self._sums_of_all(parts, counts)
        new_rows = len(log_sums)
        sizes = torch.full((new_rows,), self.block, dtype=torch.int64, device=log_sums.device)
        sizes[-1] = n - (new_rows - 1) * self.block

        slots = (self.pointer + torch.arange(new_rows, device=log_sums.device)) % self.num_rows
        self.rows.index_copy_(0, slots, torch.where(finite, log_sums, self.rows[slots]))
        self.counts.index_copy_(0, slots, torch.where(finite, sizes, self.counts[slots]))
        self._sum_groups(slots[0], new_rows)
        self.pointer.copy_(torch.where(finite, (self.pointer + new_rows) % self.num_rows, self.pointer))

    def _sums_of_all(self, parts: tuple[Tensor, ...], counts: Counts) -> tuple[Tensor, Tensor]:
        """The new rows that all processes' scores make, and whether all these are finite."""
        width, members = row_members(counts, self.block, self.capacity, self.rows.device)
        own, finite = [self.rows[:0]], torch.ones((), dtype=torch.bool, device=self.rows.device)
        for scores, (begin, end) in zip(parts, places(counts, self.capacity)[rank()], strict=True):
            if begin < end:
                kept = scores[begin - end :].to(self.rows.dtype)
                own.append(block_sums(kept, begin, self.block))
                finite = finite & torch.isfinite(kept).all()
        rows = torch.cat(own)
        # NaN tells the others: an infinity of the scores need not show in a block's log-sum.
        rows = torch.where(finite, rows, math.nan)
        filled = F.pad(rows, (0, 0, 0, width - len(rows)), value=-math.inf)
        nothing = filled.new_full((1, self.num_classes), -math.inf)
        log_sums = torch.cat([*all_parts(filled), nothing])[members].logsumexp(1)
        return log_sums, ~log_sums.isnan().any()

    def _sum_groups(self, first_slot: Tensor, new_rows: int) -> None:
        """Sum again the groups that `new_rows` rows from `first_slot` on touch, wrap-around included."""
        num_groups = self.groups.shape[0]
        # Two more than the rows fill: the run may start inside a group, and the last group may be a short one.
        touched = min(num_groups, (new_rows - 1) // self.group + 3)
        index = (first_slot // self.group + torch.arange(touched, device=self.rows.device)) % num_groups
        members = self.rows.view(num_groups, self.group, self.num_classes)[index]
        self.groups.index_copy_(0, index, members.logsumexp(1))
        self.total.copy_(self.groups.logsumexp(0))

    def extra_repr(self) -> str:
        return f"num_classes={self.num_classes}, capacity={self.capacity}, examples_per_row={self.block}"
