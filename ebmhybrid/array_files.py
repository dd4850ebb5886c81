"""Arrays in files of strangers: what a header announces is checked against the file before it is allocated."""

from __future__ import annotations

import math
import zipfile
from typing import IO

from numpy.lib import format as npy

# Unpacked, a file may be as large as this, or as many times its own size: photographs pack to about a half, a blank
# picture to a thousandth.
FREELY = 2**30
MOST_TIMES = 100


def check_unpacked(unpacked: int, packed: int, what: str) -> None:
    """An error for a file that is small and announces something huge, whether it lies or not.

    Arguments:
        unpacked, packed: bytes.
        what: it is, for the message.

    Raises:
        ValueError: more than 1 GiB, and more than 100 times as much as is there.

    >>> check_unpacked(2**40, 1000, "member 'x'")
    Traceback (most recent call last):
    ValueError: member 'x' unpacks to 1099511627776 bytes from 1000; at most 1 GiB, or 100 times as much, are read
    """
    if unpacked > max(FREELY, MOST_TIMES * packed):
        raise ValueError(
            f"{what} unpacks to {unpacked} bytes from {packed}; at most 1 GiB, or {MOST_TIMES} times as much, are read"
        )


def check_npz(file: IO[bytes]) -> None:
    """An error unless each array of an .npz file is as large as its member of the archive, and none is a bomb.

    A member that is no array, is damaged or holds objects is left to numpy, which refuses it.

    Arguments:
        file: open for reading; it is left at its start.

    Raises:
        ValueError: such an array; the message names it.
        Exception: whatever else zipfile raises for a file that is damaged or no archive.

    >>> import io, numpy as np
    >>> array, file = io.BytesIO(), io.BytesIO()
    >>> np.save(array, np.zeros(4))
    >>> with zipfile.ZipFile(file, "w") as archive:
    ...     archive.writestr("x.npy", array.getvalue().replace(b"(4,)", b"(9,)"))
    >>> check_npz(file)
    Traceback (most recent call last):
    ValueError: array 'x' announces (9,) numbers of 8 bytes, its member has 32 bytes
    """
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        packed = sum({member.header_offset: member.compress_size for member in members}.values())
        check_unpacked(sum(member.file_size for member in members), packed, "the archive")
        for member in members:
            if member.filename.endswith(".npy"):
                _check_member(archive, member)
    file.seek(0)


def _check_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    try:
        with archive.open(member) as opened:
            shape, width = _announced(opened)
            held = member.file_size - opened.tell()
    except Exception:  # numpy stumbles over it in the same way
        return
    if width and (math.prod(shape) * width != held or min(shape, default=0) < 0):
        name = member.filename.removesuffix(".npy")
        raise ValueError(f"array {name!r} announces {shape} numbers of {width} bytes, its member has {held} bytes")


def _announced(opened: IO[bytes]) -> tuple[tuple[int, ...], int]:
    """Shape and bytes of a number by the header of a .npy; 0 bytes for objects, whose size no header tells."""
    version = npy.read_magic(opened)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(opened)
    return shape, 0 if dtype.hasobject else dtype.itemsize
