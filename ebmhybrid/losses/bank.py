r"""A memory bank of negatives that stores sums instead of vectors.

With hard labels the contrastive term needs of K banked examples only the class-conditional denominators

    log D_c = logsumexp_{k=1..K} phi_c(b_k),     c = 1..C

so the bank keeps the log-sum of each block of examples and forgets the examples: a ring of rows
R[r, c] = logsumexp_{k in block r} phi_c(b_k). A second level holds the log-sum of each group of rows, so that pushing
a batch of N and summing log D costs O((N + sqrt(R)) C) for R rows, whatever K is. Nothing is ever subtracted, so
nothing drifts; pointer and counts are tensors on the device, so nothing waits for the host.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAX_ROWS = 4096


class Bank(nn.Module):
    """The K newest examples' scores as class-conditional log-sums, first in, first out.

    Examples are dropped a row at a time. A row holds g = ceil(K / 4096) examples, so the bank equals a queue of K
    examples exactly where K is a multiple of g and batch sizes are too: always for K up to 4096, and at K = 65536 for
    batches of a multiple of 16. A batch that is no multiple leaves its last row part-filled: the bank then holds fewer
    than K examples and `count()` says how many. At most `capacity` = g * floor(K / g) examples are held.

    Arguments:
        num_classes: C >= 1.
        size: K >= 1.

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

    def __init__(self, num_classes: int, size: int) -> None:
        super().__init__()
        if num_classes < 1 or size < 1:
            raise ValueError(f"num_classes and size must be at least 1, got {num_classes} and {size}")
        self.num_classes = num_classes
        self.block = math.ceil(size / MAX_ROWS)
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

    @torch.no_grad()
    def push(self, scores: Tensor) -> None:
        """Replace the oldest rows by this batch's scores (N, C).

        A batch with a non-finite score (an overflow under mixed precision) is left out whole: one infinity would
        poison log D until the ring has gone round.

        Raises:
            ValueError: scores that are not (N, C).
        """
        if scores.dim() != 2 or scores.shape[1] != self.num_classes:
            raise ValueError(f"scores must be (N, {self.num_classes}), got {tuple(scores.shape)}")
        scores = scores[-self.capacity :].to(self.rows.dtype)
        n = scores.shape[0]
        if n == 0:
            return
        new_rows = math.ceil(n / self.block)
        padded = F.pad(scores, (0, 0, 0, new_rows * self.block - n), value=-math.inf)
        log_sums = padded.view(new_rows, self.block, -1).logsumexp(1)
        sizes = torch.full((new_rows,), self.block, dtype=torch.int64, device=scores.device)
        sizes[-1] = n - (new_rows - 1) * self.block

        finite = torch.isfinite(scores).all()
        slots = (self.pointer + torch.arange(new_rows, device=scores.device)) % self.num_rows
        self.rows.index_copy_(0, slots, torch.where(finite, log_sums, self.rows[slots]))
        self.counts.index_copy_(0, slots, torch.where(finite, sizes, self.counts[slots]))
        self._sum_groups(slots[0], new_rows)
        self.pointer.copy_(torch.where(finite, (self.pointer + new_rows) % self.num_rows, self.pointer))

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
