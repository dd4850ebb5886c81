"""Snow, fog and brightness on image batches (N, C, H, W) in [0, 1].

Snow and fog are drawn on a grid of their own and brought to the size of the image, so that a flake or a bank of fog
covers the same share of an 8 x 8 and of a 64 x 64 image. Frost, which needs photographs of frost, is left out.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from .corruption_blur import draws, motion

_GRID = 32  # cells along a side of the layer of flakes
_OCTAVES = (2, 4, 8, 16, 32)
_LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601


def snow(images: Tensor, amount: float, streak: float, veil: float, generator: torch.Generator) -> Tensor:
    """Falling flakes over a whitened image: x' = (1 - v) x + v max(x, 1.5 gray(x) + 0.5) + s + s rotated by 180 deg.

    A share `amount` of the 32 x 32 cells of s holds a flake of brightness uniform in [0.5, 1], drawn out by a one-sided
    Gaussian of `streak` cells within 45 degrees of downwards; v is `veil`.
    """
    numbers = draws(images, torch.rand, (_GRID * _GRID + 1,), generator)
    cells = numbers[:, :-1].view(-1, 1, _GRID, _GRID)
    # below `amount` a uniform number is uniform in [0, amount), and so serves as brightness too
    flakes = torch.where(cells < amount, 0.5 + 0.5 * cells / max(amount, 1e-12), 0.0)
    falling = motion(flakes, streak, (numbers[:, -1] + 0.5) * (math.pi / 2))
    layer = interpolate(falling, size=images.shape[2:], mode="bilinear", antialias=True, align_corners=False)
    white = torch.maximum(images, 1.5 * luminance(images) + 0.5)
    return (1 - veil) * images + veil * white + layer + layer.flip(2, 3)


def luminance(images: Tensor) -> Tensor:
    """(N, 1, H, W) luminance, a gray image itself."""
    if images.shape[1] == 1:
        return images
    return torch.einsum("nchw,c->nhw", images, images.new_tensor(_LUMINANCE))[:, None]


def fog(images: Tensor, density: float, decay: float, generator: torch.Generator) -> Tensor:
    """x' = (x + d p) m / (m + d) with fog p in [0, 1], density d and m the largest value of the image.

    p is fractal noise: octaves of uniform noise on grids of 2, 4, ..., 32 cells a side, each `decay` times weaker than
    the one before, scaled to [0, 1] in each image.
    """
    numbers = draws(images, torch.rand, (sum(cells * cells for cells in _OCTAVES),), generator)
    cloud = images.new_zeros(len(images), 1, *images.shape[2:])
    for octave, values in enumerate(numbers.split([cells * cells for cells in _OCTAVES], dim=1)):
        field = values.view(-1, 1, _OCTAVES[octave], _OCTAVES[octave])
        full = interpolate(field, size=images.shape[2:], mode="bicubic", antialias=True, align_corners=False)
        cloud += full / decay**octave
    low, high = cloud.amin((2, 3), keepdim=True), cloud.amax((2, 3), keepdim=True)
    brightest = images.amax((1, 2, 3), keepdim=True)
    return (images + density * (cloud - low) / (high - low)) * brightest / (brightest + density)


def brightness(images: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    """`amount` added to the value V = max(R, G, B) of HSV, hue and saturation kept: x' = x min(V + amount, 1) / V.

    Black, V = 0, becomes a gray of that amount; a gray image so becomes min(x + amount, 1).
    """
    value = images.amax(1, keepdim=True)
    raised = (value + amount).clamp(max=1)
    return torch.where(value > 0, images * raised / value.clamp(min=1e-12), raised)
