"""A bank of scores in which some examples count more than others."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ebmhybrid.losses.bank import Bank, Counts


class WeightedBank(Bank):
    """A :class:`Bank` in which the second part of a batch, reference images, counts w times each.

    The weights are banked as what they are, log-sums: of a class more, under which each example scores the logarithm
    of its weight. So they are dropped with their examples and shared by processes as everything else is.

    Arguments:
        num_classes, size, block: as of a Bank.
        reference_weight: w > 0.

    >>> import torch
    >>> bank = WeightedBank(num_classes=2, size=8, reference_weight=4.0)
    >>> bank.push(torch.zeros(2, 2), torch.zeros(1, 2))
    >>> bank.log_sum().exp(), bank.weight(), bank.count()
    (tensor([6., 6.]), tensor(6.), tensor(3))
    """

    def __init__(self, num_classes: int, size: int, block: int | None = None, *, reference_weight: float) -> None:
        super().__init__(num_classes + 1, size, block)
        self.log_weight = math.log(reference_weight)

    def log_sum(self) -> Tensor:
        """log D, (C,), of the weighted examples."""
        return self.total[:-1].clone()

    def weight(self) -> Tensor:
        """The sum of the weights of what the bank holds, a scalar."""
        return self.total[-1].exp()

    @torch.no_grad()
    def push(self, *parts: Tensor, counts: Counts | None = None) -> None:
        """Replace the oldest rows by scores (N, C) of images, and of references (R, C) if there are any."""
        weights = (0.0, self.log_weight)[: len(parts)]
        padded = (F.pad(part + weight, (0, 1), value=weight) for part, weight in zip(parts, weights, strict=True))
        super().push(*padded, counts=counts)
