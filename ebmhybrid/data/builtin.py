"""Sets that need no file: scikit-learn's digits and photographs, noise, drawn shapes, and means of two images."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ebmhybrid.data.sets import ImageSet
from ebmhybrid.errors import DataError

Shape = tuple[int, int, int]

COUNT = 2000  # images in a procedural set, and at most in `photos`
DEFAULT_SHAPE: Shape = (3, 32, 32)
LARGEST_PATCH = 64  # a photograph of 427x640 has 60 patches of this size; larger models get them enlarged
SHAPES = ("circle", "square", "triangle", "cross")


def digits() -> ImageSet:
    """The 1797 hand-written digits of 8x8 pixels that scikit-learn ships (UCI optical recognition, its test part)."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    pixels = np.rint(x * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    names = tuple(str(digit) for digit in range(10))
    return ImageSet("digits", torch.from_numpy(pixels), torch.from_numpy(y.astype(np.int64)), names)


def photos(shape: Shape | None = None) -> ImageSet:
    """Patches of the two photographs that scikit-learn ships; they do not overlap, and the label is the photograph.

    Patches have the model's size up to 64x64; at most 2000 are kept, evenly spaced over both photographs.
    """
    from sklearn.datasets import load_sample_images

    channels, size, _ = shape or DEFAULT_SHAPE
    patch = min(size, LARGEST_PATCH)
    patches, labels = [], []
    for label, pixels in enumerate(load_sample_images().images):
        photo = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
        cut = photo.unfold(1, patch, patch).unfold(2, patch, patch)  # (3, rows, columns, patch, patch)
        patches.append(cut.permute(1, 2, 0, 3, 4).reshape(-1, 3, patch, patch))
        labels.append(torch.full((len(patches[-1]),), label))
    note = f"non-overlapping {patch}x{patch} patches of scikit-learn's china.jpg and flower.jpg"
    everything = ImageSet("photos", torch.cat(patches), torch.cat(labels), ("china", "flower"), (note,))
    return everything.take(COUNT).adapt(channels, size)


def noise(shape: Shape | None = None, seed: int = 0) -> ImageSet:
    """2000 images of independent pixels, uniform over 0..255; one class."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (COUNT, *(shape or DEFAULT_SHAPE)), generator=generator, dtype=torch.uint8)
    labels = torch.zeros(COUNT, dtype=torch.int64)
    return ImageSet("noise", images, labels, ("noise",), (f"uniform noise, seed {seed}",))


def shapes(shape: Shape | None = None, seed: int = 0) -> ImageSet:
    """2000 drawings of a circle, a square, a triangle or a cross, of any colour, place and size, on any background.

    One of figure and background is light and the other dark, so that the figure is visible in gray too.
    """
    channels, size, _ = shape or DEFAULT_SHAPE
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *dims: int) -> Tensor:
        return torch.rand(COUNT, *dims, generator=generator) * (high - low) + low

    labels = torch.randint(len(SHAPES), (COUNT,), generator=generator)
    radius = uniform(0.2, 0.35, 1, 1)
    x, y = uniform(-0.12, 0.12, 1, 1), uniform(-0.12, 0.12, 1, 1)
    dark, light = uniform(0.0, 0.4, channels, 1, 1), uniform(0.6, 1.0, channels, 1, 1)
    inverted = uniform(0, 1, 1, 1, 1) < 0.5
    grain = 0.03 * torch.randn(COUNT, channels, size, size, generator=generator)

    axis = (torch.arange(size) + 0.5) / size - 0.5
    mask = _figure(labels, (axis[None, :] - x) / radius, (axis[:, None] - y) / radius)[:, None]
    images = torch.where(mask ^ inverted, light, dark) + grain
    images = (images * 255).round().clamp(0, 255).to(torch.uint8)
    return ImageSet("shapes", images, labels, SHAPES, (f"drawn, seed {seed}",))


def _figure(labels: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """(N, H, W) bool: inside the figure of each label, at coordinates u, v in units of its radius."""
    inside = torch.stack(
        [
            u**2 + v**2 < 1,
            torch.maximum(u.abs(), v.abs()) < 0.85,
            (v < 0.7) & (v > 2 * u.abs() - 1.1),
            (torch.minimum(u.abs(), v.abs()) < 0.25) & (torch.maximum(u.abs(), v.abs()) < 1),
        ]
    )
    return inside[labels, torch.arange(len(labels))]


def interpolations(images: ImageSet, seed: int = 0) -> ImageSet:
    """Means of two different images, as many as there are images, each of which enters two means; one class.

    The near-OOD set of Grathwohl et al. 2020. Means are rounded half up.
    """
    count = len(images)
    if count < 2:
        raise DataError(f"interp:{images.name}: needs at least 2 images, {images.name} has {count}")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).to(images.images.device)
    a, b = images.images[order], images.images[order.roll(1)]
    mean = (a | b) - ((a ^ b) >> 1)  # (a + b + 1) // 2 without leaving uint8
    notes = (*images.notes, f"means of two random images of {images.name}, seed {seed}")
    return ImageSet(f"interp:{images.name}", mean, torch.zeros_like(images.labels), ("interpolation",), notes)


Builder = Callable[[Shape | None, int], ImageSet]

BUILDERS: dict[str, tuple[str, Builder]] = {
    "digits": ("scikit-learn's 8x8 digits, 10 classes, no download", lambda shape, seed: digits()),
    "photos": ("patches of scikit-learn's two photographs, in the model's size", lambda shape, seed: photos(shape)),
    "noise": ("uniform noise, in the model's shape", noise),
    "shapes": ("drawn circles, squares, triangles and crosses, in the model's shape", shapes),
}
