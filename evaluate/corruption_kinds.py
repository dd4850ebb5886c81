"""The corruption families of Hendrycks & Dietterich (2019), made on the fly for images of any size from 8 x 8.

`CORRUPTIONS[name](images, severity, generator)` maps images (N, 1 or 3, H, W) in [0, 1] to images of the same shape and
dtype in [0, 1]. Strengths are those of CIFAR-10-C where its recipe has such a number; lengths are in pixels of a
32 x 32 image and scale with the shorter side. The random numbers and several filters differ from the published arrays,
so figures on these images are not CIFAR-10-C figures. Frost is left out: it needs photographs of frost.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ebmhybrid.energies import at_least_float32
from ebmhybrid.errors import EbmhybridError, UsageError, nearest

from .corruption_blur import defocus_blur, draws, glass_blur, motion_blur, sample, unit, zoom_blur
from .corruption_weather import brightness, fog, snow
from .predictions import check_images

SEVERITIES = (1, 2, 3, 4, 5)
FAMILIES = ("noise", "blur", "weather", "digital")
_SMALLEST = 8
_CONTROLS = 8  # control points of the elastic field along a side


@dataclass(frozen=True)
class Corruption:
    """A corruption with five strengths.

    Attributes:
        name: as the files of CIFAR-10-C are called.
        family: "noise", "blur", "weather" or "digital".
        function: (images, *strength, generator) -> images, not yet cut to [0, 1].
        strengths: the arguments of `function` at severity 1 to 5.
    """

    name: str
    family: str
    function: Callable[..., Tensor] = field(repr=False)
    strengths: tuple[tuple[float, ...], ...]

    def __call__(self, images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
        """The images corrupted, in their shape and dtype and in [0, 1].

        Each image takes its random numbers from the generator in turn: a set gives the same images in any batches.

        Raises:
            ValueError: images outside [0, 1], not (N, 1 or 3, H, W) or smaller than 8 x 8; a severity outside 1 to 5.

        >>> gray = torch.full((1, 1, 8, 8), 0.5)
        >>> CORRUPTIONS["brightness"](gray, 2, torch.Generator()).mean()
        tensor(0.6000)
        """
        check_images(images, self.name)
        check_sides(images.shape[1:], self.name)
        strength = self.strengths[check_severities(severity)[0] - 1]
        if not len(images):
            return images.clone()
        made = self.function(at_least_float32(images).clamp(0, 1), *strength, generator)
        return made.clamp(0, 1).to(images.dtype)


def check_sides(shape: Sequence[int], name: str = "corruptions") -> None:
    """Raise EbmhybridError unless images of this shape (C, H, W) can be corrupted."""
    channels, height, width = shape
    if channels not in (1, 3) or min(height, width) < _SMALLEST:
        raise EbmhybridError(
            f"{name}: images must have 1 or 3 channels and sides of at least {_SMALLEST}, got {tuple(shape)}"
        )


def check_kinds(kinds: str | Iterable[str], valid: Iterable[str]) -> tuple[str, ...]:
    """The names without repetition, or a UsageError that names the nearest valid one."""
    names = (kinds,) if isinstance(kinds, str) else tuple(dict.fromkeys(kinds))
    valid = tuple(valid)
    if not names:
        raise UsageError(f"need at least one corruption, valid: {', '.join(valid)}")
    for name in names:
        if name not in valid:
            raise UsageError(f"unknown corruption {name!r}: {nearest(str(name), valid)}")
    return names


def check_severities(severities: int | Iterable[int]) -> tuple[int, ...]:
    """The severities in ascending order without repetition, or a UsageError unless all are integers from 1 to 5."""
    levels = tuple(severities) if isinstance(severities, Iterable) else (severities,)
    for level in levels:
        if isinstance(level, bool) or not isinstance(level, int | np.integer) or level not in SEVERITIES:
            raise UsageError(f"severity must be an integer from 1 to 5, got {level!r}")
    if not levels:
        raise UsageError("need at least one severity from 1 to 5")
    return tuple(sorted({int(level) for level in levels}))


def gaussian_noise(images: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    """x' = x + sigma z with z standard normal in each value."""
    return images + sigma * draws(images, torch.randn, tuple(images.shape[1:]), generator)


def shot_noise(images: Tensor, photons: float, generator: torch.Generator) -> Tensor:
    """x' = Poisson(photons x) / photons in each value: the noise of counting light."""
    each = [torch.poisson((image * photons).to(generator.device), generator=generator) for image in images]
    return torch.stack(each).to(images) / photons


def impulse_noise(images: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    """A share `amount` of all values becomes 0 or 1, with equal chances."""
    chance = draws(images, torch.rand, tuple(images.shape[1:]), generator)
    return torch.where(chance < amount / 2, 0.0, torch.where(chance < amount, 1.0, images))


def contrast(images: Tensor, factor: float, generator: torch.Generator) -> Tensor:
    """x' = mean + factor (x - mean), with the mean of each channel of each image."""
    mean = images.mean((2, 3), keepdim=True)
    return mean + factor * (images - mean)


def elastic_transform(images: Tensor, reach: float, generator: torch.Generator) -> Tensor:
    """Each pixel looked up at a displaced place; the displacements are a smooth random field.

    They are normal with standard deviation `reach` at 8 x 8 control points, bicubic between them.
    """
    field = draws(images, torch.randn, (2, _CONTROLS, _CONTROLS), generator) * (reach * unit(images))
    shifts = interpolate(field, size=images.shape[2:], mode="bicubic", antialias=True, align_corners=False)
    return sample(images, shifts[:, 0], shifts[:, 1])


def pixelate(images: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    """Reduced to int(scale side) pixels and enlarged again, both with PIL's box filter."""
    down, across = (box_matrix(side, int(scale * side)).to(images) for side in images.shape[2:])
    return down @ images @ across.T


def box_matrix(side: int, reduced: int) -> Tensor:
    """(side, side) matrix of that reduction and enlargement along one axis: what PIL makes of the identity."""
    from PIL import Image

    box = Image.Resampling.BOX
    columns = Image.fromarray(np.eye(side, dtype=np.float32))
    return torch.from_numpy(np.array(columns.resize((side, reduced), box).resize((side, side), box)))


def jpeg_compression(images: Tensor, quality: float, generator: torch.Generator) -> Tensor:
    """Through PIL's JPEG encoder and back, as 8-bit images."""
    from PIL import Image

    decoded = []
    for pixels in (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy():
        buffer = io.BytesIO()
        Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(
            buffer, "JPEG", quality=int(quality)
        )
        decoded.append(np.array(Image.open(buffer)).reshape(pixels.shape))
    return torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2).to(images) / 255


def _of(family: str, function: Callable[..., Tensor], *strengths: float | tuple[float, ...]) -> Corruption:
    tuples = tuple(strength if isinstance(strength, tuple) else (strength,) for strength in strengths)
    return Corruption(function.__name__, family, function, tuples)


CORRUPTIONS: dict[str, Corruption] = {
    corruption.name: corruption
    for corruption in (
        _of("noise", gaussian_noise, 0.04, 0.06, 0.08, 0.09, 0.10),
        _of("noise", shot_noise, 500, 250, 100, 75, 50),
        _of("noise", impulse_noise, 0.01, 0.02, 0.03, 0.05, 0.07),
        _of("blur", defocus_blur, 0.2, 0.5, 0.8, 1.0, 1.5),
        _of("blur", glass_blur, (0.6, 0.1), (0.9, 0.15), (1.2, 0.2), (1.5, 0.25), (1.8, 0.3)),
        _of("blur", motion_blur, 1.0, 1.5, 2.0, 2.25, 2.5),
        _of("blur", zoom_blur, 0.05, 0.10, 0.15, 0.20, 0.25),
        _of("weather", snow, (0.01, 3, 0.05), (0.02, 3, 0.1), (0.04, 4, 0.1), (0.06, 4, 0.15), (0.09, 5, 0.2)),
        _of("weather", fog, (0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
        _of("weather", brightness, 0.05, 0.1, 0.15, 0.2, 0.3),
        _of("digital", contrast, 0.75, 0.5, 0.4, 0.3, 0.15),
        _of("digital", elastic_transform, 0.5, 0.75, 1.0, 1.3, 1.6),
        _of("digital", pixelate, 0.95, 0.9, 0.85, 0.75, 0.65),
        _of("digital", jpeg_compression, 80, 65, 58, 50, 40),
    )
}
