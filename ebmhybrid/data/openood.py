"""OpenOOD v1.5's near and far OOD protocol for CIFAR-10 and CIFAR-100 (Zhang et al. 2023), from its image lists.

The lists and images lie under the data folder as OpenOOD's download script puts them:

    benchmark_imglist/cifar10/test_tin.txt    lines "tin/val/images/val_0.JPEG -1": a path and a label
    images_classic/tin/val/images/val_0.JPEG  what the paths start from is images_classic/

Without the lists, the sets that can be had otherwise take their place, and each says that it is not the v1.5 split.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from ebmhybrid.data.formats import opened_picture
from ebmhybrid.data.sets import ImageSet
from ebmhybrid.data.sources import load_set
from ebmhybrid.errors import DataError, UsageError, nearest

Shape = tuple[int, int, int]
Entry = tuple[str, int]  # path under images_classic/, label

SIZE = 32
PAGE = "https://github.com/Jingkang50/OpenOOD"
NOT_V15 = "not the v1.5 split"
_FAR = ("mnist", "svhn", "texture", "places365")
# ID set -> OOD set -> group
GROUPS = {
    "cifar10": {"cifar100": "near", "tin": "near", **dict.fromkeys(_FAR, "far")},
    "cifar100": {"cifar10": "near", "tin": "near", **dict.fromkeys(_FAR, "far")},
}
CLASSES = {"cifar10": 10, "cifar100": 100}
# OpenOOD's name of a set -> ours, where there is one
_OURS = {"cifar10": "cifar10", "cifar100": "cifar100", "mnist": "mnist", "svhn": "svhn", "texture": "textures"}


def load_openood(
    id_name: str, data_dir: str | Path = "data", shape: Shape | None = None, *, download: bool = True
) -> tuple[ImageSet, dict[str, ImageSet], dict[str, str]]:
    """The ID test set, the OOD sets by name, and the group ("near" or "far") of each.

    From the lists, pictures are decoded to RGB, the shorter side resized to 32 (bilinear) and the centre 32x32 cut
    out, as OpenOOD does. Where `benchmark_imglist/<id_name>` is absent, official test splits take the place of the
    listed sets; Tiny-ImageNet and Places365 are then left out.

    Arguments:
        id_name: "cifar10" or "cifar100".
        data_dir: where the lists and images, or other sets, lie.
        shape: (C, H, W) of the model; what is not 3x32x32 is adapted to it, with a note.
        download: whether a set that takes the place of a listed one may be fetched; lists never are.

    Raises:
        UsageError: another `id_name`.
        DataError: a list or a picture that is missing or unusable, a path that leaves the folder of images, or neither
            lists nor any other set to be had.
    """
    if id_name not in GROUPS:
        raise UsageError(f"OpenOOD v1.5 is read for cifar10 and cifar100, got {id_name!r}, {nearest(id_name, GROUPS)}")
    root = Path(data_dir).expanduser()
    lists = root / "benchmark_imglist" / id_name
    if not lists.is_dir():
        return _without_lists(id_name, root, shape, download, lists)
    entries = {name: read_list(lists / f"test_{name}.txt") for name in (id_name, *GROUPS[id_name])}
    _check_labels(entries[id_name], CLASSES[id_name], lists / f"test_{id_name}.txt")
    sets = {name: _listed(name, found, root / "images_classic", shape, id_name) for name, found in entries.items()}
    return sets.pop(id_name), sets, dict(GROUPS[id_name])


def read_list(path: Path) -> list[Entry]:
    """The (path, label) of each line of an image list; the label of an OOD image is -1.

    Raises:
        DataError: a list that is absent, empty or malformed, or a path that leads out of the folder of images.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        problem = f"openood-v1.5: cannot read {path} ({type(error).__name__})"
        raise DataError(f"{problem}; the protocol needs all of its lists, from {PAGE}") from error
    entries = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        file, _, label = line.strip().rpartition(" ")
        inner = PurePosixPath(file.strip())
        try:
            entries.append((str(inner), int(label)))
        except ValueError as error:
            raise DataError(f"{path}:{number}: a line must be a path and an integer label, got {line!r}") from error
        if not file or inner.is_absolute() or ".." in inner.parts or set("\\:\0") & set(file):
            raise DataError(f"{path}:{number}: a path must lie under images_classic/, got {line!r}")
    if not entries:
        raise DataError(f"{path}: lists no image")
    return entries


def _check_labels(entries: list[Entry], classes: int, path: Path) -> None:
    for file, label in entries:
        if not 0 <= label < classes:
            raise DataError(f"{path}: labels must lie in 0..{classes - 1}, got {label} for {file}")


def _listed(name: str, entries: list[Entry], images: Path, shape: Shape | None, id_name: str) -> ImageSet:
    """The set of a list. OOD images have no label there: they get one class together."""
    pixels = np.empty((len(entries), 3, SIZE, SIZE), np.uint8)
    for row, (file, _) in zip(pixels, entries, strict=True):
        row[:] = decode(images / file)
    if name == id_name:
        labels = torch.tensor([label for _, label in entries])
        folders = {label: PurePosixPath(file).parent.name for file, label in entries}
        classes = tuple(folders.get(label) or str(label) for label in range(CLASSES[id_name]))
    else:
        labels, classes = torch.zeros(len(entries), dtype=torch.int64), ("unlabelled",)
    notes = (
        f"OpenOOD v1.5, benchmark_imglist/{id_name}/test_{name}.txt",
        f"RGB, shorter side resized to {SIZE} (bilinear), centre {SIZE}x{SIZE}",
    )
    listed = ImageSet(name, torch.from_numpy(pixels), labels, classes, notes)
    return listed.adapt(shape[0], shape[1]) if shape else listed


def decode(path: Path) -> np.ndarray:
    """A picture as uint8 (3, 32, 32): RGB, shorter side resized to 32 (bilinear, antialiased), centre cut out.

    Raises:
        DataError: a file that is absent or cannot be decoded.
    """
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as transforms

    try:
        with opened_picture(path) as picture:
            rgb: Any = transforms.resize(picture.convert("RGB"), SIZE, InterpolationMode.BILINEAR)
            return np.asarray(transforms.center_crop(rgb, [SIZE, SIZE])).transpose(2, 0, 1)
    except Exception as error:  # a damaged or hostile file raises whatever its parser happens to stumble on
        raise DataError(f"openood-v1.5: {path} cannot be read as a picture: {' '.join(str(error).split())}") from error


def _without_lists(
    id_name: str, root: Path, shape: Shape | None, download: bool, lists: Path
) -> tuple[ImageSet, dict[str, ImageSet], dict[str, str]]:
    """Official test splits in place of the listed sets, each noted as such."""
    options: dict[str, Any] = {"data_dir": root, "download": download, "shape": shape}
    absent = f"openood-v1.5: there is no folder {lists} (OpenOOD's download script makes it, {PAGE})"
    try:
        test = load_set(id_name, **options)
    except DataError as error:
        raise DataError(f"{absent}, nor another test set: {error}") from error
    found: dict[str, ImageSet] = {}
    groups: dict[str, str] = {}
    missing: list[str] = []
    for name, group in GROUPS[id_name].items():
        ours = _OURS.get(name)
        try:
            if ours:
                found[ours], groups[ours] = load_set(ours, **options).noted(NOT_V15), group
            else:
                missing.append(name)
        except DataError as error:
            missing.append(f"{name} ({error})")
    if not found:
        raise DataError(f"{absent}, nor any other OOD set: {'; '.join(missing)}")
    return test.noted(NOT_V15, f"OOD sets that are missing: {'; '.join(missing)}"), found, groups
