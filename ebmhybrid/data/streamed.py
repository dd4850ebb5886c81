"""A set whose pictures stay in files and are decoded as they are needed: memory does not grow with their number."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor

from ebmhybrid.data.labelled import Labelled
from ebmhybrid.data.pictures import Decoded, Decoder, Pictures, Positions, decoded
from ebmhybrid.data.sets import ImageSet, adapt, as_input
from ebmhybrid.errors import DataError

LEFT_OUT = "decoded and are left out"
STREAM_ABOVE = 2**30  # bytes of decoded pictures, 1 GiB: a set of fewer is kept in memory
CHUNK = 256  # pictures decoded at a time for a set in memory


@dataclass(frozen=True, eq=False)
class StreamedSet(Labelled):
    """What :class:`ebmhybrid.data.ImageSet` is, without its `images`: pictures are decoded when they are fetched.

    A picture that cannot be decoded is replaced by the next good one of its batch, label included, and counted in
    `skipped`; with `strict` it is an error. The same batches come out for every number of workers.

    Arguments:
        name: what the set is called in reports.
        pictures: all pictures of its source.
        rows: (N,) the numbers of this set's pictures among them.
        labels: (N,) int64 in [0, len(classes)).
        classes: one name a class; a class may have no picture.
        size: side to which pictures are resized when they are decoded, in RGB.
        notes: adaptations and provenance, for reports.
        batch_size: images a batch when iterated.
        workers: processes that decode ahead; 0 decodes in this one.
        strict: whether a picture that cannot be decoded is an error.
        adaptations: (channels, size) to which decoded pictures are adapted, one after the other.
        failed: why pictures could not be decoded, by number; shared with the sets made of this one.

    Raises:
        DataError: no picture, or labels that do not fit.
    """

    name: str
    pictures: Pictures = field(repr=False)
    rows: Positions = field(repr=False)
    labels: Tensor = field(repr=False)
    classes: tuple[str, ...] = field(repr=False)
    size: int
    notes: tuple[str, ...] = ()
    batch_size: int = 256
    workers: int = 2
    strict: bool = False
    adaptations: tuple[tuple[int, int], ...] = ()
    failed: dict[int, str] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not len(self.rows):
            self._fail("there must be at least one picture")
        if self.labels.dtype != torch.int64 or len(self.labels) != len(self.rows):
            self._fail(
                f"labels must be int64 of shape ({len(self.rows)},), got {self.labels.dtype} {tuple(self.labels.shape)}"
            )
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= len(self.classes):
            self._fail(f"labels must lie in 0..{len(self.classes) - 1}, got {low}..{high}")
        if self.batch_size < 1 or self.workers < 0:
            self._fail(f"batch_size must be at least 1 and workers 0, got {self.batch_size} and {self.workers}")

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from self.fetch(torch.arange(len(self)).split(self.batch_size))

    def fetch(self, chunks: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """The images, float32 in [0, 1], and labels at each of the index tensors, on the device of the set.

        Raises:
            DataError: a picture that cannot be read, or not be decoded where that is an error; a worker that died.
        """
        for found in self._decoded(chunks):
            labels = self.labels[torch.from_numpy(found.positions).to(self.labels.device)]
            yield as_input(self._adapted(found).to(self.labels.device)), labels

    def _decoded(self, chunks: Iterable[Tensor], drop: bool = False) -> Iterator[Decoded]:
        decoder = Decoder(self.pictures, self.rows, self.size, self.strict, drop)
        for found in decoded(decoder, [chunk.cpu().numpy() for chunk in chunks], self.workers, self.name):
            self.failed.update(found.failed)
            yield found

    def _adapted(self, found: Decoded) -> Tensor:
        images = torch.from_numpy(found.pixels)
        for channels, size in self.adaptations:
            images = adapt(images, channels, size)
        return images

    @property
    def images(self) -> NoReturn:
        """An error: there is no tensor of all images."""
        raise DataError(
            f"{self.name}: all its images are needed at once here, and they are read from files one batch after the "
            "other; set data.stream=false to hold them in memory"
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        channels, size = self.adaptations[-1] if self.adaptations else (3, self.size)
        return channels, size, size

    @property
    def skipped(self) -> int:
        """How many of its pictures were found, in all passes so far, that cannot be decoded."""
        return int(np.isin(list(self.failed), self.rows).sum())

    @property
    def findings(self) -> tuple[str, ...]:
        """What passes over the set have found, for reports: a note on pictures that could not be decoded, or none."""
        count = self.skipped
        first = next((reason for row, reason in self.failed.items() if row in self.rows), "") if count else ""
        note = f"{count} of {len(self)} pictures cannot be decoded and were replaced by others, the first is {first}"
        return (note,) if count else ()

    def to(self, device: torch.device | str) -> StreamedSet:
        """The same set with its batches on another device."""
        return replace(self, labels=self.labels.to(device))

    def select(self, indices: Tensor | Sequence[int], name: str | None = None) -> StreamedSet:
        """The pictures at `indices`, in that order; all classes stay, even those left without pictures."""
        index = self._checked(indices)
        return replace(self, name=name or self.name, rows=self.rows[index.cpu().numpy()], labels=self.labels[index])

    def adapt(self, channels: int, size: int) -> StreamedSet:
        """The set as a model wants it, in the way of :meth:`ebmhybrid.data.ImageSet.adapt`."""
        notes = self._changes(channels, size)
        return replace(self, adaptations=(*self.adaptations, (channels, size))).noted(*notes) if notes else self

    def in_memory(self) -> ImageSet:
        """All pictures decoded now; those that cannot be are left out, which a note says.

        Raises:
            DataError: as :meth:`fetch`; none can be decoded, or memory does not suffice.
        """
        positions, n = [], 0
        try:
            images = torch.empty(len(self), *self.shape, dtype=torch.uint8)
        except RuntimeError as error:
            needed = len(self) * int(np.prod(self.shape)) / 2**30
            raise DataError(f"{self.name}: {needed:,.0f} GiB of pictures do not fit in memory") from error
        for found in self._decoded(torch.arange(len(self)).split(CHUNK), drop=True):
            images[n : n + len(found.positions)] = self._adapted(found)
            positions.append(torch.from_numpy(found.positions))
            n += len(found.positions)
        labels = self.labels.cpu()[torch.cat(positions)]
        notes = self.notes
        if n < len(self):
            first = next(reason for row, reason in self.failed.items() if row in self.rows)
            if not n:
                self._fail(f"none of its {len(self)} pictures can be decoded, the first is {first}")
            left_out = f"{len(self) - n} of {len(self)} pictures cannot be {LEFT_OUT}"
            notes = (*notes, f"{left_out}, the first is {first}")
        whole = ImageSet(self.name, images[:n], labels, self.classes, notes, self.batch_size)
        return whole.to(self.labels.device)

    def digest(self) -> str:
        """sha256 of the shape, and of names, file sizes and labels of the pictures: what is in them is not read."""
        sha = hashlib.sha256(repr((len(self), self.size, self.adaptations)).encode())
        sha.update(b"\0".join(self.pictures.names[self.rows].tolist()))
        sha.update(self.pictures.sizes[self.rows].astype("<i8").data)
        sha.update(self.labels.cpu().contiguous().numpy().astype("<i8").data)
        return sha.hexdigest()


def as_asked(images: StreamedSet, stream: bool | None) -> ImageSet | StreamedSet:
    """The set in memory, or as it is: as asked for, and by default the one or the other by its size."""
    if stream is None:
        stream = len(images) * 3 * images.size**2 > STREAM_ABOVE
    if not stream:
        return images.in_memory()
    return images.noted("read from files batch by batch; its sha256 is of names, file sizes and labels")
