"""Wide residual networks (Zagoruyko & Komodakis 2016), in the variant that JEM and HDGE released.

It differs from the original in ways that matter to their checkpoints: convolutions have biases, a block's stride is on
its second convolution, activations are LeakyReLU(0.2), shortcuts are 1x1 convolutions of the block's raw input, and the
norm layers can be left out (the energy-based runs have none: batch statistics make the energy of an image depend on
the other images).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from ebmhybrid.models.dropout import Dropout
from ebmhybrid.models.normalize import Normalize

Norm = Literal["none", "batch", "layer", "instance"]
Activation = Literal["leaky_relu", "relu", "silu", "gelu", "softplus"]

_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda channels: nn.Identity(),
    "batch": nn.BatchNorm2d,
    "layer": lambda channels: nn.GroupNorm(1, channels),
    "instance": partial(nn.InstanceNorm2d, affine=True),
}
_ACTIVATIONS: dict[str, Callable[..., Tensor]] = {
    "leaky_relu": partial(F.leaky_relu, negative_slope=0.2),
    "relu": F.relu,
    "silu": F.silu,
    "gelu": F.gelu,
    "softplus": F.softplus,
}


def _activated(module: Block | WideResNet, norm: nn.Module, x: Tensor) -> Tensor:
    """activation(norm(x)), in place where nothing but us can hold the norm layer's output: that saves a copy."""
    out = norm(x)
    alone = type(norm) in (nn.BatchNorm2d, nn.GroupNorm) and not (norm._forward_hooks or norm._backward_hooks)
    return module.activation(out, inplace=True) if alone and module.in_place else module.activation(out)


class Block(nn.Module):
    """norm - activation - conv - dropout - norm - activation - conv(stride), plus the shortcut."""

    def __init__(self, channels: int, out_channels: int, stride: int, norm: str, activation: str, dropout: float):
        super().__init__()
        self.activation, self.in_place = _ACTIVATIONS[activation], activation in ("leaky_relu", "relu")
        self.norm1 = _NORMS[norm](channels)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.dropout = Dropout(dropout)
        self.norm2 = _NORMS[norm](out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, stride=stride, padding=1)
        same = stride == 1 and channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels, out_channels, 1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.dropout(self.conv1(_activated(self, self.norm1, x)))
        return self.conv2(_activated(self, self.norm2, out)) + self.shortcut(x)


class WideResNet(nn.Module):
    """WRN-depth-width: images in [0, 1] to logits, normalising inside.

    WRN-28-10 at 10 classes has 36.5 million parameters.

    Arguments:
        depth: 6 n + 4 for n blocks a stage: 10, 16, 22, 28, 34, 40, ...
        width: factor k on the stages' 16, 32 and 64 channels.
        norm: none | batch | layer | instance.
        activation: leaky_relu (slope 0.2) | relu | silu | gelu | softplus. The smooth ones suit Langevin sampling.
        dropout: probability in [0, 1) between a block's convolutions.
        mean, std: input statistics, one number or one a channel.

    Shapes:
        images (N, in_channels, H, W) in [0, 1], from 8x8 up (pooled over what is left after two halvings) -> logits
        (N, num_classes). `features(images)` gives the (N, 64 width) vector before the last layer; `stem` and
        `after_stem` are the network in two parts, which the proximal sampler needs.

    Raises:
        ValueError: options or images that do not fit.

    >>> import torch
    >>> model = WideResNet(depth=10, width=1, num_classes=7, in_channels=1)
    >>> model(torch.rand(2, 1, 8, 8)).shape
    torch.Size([2, 7])
    """

    def __init__(
        self,
        depth: int = 28,
        width: int = 10,
        num_classes: int = 10,
        in_channels: int = 3,
        norm: Norm = "batch",
        activation: Activation = "leaky_relu",
        dropout: float = 0.0,
        mean: float | Sequence[float] = 0.5,
        std: float | Sequence[float] = 0.5,
    ) -> None:
        super().__init__()
        _check(depth, width, num_classes, in_channels, norm, activation, dropout)
        self.in_channels, self.num_classes = in_channels, num_classes
        self.normalize = Normalize(in_channels, mean, std)
        self.activation, self.in_place = _ACTIVATIONS[activation], activation in ("leaky_relu", "relu")
        self.conv = nn.Conv2d(in_channels, 16, 3, padding=1)
        stages, channels = [], 16
        for stage, out_channels in enumerate((16 * width, 32 * width, 64 * width)):
            blocks = []
            for index in range((depth - 4) // 6):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(Block(channels, out_channels, stride, norm, activation, dropout))
                channels = out_channels
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.norm = _NORMS[norm](channels)
        self.head = nn.Linear(channels, num_classes)
        if norm != "none":  # without norm layers torch's smaller default keeps a deep residual sum from growing
            for module in self.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def stem(self, images: Tensor) -> Tensor:
        """The first convolution's output, (N, 16, H, W)."""
        if images.dim() != 4 or images.shape[1] != self.in_channels or min(images.shape[2:]) < 8:
            raise ValueError(f"images must be (N, {self.in_channels}, H, W) with H, W >= 8, got {tuple(images.shape)}")
        return self.conv(self.normalize(images))

    def after_stem(self, u: Tensor) -> Tensor:
        """Logits (N, num_classes) of the first convolution's output: forward(images) = after_stem(stem(images))."""
        return self.head(self._pooled(u))

    def features(self, images: Tensor) -> Tensor:
        """The pooled activations before the last layer, (N, 64 width)."""
        return self._pooled(self.stem(images))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))

    def _pooled(self, u: Tensor) -> Tensor:
        return _activated(self, self.norm, self.stages(u)).mean(dim=(2, 3))


def _check(
    depth: int, width: int, num_classes: int, in_channels: int, norm: str, activation: str, dropout: float
) -> None:
    if depth < 10 or (depth - 4) % 6:
        raise ValueError(f"depth must be 6 n + 4 (10, 16, 22, 28, ...), got {depth}")
    if min(width, num_classes, in_channels) < 1:
        raise ValueError(
            f"width, num_classes and in_channels must be at least 1, got {width}, {num_classes}, {in_channels}"
        )
    for name, value, choices in (("norm", norm, get_args(Norm)), ("activation", activation, get_args(Activation))):
        if value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
