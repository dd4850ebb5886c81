"""Published sets: where their files lie under the data folder, and how they come there.

torchvision knows the addresses and checksums; we read the files ourselves, so that a user's own files of the right
form work whatever their checksum, no pickle is run, and one missing split does not ask for the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from ebmhybrid.data import archives, formats
from ebmhybrid.data.formats import Content
from ebmhybrid.data.sets import ImageSet
from ebmhybrid.errors import DataError

TIMEOUT = 60.0  # seconds without an answer before a download is given up
DECODED = 32  # size of pictures that have none of their own


@dataclass(frozen=True)
class Remote:
    """One file to fetch: from the first of `urls` that works, or from Google Drive."""

    path: str
    md5: str
    urls: tuple[str, ...] = ()
    drive_id: str = ""


@dataclass(frozen=True)
class Source:
    """A published set. `files` and `remotes` are asked for one split, "train" or "test".

    Arguments:
        summary: one line for lists of names.
        page: the web page that offers the files.
        files: what must be there to read the split, relative to the data folder.
        read: (data folder, split, size) -> images, labels, names; size is for pictures that have none of their own.
        remotes: the files to fetch when something is missing; imports torchvision.
        unpack: (archive, folder to unpack it in), both relative to the data folder.
        checksums: official md5 of files read directly, by path; imports torchvision.
        notes: what a report should say.
    """

    summary: str
    page: str
    files: Callable[[str], list[str]]
    read: Callable[[Path, str, int], Content]
    remotes: Callable[[str], list[Remote]]
    unpack: tuple[str, str] | None = None
    checksums: Callable[[], dict[str, str]] = dict
    notes: tuple[str, ...] = ()


def load_published(name: str, split: str, data_dir: str | Path, download: bool, size: int | None = None) -> ImageSet:
    """One official split of a published set, fetched first if it is absent and `download` is true.

    Raises:
        DataError: files that are absent and cannot be fetched (the message says which, from where, to where),
            or that cannot be read.
    """
    from ebmhybrid.data.published import SOURCES

    source, folder = SOURCES[name], Path(data_dir).expanduser()
    if _missing(source, split, folder):
        _provide(name, source, split, folder, download)
    try:
        images, labels, classes = source.read(folder, split, size or DECODED)
    except DataError:
        raise
    except Exception as error:  # a damaged file raises whatever its parser stumbles on
        raise DataError(f"{name}: cannot read {_list(source.files(split))} in {folder}: {_brief(error)}") from error
    notes = (f"official {split} split", *source.notes, *_unofficial(source, split, folder))
    return ImageSet(name, torch.tensor(images), torch.tensor(labels), classes, notes)
