"""What families of reference images do to one image, pixel by pixel and frequency by frequency, in float64."""

from __future__ import annotations

import cmath
import math

import torch
from torch import Tensor


def spectrum(image: Tensor) -> list[list[complex]]:
    """sum_rc image[r, c] exp(-2 pi i (u r / H + v c / W)) for each (u, v)."""
    height, width = image.shape
    return [
        [
            sum(
                float(image[r, c]) * cmath.exp(-2j * math.pi * (u * r / height + v * c / width))
                for r in range(height)
                for c in range(width)
            )
            for v in range(width)
        ]
        for u in range(height)
    ]


def turned(image: Tensor, noise: Tensor) -> Tensor:
    """Each frequency but the mean with its amplitude, and its phase plus that of the noise; back by the inverse sum."""
    height, width = image.shape
    own, other = spectrum(image), spectrum(noise)
    made = torch.zeros(height, width, dtype=torch.complex128)
    for u in range(height):
        for v in range(width):
            amplitude, phase = cmath.polar(own[u][v])
            value = cmath.rect(amplitude, phase + (cmath.phase(other[u][v]) if u or v else 0.0))
            for r in range(height):
                for c in range(width):
                    wave = cmath.exp(2j * math.pi * (u * r / height + v * c / width))
                    made[r, c] += value * wave / (height * width)
    assert made.imag.abs().max() < 1e-9
    return made.real


def displaced(image: Tensor, shift: Tensor) -> Tensor:
    """(H, W) with each pixel the bilinear value at its place + shift (2, H, W) in sides, mirrored at pixels' edges."""
    height, width = image.shape
    made = torch.zeros(height, width, dtype=torch.float64)
    for row in range(height):
        for column in range(width):
            r = _mirrored(row + float(shift[0, row, column]) * height, height)
            c = _mirrored(column + float(shift[1, row, column]) * width, width)
            top, left = min(int(r), height - 1), min(int(c), width - 1)
            below, right = min(top + 1, height - 1), min(left + 1, width - 1)
            a, b = r - top, c - left
            upper = (1 - b) * image[top, left] + b * image[top, right]
            lower = (1 - b) * image[below, left] + b * image[below, right]
            made[row, column] = (1 - a) * upper + a * lower
    return made


def _mirrored(place: float, size: int) -> float:
    while not -0.5 <= place <= size - 0.5:
        place = -1 - place if place < -0.5 else 2 * size - 1 - place
    return min(max(place, 0.0), size - 1.0)


def uphill(log_density, image: Tensor, steps: int, step_size: float) -> Tensor:
    """Every pixel a step up or down by the sign of its central difference, kept in [0, 1]; so many times."""
    h = 1e-6
    for _ in range(steps):
        moved = image.clone()
        for place in range(image.numel()):
            up, down = image.flatten().clone(), image.flatten().clone()
            up[place] += h
            down[place] -= h
            slope = float(log_density(up.view_as(image)) - log_density(down.view_as(image)))
            moved.view(-1)[place] += step_size * ((slope > 0) - (slope < 0))
        image = moved.clamp(0, 1)
    return image
