"""Families of reference images: what each makes of a batch of data.

A family is a function (images, n, generator) -> (n, C, H, W) in [0, 1], for images (N, C, H, W) in [0, 1] of any size.
Smooth fields share the data's shape alone, spectral images its second moments, inversions its edges, patches and warps
its parts, collages and mixtures whole images in part. Numbers are drawn on the generator's device, and nothing is read
back from an accelerator.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

from ebmhybrid.data.augment import draw_device

Family = Callable[[Tensor, int, torch.Generator | None], Tensor]

GRIDS = (2, 4, 8, 16)  # noise values along a side of the coarse grids, as far as the image has that many pixels
PATCH_GRID = 4  # patches along a side
COARSE = 4  # noise values along a side of a collage's mask and of a warp's displacement
SHARE = 0.25, 0.75  # of a collage's pixels, those of the second image
AMPLITUDE = 0.1, 0.35  # of a warp: its largest displacement along an axis, in sides of the image
WEIGHT = 0.3, 0.7  # of a mixture's first image


def smooth(images: Tensor, n: int, generator: torch.Generator | None = None) -> Tensor:
    """Smooth noise fields of random scale, contrast, brightness and colour; only the shape of `images` is used."""
    channels, side = images.shape[1], min(images.shape[2:])
    grids = [grid for grid in GRIDS if grid <= max(GRIDS[0], side)]
    each = -(-n // len(grids))  # as many of each scale, of which n are taken: upsampling is what takes time
    fields = torch.cat([_upsampled(_noise(images, (each, channels, grid, grid), generator), images) for grid in grids])
    field = _pick(fields, n, generator)
    colour = _uniform(images, n, 0, 1, generator)
    field = colour * field + (1 - colour) * field.mean(1, keepdim=True)
    field = field - field.mean((1, 2, 3), keepdim=True)
    field = field / field.square().mean((1, 2, 3), keepdim=True).sqrt().clamp_min(1e-6)
    brightness, contrast = _uniform(images, n, 0.2, 0.8, generator), _uniform(images, n, 0.05, 0.4, generator)
    return (brightness + contrast * field).clamp(0, 1).to(images)


def patches(images: Tensor, n: int, generator: torch.Generator | None = None) -> Tensor:
    """Images cut into a 4x4 grid of patches that is shuffled: the colours and edges of the data without its form.

    Rows and columns that a side leaves over after division by 4 stay where they are.
    """
    device = draw_device(images, generator)
    images = _pick(images, n, generator)
    _, channels, height, width = images.shape
    grid = min(PATCH_GRID, height, width)
    h, w = height // grid, width // grid
    inner = images[:, :, : grid * h, : grid * w]
    cut = inner.reshape(n, channels, grid, h, grid, w).permute(0, 2, 4, 1, 3, 5).reshape(n, grid * grid, -1)
    order = torch.rand(n, grid * grid, generator=generator, device=device).argsort(1).to(images.device)
    cut = cut.gather(1, order[:, :, None].expand_as(cut)).reshape(n, grid, grid, channels, h, w)
    shuffled = images.clone()
    shuffled[:, :, : grid * h, : grid * w] = cut.permute(0, 3, 1, 4, 2, 5).reshape(inner.shape)
    return shuffled


def inversions(images: Tensor, n: int, generator: torch.Generator | None = None) -> Tensor:
    """Negatives 1 - x of random images."""
    return 1 - _pick(images, n, generator)


def collages(images: Tensor, n: int, generator: torch.Generator | None = None) -> Tensor:
    """Two images joined along the border of a smooth random mask: every pixel is real, the whole is none of the two.

    Source: the binary masks of FMix (Harris et al. 2020), which like CutMix (Yun et al. 2019) mixes labels by them.
    Here they get no label. The second image has a share of the pixels that is uniform in [1/4, 3/4]; both may be of one
    class, and of a single image the collage is that image.

    >>> black_and_white = torch.stack([torch.zeros(1, 8, 8), torch.ones(1, 8, 8)])
    >>> collages(black_and_white, 5).unique()
    tensor([0., 1.])
    """
    first, second = _pairs(images, n, generator)
    field = _upsampled(_noise(images, (n, 1, COARSE, COARSE), generator), images)
    values = field[:, :, ::2, ::2].flatten(1).sort(1).values  # of every fourth pixel: sorting is what takes time
    rank = (_uniform(field, n, *SHARE, generator) * values.shape[1]).long()
    return torch.where(field < values.gather(1, rank.view(n, 1)).view(n, 1, 1, 1), second, first)


def spectral(images: Tensor, n: int, generator: torch.Generator | None = None) -> Tensor:
    """Images with their phases turned by those of white noise: colours and correlations of the data, without form.

    The amplitude of each frequency is that of the image, and so are its mean colour and how its channels go together,
    since all channels are turned alike; then values are clamped to [0, 1].

    Source: surrogate data (Theiler et al. 1992), of several channels Prichard & Theiler 1994.
    """
    noise = _noise(images, (n, 1, *images.shape[2:]), generator)
    return turned(_pick(images, n, generator), noise).clamp(0, 1)


def turned(images: Tensor, noise: Tensor) -> Tensor:
    """Images whose frequencies, all but the mean, have the phases of noise added to theirs.

    Shapes:
        images (n, C, H, W), noise (n, 1, H, W) -> (n, C, H, W), which may leave [0, 1].

    >>> x = torch.rand(2, 3, 8, 8)
    >>> torch.allclose(turned(x, torch.randn(2, 1, 8, 8)).mean((2, 3)), x.mean((2, 3)), atol=1e-6)
    True
    """
    wide = images.to(torch.promote_types(images.dtype, torch.float32))  # transforms know no half precision on CPUs
    turn = torch.fft.rfft2(noise.to(wide)).sgn()
    turn[..., 0, 0] = 1
    return torch.fft.irfft2(torch.fft.rfft2(wide) * turn, s=images.shape[2:]).to(images)


def warps(images: Tensor, n: int, generator: torch.Generator | None = None) -> Tensor:
    """Images under a strong smooth displacement: the parts of the data in wrong places and proportions.

    The largest displacement of an image is uniform in [.1, .35] sides of it. What comes from outside is mirrored.
    """
    shift = _upsampled(_noise(images, (n, 2, COARSE, COARSE), generator), images)
    largest = shift.abs().amax((1, 2, 3), keepdim=True).clamp_min(1e-6)
    amplitude = _uniform(images, n, *AMPLITUDE, generator)
    return displaced(_pick(images, n, generator), amplitude * shift / largest).clamp(0, 1)


def displaced(images: Tensor, shift: Tensor) -> Tensor:
    """Each pixel from (its row + shift[:, 0] H, its column + shift[:, 1] W), bilinear and mirrored at the borders.

    Shapes:
        images (n, C, H, W), shift (n, 2, H, W) in sides of the image -> (n, C, H, W).

    >>> displaced(torch.tensor([[[[0.0, 1.0]]]]), torch.tensor([[[[0.0, 0.0]], [[0.25, 0.0]]]]))
    tensor([[[[0.5000, 1.0000]]]])
    """
    height, width = images.shape[2:]
    rows = (torch.arange(height, device=shift.device, dtype=shift.dtype) + 0.5) / height
    columns = (torch.arange(width, device=shift.device, dtype=shift.dtype) + 0.5) / width
    # grid_sample counts from -1 to 1 from edge to edge, and names the column first
    places = torch.stack([columns + shift[:, 1], rows[:, None] + shift[:, 0]], dim=3) * 2 - 1
    wide = images.to(torch.promote_types(images.dtype, torch.float32))  # half precision knows no places of large images
    return grid_sample(wide, places.to(wide), padding_mode="reflection", align_corners=False).to(images)


def mixtures(images: Tensor, n: int, generator: torch.Generator | None = None) -> Tensor:
    """w x + (1 - w) x' of two images, w uniform in [.3, .7].

    The means of two images that `interp:NAME` tests on are of this family (w = 1/2): to a model that has seen it they
    are no OOD test.

    >>> mixtures(torch.full((4, 1, 8, 8), 0.5), 2).unique()
    tensor([0.5000])
    """
    first, second = _pairs(images, n, generator)
    weight = _uniform(images, n, *WEIGHT, generator)
    return weight * first + (1 - weight) * second


def _pick(images: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
    """n random images, none twice before all have come once."""
    order = torch.randperm(len(images), generator=generator, device=draw_device(images, generator)).to(images.device)
    return images[order[torch.arange(n, device=images.device) % len(images)]]


def _pairs(images: Tensor, n: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """n random images, each with another one where there are two."""
    order = torch.randperm(len(images), generator=generator, device=draw_device(images, generator)).to(images.device)
    place = torch.arange(n, device=images.device)
    return images[order[place % len(images)]], images[order[(place + 1) % len(images)]]


def _noise(images: Tensor, size: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    """Standard normal, on the images' device."""
    return torch.randn(size, generator=generator, device=draw_device(images, generator)).to(images.device)


def _uniform(images: Tensor, n: int, low: float, high: float, generator: torch.Generator | None) -> Tensor:
    """One number an image, (n, 1, 1, 1), of the images' dtype and device."""
    drawn = torch.rand(n, 1, 1, 1, generator=generator, device=draw_device(images, generator))
    return (low + (high - low) * drawn).to(images)


def _upsampled(grid: Tensor, images: Tensor) -> Tensor:
    """A coarse grid as a smooth field in the size of the images."""
    return interpolate(grid, size=images.shape[2:], mode="bicubic", align_corners=False)


FAMILIES: dict[str, Family] = {
    "smooth": smooth,
    "patches": patches,
    "inversions": inversions,
    "collages": collages,
    "spectral": spectral,
    "warps": warps,
    "mixtures": mixtures,
}
