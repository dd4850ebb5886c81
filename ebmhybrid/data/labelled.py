"""What sets of labelled images do alike, whether their pixels are in memory or in files."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from ebmhybrid.errors import DataError

Set = TypeVar("Set", bound="Labelled")


class Labelled(ABC):
    """The methods that need a set's labels and its `select` alone; the set itself is a frozen dataclass."""

    name: str
    labels: Tensor
    classes: tuple[str, ...]
    notes: tuple[str, ...]
    shape: Any

    def _fail(self, message: str) -> None:
        raise DataError(f"{self.name}: {message}")

    def _with(self: Set, **changes: Any) -> Set:
        return replace(self, **changes)  # type: ignore[type-var]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        """Number of classes, the ones without images included."""
        return len(self.classes)

    @property
    def skipped(self) -> int:
        """How many of its pictures were found that cannot be decoded; none in memory, where a note tells."""
        return 0

    @property
    def findings(self) -> tuple[str, ...]:
        """Notes on what was found while it was read; none in memory."""
        return ()

    def noted(self: Set, *notes: str) -> Set:
        """The same set with more notes."""
        return self._with(notes=(*self.notes, *notes))

    @abstractmethod
    def select(self: Set, indices: Tensor | Sequence[int], name: str | None = None) -> Set:
        """The images at `indices`, in that order; all classes stay, even those left without images."""

    def _checked(self, indices: Tensor | Sequence[int]) -> Tensor:
        index = torch.as_tensor(indices, device=self.labels.device).long()
        if index.numel() and not (int(index.min()) >= 0 and int(index.max()) < len(self)):
            self._fail(f"indices must lie in 0..{len(self) - 1}, got {int(index.min())}..{int(index.max())}")
        return index

    def take(self: Set, limit: int) -> Set:
        """At most `limit` images, evenly spaced over the images ordered by label, so that classes keep their shares.

        Spacing over the images as they lie would pick a single class from a set whose labels go round and round.
        """
        if limit < 1:
            self._fail(f"limit must be at least 1, got {limit}")
        if limit >= len(self):
            return self
        return self.select(spaced(self.labels, limit)).noted(f"{limit} of {len(self)} images")

    def keep_classes(self: Set, spec: str) -> Set:
        """Only the classes of `spec` ("0-6", "7,9", "0-2,5"), relabelled 0.. in ascending order.

        >>> from ebmhybrid.data import ImageSet
        >>> ten = ImageSet("ten", torch.zeros(10, 1, 2, 2, dtype=torch.uint8), torch.arange(10), tuple("abcdefghij"))
        >>> kept = ten.keep_classes("7,9")
        >>> kept.name, kept.classes, kept.labels.tolist()
        ('ten:7,9', ('h', 'j'), [0, 1])
        """
        kept = parse_classes(spec, self.num_classes, self.name)
        new_label = torch.full((self.num_classes,), -1, device=self.labels.device)
        new_label[kept] = torch.arange(len(kept), device=self.labels.device)
        labels = new_label[self.labels]
        index = (labels >= 0).nonzero().squeeze(1)
        if not len(index):
            self._fail(f"no image has a class in {spec}")
        classes = tuple(self.classes[c] for c in kept)
        return self.select(index)._with(name=f"{self.name}:{spec}", labels=labels[index], classes=classes)

    def _changes(self, channels: int, size: int) -> list[str]:
        """What adapting the images to these channels and this size would change, in words; empty if nothing."""
        if channels not in (1, 3) or size < 1:
            self._fail(f"can adapt to 1 or 3 channels and a size of at least 1, got {channels} and {size}")
        have, height, width = self.shape
        notes = []
        if (height, width) != (size, size):
            notes.append(f"resized {height}x{width} -> {size}x{size} (bilinear)")
        if have != channels:
            notes.append("gray -> RGB" if channels == 3 else "RGB -> gray (ITU-R 601)")
        return notes


def spaced(labels: Tensor, limit: int) -> Tensor:
    """Where `limit` of the labels lie, ascending: evenly spaced over them in order, so that each keeps its share.

    >>> spaced(torch.tensor([0, 1, 0, 1, 0, 0]), 3)
    tensor([0, 1, 4])
    """
    by_label = torch.argsort(labels, stable=True)
    places = torch.arange(limit, device=labels.device) * len(labels) // limit
    return by_label[places].sort().values


def parse_classes(spec: str, num_classes: int, name: str) -> list[int]:
    """The class numbers of "0-2,5", ascending.

    Raises:
        DataError: not of that form, a range that runs backwards, or a class out of range.

    >>> parse_classes("0-2,5", 10, "digits")
    [0, 1, 2, 5]
    """
    kept: set[int] = set()
    for part in spec.split(","):
        if not re.fullmatch(r"[0-9]+(-[0-9]+)?", part):
            raise DataError(f"{name}: classes must look like 0-6 or 7,9, got {spec!r}")
        first, _, last = part.partition("-")
        low, high = int(first), int(last or first)
        if not low <= high < num_classes:
            raise DataError(f"{name}: classes must be rising and lie in 0..{num_classes - 1}, got {part!r} in {spec!r}")
        kept.update(range(low, high + 1))
    return sorted(kept)
