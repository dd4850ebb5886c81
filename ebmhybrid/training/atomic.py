"""Writing so that a fault at any moment leaves the former file or the new one, and never half of one."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError

from ebmhybrid.errors import CheckpointError

LEFTOVER = re.compile(r"\..+\.\d+\.tmp")


def temporary_name(path: Path) -> Path:
    """A hidden name beside `path` that no other process takes.

    >>> LEFTOVER.fullmatch(temporary_name(Path("last.state.pt")).name) is not None
    True
    """
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def write_atomically(path: Path, write: Callable[[Path], Any], keep_as: Path | None = None) -> None:
    """Call `write` with a temporary path in the same folder, flush it to the disk and rename it to `path`.

    The file is flushed before its name is, so a machine that loses power holds either the former file or the new one.

    Arguments:
        keep_as: the name under which the former file stays, if there is one. At every moment `path` is there, and
            `path` or `keep_as` is a file that was whole before the call or is the new one.

    Raises:
        CheckpointError: it cannot be written; the former file is as it was.
    """
    temporary, former = temporary_name(path), None if keep_as is None else temporary_name(keep_as)
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        if former is not None and path.exists():
            _link(path, former)
        temporary.replace(path)
        if former is not None and keep_as is not None and former.exists():
            former.replace(keep_as)
        flush_folder(path.parent)
    except (OSError, SafetensorError, RuntimeError) as error:  # each library has its own word for a full disk
        raise unwritable(path, error) from error
    finally:
        for left in (temporary, former):
            if left is not None:
                with suppress(OSError):
                    left.unlink(missing_ok=True)


def unwritable(path: Path, error: Exception) -> CheckpointError:
    """The one line that a failed write becomes: the system's word where there is one behind the library's."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.strerror:
            return CheckpointError(f"{path}: cannot be written ({seen.strerror})")
        seen = seen.__context__
    return CheckpointError(f"{path}: cannot be written ({' '.join(str(error).split())})")


def _link(path: Path, other: Path) -> None:
    """A second name for a file, or a copy of it where the file system knows no second names."""
    other.unlink(missing_ok=True)  # a killed process of the same number
    try:
        os.link(path, other)
    except OSError:
        other.write_bytes(path.read_bytes())
        with other.open("rb+") as file:
            os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Bring a folder's names to the disk, where the system can: a renamed file is lost with the power else."""
    with suppress(OSError):  # Windows opens no folders, and some network file systems flush none
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def append(path: Path, file: BinaryIO, data: bytes) -> None:
    """Write at the end of an unbuffered file, all of `data` or nothing.

    Raises:
        CheckpointError: it cannot be written; the file ends where it did.
    """
    end = os.fstat(file.fileno()).st_size
    try:
        written = 0
        while written < len(data):  # a disk takes what it still can, and fails at the next call
            written += file.write(data[written:])
    except OSError as error:
        with suppress(OSError):
            os.ftruncate(file.fileno(), end)
        raise unwritable(path, error) from error


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of killed processes; for the one process that may write in `folder`."""
    for path in folder.glob(".*.tmp"):
        if LEFTOVER.fullmatch(path.name):
            with suppress(OSError):
                path.unlink(missing_ok=True)
