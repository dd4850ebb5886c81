"""Pictures in files: where they are, and how chunks of them are decoded, in worker processes.

What runs in a worker uses PIL and numpy alone: no threads, no accelerator, no random numbers.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import IO, Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ebmhybrid.data.formats import PictureError, decode_picture
from ebmhybrid.errors import DataError

Positions = NDArray[np.int64]
ORPHANED = 0.5  # seconds after which a worker sees that its parent was killed
NEIGHBOURS = 1000  # pictures tried, after a whole chunk of which none can be decoded


class Pictures(Protocol):
    """Pictures by number: `names` and `sizes` of the encoded files, (N,), tell one content from another.

    Arrays rather than lists: they are shared with worker processes without a copy, millions of them too.
    """

    names: NDArray[np.bytes_]
    sizes: NDArray[np.int64]

    def open(self, row: int) -> AbstractContextManager[IO[bytes]]:
        """The encoded picture; an OSError where it cannot be read."""

    def place(self, row: int) -> str:
        """Where it is, for messages."""


class Decoded(NamedTuple):
    """A chunk: pixels (n, 3, size, size) uint8, whose they are, and what could not be decoded, by number and why."""

    pixels: NDArray[np.uint8]
    positions: Positions
    failed: dict[int, str]


@dataclass(frozen=True)
class Decoder:
    """Chunks of a set's pictures, by their positions in the set.

    Arguments:
        pictures: all pictures of the source.
        rows: the numbers of the set's pictures among them.
        size: side of the decoded picture.
        strict: whether a picture that cannot be decoded is an error.
        drop: whether such pictures are left out of a chunk. Else the next good picture of the chunk stands in for
            one, and where a chunk has none, the next good picture of the set.
    """

    pictures: Pictures
    rows: Positions
    size: int
    strict: bool = False
    drop: bool = False

    def __getitem__(self, positions: Positions) -> Decoded | DataError:
        """The chunk, or what went wrong: raised in a worker, it would bring the worker's traceback along."""
        try:
            return self._chunk(positions)
        except DataError as error:
            return error

    def _chunk(self, positions: Positions) -> Decoded:
        pixels = np.zeros((len(positions), self.size, self.size, 3), np.uint8)
        positions, failed, bad = positions.copy(), {}, []
        for place, position in enumerate(positions.tolist()):
            try:
                pixels[place] = self._decoded(position)
            except PictureError as error:
                bad.append(place)
                failed[int(self.rows[position])] = str(error)
        good = np.setdiff1d(np.arange(len(positions)), bad)
        if self.drop:
            pixels, positions = pixels[good], positions[good]
        elif bad and not len(good):
            pixels[:], positions[:] = self._next_good(int(positions[-1]), failed)
        elif bad:
            stand_in = good[np.searchsorted(good, bad) % len(good)]
            pixels[bad], positions[bad] = pixels[stand_in], positions[stand_in]
        return Decoded(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)), positions, failed)

    def _decoded(self, position: int) -> NDArray[np.uint8]:
        """The picture; a DataError is for what ends the pass."""
        row = int(self.rows[position])
        try:
            opened = self.pictures.open(row)
        except OSError as error:
            raise DataError(f"{self.pictures.place(row)}: cannot be read ({error.strerror})") from error
        with opened as file:
            try:
                return decode_picture(file, self.size)
            except PictureError as error:
                message = f"{self.pictures.place(row)}: {error}"
                raise (DataError if self.strict else PictureError)(message) from error

    def _next_good(self, position: int, failed: dict[int, str]) -> tuple[NDArray[np.uint8], int]:
        for step in range(1, min(NEIGHBOURS, len(self.rows)) + 1):
            place = (position + step) % len(self.rows)
            try:
                return self._decoded(place), place
            except PictureError as error:
                failed[int(self.rows[place])] = str(error)
        first = next(iter(failed.values()))
        raise DataError(f"none of {len(failed)} pictures one after the other can be decoded, the first is {first}")


def decoded(decoder: Decoder, chunks: list[Positions], workers: int, name: str) -> Iterator[Decoded]:
    """The chunks in their order, decoded ahead by worker processes; a single chunk is decoded in this process.

    The processes live as long as this pass.

    Raises:
        DataError: a picture that cannot be read, or not be decoded where that is an error; a process that died.
    """
    from PIL import Image
    from torch.utils.data import DataLoader

    Image.preinit()  # the decoders are imported here, once, rather than by every process
    several = workers > 0 and len(chunks) > 1
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create")  # reading waits for disks, not cores
        # Python 3.12 warns of forking beside threads. A worker takes no lock that one of them may hold.
        warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork", category=DeprecationWarning)
        loader: DataLoader[Any] = DataLoader(
            decoder,  # type: ignore[arg-type]
            batch_size=None,
            sampler=chunks,
            num_workers=min(workers, len(chunks)) if several else 0,
            collate_fn=_as_it_is,  # type: ignore[arg-type]
            worker_init_fn=partial(_heed_parent, os.getpid()),
            generator=torch.Generator(),  # else it draws from the global one
            multiprocessing_context="fork" if several and sys.platform == "linux" else None,
        )
        with _signals_held_back():
            iterator: Any = iter(loader)
    try:
        while (found := _next(iterator, name)) is not None:
            yield found
    finally:
        if several:
            iterator._shutdown_workers()  # as its __del__ does, which the traceback of an error would put off


def _next(iterator: Iterator[Decoded | DataError], name: str) -> Decoded | None:
    try:
        found = next(iterator, None)
    except RuntimeError as error:
        reason = str(error).split("\n")[0]
        raise DataError(f"{name}: a process that decodes died: {reason}; data.workers=0 needs none") from error
    if isinstance(found, DataError):
        raise found
    return found


def _as_it_is(found: Decoded | DataError) -> Decoded | DataError:
    """Arrays go through a pipe: as tensors they would need shared memory, of which containers often have 64 MB."""
    return found


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """Processes started inside never see SIGINT or SIGTERM, but for what :func:`_heed_parent` does.

    A terminal or a scheduler sends them to all processes at once. This one may have to finish a step and save, and
    decides itself when its workers end.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _heed_parent(parent: int, worker: int) -> None:
    # The parent says who it is: one that was killed before a worker came to ask would be taken for its foster parent.
    if hasattr(signal, "sigtimedwait"):  # not on macOS
        threading.Thread(target=_watch_parent, args=(parent,), daemon=True).start()


def _watch_parent(parent: int) -> None:
    """End when the parent says so, and when it is gone: what it had locked or opened would stay so."""
    while os.getppid() == parent:
        sent = signal.sigtimedwait({signal.SIGTERM}, ORPHANED)
        if sent is not None and sent.si_pid == parent:
            break
    os._exit(0)
