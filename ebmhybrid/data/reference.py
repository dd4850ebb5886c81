"""Unlabelled reference images in a model's shape: the known background that data is contrasted with.

They come from a set, or are made of the batch by the families of :mod:`.reference_families`. What a family teaches a
model to reject is no fair OOD test of that model: report the families, and test on others.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ebmhybrid.data.augment import draw_device
from ebmhybrid.data.reference_families import FAMILIES
from ebmhybrid.errors import DataError, nearest


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
    families: Sequence[str] = ("smooth", "patches", "inversions"),
    generator: torch.Generator | None = None,
) -> Tensor:
    """n reference images in the shape of a batch, in equal shares of the families; earlier ones take what is over.

    Arguments:
        images: (N, C, H, W) floating point in [0, 1], what all families but `smooth` are made of.
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
    if images.dim() != 4 or not images.numel() or not images.is_floating_point():
        raise DataError(f"images must be floating point (N, C, H, W), got {images.dtype} {tuple(images.shape)}")
    share, over = divmod(n, len(families))
    counts = [share + (number < over) for number in range(len(families))]
    made = [FAMILIES[family](images, count, generator) for family, count in zip(families, counts, strict=True) if count]
    return torch.cat(made)
