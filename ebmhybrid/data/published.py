"""The table of published sets: where their files lie under the data folder, who offers them, and how they are read.

torchvision knows the addresses and checksums; the files are read by our own readers, so that a user's own files of
the right form work whatever their checksum, no pickle is run, and a missing train split does not keep a test split
from being read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ebmhybrid.data import formats
from ebmhybrid.data.formats import Content


@dataclass(frozen=True)
class Remote:
    """One file to fetch to `path` under the data folder: from the first of `urls` that works, or from Google Drive."""

    path: str
    md5: str
    urls: tuple[str, ...] = ()
    drive_id: str = ""


@dataclass(frozen=True)
class Source:
    """A published set. Paths are relative to the data folder; a split is "train" or "test".

    Arguments:
        summary: one line for lists of names.
        page: the web page that offers the files.
        files: split -> what must be there to read it; a file may also be there as `.gz`.
        read: (data folder, split, size) -> images, labels, names; size is for pictures that have none of their own.
        remotes: split -> the files to fetch when something is missing. Imports torchvision.
        archive: the archive that holds `files`, and the folder to unpack it in; "" where there is none.
        checksums: the official md5 of what is read, by path. Imports torchvision.
        notes: what a report should say, with {size} for the size.
    """

    summary: str
    page: str
    files: Callable[[str], list[str]]
    read: Callable[[Path, str, int], Content]
    remotes: Callable[[str], list[Remote]]
    archive: tuple[str, str] = ("", "")
    checksums: Callable[[], dict[str, str]] = dict
    notes: tuple[str, ...] = ()


def _torchvision(name: str) -> Any:
    import torchvision.datasets

    return getattr(torchvision.datasets, name)


def existing(path: Path) -> Path | None:
    """The path, or the gzipped file beside it, or None."""
    return next((p for p in (path, path.with_name(path.name + ".gz")) if p.exists()), None)


def _cifar(kind: str, folder: str, batches: dict[str, list[str]], label_key: str, summary: str) -> Source:
    def files(split: str) -> list[str]:
        return [f"{folder}/{batch}" for batch in batches[split]]

    def read(root: Path, split: str, size: int) -> Content:
        names = formats.CIFAR10_NAMES if kind == "CIFAR10" else formats.cifar100_names(root / folder)
        return formats.read_cifar([root / file for file in files(split)], label_key, names)

    def remotes(split: str) -> list[Remote]:
        official = _torchvision(kind)
        return [Remote(official.filename, official.tgz_md5, (official.url,))]

    def checksums() -> dict[str, str]:
        official = _torchvision(kind)
        return {f"{folder}/{file}": md5 for file, md5 in official.train_list + official.test_list}

    archive = (folder.removesuffix("-batches-py").removesuffix("-python") + "-python.tar.gz", "")
    return Source(summary, "https://www.cs.toronto.edu/~kriz/cifar.html", files, read, remotes, archive, checksums)


def _mnist(kind: str, page: str, summary: str, names: tuple[str, ...] | None = None) -> Source:
    folder, prefix = f"{kind}/raw", {"train": "train", "test": "t10k"}

    def files(split: str) -> list[str]:
        return [f"{folder}/{prefix[split]}-{part}-ubyte" for part in ("images-idx3", "labels-idx1")]

    def read(root: Path, split: str, size: int) -> Content:
        images, labels = (existing(root / file) or root / file for file in files(split))
        return formats.read_mnist(images, labels, names or _torchvision(kind).classes)

    def remotes(split: str) -> list[Remote]:
        mirrors, wanted = _torchvision(kind).mirrors, {Path(file).name + ".gz" for file in files(split)}
        return [
            Remote(f"{folder}/{file}", md5, tuple(mirror + file for mirror in mirrors))
            for file, md5 in _torchvision(kind).resources
            if file in wanted
        ]

    def checksums() -> dict[str, str]:
        return {f"{folder}/{file}": md5 for file, md5 in _torchvision(kind).resources}

    return Source(summary, page, files, read, remotes, checksums=checksums)


def _svhn_remotes(split: str) -> list[Remote]:
    url, file, md5 = _torchvision("SVHN").split_list[split]
    return [Remote(file, md5, (url,))]


CELEBA_LISTS = ("list_attr_celeba.txt", "list_eval_partition.txt")


def _celeba_remotes(split: str) -> list[Remote]:
    wanted = {"img_align_celeba.zip", *CELEBA_LISTS}
    files = _torchvision("CelebA").file_list
    return [Remote(f"celeba/{file}", md5, drive_id=drive) for drive, md5, file in files if file in wanted]


def _texture_files(split: str) -> list[str]:
    lists = {"test": ["test1"], "train": ["train1", "val1"]}[split]
    return ["dtd/dtd/images", *(f"dtd/dtd/labels/{name}.txt" for name in lists)]


def _texture_remotes(split: str) -> list[Remote]:
    official = _torchvision("DTD")
    return [Remote("dtd/dtd-r1.0.1.tar.gz", official._MD5, (official._URL,))]


SOURCES: dict[str, Source] = {
    "cifar10": _cifar(
        "CIFAR10",
        "cifar-10-batches-py",
        {"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]},
        "labels",
        "CIFAR-10, 32x32 RGB, 10 classes, 170 MB",
    ),
    "cifar100": _cifar(
        "CIFAR100",
        "cifar-100-python",
        {"train": ["train"], "test": ["test"]},
        "fine_labels",
        "CIFAR-100, 32x32 RGB, 100 fine classes, 170 MB",
    ),
    "svhn": Source(
        "street view house numbers, 32x32 RGB, 10 classes, 250 MB",
        "http://ufldl.stanford.edu/housenumbers/",
        lambda split: [f"{split}_32x32.mat"],
        lambda root, split, size: formats.read_svhn(root / f"{split}_32x32.mat"),
        _svhn_remotes,
        checksums=lambda: {file: md5 for _, file, md5 in _torchvision("SVHN").split_list.values()},
    ),
    "mnist": _mnist(
        "MNIST", "http://yann.lecun.com/exdb/mnist/", "MNIST, 28x28 gray, 10 classes, 12 MB", formats.DIGIT_NAMES
    ),
    "fashion_mnist": _mnist(
        "FashionMNIST",
        "https://github.com/zalandoresearch/fashion-mnist",
        "Fashion-MNIST, 28x28 gray, 10 classes, 31 MB",
    ),
    "kmnist": _mnist("KMNIST", "https://github.com/rois-codh/kmnist", "Kuzushiji-MNIST, 28x28 gray, 10 classes, 21 MB"),
    "celeba": Source(
        "CelebA faces, smiling or not, resized while decoding, 1.4 GB",
        "http://mmlab.ie.cuhk.edu.hk/projects/CelebA.html",
        lambda split: ["celeba/img_align_celeba", *(f"celeba/{file}" for file in CELEBA_LISTS)],
        lambda root, split, size: formats.read_celeba(root / "celeba", split, size),
        _celeba_remotes,
        archive=("celeba/img_align_celeba.zip", "celeba"),
        notes=("label: the attribute Smiling", "whole pictures resized to {size}x{size} while decoding (bilinear)"),
    ),
    "textures": Source(
        "Describable Textures (DTD), 47 classes, resized while decoding, 600 MB",
        "https://www.robots.ox.ac.uk/~vgg/data/dtd/",
        _texture_files,
        lambda root, split, size: formats.read_textures(root / "dtd" / "dtd", split, size),
        _texture_remotes,
        archive=("dtd/dtd-r1.0.1.tar.gz", "dtd"),
        notes=("partition 1", "whole pictures resized to {size}x{size} while decoding (bilinear)"),
    ),
}
