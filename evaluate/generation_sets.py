"""The sets that an evaluation of samples reads: in memory, checked, named."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ebmhybrid.errors import EbmhybridError

from .generation_rows import SAMPLES, Row
from .predictions import ImageSet, _digest, _notes, batches, check_images, check_labels, set_name, taken

Chains = tuple[Sequence[int], Tensor]
_BATCH = 256


@dataclass(frozen=True)
class Images:
    """A set in memory, read once: images (N, C, H, W) and labels on the CPU, under the role that it plays in rows."""

    role: str
    name: str
    images: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    notes: tuple[str, ...] = ()
    digest: str | None = None

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self.images.split(_BATCH), self.labels.split(_BATCH), strict=True)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def flat(self) -> np.ndarray:
        """(N, C x H x W)."""
        return self.images.flatten(1).numpy()

    @classmethod
    def read(cls, data: ImageSet, role: str, limit: int | None = None) -> Images:
        """The whole set, or as many images of it as its own `.take` chooses, else the first ones."""
        name, data = set_name(data, role), taken(data, limit)
        pairs = [(images.detach().cpu(), labels) for images, labels in batches(data, name, limit)]
        if not pairs:
            raise EbmhybridError(f"set {name!r} is empty")
        images, labels = (torch.cat(part) for part in zip(*pairs, strict=True))
        return cls(role, name, images, labels, _notes(data), _digest(data))

    def described(self) -> Row:
        """What identifies the set in a report."""
        return {"role": self.role, "name": self.name, "n": len(self), "notes": list(self.notes), "digest": self.digest}


def checked_samples(samples: Tensor, labels: Tensor | None, classes: int) -> Images:
    """The samples as a set, labels of 0 where none were given.

    Arguments:
        classes: how many the reference has.
    """
    check_images(samples, SAMPLES)
    if len(samples) < 2:
        raise EbmhybridError(f"need at least 2 samples, got {len(samples)}")
    targets = torch.zeros(len(samples), dtype=torch.int64) if labels is None else torch.as_tensor(labels).cpu()
    if targets.shape != samples.shape[:1] or targets.is_floating_point():
        raise EbmhybridError(
            f"labels of samples must be integers of shape ({len(samples)},), got {targets.dtype} {tuple(targets.shape)}"
        )
    check_labels(targets.numpy(), classes, SAMPLES)
    return Images(SAMPLES, SAMPLES, samples.detach().cpu().float(), targets.long())


def check_sets(drawn: Images, real: Images, pool: Images | None) -> None:
    """An error for images of another shape than the samples, and for a reference of a single image."""
    if len(real) < 2:
        raise EbmhybridError(f"set {real.name!r}: samples are measured against at least 2 images, got {len(real)}")
    shape = tuple(drawn.images.shape[1:])
    for data in (real, pool):
        if data is not None and tuple(data.images.shape[1:]) != shape:
            raise EbmhybridError(f"set {data.name!r}: images are {tuple(data.images.shape[1:])}, the samples {shape}")


def class_names(data: ImageSet) -> tuple[str, ...]:
    """The set's class names, none where it has none."""
    return tuple(map(str, getattr(data, "classes", None) or ()))


def named(classes: Sequence[str], count: int) -> tuple[str, ...]:
    """A name for each of `count` classes: the set's, or their numbers.

    >>> named(("cat", "dog"), 2), named((), 2)
    (('cat', 'dog'), ('0', '1'))
    """
    return tuple(classes) if len(classes) == count else tuple(map(str, range(count)))


def checked_chains(chains: Chains | None) -> tuple[tuple[int, ...], np.ndarray] | None:
    """Steps and images (T, M, C, H, W) of the chains, on the CPU."""
    if chains is None:
        return None
    try:
        steps, images = chains
        found = f"{len(steps)} steps and {tuple(images.shape)}"
    except (TypeError, ValueError, AttributeError):
        raise EbmhybridError(f"chains must be (T steps, images (T, M, C, H, W)), got {type(chains).__name__}") from None
    if not isinstance(images, Tensor) or images.dim() != 5 or len(images) != len(steps) or not images.numel():
        raise EbmhybridError(f"chains must be (T steps, images (T, M, C, H, W)), got {found}")
    check_images(images.flatten(0, 1), "chains")
    return tuple(int(step) for step in steps), images.detach().cpu().float().numpy()
