"""Defocus, glass, motion and zoom blur of image batches (N, C, H, W) in [0, 1]: means of shifted copies of each image.

Lengths are given in pixels of an image of side 32 and scale with the image: :func:`unit` converts them. Where random
numbers are needed, each image takes its own from the generator in turn, so that they do not depend on how a set is cut
into batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import conv2d, grid_sample, pad

_ZOOMS = 16
_DISK = 33  # points across the disk whose pixels are counted


def unit(images: Tensor) -> float:
    """Pixels of these images to one pixel of a 32 x 32 image: the shorter side / 32."""
    return min(images.shape[2:]) / 32


def draws(images: Tensor, draw: Callable[..., Tensor], shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """(N, *shape) random numbers of `torch.rand` or `torch.randn`, drawn image by image.

    One call for the whole batch would give an image other numbers in a batch of another size.
    """
    each = [draw(shape, generator=generator, device=generator.device) for _ in range(len(images))]
    return torch.stack(each).to(images)


def sample(images: Tensor, dx: Tensor, dy: Tensor) -> Tensor:
    """Bilinear look-up at (column + dx, row + dy), mirrored at the edges.

    Arguments:
        images: (N, C, H, W).
        dx, dy: displacements in pixels, of a shape that broadcasts to (N, H, W).

    >>> sample(torch.tensor([[[[0.0, 1.0, 2.0]]]]), torch.tensor(0.5), torch.tensor(0.0))
    tensor([[[[0.5000, 1.5000, 2.0000]]]])
    """
    count, _, height, width = images.shape
    columns = torch.arange(width, device=images.device, dtype=images.dtype) + 0.5
    rows = torch.arange(height, device=images.device, dtype=images.dtype)[:, None] + 0.5
    x, y = (columns + dx) * (2 / width) - 1, (rows + dy) * (2 / height) - 1
    grid = torch.stack([x.expand(count, height, width), y.expand(count, height, width)], dim=-1)
    return grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def disk(radius: float) -> Tensor:
    """(K, K) kernel of a uniform disk, radius in pixels: each point of the disk shares itself bilinearly among pixels.

    A disk much smaller than a pixel so becomes the identity, without a threshold.

    >>> disk(0.0)
    tensor([[1.]])
    """
    line = torch.linspace(-1, 1, _DISK)
    x, y = (points.flatten() * radius for points in torch.meshgrid(line, line, indexing="ij"))
    inside = x**2 + y**2 <= (radius + 1e-6) ** 2
    pixels = torch.arange(-math.ceil(radius), math.ceil(radius) + 1)[:, None]
    across, down = ((1 - (pixels - points[inside]).abs()).clamp(min=0) for points in (x, y))
    kernel = across @ down.T
    return kernel / kernel.sum()


def filtered(images: Tensor, kernel: Tensor) -> Tensor:
    """Every channel convolved with one odd (K, K) kernel, mirrored at the edges."""
    channels, reach = images.shape[1], len(kernel) // 2
    weight = kernel.to(images).expand(channels, 1, -1, -1)
    return conv2d(pad(images, [reach] * 4, mode="reflect"), weight, groups=channels)


def defocus_blur(images: Tensor, radius: float, generator: torch.Generator) -> Tensor:
    """The mean over a disk: x' = x * disk(radius)."""
    return filtered(images, disk(radius * unit(images)))


def glass_blur(images: Tensor, reach: float, sigma: float, generator: torch.Generator) -> Tensor:
    """Every pixel looked up at a place of its own, uniform in [-reach, reach]^2 around it, then a Gaussian blur."""
    from torchvision.transforms.v2.functional import gaussian_blur

    height, width = images.shape[2:]
    shifts = (2 * draws(images, torch.rand, (2, height, width), generator) - 1) * (reach * unit(images))
    scattered = sample(images, shifts[:, 0], shifts[:, 1])
    width_of_blur = sigma * unit(images)
    if width_of_blur == 0:
        return scattered
    return gaussian_blur(scattered, 2 * math.ceil(3 * width_of_blur) + 1, width_of_blur)


def motion(images: Tensor, sigma: float, angle: Tensor) -> Tensor:
    """A one-sided Gaussian trail of `sigma` pixels in the direction `angle` (N,), in radians from the row's."""
    steps = torch.linspace(0, 3, int(3 * sigma) + 8).tolist()  # at most a pixel apart, and fine for a short trail too
    total = sum(math.exp(-step * step / 2) for step in steps)
    cosine, sine = (sigma * side[:, None, None] for side in (angle.cos(), angle.sin()))
    blurred = torch.zeros_like(images)
    for step in steps:
        blurred += sample(images, step * cosine, step * sine) * (math.exp(-step * step / 2) / total)
    return blurred


def motion_blur(images: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    """A one-sided Gaussian trail of each image, in a direction uniform within 45 degrees of the row's."""
    angle = (2 * draws(images, torch.rand, (), generator) - 1) * (math.pi / 4)
    return motion(images, sigma * unit(images), angle)


def zoom_blur(images: Tensor, zoom: float, generator: torch.Generator) -> Tensor:
    """The mean of the image enlarged about its centre by factors from 1 to 1 + zoom."""
    height, width = images.shape[2:]
    columns = torch.arange(width, device=images.device, dtype=images.dtype) + 0.5 - width / 2
    rows = torch.arange(height, device=images.device, dtype=images.dtype)[:, None] + 0.5 - height / 2
    blurred = torch.zeros_like(images)
    for factor in torch.linspace(1, 1 + zoom, _ZOOMS).tolist():
        blurred += sample(images, columns * (1 / factor - 1), rows * (1 / factor - 1)) / _ZOOMS
    return blurred
