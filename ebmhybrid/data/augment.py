"""Augmentation of a whole batch at once, and the batches of an epoch. All randomness comes from the generator.

A generator on the CPU gives the same draws whatever device the images are on; one on a GPU saves the copies.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ebmhybrid.data.order import batch_indices
from ebmhybrid.data.sets import as_input
from ebmhybrid.errors import DataError


def draw_device(images: Tensor, generator: torch.Generator | None) -> torch.device:
    """Where to draw random numbers for `images`: on the generator's device, which is the only one it can draw on."""
    return images.device if generator is None else generator.device


def augment(
    images: Tensor,
    *,
    pad: int = 0,
    flip: bool = False,
    noise_std: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Random crop of the reflect-padded image, random horizontal flip, Gaussian noise, each image by itself.

    Source: the released code of HDGE (Liu & Abbeel 2020), as in JEM: pad 4, crop 32, flip (not for SVHN), then
    noise of standard deviation 0.03 on images scaled to [-1, 1], which is `noise_std=0.015` on [0, 1]. As there,
    the noise is not clamped: values may leave [0, 1] by a few standard deviations.

    Arguments:
        images: (N, C, H, W) floating point in [0, 1].
        pad: pixels added on each side before the crop, less than H and W; each of the (2 pad + 1)^2 crops is
            equally likely.
        flip: mirror each image with probability 1/2.
        noise_std: in units of [0, 1].
        generator: the source of all draws; torch's default one if None.

    Returns:
        A new tensor of the same shape, dtype and device, or `images` itself if nothing is asked for.

    Raises:
        DataError: images of another form, pad or noise_std out of range.

    >>> import torch
    >>> x = torch.rand(2, 3, 8, 8)
    >>> augment(x, pad=2, flip=True, generator=torch.Generator().manual_seed(0)).shape
    torch.Size([2, 3, 8, 8])
    """
    if images.dim() != 4 or not images.is_floating_point():
        raise DataError(f"images must be floating point (N, C, H, W), got {images.dtype} {tuple(images.shape)}")
    n, channels, height, width = images.shape
    if not 0 <= pad < min(height, width):
        raise DataError(f"pad must be at least 0 and less than the image's {height}x{width}, got {pad}")
    if not 0 <= noise_std < float("inf"):
        raise DataError(f"noise_std must be at least 0 and finite, got {noise_std}")
    device = draw_device(images, generator)
    if pad or flip:
        rows = torch.arange(height, device=images.device).expand(n, -1)
        columns = torch.arange(width, device=images.device).expand(n, -1)
        if pad:
            shifts = torch.randint(-pad, pad + 1, (2, n, 1), generator=generator, device=device).to(images.device)
            rows, columns = _reflect(rows + shifts[0], height), _reflect(columns + shifts[1], width)
        if flip:
            mirrored = torch.rand(n, 1, generator=generator, device=device).to(images.device) < 0.5
            columns = torch.where(mirrored, columns.flip(1), columns)
        images = images.gather(2, rows[:, None, :, None].expand(-1, channels, -1, width))
        images = images.gather(3, columns[:, None, None, :].expand(-1, channels, height, -1))
    if noise_std:
        noise = torch.randn(images.shape, generator=generator, device=device)
        images = images + noise_std * noise.to(images)
    return images


def _reflect(index: Tensor, size: int) -> Tensor:
    """Where a position outside 0..size-1 falls when the image is mirrored at its border pixels."""
    index = index.abs()
    return torch.where(index < size, index, 2 * (size - 1) - index)


def mixup(
    images: Tensor,
    labels: Tensor,
    num_classes: int,
    alpha: float,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Mixes each image and its label with those of another: lambda x_i + (1 - lambda) x_j, lambda ~ Beta(alpha, alpha).

    Source: Zhang et al. 2018; as in their code, one lambda a batch and j from a permutation of the batch.

    Arguments:
        images: (N, C, H, W) floating point.
        labels: (N,) int64 in [0, num_classes).
        num_classes: C.
        alpha: positive; 1 is uniform, smaller values mix less.
        generator: the source of all draws; torch's default one if None.

    Returns:
        Images of the same shape, and probabilities (N, num_classes) of the images' dtype that sum to 1.

    Raises:
        DataError: alpha that is not a positive number, labels out of range.

    >>> import torch
    >>> x, p = mixup(torch.rand(4, 1, 8, 8), torch.arange(4), 4, alpha=0.2, generator=torch.Generator().manual_seed(0))
    >>> p.sum(1)
    tensor([1., 1., 1., 1.])
    """
    if not 1e-6 <= alpha <= 1e6:
        raise DataError(f"alpha must be a positive number from 1e-6 to 1e6, got {alpha}")
    # On an accelerator reading a label would wait for the device.
    if (
        labels.device.type == "cpu"
        and labels.numel()
        and not (int(labels.min()) >= 0 and int(labels.max()) < num_classes)
    ):
        raise DataError(f"labels must lie in 0..{num_classes - 1}, got {int(labels.min())}..{int(labels.max())}")
    device = draw_device(images, generator)
    # Beta is the share of one Gamma in two, here with a generator and no wait for the device. By their logarithms,
    # since for small alpha both are too small for a number: Gamma(a) = Gamma(a + 1) U^(1/a).
    gammas = torch._standard_gamma(torch.full((2,), alpha + 1, device=device), generator=generator)
    uniform = 1 - torch.rand(2, generator=generator, device=device)  # in (0, 1]
    logs = gammas.log() + uniform.log() / alpha
    weight = (logs[0] - logs[1]).sigmoid().to(images)
    other = torch.randperm(len(images), generator=generator, device=device).to(images.device)
    probabilities = one_hot(labels, num_classes).to(images.dtype)
    return (
        weight * images + (1 - weight) * images[other],
        weight * probabilities + (1 - weight) * probabilities[other],
    )


def batches(
    images: Tensor,
    labels: Tensor,
    batch_size: int,
    *,
    generator: torch.Generator | None,
    start: int = 0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of batches in an order drawn from the generator, at the call rather than at the first batch.

    A last batch of a single image joins the batch before it, because BatchNorm cannot train on one value a channel.

    Arguments:
        images: (N, C, H, W) uint8, or tokens (N, L) int64.
        labels: (N,).
        batch_size: images a batch, at least 1.
        generator: decides the order; with its state set back, the order is the same.
        start: batches of this order to pass over, to resume within an epoch.

    Returns:
        An iterator over (float32 images in [0, 1] or tokens, labels); :func:`ebmhybrid.data.order.count_batches` says
        over how many.

    Raises:
        DataError: lengths that differ, or sizes out of range.

    >>> import torch
    >>> x, y, g = torch.zeros(9, 1, 2, 2, dtype=torch.uint8), torch.arange(9), torch.Generator().manual_seed(0)
    >>> [len(labels) for _, labels in batches(x, y, 4, generator=g)]
    [4, 5]
    """
    if len(images) != len(labels):
        raise DataError(f"there must be as many labels as images, got {len(labels)} and {len(images)}")
    chunks = batch_indices(len(images), batch_size, generator=generator, start=start)
    return ((as_input(images[index]), labels[index]) for index in (chunk.to(images.device) for chunk in chunks))
