"""The first layer of every model: images in [0, 1] become what the network was built for."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalize(nn.Module):
    """(x - mean) / std per channel, so that data, attacks and plots all live in pixel space.

    Arguments:
        mean, std: one number for all channels or one each; std > 0. The default .5, .5 maps [0, 1] to [-1, 1].

    Shapes:
        (N, C, H, W) -> the same.

    Raises:
        ValueError: a count of numbers other than 1 or C, or a std that is not positive.

    >>> Normalize(3)(torch.ones(1, 3, 2, 2)).unique()
    tensor([1.])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int, mean: float | Sequence[float] = 0.5, std: float | Sequence[float] = 0.5) -> None:
        super().__init__()
        for name, value in (("mean", mean), ("std", std)):
            numbers = [float(v) for v in value] if isinstance(value, Sequence) else [float(value)]
            if len(numbers) not in (1, channels) or not all(map(math.isfinite, numbers)):
                raise ValueError(f"{name} must be 1 or {channels} finite numbers, got {value}")
            if name == "std" and min(numbers) <= 0:
                raise ValueError(f"std must be positive, got {std}")
            # Not persistent: they are part of the architecture, which the checkpoint's metadata records.
            buffer = torch.tensor(numbers).expand(channels).clone().view(1, channels, 1, 1)
            self.register_buffer(name, buffer, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std
