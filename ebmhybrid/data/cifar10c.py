"""CIFAR-10-C: the CIFAR-10 test images under corruptions of five severities (Hendrycks & Dietterich 2019)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ebmhybrid.data.formats import CIFAR10_NAMES, Array, describe
from ebmhybrid.data.sets import ImageSet
from ebmhybrid.errors import DataError, nearest

SEVERITIES = 5
PAGE = "https://zenodo.org/records/2535967"


def load_cifar10c(name: str, folder: Path) -> ImageSet:
    """`cifar10c/fog/3`, `cifar10c/fog` (all severities, mildest first) or `cifar10c`, from folder/CIFAR-10-C/*.npy.

    `cifar10c` alone takes each test image once, going round all corruptions and severities that are there: all of
    them, 95 times 10,000 images, would be 2.9 GB. Ask for each corruption and severity in turn for the published mean.

    Raises:
        DataError: files that are absent (the message says where to get them), or that do not fit.
    """
    root = folder / "CIFAR-10-C"
    arrays = {file.stem: file for file in sorted(root.glob("*.npy")) if file.stem != "labels"}
    if not arrays or not (root / "labels.npy").is_file():
        raise DataError(
            f"{name}: labels.npy and the corruptions beside it not found in {root}; "
            f"fetch CIFAR-10-C.tar from {PAGE} and unpack it in {folder}"
        )
    corruption, severity = _parse(name, arrays)
    labels = _load_npy(root / "labels.npy")
    if severity:
        count = len(labels) // SEVERITIES
        rows = slice((severity - 1) * count, severity * count)
        images, labels = _load_corruption(arrays[corruption], labels)[rows], labels[rows]
        note = f"severity {severity} of {SEVERITIES}"
    elif corruption:
        images, note = _load_corruption(arrays[corruption], labels), f"all {SEVERITIES} severities"
    else:
        images, labels = _in_turn([_load_corruption(file, labels) for file in arrays.values()], labels)
        note = f"each image once, in turn over {len(arrays)} corruptions and {SEVERITIES} severities"
    return ImageSet(
        name,
        torch.from_numpy(np.array(images.transpose(0, 3, 1, 2), order="C")),  # a copy: the file is mapped read-only
        torch.from_numpy(labels.astype(np.int64)),
        CIFAR10_NAMES,
        (note,),
    )


def _parse(name: str, arrays: dict[str, Path]) -> tuple[str, int]:
    """Corruption and severity of a name, "" and 0 where it names none."""
    corruption, _, severity = name.partition("/")[2].partition("/")
    if severity and severity not in {str(s + 1) for s in range(SEVERITIES)}:
        raise DataError(f"{name}: must look like cifar10c/fog/3, with a severity from 1 to {SEVERITIES}")
    if corruption and corruption not in arrays:
        raise DataError(f"{name}: there is no corruption {corruption!r}, {nearest(corruption, arrays)}")
    return corruption, int(severity or 0)


def _in_turn(corruptions: list[Array], labels: Array) -> tuple[Array, Array]:
    """Image i under corruption and severity number i modulo all of them; labels repeat in every severity."""
    count, cells = len(labels) // SEVERITIES, len(corruptions) * SEVERITIES
    images = [corruptions[i % cells // SEVERITIES][i % SEVERITIES * count + i] for i in range(count)]
    return np.stack(images), labels[:count]


def _load_npy(path: Path) -> Array:
    try:
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # a damaged or hostile file raises whatever its parser happens to stumble on
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: cannot be read as .npy, it may be truncated or hold objects: {reason}") from error
    return array


def _load_corruption(path: Path, labels: Array) -> Array:
    array = _load_npy(path)
    fits = labels.ndim == 1 and labels.dtype.kind in "iu" and len(labels) % SEVERITIES == 0
    if not fits or array.dtype != np.uint8 or array.shape != (len(labels), 32, 32, 3):
        raise DataError(
            f"{path}: must be uint8 (N, 32, 32, 3) for N integer labels in {SEVERITIES} severities, "
            f"got {describe(array)} and labels {describe(labels)}"
        )
    return array
