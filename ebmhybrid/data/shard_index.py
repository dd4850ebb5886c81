"""Where each sample of a set of shards lies, kept in a file for as long as the shards stay as they are."""

from __future__ import annotations

import hashlib
import os
import tempfile
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ebmhybrid.array_files import check_npz


@dataclass(frozen=True)
class Index:
    """Columns with a row a sample, (N,): its shard's number, its picture's name, offset and size, and its label."""

    shards: NDArray[np.int64]
    names: NDArray[np.bytes_]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    labels: NDArray[np.int64]


def _state(shards: list[Path]) -> NDArray[np.int64]:
    """(M, 2): bytes and time of change of each shard."""
    found = [shard.stat() for shard in shards]
    return np.array([(stat.st_size, stat.st_mtime_ns) for stat in found], np.int64)


def _file(folder: Path, shards: list[Path]) -> Path:
    content = b"\0".join(os.fsencode(shard.resolve()) for shard in shards)
    return folder / f"shards-{hashlib.sha256(content).hexdigest()[:16]}.npz"


def kept_index(folder: Path, shards: list[Path]) -> Index | None:
    """The index of these shards as it was kept, or None: there is none, it is damaged, or the shards have changed."""
    try:
        with _file(folder, shards).open("rb") as file:
            check_npz(file)
            content = dict(np.load(file, allow_pickle=False))
        state = content.pop("state")
        index = Index(**content)
    except Exception:  # whatever is wrong with it, the shards are there to make another
        return None
    return index if np.array_equal(state, _state(shards)) and _fits(index, state) else None


def _fits(index: Index, state: NDArray[np.int64]) -> bool:
    """Whether all columns are of one length and their kind, and every picture lies within its shard."""
    columns = [getattr(index, field.name) for field in fields(Index)]
    kinds = [column.dtype.kind for column in columns]
    if kinds != ["i", "S", "i", "i", "i"] or len({column.shape for column in columns}) > 1 or columns[0].ndim != 1:
        return False
    numbers = (index.shards, index.offsets, index.sizes, index.labels)
    if not len(index.labels) or min(int(column.min()) for column in numbers) < 0 or index.shards.max() >= len(state):
        return False
    return bool((index.offsets + index.sizes <= state[index.shards, 0]).all())


def keep_index(folder: Path, shards: list[Path], index: Index) -> None:
    """Keep the index in a file; where that cannot be written, the shards are scanned again next time."""
    columns = {field.name: getattr(index, field.name) for field in fields(Index)}
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".incomplete-", delete=False) as file:
            try:
                np.savez(file, state=_state(shards), **columns)
                os.chmod(file.name, 0o644)  # others share the shards, and may share this
                os.replace(file.name, _file(folder, shards))
            except BaseException:
                os.unlink(file.name)
                raise
