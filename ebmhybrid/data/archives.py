"""Reading what others packed without running what they packed: restricted pickles, checked archives."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ebmhybrid.array_files import check_unpacked
from ebmhybrid.errors import DataError

LARGEST_READ = 2**24  # bytes at once of an archive; its headers are small, and files are copied in pieces


def _latin1(text: str, encoding: str) -> bytes:
    """What protocol 2 needs of `_codecs.encode`: bytes are written as latin-1 text."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding {encoding!r} is not allowed")
    return text.encode("latin1")


class _NoArray:
    """Stands for the class of an array, which a pickle names and must not call: it would allocate any size."""


# How numpy's arrays ask to be rebuilt, taken from an array: the functions live in modules that were renamed.
_REBUILD: Any = np.empty(0).__reduce__()[0]
_FROM_BUFFER = np.empty(0).__reduce_ex__(5)[0]


def _empty_array(kind: Any, shape: Any, code: Any) -> np.ndarray:
    """The start of an array's rebuilding: it is empty, and gets its shape together with its bytes."""
    if kind is not _NoArray or shape != (0,):
        raise pickle.UnpicklingError("an array is not rebuilt as numpy writes it")
    empty: np.ndarray = _REBUILD(np.ndarray, (0,), code)
    return empty


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _NoArray,
    ("numpy", "dtype"): np.dtype,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _empty_array for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _FROM_BUFFER for core in ("core", "_core")},
    ("_codecs", "encode"): _latin1,
}


class _ArraysOnly(pickle._Unpickler):  # the one in Python: that in C allocates what a pickle says before it reads
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a data file") from None


def load_pickle(path: Path) -> dict[str, Any]:
    """A pickled dict of arrays, lists, numbers and text, such as a CIFAR batch; anything else is refused, not run.

    Raises:
        DataError: the pickle names another class or function, is damaged, or holds no dict.
    """
    try:
        with path.open("rb") as file:
            content = _ArraysOnly(io.BytesIO(file.read()), encoding="latin1").load()
    except Exception as error:  # a damaged or hostile file raises whatever the unpickler happens to stumble on
        raise DataError(f"{path}: not a pickle of arrays: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: must hold a dict, got {type(content).__name__}")
    return {key.decode("latin1") if isinstance(key, bytes) else str(key): value for key, value in content.items()}


@contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """A folder inside `parent`, on the same disk, so that what is complete can be renamed into place.

    Both are gone afterwards, `parent` only if it was made here and stayed empty.
    """
    made = not parent.exists()
    parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=".incomplete-", dir=parent) as name:
            yield Path(name)
    finally:
        if made and not any(parent.iterdir()):
            parent.rmdir()


def unpack(archive: Path, destination: Path) -> None:
    """Unpack a .tar.gz or .zip into a folder; a member that would land outside of it, or is no plain file, is refused.

    Raises:
        DataError: such a member, an archive that is damaged, or a small one that unpacks to something huge.
    """
    try:
        size = archive.stat().st_size
        if archive.suffix == ".zip":
            with zipfile.ZipFile(archive) as packed:
                _check_names(packed.namelist(), archive)
                check_unpacked(sum(member.file_size for member in packed.infolist()), size, "the archive")
                packed.extractall(destination)
            return
        with _Cautious(archive) as unzipped, tarfile.open(fileobj=unzipped, mode="r:") as tar:
            _check_members(tar, archive, size)
            if hasattr(tarfile, "data_filter"):
                tar.extractall(destination, filter="data")
            else:  # early patch levels of Python 3.10 and 3.11; the checks above stand in for the filter
                tar.extractall(destination)
    except DataError:
        raise
    except Exception as error:  # a damaged or hostile file raises whatever its parser happens to stumble on
        raise DataError(f"{archive}: cannot be unpacked, it may be damaged: {' '.join(str(error).split())}") from error


class _Cautious(gzip.GzipFile):
    """A .gz that is not read at once, however long a name or a header in it is said to be."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= LARGEST_READ:
            raise tarfile.ReadError(f"a header asks for {size} bytes, at most {LARGEST_READ} are read")
        return super().read(size)


def _check_members(tar: tarfile.TarFile, archive: Path, size: int) -> None:
    """Each member as its header is read, before what follows it is unpacked."""
    total = 0
    for member in tar:
        _check_names([member.name], archive)
        if not (member.isfile() or member.isdir()):
            raise DataError(f"{archive}: refused, member {member.name!r} is neither a file nor a folder")
        total += member.size
        check_unpacked(total, size, "the archive")


def _check_names(names: list[str], archive: Path) -> None:
    for name in names:
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or ":" in name:
            raise DataError(f"{archive}: refused, member {name!r} would land outside of the folder")


def merge(source: Path, destination: Path) -> None:
    """Rename what is in `source` into `destination`; a file that is there already stays as it is."""
    for child in sorted(source.iterdir()):
        target = destination / child.name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(child, target)
        elif child.is_dir() and target.is_dir():
            merge(child, target)
