"""A set of images under a corruption, made as it is read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .corruption_kinds import CORRUPTIONS, check_kinds, check_severities
from .predictions import ImageSet, set_name, taken


@dataclass(frozen=True)
class Corrupted:
    """A set whose batches are corrupted as they are read; labels stay. Made by :func:`corrupted`."""

    data: ImageSet
    kind: str
    severity: int
    seed: int = 0

    @property
    def name(self) -> str:
        """The set's name with corruption and severity, such as "digits+fog/3"."""
        return f"{set_name(self.data)}+{self.kind}/{self.severity}"

    @property
    def notes(self) -> tuple[str, ...]:
        """The set's own notes and how it was corrupted."""
        own = getattr(self.data, "notes", None) or ()
        made = f"{self.kind} of severity {self.severity}, generated with seed {self.seed}"
        return (*((own,) if isinstance(own, str) else own), made)

    def digest(self) -> str | None:
        """A hash of the set's digest and of everything the corruption depends on; None if the set has no digest."""
        own = getattr(self.data, "digest", None)
        value = own() if callable(own) else own
        if value is None:
            return None
        strength = CORRUPTIONS[self.kind].strengths[self.severity - 1]
        return hashlib.sha256(repr((str(value), self.kind, self.severity, strength, self.seed)).encode()).hexdigest()

    def take(self, limit: int) -> Corrupted:
        """The corruption of the set's own subset of `limit` images."""
        return Corrupted(taken(self.data, limit), self.kind, self.severity, self.seed)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        corruption = CORRUPTIONS[self.kind]
        # one stream a pass, from which the images draw in their order: batches of any size give the same images
        words = hashlib.sha256(repr((self.seed, self.kind, self.severity)).encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(words[:8], "little"))
        for images, labels in self.data:
            yield corruption(images, self.severity, generator), labels


def corrupted(data: ImageSet, kind: str, severity: int, seed: int = 0) -> Corrupted:
    """The set under a corruption, made as it is read: the same images on every pass and in batches of any size.

    Arguments:
        data: iterable of (images (N, 1 or 3, H, W) in [0, 1], labels).
        kind: a name of `corruption_kinds.CORRUPTIONS`.
        severity: 1 to 5.
        seed: of the random numbers; each kind and severity has its own.

    Raises:
        ValueError: an unknown kind or severity; on reading, images that do not fit.

    >>> data = [(torch.full((2, 1, 8, 8), 0.5), torch.tensor([0, 1]))]
    >>> [(images.shape, round(images.mean().item(), 2)) for images, labels in corrupted(data, "brightness", 3)]
    [(torch.Size([2, 1, 8, 8]), 0.65)]
    """
    return Corrupted(data, check_kinds(kind, CORRUPTIONS)[0], check_severities(severity)[0], seed)
