"""A data set is a uint8 tensor of images and an int64 tensor of labels, in memory and on any device.

CIFAR-10 is 180 MB that way: no worker processes, and batches are cut on the device that trains on them.
Whatever was done to the images on the way (resized, a subset, another file than the official one) is kept in
`notes`, so that a report can say it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ebmhybrid.errors import DataError

LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601, what PIL's convert("L") uses
CHUNK_VALUES = 2**24  # float values held at once while adapting: 64 MB


def as_input(images: Tensor) -> Tensor:
    """What a model takes: images in [0, 1] of stored bytes, and tokens as they are."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images with labels; iterating yields (float32 images in [0, 1], int64 labels) in order, the last batch included.

    Arguments:
        name: what the set is called in reports.
        images: (N, C, H, W) uint8, C = 1 or 3, N >= 1.
        labels: (N,) int64 in [0, len(classes)).
        classes: one name a class; a class may have no image.
        notes: adaptations and provenance, for reports.
        batch_size: images a batch when iterated.

    Raises:
        DataError: a dtype, a shape or a label that does not fit.

    >>> import torch
    >>> digits = ImageSet("two", torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1]), ("zero", "one"))
    >>> [(tuple(x.shape), y.tolist()) for x, y in digits]
    [((2, 1, 8, 8), [0, 1])]
    """

    name: str
    images: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    classes: tuple[str, ...] = field(repr=False)
    notes: tuple[str, ...] = ()
    batch_size: int = 256

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.dtype != torch.uint8 or images.dim() != 4:
            self._fail(f"images must be uint8 of shape (N, C, H, W), got {images.dtype} {tuple(images.shape)}")
        if images.shape[1] not in (1, 3):
            self._fail(f"images must have 1 or 3 channels, got {images.shape[1]} in {tuple(images.shape)}")
        if images.numel() == 0:
            self._fail(f"there must be at least one image of at least one pixel, got {tuple(images.shape)}")
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            self._fail(f"labels must be int64 of shape ({len(images)},), got {labels.dtype} {tuple(labels.shape)}")
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= len(self.classes):
            self._fail(f"labels must lie in 0..{len(self.classes) - 1}, got {low}..{high}")
        if self.batch_size < 1:
            self._fail(f"batch_size must be at least 1, got {self.batch_size}")

    def _fail(self, message: str) -> None:
        raise DataError(f"{self.name}: {message}")

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in zip(self.images.split(self.batch_size), self.labels.split(self.batch_size), strict=True):
            yield as_input(images), labels

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    @property
    def num_classes(self) -> int:
        """Number of classes, the ones without images included."""
        return len(self.classes)

    def to(self, device: torch.device | str) -> ImageSet:
        """The same set on another device."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def noted(self, *notes: str) -> ImageSet:
        """The same set with more notes."""
        return replace(self, notes=(*self.notes, *notes))

    def select(self, indices: Tensor | Sequence[int], name: str | None = None) -> ImageSet:
        """The images at `indices`, in that order; all classes stay, even those left without images."""
        index = torch.as_tensor(indices, device=self.images.device).long()
        if index.numel() and not (int(index.min()) >= 0 and int(index.max()) < len(self)):
            self._fail(f"indices must lie in 0..{len(self) - 1}, got {int(index.min())}..{int(index.max())}")
        return replace(self, name=name or self.name, images=self.images[index], labels=self.labels[index])

    def take(self, limit: int) -> ImageSet:
        """At most `limit` images, evenly spaced over the images ordered by label, so that classes keep their shares.

        Spacing over the images as they lie would pick a single class from a set whose labels go round and round.
        """
        if limit < 1:
            self._fail(f"limit must be at least 1, got {limit}")
        if limit >= len(self):
            return self
        by_label = torch.argsort(self.labels, stable=True)
        spaced = torch.arange(limit, device=by_label.device) * len(self) // limit
        return self.select(by_label[spaced].sort().values).noted(f"{limit} of {len(self)} images")

    def adapt(self, channels: int, size: int) -> ImageSet:
        """The set as a model wants it: (N, channels, size, size), each change noted; itself if nothing is to do.

        Resized bilinearly with antialiasing; RGB becomes gray as ITU-R 601 luminance, gray becomes RGB by repetition.
        """
        if channels not in (1, 3) or size < 1:
            self._fail(f"can adapt to 1 or 3 channels and a size of at least 1, got {channels} and {size}")
        have, height, width = self.shape
        notes = []
        if (height, width) != (size, size):
            notes.append(f"resized {height}x{width} -> {size}x{size} (bilinear)")
        if have != channels:
            notes.append("gray -> RGB" if channels == 3 else "RGB -> gray (ITU-R 601)")
        if not notes:
            return self
        chunk = max(1, CHUNK_VALUES // max(have * height * width, channels * size * size))
        adapted = torch.cat([_adapt(images, channels, size) for images in self.images.split(chunk)])
        return replace(self, images=adapted).noted(*notes)

    def keep_classes(self, spec: str) -> ImageSet:
        """Only the classes of `spec` ("0-6", "7,9", "0-2,5"), relabelled 0.. in ascending order.

        >>> import torch
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
        return replace(
            self, name=f"{self.name}:{spec}", images=self.images[index], labels=labels[index], classes=classes
        )

    def digest(self) -> str:
        """sha256 of the shape, the images and the labels, in hexadecimal: the same on every machine and device."""
        sha = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        sha.update(self.images.cpu().contiguous().numpy().data)
        sha.update(self.labels.cpu().contiguous().numpy().astype("<i8").data)
        return sha.hexdigest()


def _adapt(images: Tensor, channels: int, size: int) -> Tensor:
    x = images.float()
    if x.shape[1] == 3 and channels == 1:
        x = torch.einsum("nchw,c->nhw", x, x.new_tensor(LUMINANCE))[:, None]
    if x.shape[2:] != (size, size):
        x = interpolate(x, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    x = x.round().clamp(0, 255).to(torch.uint8)
    return x.expand(-1, channels, -1, -1).contiguous()


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
