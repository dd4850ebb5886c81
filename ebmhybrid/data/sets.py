"""A data set is a uint8 tensor of images and an int64 tensor of labels, in memory and on any device.

CIFAR-10 is 180 MB that way: no worker processes, and batches are cut on the device that trains on them. What is too
large for that is a :class:`ebmhybrid.data.StreamedSet`, which has the same methods.
Whatever was done to the images on the way (resized, a subset, another file than the official one) is kept in
`notes`, so that a report can say it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ebmhybrid.data.labelled import Labelled

LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601, what PIL's convert("L") uses
CHUNK_VALUES = 2**24  # float values held at once while adapting: 64 MB


def as_input(images: Tensor) -> Tensor:
    """What a model takes: images in [0, 1] of stored bytes, and tokens as they are."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


@dataclass(frozen=True, eq=False)
class ImageSet(Labelled):
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

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in zip(self.images.split(self.batch_size), self.labels.split(self.batch_size), strict=True):
            yield as_input(images), labels

    def fetch(self, chunks: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """The images, float32 in [0, 1], and labels at each of the index tensors, on the device of the set.

        >>> import torch
        >>> two = ImageSet("two", torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1]), ("zero", "one"))
        >>> [(tuple(x.shape), y.tolist()) for x, y in two.fetch([torch.tensor([1, 0, 1])])]
        [((3, 1, 8, 8), [1, 0, 1])]
        """
        for index in chunks:
            index = index.to(self.images.device)
            yield as_input(self.images[index]), self.labels[index]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    def to(self, device: torch.device | str) -> ImageSet:
        """The same set on another device."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def select(self, indices: Tensor | Sequence[int], name: str | None = None) -> ImageSet:
        """The images at `indices`, in that order; all classes stay, even those left without images."""
        index = self._checked(indices)
        return replace(self, name=name or self.name, images=self.images[index], labels=self.labels[index])

    def adapt(self, channels: int, size: int) -> ImageSet:
        """The set as a model wants it: (N, channels, size, size), each change noted; itself if nothing is to do.

        Resized bilinearly with antialiasing; RGB becomes gray as ITU-R 601 luminance, gray becomes RGB by repetition.
        """
        notes = self._changes(channels, size)
        if not notes:
            return self
        have, height, width = self.shape
        chunk = max(1, CHUNK_VALUES // max(have * height * width, channels * size * size))
        adapted = torch.cat([adapt(images, channels, size) for images in self.images.split(chunk)])
        return replace(self, images=adapted).noted(*notes)

    def in_memory(self) -> ImageSet:
        """Itself: what a set that is read from files has to do first."""
        return self

    def digest(self) -> str:
        """sha256 of the shape, the images and the labels, in hexadecimal: the same on every machine and device."""
        sha = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        sha.update(self.images.cpu().contiguous().numpy().data)
        sha.update(self.labels.cpu().contiguous().numpy().astype("<i8").data)
        return sha.hexdigest()


def adapt(images: Tensor, channels: int, size: int) -> Tensor:
    """uint8 images (N, C, H, W) as (N, channels, size, size), in the way of :meth:`ImageSet.adapt`."""
    x = images.float()
    if x.shape[1] == 3 and channels == 1:
        x = torch.einsum("nchw,c->nhw", x, x.new_tensor(LUMINANCE))[:, None]
    if x.shape[2:] != (size, size):
        x = interpolate(x, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    x = x.round().clamp(0, 255).to(torch.uint8)
    return x.expand(-1, channels, -1, -1).contiguous()
