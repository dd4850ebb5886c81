"""Samples from a classifier: Langevin chains on its log density.

Chains climb log p(x) = logsumexp_y f(x)[y], or log p(x, y) = f(x)[y] of a class each, both up to a constant. They move
together, one step of all chains at a time, in batches that bound the memory; the noise of a step is drawn for all of
them at once on the CPU. Samples therefore follow from weights and settings, whatever the batch size and the device, up
to the rounding of the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ebmhybrid.errors import EbmhybridError
from ebmhybrid.generation.settings import Settings
from ebmhybrid.losses.jem import jem_log_density
from ebmhybrid.sampling import langevin_step

Progress = Callable[[Iterable[Any], str], Iterable[Any]]

WATCHED = 10


def equal_shares(classes: Sequence[int], num: int) -> Tensor:
    """Labels (num,), class by class, their counts differing by one at most.

    >>> equal_shares([4, 2], 5).tolist()
    [4, 4, 4, 2, 2]
    """
    return torch.tensor(classes)[torch.arange(num) * len(classes) // num]


@dataclass(frozen=True, eq=False)
class Drawn:
    """Samples, and how a few of them came about.

    Attributes:
        images: float32 (N, C, H, W) in [0, 1], in steps of 1/255, so that a file of them holds the same images.
        labels: int64 (N,), the classes asked for; None for chains on log p(x).
        chains: float32 (T, M, C, H, W) in [0, 1], M of the chains at T moments.
        moments: the T step numbers, from 0 on.
        watched: the M indices of these chains among the samples.
    """

    images: Tensor
    labels: Tensor | None
    chains: Tensor
    moments: tuple[int, ...]
    watched: tuple[int, ...]


def draw(
    model: nn.Module,
    settings: Settings,
    start: Tensor,
    labels: Tensor | None,
    generator: torch.Generator,
    *,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Drawn:
    """Move chains on from `start` and watch a few of them.

    Arguments:
        model: images in [0, 1] -> logits (N, C), in evaluation mode: an image's density must not depend on the others.
        start: float32 (N, C, H, W), N >= 1.
        labels: int64 (N,), the class that each chain climbs; None is log p(x).
        generator: of the noise, on the CPU.
        batch_size: chains whose gradient is computed at once.
        progress: progress(steps, text) -> steps, to show a bar.

    Raises:
        EbmhybridError: a chain that is no longer finite.

    >>> settings = Settings(4, None, "uniform", steps=2, step_size=0.1, noise_std=0.0, clip=None, clamp=True, seed=0)
    >>> draw(nn.Flatten(), settings, torch.rand(4, 1, 1, 3), None, torch.Generator()).moments
    (0, 1, 2)
    """
    n = len(start)
    watched = _watched(n, labels)
    moments, x = _moments(settings.steps), start.clone()
    seen = {0: x[watched].clamp(0, 1)}
    steps: Iterable[int] = range(1, settings.steps + 1)
    for k in progress(steps, "sampling") if progress else steps:
        noise = settings.noise_std * torch.randn(x.shape, generator=generator, dtype=x.dtype)
        for rows in torch.arange(n).split(batch_size):
            x[rows] = _step(model, settings, x[rows], noise[rows], None if labels is None else labels[rows], device)
        if k in moments:
            seen[k] = x[watched].clamp(0, 1)
            _check_finite(x, k, settings)
    images = (255 * x.clamp(0, 1)).round() / 255
    return Drawn(images, labels, torch.stack([seen[k] for k in moments]), moments, tuple(watched.tolist()))


def _step(
    model: nn.Module,
    settings: Settings,
    x: Tensor,
    noise: Tensor,
    labels: Tensor | None,
    device: torch.device | str,
) -> Tensor:
    """One step of one batch, on the device and back."""
    classes = None if labels is None else labels.to(device)
    return langevin_step(
        lambda images: jem_log_density(model(images), classes),
        x.to(device, memory_format=torch.channels_last),
        settings.step_size,
        noise.to(device),
        clamp=(0.0, 1.0) if settings.clamp else None,
        clip=settings.clip,
    ).cpu()


def _watched(n: int, labels: Tensor | None) -> Tensor:
    """A few chains, evenly spread; as many of each class where classes are asked for, which follow one another."""
    classes = 1 if labels is None else len(labels.unique())
    few = min(n, WATCHED if classes > WATCHED else classes * (WATCHED // classes))
    return torch.arange(few) * n // few


def _moments(steps: int) -> tuple[int, ...]:
    """0, 1, 2, 5, 10, 20, 50, ... and the last step: chains move far at first and little later."""
    rising = (first * 10**power for power in range(len(str(steps))) for first in (1, 2, 5))
    return tuple(sorted({0, steps, *(k for k in rising if k < steps)}))


def _check_finite(x: Tensor, k: int, settings: Settings) -> None:
    if not torch.isfinite(x).all():
        raise EbmhybridError(
            f"chains are no longer finite after {k} steps: try a smaller step_size than {settings.step_size:g}, "
            "if the weights are finite"
        )
