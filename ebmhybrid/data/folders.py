"""folder:PATH, one sub-folder of pictures a class."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.typing import NDArray

from ebmhybrid.data.sets import ImageSet
from ebmhybrid.data.streamed import StreamedSet, as_asked
from ebmhybrid.errors import DataError

ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}


class PictureFiles:
    """Pictures in files of their own under one folder."""

    def __init__(self, root: Path, names: list[bytes], sizes: list[int]) -> None:
        self.root = os.fsencode(root)
        self.names: NDArray[np.bytes_] = np.array(names, dtype=np.bytes_)
        self.sizes = np.array(sizes, dtype=np.int64)

    def _path(self, row: int) -> bytes:
        return os.path.join(self.root, bytes(self.names[row]))

    def open(self, row: int) -> IO[bytes]:
        """The file, open for reading."""
        return open(self._path(row), "rb")

    def place(self, row: int) -> str:
        """Its path."""
        return os.fsdecode(self._path(row))


def load_folder(
    path: str, size: int, *, stream: bool | None = None, workers: int = 2, strict: bool = False
) -> ImageSet | StreamedSet:
    """A folder with one sub-folder of pictures a class, decoded to RGB and resized to size x size.

    Classes are numbered in the order of their names; files that are no pictures by their ending are passed over.

    Arguments:
        stream: whether pictures are read from their files batch by batch rather than all at once; by default where
            they would take more than 1 GiB.
        workers: processes that decode pictures.
        strict: whether a picture that cannot be decoded is an error; else it is skipped and counted.

    Raises:
        DataError: no such folder, no sub-folders, no pictures, one that cannot be read, or not a single one that can be
            decoded.
    """
    name, root = f"folder:{path}", Path(path).expanduser()
    if not root.is_dir():
        raise DataError(f"{name}: there is no folder {root}")
    try:
        with os.scandir(root) as children:
            classes = sorted(child.name for child in children if child.is_dir() and not child.name.startswith("."))
        if not classes:
            raise DataError(f"{name}: needs one sub-folder of pictures a class, {root} has no sub-folder")
        names: list[bytes] = []
        sizes: list[int] = []
        labels: list[int] = []
        empty: list[str] = []
        for label, kind in enumerate(classes):
            found_here = sorted(_pictures(root / kind))
            if not found_here:
                empty.append(kind)
            for file, length in found_here:
                names.append(os.fsencode(f"{kind}/{file}"))
                sizes.append(length)
                labels.append(label)
    except OSError as error:
        raise DataError(f"{name}: {error.filename} cannot be read ({error.strerror})") from error
    if not names:
        raise DataError(f"{name}: no picture ({', '.join(sorted(ENDINGS))}) in the sub-folders of {root}")
    without = [f"{len(empty)} classes have no picture, the first is {empty[0]}"] if empty else []
    found = StreamedSet(
        name,
        PictureFiles(root, names, sizes),
        np.arange(len(names)),
        torch.tensor(labels),
        tuple(classes),
        size,
        (f"whole pictures decoded to RGB and resized to {size}x{size} (bilinear)", *without),
        workers=workers,
        strict=strict,
    )
    return as_asked(found, stream)


def _pictures(folder: Path) -> Iterator[tuple[str, int]]:
    """Names and sizes of the pictures in a folder. A link to nothing is an error, as a missing file would be."""
    with os.scandir(folder) as children:
        for child in children:
            ending = os.path.splitext(child.name)[1].lower()
            if ending not in ENDINGS or child.name.startswith("."):
                continue
            if child.is_file() or not os.path.exists(child.path):
                yield child.name, child.stat().st_size
