"""Unlabelled reference images in a model's shape: the known background that data is contrasted with.

Each family is a function (images, n, generator) -> (n, C, H, W) in [0, 1]. What a family teaches a model to reject
is no fair OOD test of that model: report the families, and test on others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ebmhybrid.data.augment import draw_device
from ebmhybrid.errors import DataError, nearest

Family = Callable[[Tensor, int, torch.Generator | None], Tensor]

GRIDS = (2, 4, 8, 16)  # noise values along a side of the coarse grids, as far as the image has that many pixels
PATCH_GRID = 4  # patches along a side


def smooth(images: Tensor, n: int, generator: torch.Generator | None = None) -> Tensor:
    """Smooth noise fields of random scale, contrast, brightness and colour; only the shape of `images` is used."""
    device = draw_device(images, generator)
    _, channels, height, width = images.shape

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(n, 1, 1, 1, generator=generator, device=device) * (high - low) + low

    fields = [
        interpolate(
            torch.randn(n, channels, grid, grid, generator=generator, device=device),
            size=(height, width),
            mode="bicubic",
            align_corners=False,
        )
        for grid in GRIDS
        if grid <= max(GRIDS[0], min(height, width))
    ]
    scale = torch.randint(len(fields), (n,), generator=generator, device=device)
    field = torch.stack(fields)[scale, torch.arange(n, device=device)]
    colour = uniform(0, 1)
    field = colour * field + (1 - colour) * field.mean(1, keepdim=True)
    field = field - field.mean((1, 2, 3), keepdim=True)
    field = field / field.square().mean((1, 2, 3), keepdim=True).sqrt().clamp_min(1e-6)
    return (uniform(0.2, 0.8) + uniform(0.05, 0.4) * field).clamp(0, 1).to(images)


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


def _pick(images: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
    """n random images, none twice before all have come once."""
    order = torch.randperm(len(images), generator=generator, device=draw_device(images, generator)).to(images.device)
    return images[order[torch.arange(n, device=images.device) % len(images)]]


FAMILIES: dict[str, Family] = {"smooth": smooth, "patches": patches, "inversions": inversions}


def random_images(images: Tensor, n: int, generator: torch.Generator | None = None) -> Tensor:
    """n images of a set, uint8 (N, C, H, W), drawn with replacement, in [0, 1].

    >>> random_images(torch.full((3, 1, 2, 2), 255, dtype=torch.uint8), 2).shape
    torch.Size([2, 1, 2, 2])
    """
    index = torch.randint(len(images), (n,), generator=generator, device=draw_device(images, generator))
    return images[index.to(images.device)].float() / 255


def reference_images(
    images: Tensor,
    n: int,
    families: Sequence[str] = tuple(FAMILIES),
    generator: torch.Generator | None = None,
) -> Tensor:
    """n reference images in the shape of a batch, in equal shares of the families; earlier ones take what is over.

    Arguments:
        images: (N, C, H, W) floating point in [0, 1], what `patches` and `inversions` are made of.
        n: at least 1.
        families: names in FAMILIES, at least one.
        generator: the source of all draws; torch's default one if None.

    Returns:
        (n, C, H, W) in [0, 1], of the images' dtype and device, ordered by family.

    Raises:
        DataError: an unknown family, none at all, n below 1, images of another form.

    >>> import torch
    >>> reference_images(torch.rand(4, 3, 8, 8), 6, ["smooth", "inversions"]).shape
    torch.Size([6, 3, 8, 8])
    """
    for family in families:
        if family not in FAMILIES:
            raise DataError(f"unknown family of reference images {family!r}, {nearest(family, FAMILIES)}")
    if not families or n < 1:
        raise DataError(f"there must be at least 1 family and 1 image, got families {list(families)} and n {n}")
    if images.dim() != 4 or not len(images) or not images.is_floating_point():
        raise DataError(f"images must be floating point (N, C, H, W), got {images.dtype} {tuple(images.shape)}")
    share, over = divmod(n, len(families))
    counts = [share + (number < over) for number in range(len(families))]
    made = [FAMILIES[family](images, count, generator) for family, count in zip(families, counts, strict=True) if count]
    return torch.cat(made)
