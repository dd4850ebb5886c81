"""Samples from a classifier: what was asked for, checked, then Langevin chains on its log density.

Chains climb log p(x) = logsumexp_y f(x)[y], or log p(x, y) = f(x)[y] of a class each, both up to a constant. They move
together, one step of all chains at a time, in batches that bound the memory; the noise of a step is drawn for all of
them at once on the CPU. Samples therefore follow from weights and settings, whatever the batch size and the device, up
to the rounding of the arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ebmhybrid.errors import EbmhybridError, UsageError, nearest
from ebmhybrid.losses.jem import jem_log_density
from ebmhybrid.sampling import langevin_step
from ebmhybrid.schema import JEMTerm, Recipe

Progress = Callable[[Iterable[Any], str], Iterable[Any]]

STARTS = ("buffer", "uniform", "gaussian")
FILE = "npz:"
# From noise a chain of the digits model needs 100 steps until its log density is that of test images; one of the
# buffer has them behind it, and some more bring the buffer of the last step to the weights of the best.
FRESH_STEPS, FRESH_FACTOR, BUFFER_FACTOR = 100, 5, 2
DEFAULT_NUM = 100
WATCHED = 10


@dataclass(frozen=True)
class Settings:
    """How to sample.

    Attributes:
        num: N >= 2, which figures need; None is all images of the file that chains start from.
        classes: the classes asked for, in equal shares, each chain climbing log p(x, y) of its own; None is log p(x).
        start: buffer, uniform, gaussian or npz:PATH.
        steps, step_size, noise_std, clip, clamp: see :func:`ebmhybrid.sampling.sgld`; pixels in [0, 1].
        seed: of starts and noise.
    """

    num: int | None
    classes: tuple[int, ...] | None
    start: str
    steps: int
    step_size: float
    noise_std: float
    clip: float | None
    clamp: bool
    seed: int

    @property
    def file(self) -> str | None:
        """The set that chains start from, if it is a file of the user's."""
        return self.start if self.start.startswith(FILE) else None


def choose(
    recipe: Recipe,
    class_names: Sequence[str],
    *,
    has_buffer: bool,
    num: int | None = None,
    classes: Sequence[str | int] = (),
    start: str | None = None,
    steps: int | None = None,
    step_size: float | None = None,
    noise_std: float | None = None,
    seed: int | None = None,
) -> Settings:
    """The settings that are given, and else those of the recipe's JEM term.

    Without such a term step and noise are JEM's for pixels in [0, 1]. Chains of the replay buffer take twice the steps
    of training, others five times as many and at least 100.

    Arguments:
        class_names: of the model's classes, in their order.
        has_buffer: whether the run keeps a replay buffer, which is then the default start.
        classes: names or numbers; none of them is every class for a run with chains of a class, else log p(x).

    Raises:
        UsageError: a value out of range, or a class or start that there is none of.

    >>> choose(Recipe(), ["cat", "dog"], has_buffer=False, classes=["dog"]).classes
    (1,)
    """
    term = recipe.objective.jem or JEMTerm()
    chosen = start or ("buffer" if has_buffer else term.start)
    if chosen not in STARTS and not (chosen.startswith(FILE) and len(chosen) > len(FILE)):
        raise UsageError(f"start {chosen!r}: {nearest(chosen, [*STARTS, 'npz:PATH'])}")
    if chosen.startswith(FILE) and classes:
        raise UsageError(f"a class does not go with start {chosen}: its images have labels of their own")
    if chosen == "buffer" and not has_buffer:
        raise UsageError("start 'buffer': the run keeps no replay buffer; take uniform or gaussian")
    usual = BUFFER_FACTOR * term.steps if chosen == "buffer" else max(FRESH_STEPS, FRESH_FACTOR * term.steps)
    settings = Settings(
        num=num if num is not None or chosen.startswith(FILE) else DEFAULT_NUM,
        classes=_numbers(classes, class_names) or (tuple(range(len(class_names))) if term.by_class else None),
        start=chosen,
        steps=usual if steps is None else steps,
        step_size=term.step_size if step_size is None else step_size,
        noise_std=term.noise_std if noise_std is None else noise_std,
        clip=term.clip,
        clamp=term.clamp,
        seed=recipe.seed if seed is None else seed,
    )
    _check(settings)
    return settings


def _check(settings: Settings) -> None:
    for name, least in (("num", 2), ("steps", 0), ("seed", 0)):
        value = getattr(settings, name)
        if value is not None and (not isinstance(value, int) or value < least):
            raise UsageError(f"{name} must be a whole number of at least {least}, got {value!r}")
    for name in ("step_size", "noise_std"):
        value = getattr(settings, name)
        if not 0 <= value < math.inf:
            raise UsageError(f"{name} must be at least 0 and finite, got {value}")


def _numbers(asked: Sequence[str | int], names: Sequence[str]) -> tuple[int, ...]:
    """Classes by their name, or by their number where none has that name; each once."""
    found = []
    for one in map(str, asked):
        if one in names:
            found.append(list(names).index(one))
        elif one.isdecimal() and int(one) < len(names):
            found.append(int(one))
        else:
            raise UsageError(f"class {one!r}: {nearest(one, names)}, or a number in 0..{len(names) - 1}")
    return tuple(dict.fromkeys(found))


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

    >>> from ebmhybrid.models import WideResNet
    >>> settings = choose(Recipe(), "abc", has_buffer=False, steps=2)
    >>> x = torch.rand(4, 1, 8, 8)
    >>> draw(WideResNet(10, 1, 3, 1).eval(), settings, x, None, torch.Generator()).moments
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
    """A few chains, evenly spread: one a class where classes are asked for, in equal shares and one after another."""
    classes = 1 if labels is None else len(labels.unique())
    few = min(n, WATCHED, classes if classes > 1 else WATCHED)
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
