"""A user's own arrays: npz:PATH."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ebmhybrid.array_files import check_npz
from ebmhybrid.data.formats import Array, describe
from ebmhybrid.data.sets import ImageSet
from ebmhybrid.errors import DataError

LARGEST_LABEL = 100_000


def load_npz(path: str) -> ImageSet:
    """A file of arrays x, uint8 (N, H, W) or (N, H, W, C), and y, integers (N,); classes are 0..max(y).

    Raises:
        DataError: a file that is absent, damaged or holds objects, a missing array, or one of another form.
    """
    name, file = f"npz:{path}", Path(path).expanduser()
    if not file.is_file():
        raise DataError(f"{name}: there is no file {file}")
    try:
        with file.open("rb") as opened:
            check_npz(opened)
            content = np.load(opened, allow_pickle=False)
            absent = sorted({"x", "y"} - set(content.files))
            if absent:
                raise DataError(f"{name}: arrays x and y are needed, {absent[0]} is not among {content.files}")
            x, y = content["x"], content["y"]
    except DataError:
        raise
    except Exception as error:  # a damaged or hostile file raises whatever its parser happens to stumble on
        reason = " ".join(str(error).split())
        raise DataError(f"{name}: cannot be read as .npz, it may be truncated or hold objects: {reason}") from error
    return _from_arrays(name, x, y)


def _from_arrays(name: str, x: Array, y: Array) -> ImageSet:
    if x.dtype != np.uint8 or x.ndim not in (3, 4) or (x.ndim == 4 and x.shape[3] not in (1, 3)):
        raise DataError(
            f"{name}: x must be uint8 of shape (N, H, W) or (N, H, W, C) with C = 1 or 3, got {describe(x)}"
        )
    if y.dtype.kind not in "iu" or y.shape != x.shape[:1]:
        raise DataError(f"{name}: y must be integers of shape ({len(x)},), got {describe(y)}")
    if x.size == 0:
        raise DataError(f"{name}: holds no images, x is {describe(x)}")
    low, high = int(y.min()), int(y.max())
    if low < 0 or high > LARGEST_LABEL:
        raise DataError(f"{name}: y must lie in 0..{LARGEST_LABEL}, got {low}..{high}")
    images = x[:, None] if x.ndim == 3 else x.transpose(0, 3, 1, 2)
    return ImageSet(
        name,
        torch.from_numpy(np.ascontiguousarray(images)),
        torch.from_numpy(y.astype(np.int64)),
        tuple(str(label) for label in range(high + 1)),
    )
