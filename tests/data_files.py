"""Small files in the layout of the published sets, made from random pixels, for the tests of the readers.

Each function writes under `root` and returns what a reader should find there.
"""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

Pair = tuple[np.ndarray, np.ndarray]


def pixels(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


class Python2Pickler(pickle._Pickler):
    """Writes text and bytes as Python 2 wrote its strings, which is how the published CIFAR batches are pickled."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_string(self, value: Any) -> None:
        raw = value if isinstance(value, bytes) else value.encode()
        self.write(pickle.BINSTRING + struct.pack("<i", len(raw)) + raw)
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_string


def python2_pickle(value: Any) -> bytes:
    buffer = io.BytesIO()
    Python2Pickler(buffer, protocol=2).dump(value)
    return buffer.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def _tar(archive: Path, folder: Path) -> None:
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, arcname=folder.name)


def make_cifar10(root: Path, n_per_batch: int = 20, python: int = 2, archive: bool = False) -> dict[str, Pair]:
    """CIFAR-10's python version: six batches, pickled as by Python 2 or 3; with `archive` only the .tar.gz is left."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    batches: dict[str, list[Pair]] = {"train": [], "test": []}
    for number, name in enumerate([f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]):
        x = pixels(number, n_per_batch, 3072)
        y = np.arange(n_per_batch) % 10
        content = {b"data": x, b"labels": y.tolist(), b"filenames": [b"a.png"] * n_per_batch, b"batch_label": b"b"}
        dump = python2_pickle(content) if python == 2 else pickle.dumps(content)
        (folder / name).write_bytes(dump)
        batches["test" if name == "test_batch" else "train"].append((x.reshape(-1, 3, 32, 32), y))
    if archive:
        _archive(folder, root / "cifar-10-python.tar.gz")
    return {
        split: (np.concatenate([x for x, _ in b]), np.concatenate([y for _, y in b])) for split, b in batches.items()
    }


def _archive(folder: Path, archive: Path) -> None:
    _tar(archive, folder)
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


def make_cifar100(root: Path, n: int = 200, archive: bool = False) -> dict[str, Pair]:
    """CIFAR-100's python version, with fine and coarse labels and the file of names."""
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    made = {}
    for number, split in enumerate(("train", "test")):
        x, y = pixels(number, n, 3072), np.arange(n) % 100
        content = {b"data": x, b"fine_labels": y.tolist(), b"coarse_labels": (y // 5).tolist()}
        (folder / split).write_bytes(python2_pickle(content))
        made[split] = (x.reshape(-1, 3, 32, 32), y)
    names = [f"kind{i}".encode() for i in range(100)]
    (folder / "meta").write_bytes(python2_pickle({b"fine_label_names": names}))
    if archive:
        _archive(folder, root / "cifar-100-python.tar.gz")
    return made


def make_svhn(root: Path, n: int = 40, splits: Sequence[str] = ("train", "test")) -> dict[str, Pair]:
    """SVHN's .mat files, in which 10 is the label of the digit 0."""
    from scipy.io import savemat

    root.mkdir(parents=True, exist_ok=True)
    made = {}
    for number, split in enumerate(splits):
        x, y = pixels(number, n, 3, 32, 32), np.arange(n) % 10
        stored = np.where(y == 0, 10, y).astype(np.uint8)[:, None]
        savemat(root / f"{split}_32x32.mat", {"X": x.transpose(2, 3, 1, 0), "y": stored})
        made[split] = (x, y)
    return made


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def make_mnist_like(root: Path, name: str, n: int = 40, gz: bool = True) -> dict[str, Pair]:
    """The four IDX files of MNIST, FashionMNIST or KMNIST, gzipped as published or plain."""
    folder = root / name / "raw"
    folder.mkdir(parents=True)
    made = {}
    for number, (split, prefix) in enumerate((("train", "train"), ("test", "t10k"))):
        x, y = pixels(number, n, 28, 28), np.arange(n) % 10
        for part, array in (("images-idx3", x), ("labels-idx1", y)):
            path, raw = folder / f"{prefix}-{part}-ubyte", idx_bytes(array)
            if gz:
                path.with_name(path.name + ".gz").write_bytes(gzip.compress(raw))
            else:
                path.write_bytes(raw)
        made[split] = (x[:, None], y)
    return made


def save_picture(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (12, 9)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def make_folder(
    root: Path, classes: Sequence[str] = ("cat", "dog"), n: int = 3
) -> dict[str, list[tuple[int, int, int]]]:
    """One sub-folder of one-coloured PNG files a class, and a file that is no picture."""
    made: dict[str, list[tuple[int, int, int]]] = {}
    for label, name in enumerate(classes):
        made[name] = [(50 * label, 10 * i, 200) for i in range(n)]
        for i, colour in enumerate(made[name]):
            save_picture(root / name / f"{i}.png", colour)
    (root / classes[0] / "readme.txt").write_text("no picture")
    return made


def make_npz(path: Path, n: int = 40, shape: Sequence[int] = (8, 8, 3), classes: int = 4, **arrays: Any) -> Pair:
    """An .npz of x and y; keyword arguments replace an array, None leaves it out."""
    content: dict[str, Any] = {"x": pixels(0, n, *shape), "y": np.arange(n) % classes} | arrays
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{key: value for key, value in content.items() if value is not None})
    return content["x"], content["y"]


def make_cifar10c(root: Path, corruptions: Sequence[str] = ("fog", "snow"), n: int = 10) -> dict[str, np.ndarray]:
    """CIFAR-10-C with n images a severity: the arrays and the labels, the same labels in each severity."""
    folder = root / "CIFAR-10-C"
    folder.mkdir(parents=True)
    made = {name: pixels(number, 5 * n, 32, 32, 3) for number, name in enumerate(corruptions)}
    made["labels"] = np.tile(np.arange(n) % 10, 5).astype(np.uint8)
    for name, array in made.items():
        np.save(folder / f"{name}.npy", array)
    return made


def make_celeba(root: Path, parts: Sequence[int] = (0, 0, 1, 2, 2), zipped: bool = False) -> list[bool]:
    """CelebA's aligned pictures and two of its lists; face i smiles if i is odd. Colours are (40 i, 0, 0)."""
    folder = root / "celeba"
    files = [f"{i + 1:06}.jpg" for i in range(len(parts))]
    for i, file in enumerate(files):
        save_picture(folder / "img_align_celeba" / file, (40 * i, 0, 0), (178, 218))
    partition = "".join(f"{file} {part}\n" for file, part in zip(files, parts, strict=True))
    (folder / "list_eval_partition.txt").write_text(partition)
    rows = "".join(f"{file} -1  {1 if i % 2 else -1}  1\n" for i, file in enumerate(files))
    (folder / "list_attr_celeba.txt").write_text(f"{len(files)}\nBald Smiling Young\n{rows}")
    if zipped:
        with zipfile.ZipFile(folder / "img_align_celeba.zip", "w") as packed:
            for file in sorted((folder / "img_align_celeba").iterdir()):
                packed.write(file, f"img_align_celeba/{file.name}")
                file.unlink()
        (folder / "img_align_celeba").rmdir()
    return [bool(i % 2) for i in range(len(parts))]


def make_textures(root: Path) -> None:
    """The Describable Textures with two kinds: test one picture of each, train and val one of each."""
    folder = root / "dtd" / "dtd"
    (folder / "labels").mkdir(parents=True)
    for number, split in enumerate(("train1", "val1", "test1")):
        names = [f"{kind}/{kind}_{number}.jpg" for kind in ("banded", "zigzagged")]
        for name in names:
            save_picture(folder / "images" / name, (80 * number, 0, 0), (40, 30))
        (folder / "labels" / f"{split}.txt").write_text("\n".join(names) + "\n")
