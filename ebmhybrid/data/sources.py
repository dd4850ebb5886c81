"""From a data name to images: `digits`, `cifar10:0-6`, `interp:svhn`, `npz:PATH`, ... and from a name to splits."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from ebmhybrid.data.builtin import BUILDERS, Shape, interpolations
from ebmhybrid.data.cifar10c import load_cifar10c
from ebmhybrid.data.downloads import DECODED_SIZE, load_published
from ebmhybrid.data.files import load_npz
from ebmhybrid.data.folders import load_folder
from ebmhybrid.data.held_out import unseen, with_classes_of
from ebmhybrid.data.published import SOURCES
from ebmhybrid.data.sets import ImageSet
from ebmhybrid.data.shards import load_shards
from ebmhybrid.data.splits import Splits, stratified_split
from ebmhybrid.data.streamed import StreamedSet
from ebmhybrid.errors import DataError, nearest

PATTERNS = {
    "cifar10c[/CORRUPTION[/SEVERITY]]": "corrupted CIFAR-10, from CIFAR-10-C/*.npy in the data folder",
    "interp:NAME": "means of two random images of another set",
    "npz:PATH": "a file of arrays x, uint8 (N, H, W[, C]), and y, integers (N,)",
    "folder:PATH": "a folder with one sub-folder of pictures a class",
    "shards:PATTERN": "tar files in the WebDataset convention, train-{000..099}.tar or a folder of them",
    "text:PATH": "a file of one sequence a line, for sequence_autoencoder",
    "NAME:0-6": "some classes of any set, as ranges and numbers: 0-6 or 7,9 or 0-2,5",
}
CLASS_FILTER = re.compile(r"(.+):(\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*)")


@dataclass(frozen=True)
class _Request:
    """What the caller wants besides the name."""

    folder: Path
    download: bool
    shape: Shape | None
    seed: int
    stream: bool | None
    workers: int
    strict: bool


def data_names() -> list[tuple[str, str]]:
    """Every name or pattern of a data set with a one-line description.

    >>> data_names()[0]
    ('digits', "scikit-learn's 8x8 digits, 10 classes, no download")
    """
    built_in = [(name, summary) for name, (summary, _) in BUILDERS.items()]
    published = [(name, source.summary) for name, source in SOURCES.items()]
    return [*built_in, *published, *PATTERNS.items()]


def load_set(
    name: str,
    *,
    data_dir: str | Path = "data",
    download: bool = True,
    shape: Shape | None = None,
    seed: int = 0,
    stream: bool | None = None,
    workers: int = 2,
    strict: bool = False,
) -> ImageSet:
    """A set to evaluate on: the official test split where there is one, else everything.

    Arguments:
        name: one of :func:`data_names`.
        data_dir: where downloaded files lie.
        download: whether what is absent may be fetched.
        shape: (C, H, W) of the model, H = W. Noise, shapes and photos are made in it, other sets are adapted to it.
        seed: for noise, shapes and interpolations.
        stream: whether folder:PATH and shards:PATTERN are a :class:`ebmhybrid.data.StreamedSet`, which is like an
            ImageSet but for its `images`; by default where their decoded pictures take more than 1 GiB.
        workers: processes that decode the pictures of these.
        strict: whether one that cannot be decoded is an error; else it is skipped and counted.

    Raises:
        DataError: an unknown name, or data that is absent, malformed or does not fit.

    >>> load_set("digits:7-9", shape=(3, 32, 32)).shape
    (3, 32, 32)
    """
    return _load(name, "test", _request(data_dir, download, shape, seed, stream, workers, strict))


def load_splits(
    train: str,
    *,
    test: str | None = None,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.2,
    seed: int = 0,
    data_dir: str | Path = "data",
    download: bool = True,
    shape: Shape | None = None,
    labelled: bool = True,
    stream: bool | None = None,
    workers: int = 2,
    strict: bool = False,
) -> Splits:
    """A set to train on, as train, validation and test parts that share no image.

    The test part is, in this order: the set named `test`, the official test split, or a stratified share of
    `test_fraction`. The validation part is a stratified share of `validation_fraction` of what is not official test.

    Arguments:
        train: one of :func:`data_names`, with at least 2 classes.
        test: another set to test on, of the same classes.
        validation_fraction: in (0, 1).
        test_fraction: in (0, 1), used where there is no other test set.
        seed: decides the split; the same seed gives the same parts.
        data_dir: as in :func:`load_set`, like `download`, `shape`, `stream`, `workers` and `strict`.
        labelled: False for what learns without labels, and takes images of a single class too.

    Raises:
        DataError: as :func:`load_set`; or fewer than 2 classes, a class with too few images, classes that differ.

    >>> splits = load_splits("digits", seed=1)
    >>> len(splits.train), len(splits.validation), len(splits.test)
    (1258, 180, 359)
    """
    request = _request(data_dir, download, shape, seed, stream, workers, strict)
    whole = _load(train, "train", request)
    if isinstance(whole, StreamedSet):
        request = replace(request, stream=True)  # the test set too, so that the two can be compared
    if validation_fraction + test_fraction >= 1 and test is None and _parse(train)[0] not in SOURCES:
        raise DataError(
            f"{train}: validation_fraction {validation_fraction} and test_fraction {test_fraction} leave nothing to "
            "train on"
        )
    present = len(whole.labels.unique())
    if labelled and present < 2:
        raise DataError(f"{train}: training needs at least 2 classes, {train} has {present}")
    if test is not None or _parse(train)[0] in SOURCES:
        shares = {"train": 1 - validation_fraction, "validation": validation_fraction}
    else:
        shares = {"train": 1 - validation_fraction - test_fraction, "validation": validation_fraction}
        shares["test"] = test_fraction
    try:
        indices = stratified_split(whole.labels, list(shares.values()), seed)
    except DataError as error:
        raise DataError(f"{train}: {error}") from error
    parts = {
        part: whole.select(index).noted(f"{part}: {len(index)} of {len(whole)} images, stratified, seed {seed}")
        for part, index in zip(shares, indices, strict=True)
    }
    if "test" not in parts:
        parts["test"] = with_classes_of(whole, _load(test or train, "test", request))
    if test is not None:
        parts["test"] = unseen(parts["test"], whole)
    return Splits(**parts)


def _request(
    data_dir: str | Path,
    download: bool,
    shape: Shape | None,
    seed: int,
    stream: bool | None,
    workers: int,
    strict: bool,
) -> _Request:
    if shape is not None and (len(shape) != 3 or shape[0] not in (1, 3) or shape[1] != shape[2] or shape[1] < 1):
        raise DataError(f"shape must be (C, H, W) with C = 1 or 3 and H = W, got {tuple(shape)}")
    if workers < 0:
        raise DataError(f"workers must be at least 0, got {workers}")
    return _Request(Path(data_dir).expanduser(), download, shape, seed, stream, workers, strict)


def _parse(name: str) -> tuple[str, str | None]:
    """A name without its class filter, and the filter if there is one. The filter of interp:NAME belongs to NAME."""
    base, colon, spec = name.partition(":")
    if base in BUILDERS or base in SOURCES:
        return base, spec if colon else None
    match = CLASS_FILTER.fullmatch(name)
    if match and base != "interp" and match[1] not in ("npz", "folder", "shards"):
        return match[1], match[2]
    return name, None


def _load(name: str, split: str, request: _Request) -> ImageSet:
    base, spec = _parse(name)
    images = _load_base(base, split, request)
    if spec is not None:
        images = images.keep_classes(spec)
    return images.adapt(request.shape[0], request.shape[1]) if request.shape else images


def _load_base(name: str, split: str, request: _Request) -> ImageSet:
    size = request.shape[1] if request.shape else DECODED_SIZE
    kind, _, rest = name.partition(":")
    if name in BUILDERS:
        return BUILDERS[name][1](request.shape, request.seed)
    if name in SOURCES:
        return load_published(name, split, request.folder, request.download, size)
    if name.split("/")[0] == "cifar10c":
        return load_cifar10c(name, request.folder)
    if kind == "interp" and rest:
        return interpolations(_load(rest, split, request), request.seed)
    if kind == "npz" and rest:
        return load_npz(rest)
    if kind in ("folder", "shards") and rest:
        how: dict[str, Any] = {"stream": request.stream, "workers": request.workers, "strict": request.strict}
        found = load_folder(rest, size, **how) if kind == "folder" else load_shards(rest, size, request.folder, **how)
        return cast(ImageSet, found)  # a streamed set is used as one
    if kind == "text":
        raise DataError(f"{name}: holds sequences, and images are needed here")
    raise DataError(f"unknown data set {name!r}, {nearest(name, [known for known, _ in data_names()])}")
