"""Dropout whose mask is cheap on a CPU, where drawing it otherwise takes longer than some of the convolutions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

LEVELS = 2**16


def keep_mask(x: Tensor, p: float) -> Tensor:
    """Bernoulli(1 - p), p < 1, for each entry of a dense x, bool, in x's memory order, from 16 random bits an entry.

    torch draws a random number an entry, one after the other; four entries share one here. So p is rounded to a
    multiple of 2^-16.
    """
    n = x.numel()
    words = torch.empty(-(-n // 4), dtype=torch.int64, device=x.device).random_(torch.iinfo(torch.int64).min, None)
    bits = words.view(torch.int16)[:n].as_strided(x.shape, x.stride())
    return bits >= round(p * LEVELS) - LEVELS // 2


class Dropout(nn.Dropout):
    """nn.Dropout: in training each entry is 0 with probability p, and x / (1 - p) otherwise.

    On a CPU the mask comes from :func:`keep_mask`, elsewhere it is torch's. Draws come from torch's default generator.

    Shapes:
        any, and the same.

    >>> _ = torch.manual_seed(0)
    >>> sorted(set(Dropout(0.5)(torch.ones(64)).tolist()))
    [0.0, 2.0]
    """

    def forward(self, x: Tensor) -> Tensor:
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._functorch.is_batchedtensor(x)
        if not self.training or self.p == 0 or x.device.type != "cpu" or traced or self.inplace or x.is_nested:
            return super().forward(x)
        if not (x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last))):
            x = x.contiguous()
        kept = 1 - round(self.p * LEVELS) / LEVELS
        if not kept:
            return super().forward(x)
        return x * keep_mask(x, self.p).to(x.dtype).mul_(1 / kept)
