"""Getting one official split of a published set: from the data folder, from an archive there, or from the network."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from ebmhybrid.data.archives import merge, temporary_folder, unpack
from ebmhybrid.data.published import SOURCES, Remote, Source, existing
from ebmhybrid.data.sets import ImageSet
from ebmhybrid.errors import DataError

TIMEOUT = 60.0  # seconds without an answer before a download is given up
DECODED_SIZE = 32  # of pictures that have no size in common


def load_published(name: str, split: str, folder: Path, download: bool, size: int | None = None) -> ImageSet:
    """One official split of a published set, fetched first if it is absent and `download` is true.

    Arguments:
        name: a key of SOURCES.
        split: "train" or "test".
        folder: the data folder; made if something is downloaded.
        download: whether the network may be asked.
        size: for pictures of no common size, 32 by default.

    Raises:
        DataError: files that are absent and cannot be fetched (the message says which, from where and where to),
            or that cannot be read.
    """
    source, size = SOURCES[name], size or DECODED_SIZE
    if _missing(source, split, folder):
        _provide(name, split, folder, download)
    try:
        images, labels, classes = source.read(folder, split, size)
    except DataError:
        raise
    except Exception as error:  # a damaged file raises whatever its parser happens to stumble on
        files = ", ".join(source.files(split))
        raise DataError(f"{name}: cannot read {files} in {folder}: {_brief(error)}") from error
    notes = [f"official {split} split", *(note.format(size=size) for note in source.notes)]
    return ImageSet(
        name,
        torch.from_numpy(np.require(images, requirements=["C", "W"])),
        torch.from_numpy(np.require(labels, requirements=["C", "W"])),
        classes,
        (*notes, *_unofficial(source, split, folder)),
    )


def _missing(source: Source, split: str, folder: Path) -> list[str]:
    return [file for file in source.files(split) if existing(folder / file) is None]


def _provide(name: str, split: str, folder: Path, download: bool) -> None:
    """Unpack the archive that is there, else fetch; everything goes to a temporary folder and is renamed when whole."""
    source, problem = SOURCES[name], "downloading is off"
    archive, inner = source.archive
    remotes = source.remotes(split)
    if archive and (folder / archive).exists():
        problem = f"{folder / archive} does not hold it"
        try:
            with temporary_folder(folder) as temporary:
                unpack(folder / archive, temporary / inner)
                merge(temporary, folder)
        except OSError as error:
            raise DataError(f"{name}: cannot unpack {folder / archive} beside it: {_brief(error)}") from error
    absent = [remote for remote in remotes if not (folder / remote.path).exists()]
    if download and absent and _missing(source, split, folder):
        try:
            with temporary_folder(folder) as temporary, _timeout(TIMEOUT):
                for remote in absent:
                    _fetch(remote, temporary)
                if archive and (temporary / archive).exists():
                    unpack(temporary / archive, temporary / inner)
                    (temporary / archive).unlink()
                merge(temporary, folder)
        except Exception as error:  # whatever the network, the disk or a mirror did: the way out is the same
            problem = f"the download failed: {_brief(error)}"
    if missing := _missing(source, split, folder):
        them = "it" if len(remotes) == 1 else "them"
        raise DataError(
            f"{name}: {missing[0]} not found in {folder} ({problem}); fetch "
            f"{', '.join(Path(remote.path).name for remote in remotes)} from {source.page} "
            f"and put {them} at {', '.join(str(folder / remote.path) for remote in remotes)}"
        )


def _fetch(remote: Remote, folder: Path) -> None:
    from torchvision.datasets import utils

    target = folder / remote.path
    target.parent.mkdir(parents=True, exist_ok=True)
    if remote.drive_id:
        utils.download_file_from_google_drive(remote.drive_id, str(target.parent), target.name, remote.md5)
        return
    for url in remote.urls:
        try:
            utils.download_url(url, str(target.parent), target.name, remote.md5)
            return
        except (OSError, RuntimeError):
            target.unlink(missing_ok=True)
            if url == remote.urls[-1]:
                raise


@contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    """torchvision opens addresses without a timeout, so that a silent server would hold a run for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _unofficial(source: Source, split: str, folder: Path) -> list[str]:
    """A note that names the files whose md5 is not the published one."""
    official, differ = source.checksums(), []
    for file in source.files(split):
        path = existing(folder / file)
        expected = path and official.get(path.relative_to(folder).as_posix())
        if path and expected and hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() != expected:
            differ.append(path.name)
    return [f"not the official files (md5 differs): {', '.join(differ)}"] if differ else []


def _brief(error: BaseException) -> str:
    """An error in one line of at most 200 characters."""
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
