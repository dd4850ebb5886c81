"""shards:PATTERN, tar files of samples in the WebDataset convention: KEY.jpg beside KEY.cls.

Samples are read at random from an index of where each of them lies, rather than as a stream: so an epoch has every
sample once, in an order that a seed decides, on any number of processes, and can be resumed at any batch. What is in a
shard is text of strangers: names of members are never used as paths, and nothing but pictures and numbers is decoded.
"""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np
import torch

from ebmhybrid.data.files import LARGEST_LABEL
from ebmhybrid.data.sets import ImageSet
from ebmhybrid.data.shard_index import Index, keep_index, kept_index
from ebmhybrid.data.streamed import StreamedSet, as_asked
from ebmhybrid.errors import DataError

ENDINGS = {"jpg", "jpeg", "png", "webp"}
LARGEST_PICTURE = 2**28  # bytes of an encoded picture: 256 MiB
LONGEST_NAME = 1024
MOST_SHARDS = 100_000
END_OF_ARCHIVE = bytes(tarfile.BLOCKSIZE)


Sample = dict[str | None, tuple[tarfile.TarInfo, int]]  # what a member is -> the member, its number if it holds one


class ShardPictures:
    """Pictures in tar files, by an index."""

    def __init__(self, shards: list[Path], index: Index) -> None:
        self.shards = [os.fspath(shard) for shard in shards]
        self.index, self.names, self.sizes = index, index.names, index.sizes

    def open(self, row: int) -> IO[bytes]:
        """The encoded picture."""
        with open(self.shards[self.index.shards[row]], "rb") as shard:
            shard.seek(self.index.offsets[row])
            return io.BytesIO(shard.read(self.sizes[row]))

    def place(self, row: int) -> str:
        """The shard and the member."""
        return f"{self.shards[self.index.shards[row]]}: member {self.names[row].decode(errors='replace')!r}"


def load_shards(
    pattern: str, size: int, folder: Path, *, stream: bool | None = None, workers: int = 2, strict: bool = False
) -> ImageSet | StreamedSet:
    """The pictures of tar files with a class number each; classes are 0..max.

    A sample is a run of members with the same key, the name up to its first dot: KEY.jpg (jpeg, png, webp) and KEY.cls,
    which holds the number as text. Other members are passed over.

    Arguments:
        pattern: of local files, with ranges in braces, such as `/data/train-{000..099}.tar`; or a folder of .tar files.
        folder: where the index is kept, so that unchanged shards are scanned once.
        stream, workers, strict: as in :func:`ebmhybrid.data.folders.load_folder`.

    Raises:
        DataError: no such shard, one that is truncated or no tar file, a picture without a number or the reverse, a
            number out of range.
    """
    name, shards = f"shards:{pattern}", find_shards(pattern)
    index = kept_index(folder, shards)
    if index is None:
        index = _scanned(name, shards)
        keep_index(folder, shards, index)
    labels = torch.from_numpy(index.labels)
    found = StreamedSet(
        name,
        ShardPictures(shards, index),
        np.arange(len(labels)),
        labels,
        tuple(str(label) for label in range(int(labels.max()) + 1)),
        size,
        (f"whole pictures decoded to RGB and resized to {size}x{size} (bilinear)",),
        workers=workers,
        strict=strict,
    )
    return as_asked(found, stream)


RANGE = re.compile(r"\{(-?\d{1,18})\.\.(-?\d{1,18})")


def find_shards(pattern: str) -> list[Path]:
    """The files of a pattern, in its order; those of a folder in the order of their names.

    Raises:
        DataError: the package webdataset is missing, there is no such file, or one comes twice.
    """
    try:
        from braceexpand import braceexpand  # of webdataset
    except ImportError:
        raise DataError(f"shards:{pattern}: needs the package webdataset: pip install 'ebmhybrid[shards]'") from None
    folder = Path(pattern).expanduser()
    try:
        if folder.is_dir():
            shards = sorted(
                file for file in folder.iterdir() if file.suffix == ".tar" and not file.name.startswith(".")
            )
        else:
            if any(abs(int(last) - int(first)) >= MOST_SHARDS for first, last in RANGE.findall(pattern)):
                raise ValueError(f"a range of more than {MOST_SHARDS} numbers")
            shards = [Path(file).expanduser() for file in islice(braceexpand(pattern), MOST_SHARDS + 1)]
            if len(shards) > MOST_SHARDS:
                raise ValueError(f"names more than {MOST_SHARDS} files")
    except (OSError, ValueError) as error:
        raise DataError(f"shards:{pattern}: {error}") from error
    if not shards:
        raise DataError(f"shards:{pattern}: there is no .tar file in {folder}")
    if absent := [shard for shard in shards if not shard.is_file()]:
        raise DataError(f"shards:{pattern}: there is no file {absent[0]} ({len(absent)} of {len(shards)} are missing)")
    if len({shard.resolve() for shard in shards}) < len(shards):
        raise DataError(f"shards:{pattern}: names a file twice")
    return shards


def _scanned(name: str, shards: list[Path]) -> Index:
    names, numbers = [], []
    for number, shard in enumerate(shards):
        for picture, *place in scan(shard):
            names.append(picture)
            numbers.append(np.array([number, *place]))
    if not names:
        raise DataError(f"{name}: holds no samples KEY.jpg (jpeg, png, webp) with KEY.cls")
    shard_numbers, offsets, sizes, labels = np.ascontiguousarray(np.stack(numbers).T)
    return Index(shard_numbers, np.array(names, np.bytes_), offsets, sizes, labels)


def scan(shard: Path) -> Iterator[tuple[bytes, int, int, int]]:
    """The samples of a shard as (name, offset, size, label) of their pictures; headers and class numbers are read.

    Raises:
        DataError: not an uncompressed tar file, truncated, or of samples that are not whole; the member is named.
    """
    from webdataset.tariterators import base_plus_ext

    key, sample, member = None, Sample(), None
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                if member.size < 0:
                    raise tarfile.ReadError("of negative size")  # it would lead back, and round and round
                if not member.isreg() or member.issparse():
                    continue
                own, ending = base_plus_ext(member.name)
                if own != key:
                    yield from _whole(shard, sample)
                    key, sample = own, {}
                kind = _kind(ending, member.name)
                if kind in sample:
                    raise DataError(f"{shard}: member {member.name!r} is the second {kind} of its sample")
                if kind == "class number":
                    sample[kind] = (member, _label(shard, member, tar))
                elif kind == "picture":
                    sample[kind] = (member, _checked(shard, member))
            assert tar.fileobj is not None
            tar.fileobj.seek(tar.offset)
            if tar.fileobj.read(tarfile.BLOCKSIZE) != END_OF_ARCHIVE:
                raise tarfile.ReadError("its end is missing")
            yield from _whole(shard, sample)
    except DataError:
        raise
    except Exception as error:  # a damaged or hostile file raises whatever its parser happens to stumble on
        after = f" after member {member.name!r}" if member else ""
        raise DataError(f"{shard}: is damaged, truncated or no plain .tar{after}: {error}") from error


def _kind(ending: str | None, name: str) -> str | None:
    """What a member is to its sample; names such as __index__ are of the archive itself."""
    if ending is None or re.match(r"__[^/]*__($|/|\.)", name):
        return None
    ending = ending.lower()
    return "picture" if ending in ENDINGS else "class number" if ending == "cls" else None


def _whole(shard: Path, sample: Sample) -> Iterator[tuple[bytes, int, int, int]]:
    if len(sample) == 1:
        [(kind, (member, _))] = sample.items()
        other = "class number KEY.cls" if kind == "picture" else "picture KEY.jpg (jpeg, png, webp)"
        raise DataError(f"{shard}: member {member.name!r} has no {other} beside it")
    if sample:
        picture, _ = sample["picture"]
        yield os.fsencode(picture.name), picture.offset_data, picture.size, sample["class number"][1]


def _checked(shard: Path, member: tarfile.TarInfo) -> int:
    if not 0 <= member.size <= LARGEST_PICTURE:
        raise DataError(f"{shard}: member {member.name!r} has {member.size} bytes, at most {LARGEST_PICTURE} are read")
    if len(member.name) > LONGEST_NAME:
        raise DataError(f"{shard}: member {member.name[:40]!r}... has a name of {len(member.name)} characters")
    return 0


def _label(shard: Path, member: tarfile.TarInfo, tar: tarfile.TarFile) -> int:
    opened = tar.extractfile(member)
    assert opened is not None  # it is a regular file
    text = opened.read(32).strip()
    if member.size > 32 or not re.fullmatch(rb"[0-9]+", text) or int(text) > LARGEST_LABEL:
        said = text.decode(errors="replace")
        raise DataError(f"{shard}: member {member.name!r} must hold a class number in 0..{LARGEST_LABEL}, got {said!r}")
    return int(text)
