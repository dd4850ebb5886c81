"""Strangers that hyper-parameters are chosen by: made of validation images or of nothing, and in no reported figure.

None of them is a reference family, an OOD test set or made of one.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ebmhybrid.data import ImageSet, load_set

COUNT = 2000


def gratings(images: Tensor, generator: torch.Generator) -> Tensor:
    """Sine waves of random direction, wavelength, phase, contrast and colour."""
    n, channels, height, width = images.shape

    def uniform(low: float, high: float, *more: int) -> Tensor:
        return torch.rand(n, *(more or (1, 1, 1)), generator=generator) * (high - low) + low

    rows, columns = torch.arange(height).view(1, 1, -1, 1), torch.arange(width).view(1, 1, 1, -1)
    angle, waves = uniform(0, math.pi), uniform(1, height / 3)
    along = (rows * angle.sin() + columns * angle.cos()) / height
    wave = torch.sin(2 * math.pi * waves * along + uniform(0, 2 * math.pi))
    return (uniform(0.2, 0.8, channels, 1, 1) + uniform(0.1, 0.5, channels, 1, 1) * wave).clamp(0, 1)


def superpositions(images: Tensor, generator: torch.Generator) -> Tensor:
    """The lighter of two images at each pixel."""
    return torch.maximum(images, images[torch.randperm(len(images), generator=generator)])


def rotations(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images turned by a quarter, to either side."""
    left = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    return torch.where(left, images.rot90(1, (2, 3)), images.rot90(-1, (2, 3)))


_OF_IMAGES: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "gratings": gratings,
    "superpositions": superpositions,
    "rotations": rotations,
}


def strangers(validation: ImageSet, seed: int = 0) -> dict[str, ImageSet]:
    """Each family as a set in the shape of the validation images, and the library's drawn shapes."""
    generator = torch.Generator().manual_seed(seed)
    pick = torch.randint(len(validation), (COUNT,), generator=generator)
    images, labels = validation.images[pick].float() / 255, torch.zeros(COUNT, dtype=torch.int64)
    made = {name: (255 * make(images, generator)).round().byte() for name, make in _OF_IMAGES.items()}
    sets = {name: ImageSet(name, pixels, labels, (name,)) for name, pixels in made.items()}
    return {**sets, "shapes": load_set("shapes", shape=validation.shape, seed=seed)}
