"""Where the chains of a run start: its replay buffer, noise, a Gaussian a class, or images of a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ebmhybrid.data import ImageSet
from ebmhybrid.errors import CheckpointError, DataError, UsageError
from ebmhybrid.generation.chains import equal_shares
from ebmhybrid.generation.settings import Settings
from ebmhybrid.sampling import GaussianStart, UniformStart
from ebmhybrid.schema import Recipe
from ebmhybrid.training.checkpoint import load_state


@dataclass(frozen=True, eq=False)
class Start:
    """Images (N, C, H, W) in [0, 1], the class (N,) that each chain climbs or None, and what is to be said of them."""

    images: Tensor
    labels: Tensor | None
    notes: tuple[str, ...] = field(default=())


def state_of(weights: Path) -> Path:
    """Where a run keeps its training state, the replay buffer in it."""
    return weights.with_name("last.state.pt")


def has_buffer(recipe: Recipe, weights: Path) -> bool:
    """Whether a replay buffer lies beside the weights; a lone weight file has none."""
    return recipe.objective.jem is not None and state_of(weights).is_file()


def start_chains(
    settings: Settings,
    recipe: Recipe,
    train: ImageSet,
    weights: Path,
    load: Callable[[str], ImageSet],
    generator: torch.Generator,
) -> Start:
    """The images that chains start from, and their classes.

    Arguments:
        train: training images, which a Gaussian start is fitted to.
        weights: the weight file, beside which the replay buffer lies.
        load: a set by name in the model's shape.
        generator: on the CPU.

    Raises:
        EbmhybridError: a buffer or a file that cannot be used.
    """
    if settings.file is not None:
        return _from_file(settings, load(settings.file), train.num_classes)
    assert settings.num is not None
    labels = None if settings.classes is None else equal_shares(settings.classes, settings.num)
    if settings.start == "buffer":
        assert recipe.objective.jem is not None
        by_class = recipe.objective.jem.by_class
        images = read_buffer(state_of(weights), train.shape, train.num_classes if by_class else 1)
        slots, notes = _slots(settings, labels, images, by_class, train.num_classes, generator)
        return Start(images[slots], labels, notes)
    if settings.start == "gaussian":
        # Chains on log p(x) start from all classes alike.
        of = equal_shares(range(train.num_classes), settings.num) if labels is None else labels
        fitted = GaussianStart.fit(train.images, train.labels, train.num_classes)
        return Start(fitted(of, generator), labels)
    return Start(UniformStart(train.shape)(torch.zeros(settings.num, dtype=torch.int64), generator), labels)


def read_buffer(path: Path, shape: tuple[int, ...], least: int = 1) -> Tensor:
    """The images (M, C, H, W) of a run's replay buffer, M >= `least`, in [0, 1].

    Raises:
        CheckpointError: no training state there, or none with finite floating point images of this shape.
    """
    try:
        images = load_state(path)["parts"]["sampler"]["buffer.images"]
    except (KeyError, TypeError):
        images = None
    wanted = f"{path}: holds no replay buffer of at least {least} images {tuple(shape)}"
    if not isinstance(images, Tensor):
        raise CheckpointError(f"{wanted} (found none)")
    dense = images.layout == torch.strided and images.is_floating_point()
    if not dense or images.shape[1:] != shape or len(images) < least or not images.isfinite().all():
        kind = f"{images.dtype} {images.layout}".replace("torch.", "")
        held = "NaN or infinity among " if dense and not images.isfinite().all() else ""
        raise CheckpointError(f"{wanted} (found {held}images {tuple(images.shape)}, {kind})")
    return images.float().clamp(0, 1).contiguous()


def _slots(
    settings: Settings,
    labels: Tensor | None,
    images: Tensor,
    by_class: bool,
    num_classes: int,
    generator: torch.Generator,
) -> tuple[Tensor, tuple[str, ...]]:
    """Slots for the chains, of their own class where slots have one: each at most once as long as they suffice."""
    assert settings.num is not None
    if labels is None or not by_class:
        slots = _some(len(images), settings.num, generator)
        most, there = settings.num, len(images)
    else:
        there = len(images) // num_classes
        counts = torch.bincount(labels, minlength=num_classes)
        most = int(counts.max())
        slots = torch.cat(
            [int(c) * there + _some(there, int(counts[c]), generator) for c in labels.unique_consecutive()]
        )
    if most <= there:
        return slots, ()
    whose = "of a class " if there < len(images) else ""
    return slots, (
        f"the replay buffer holds {there} images {whose}and {most} chains were asked for: several start from the same",
    )


def _some(there: int, wanted: int, generator: torch.Generator) -> Tensor:
    if wanted <= there:
        return torch.randperm(there, generator=generator)[:wanted]
    return torch.randint(there, (wanted,), generator=generator)


def _from_file(settings: Settings, images: ImageSet, num_classes: int) -> Start:
    if settings.num is not None and settings.num > len(images):
        raise UsageError(f"num = {settings.num}: {images.name} holds {len(images)} images")
    if len(images) < 2:
        raise DataError(f"{images.name}: figures need at least 2 images, it holds {len(images)}")
    images = images.take(settings.num or len(images)).in_memory()
    if settings.classes is None:
        return Start(images.images.float() / 255, None, images.notes)
    if int(images.labels.max()) >= num_classes:
        raise DataError(
            f"{images.name}: its labels go up to {int(images.labels.max())}, and the model has classes "
            f"0..{num_classes - 1}"
        )
    return Start(images.images.float() / 255, images.labels, images.notes)
