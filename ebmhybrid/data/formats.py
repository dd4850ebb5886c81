"""Readers of the published files: CIFAR pickles, IDX, SVHN's .mat, image lists. Each returns (images, labels, names).

Images are (N, C, H, W) uint8 arrays, labels (N,) int64, names one a class. A split is "train" or "test"; where a set
has an official validation part it belongs to "train", from which our own validation part is drawn.
"""

from __future__ import annotations

import gzip
import math
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ebmhybrid.array_files import check_unpacked
from ebmhybrid.data.archives import load_pickle
from ebmhybrid.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

Array = NDArray[Any]
Content = tuple[Array, Array, tuple[str, ...]]

DIGIT_NAMES = tuple(str(digit) for digit in range(10))
_PACKED = 15  # miCOMPRESSED of MATLAB 5
# What pictures are kept in; Pillow's other decoders are used little, and have had more faults.
DECODED = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "PPM", "TIFF")
CIFAR10_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def read_cifar(files: Sequence[Path], label_key: str, names: Sequence[str]) -> Content:
    """The batches of CIFAR's python version: pickled dicts of data (N, 3072) uint8 and a list of labels."""
    images, labels = [], []
    for path in files:
        batch = load_pickle(path)
        data, label = batch.get("data"), batch.get(label_key)
        if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
            raise DataError(f"{path}: 'data' must be uint8 of shape (N, 3072), got {describe(data)}")
        if label is None or len(label) != len(data):
            raise DataError(f"{path}: {label_key!r} must hold {len(data)} labels")
        images.append(data.reshape(-1, 3, 32, 32))
        labels.append(np.asarray(label, dtype=np.int64))
    return np.concatenate(images), np.concatenate(labels), tuple(names)


def cifar100_names(folder: Path) -> tuple[str, ...]:
    """The 100 fine class names of the file `meta`, or numbers where it is absent."""
    path = folder / "meta"
    names = load_pickle(path).get("fine_label_names", ()) if path.exists() else ()
    return tuple(map(str, names)) if len(names) == 100 else tuple(map(str, range(100)))


def read_idx(path: Path, dims: int) -> Array:
    """An array of bytes in the IDX format of MNIST, plain or gzipped: magic 0 0 8 dims, big-endian sizes, values."""
    length = 4 * (dims + 1)
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        head = file.read(length)
        if len(head) < length or head[:4] != bytes([0, 0, 8, dims]):
            raise DataError(f"{path}: not an IDX file of bytes in {dims} dimensions")
        sizes = struct.unpack(f">{dims}I", head[4:])
        announced = math.prod(sizes)
        check_unpacked(announced, path.stat().st_size, f"IDX of {sizes} bytes")
        raw = file.read(announced + 1)  # one more, to see that it ends there
    if len(raw) != announced:
        found = f"{len(raw)} found; it may be truncated" if len(raw) < announced else "more found"
        raise DataError(f"{path}: {sizes} bytes announced, {found}")
    return np.frombuffer(raw, np.uint8).reshape(sizes)


def read_mnist(images: Path, labels: Path, names: Sequence[str]) -> Content:
    """A pair of IDX files of MNIST's form."""
    return read_idx(images, 3)[:, None], read_idx(labels, 1).astype(np.int64), tuple(names)


def read_svhn(path: Path) -> Content:
    """SVHN's cropped digits: X (32, 32, 3, N), y (N, 1) in 1..10, where 10 (or 0) is the digit 0."""
    from scipy.io import loadmat

    _check_mat(path)
    content = loadmat(path, variable_names=["X", "y"])
    if not {"X", "y"} <= content.keys() or content["X"].ndim != 4:
        raise DataError(f"{path}: must hold X of shape (32, 32, 3, N) and y")
    labels = content["y"].reshape(-1).astype(np.int64)
    if labels.size and not (labels.min() >= 0 and labels.max() <= 10):
        raise DataError(f"{path}: labels must lie in 0..10, got {labels.min()}..{labels.max()}")
    if content["X"].dtype != np.uint8:
        raise DataError(f"{path}: X must be uint8, got {content['X'].dtype}")
    return content["X"].transpose(3, 2, 0, 1), labels % 10, DIGIT_NAMES


def _check_mat(path: Path) -> None:
    """An error unless it is a MATLAB 5 file whose parts are there and unpack to a sensible size."""
    size = path.stat().st_size
    with path.open("rb") as file:
        order = {b"\0\1IM": "<", b"\1\0MI": ">"}.get(file.read(128)[124:])
        if order is None:
            raise ValueError("not a MATLAB 5 file")
        while len(tag := file.read(8)) == 8:
            kind, length = struct.unpack(f"{order}II", tag)
            start = file.tell()
            if start + length > size:
                raise ValueError(f"a part of {length} bytes is announced, {size - start} are there")
            if kind == _PACKED:
                inner = zlib.decompressobj().decompress(file.read(min(length, 1024)), 8)
                check_unpacked(struct.unpack(f"{order}II", inner)[1], length, "a part")
            file.seek(start + length)


def read_celeba(folder: Path, split: str, size: int) -> Content:
    """CelebA's aligned faces, the whole picture resized to size x size; the label is the attribute Smiling."""
    parts = dict(line.split() for line in (folder / "list_eval_partition.txt").read_text().splitlines() if line.strip())
    _, header, *rows = (folder / "list_attr_celeba.txt").read_text().splitlines()
    column = header.split().index("Smiling") + 1
    wanted = {"test": ("2",), "train": ("0", "1")}[split]
    smiling = {row[0]: int(row[column] == "1") for row in map(str.split, rows) if row}
    files = [name for name, part in parts.items() if part in wanted]
    images = decode_images([folder / "img_align_celeba" / name for name in files], size)
    return images, np.array([smiling[name] for name in files], dtype=np.int64), ("not smiling", "smiling")


def read_textures(folder: Path, split: str, size: int) -> Content:
    """The Describable Textures, partition 1, each picture resized to size x size; the label is the kind of texture."""
    lists = {"test": ("test1",), "train": ("train1", "val1")}[split]
    files = [line for name in lists for line in (folder / "labels" / f"{name}.txt").read_text().split()]
    names = tuple(sorted(path.name for path in (folder / "images").iterdir() if path.is_dir()))
    labels = np.array([names.index(file.split("/")[0]) for file in files], dtype=np.int64)
    return decode_images([folder / "images" / file for file in files], size), labels, names


def decode_images(files: Sequence[Path], size: int) -> Array:
    """Picture files as (N, 3, size, size) uint8, resized bilinearly with antialiasing, transparency dropped.

    Raises:
        DataError: a file that cannot be decoded, or has more than 8 bits a channel; it is named.
    """
    images = np.empty((len(files), size, size, 3), np.uint8)
    for row, path in zip(images, files, strict=True):
        try:
            row[:] = decode_picture(path, size)
        except PictureError as error:
            raise DataError(f"{path}: {error}") from error
    return images.transpose(0, 3, 1, 2)


class PictureError(ValueError):
    """A picture that cannot be decoded."""


def decode_picture(file: Path | IO[bytes], size: int) -> Array:
    """A picture as RGB (size, size, 3) uint8, resized bilinearly with antialiasing, transparency dropped.

    Raises:
        PictureError: it cannot be decoded, or has more than 8 bits a channel.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with opened_picture(file) as picture:
            if picture.mode.startswith(("I", "F")):
                raise PictureError(f"pictures must have 8 bits a channel, got PIL mode {picture.mode}")
            # through RGBA, because a palette with transparency converts to RGB with a warning
            rgb = picture.convert("RGBA" if "transparency" in picture.info else picture.mode).convert("RGB")
            return np.asarray(rgb.resize((size, size), Image.Resampling.BILINEAR))
    except PictureError:
        raise
    except UnidentifiedImageError as error:  # whose text has the address of an object
        raise PictureError("cannot be decoded as a picture: it is none by its content") from error
    except Exception as error:  # a damaged or hostile file raises whatever its parser happens to stumble on
        raise PictureError(f"cannot be decoded as a picture: {' '.join(str(error).split())}") from error


@contextmanager
def opened_picture(path: Path | IO[bytes]) -> Iterator[Image.Image]:
    """A picture whose header has been read and whose pixels have not.

    Raises:
        DecompressionBombError, DecompressionBombWarning: more pixels than Pillow's limit, 89 million by default.
        Exception: whatever else Pillow raises for a file that is none of its own.
    """
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path, formats=DECODED) as picture:
            yield picture


def describe(value: object) -> str:
    """dtype and shape of an array, or the type of anything else, for messages.

    >>> describe(np.zeros((2, 3)))
    'float64 (2, 3)'
    """
    if isinstance(value, np.ndarray):
        nan = " with NaN" if value.dtype.kind == "f" and np.isnan(value).any() else ""
        return f"{value.dtype}{nan} {value.shape}"
    return type(value).__name__
