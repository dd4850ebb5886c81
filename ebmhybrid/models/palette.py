"""Palettes: the few colours that a quantised image is made of, and which of them each of its pixels takes.

A palette is (levels, C) colours in [0, 1]; a pixel's token is the index of the colour nearest to it. Source: the
9-bit colour palette of image GPT (Chen et al. 2020), found by k-means; theirs has 512 colours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ebmhybrid.errors import EbmhybridError

FITTED_PIXELS = 2**16  # k-means sees so many pixels at most
DISTANCES = 2**24  # distances held at once: 64 MB


def default_palette(levels: int, channels: int) -> Tensor:
    """Evenly spaced colours: the grey levels 0, 1/(levels - 1), ..., 1, or points of the smallest RGB grid with enough.

    >>> default_palette(3, 1).flatten()
    tensor([0.0000, 0.5000, 1.0000])
    """
    if channels == 1:
        return torch.linspace(0, 1, levels)[:, None]
    steps = next(k for k in range(2, levels + 2) if k**channels >= levels)
    grid = torch.cartesian_prod(*[torch.linspace(0, 1, steps)] * channels)
    return grid[torch.linspace(0, len(grid) - 1, levels).round().long()]


def fit_palette(images: Tensor, levels: int, seed: int = 0) -> Tensor:
    """The colours of the training pixels' k-means clusters, of at most 65,536 pixels drawn by `seed`.

    Arguments:
        images: (N, C, H, W), uint8 or in [0, 1], with at least `levels` colours in all.

    Returns:
        (levels, C) in [0, 1], on the CPU.

    Raises:
        EbmhybridError: images of another form, or of too few colours.

    >>> fit_palette(torch.tensor([0, 255], dtype=torch.uint8).expand(1, 3, 1, 2), levels=2).sort(0).values
    tensor([[0., 0., 0.],
            [1., 1., 1.]])
    """
    from sklearn.cluster import KMeans

    if images.dim() != 4 or not images.numel() or not (images.dtype == torch.uint8 or images.is_floating_point()):
        raise EbmhybridError(
            f"images must be uint8 or floating point (N, C, H, W), got {images.dtype} {tuple(images.shape)}"
        )
    generator = torch.Generator().manual_seed(seed)
    pixels = images.flatten(2)
    chosen = torch.randperm(len(pixels) * pixels.shape[2], generator=generator)[:FITTED_PIXELS].to(pixels.device)
    colours = pixels[chosen // pixels.shape[2], :, chosen % pixels.shape[2]].cpu().float()
    if images.dtype == torch.uint8:
        colours = colours / 255
    if not (colours.min() >= 0 and colours.max() <= 1):  # NaN neither
        raise EbmhybridError(f"images must lie in [0, 1] or be uint8, got {colours.min():g}..{colours.max():g}")
    distinct = len(colours.unique(dim=0))
    if distinct < levels:
        raise EbmhybridError(f"levels = {levels}: must be at most {distinct}, the number of colours of the images")
    kmeans = KMeans(levels, n_init=1, random_state=seed % 2**32)
    centres = torch.from_numpy(kmeans.fit(colours.numpy()).cluster_centers_)
    return centres.float().clamp(0, 1)


@torch.no_grad()
def quantize(images: Tensor, palette: Tensor) -> Tensor:
    """The index of the colour nearest to each pixel, in raster order: argmin_k ||x_t - c_k||; ties go to the lower.

    Arguments:
        images: (N, C, H, W) floating point; values outside [0, 1] are clamped.
        palette: (levels, C).

    Returns:
        int64 (N, H W). It has no gradient.

    Raises:
        EbmhybridError: NaN, which is near to no colour, on a CPU, where looking costs no waiting.

    >>> quantize(torch.tensor([[[[0.0, 0.6], [0.9, 2.0]]]]), default_palette(3, 1))
    tensor([[0, 1, 2, 2]])
    """
    if images.device.type == "cpu" and images.isnan().any():
        raise EbmhybridError("images must be numbers to have tokens, got NaN")
    pixels = images.clamp(0, 1).flatten(2).transpose(1, 2).to(palette.dtype)
    # The plain differences: by |x|^2 - 2 x c + |c|^2, as large distances are taken, a pixel may miss its own colour.
    how = "donot_use_mm_for_euclid_dist"
    rows = max(1, DISTANCES // len(palette))
    parts = pixels.reshape(-1, palette.shape[1]).split(rows)
    nearest = [torch.cdist(part, palette, compute_mode=how).argmin(1) for part in parts]
    return (
        torch.cat(nearest).view(pixels.shape[:2]) if nearest else pixels.new_zeros(pixels.shape[:2], dtype=torch.int64)
    )


def dequantize(tokens: Tensor, palette: Tensor, height: int, width: int) -> Tensor:
    """The image that tokens stand for: int64 (N, height width) -> (N, C, height, width) in [0, 1].

    >>> dequantize(torch.tensor([[0, 1, 2, 2]]), default_palette(3, 1), 2, 2).flatten()
    tensor([0.0000, 0.5000, 1.0000, 1.0000])
    """
    return palette[tokens].transpose(1, 2).unflatten(2, (height, width))
