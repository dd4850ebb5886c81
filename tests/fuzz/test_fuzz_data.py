"""Data files damaged at random: what is read is what was written, or a DataError of one line names the file.

Where a format has no checksum (plain IDX, CIFAR's pickles) other values may come of it, but never of another form.
"""

from __future__ import annotations

import gzip
import io
import pickle
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from cases import attempt, damaged, edits, fuzz
from data_files import make_cifar10, make_cifar10c, make_mnist_like, pixels
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat

from ebmhybrid.data import ImageSet, load_set
from ebmhybrid.data.archives import load_pickle, unpack
from ebmhybrid.data.downloads import load_published
from ebmhybrid.data.formats import decode_images
from ebmhybrid.evaluate.from_logits import read_logits

# numpy and Pillow warn of what they then refuse.
pytestmark = pytest.mark.filterwarnings("ignore")


def is_whole(images: ImageSet, shape: tuple[int, ...]) -> bool:
    """Whether a set has the form that the rest of the program relies on."""
    in_range = bool(((images.labels >= 0) & (images.labels < len(images.classes))).all())
    return images.images.shape[1:] == shape and len(images.images) == len(images.labels) and in_range


def zipped(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


X, Y = pixels(0, 5, 4, 4), np.array([0, 1, 2, 1, 0])
NPZ = zipped(x=X, y=Y)


@fuzz(60, 300, changes=edits)
def test_npz(tmp_path, changes) -> None:
    (tmp_path / "a.npz").write_bytes(damaged(NPZ, changes))
    found = attempt(lambda: load_set("npz:a.npz"))
    if found is not None:  # each array has a checksum
        assert np.array_equal(found.images.numpy()[:, 0], X)
        assert np.array_equal(found.labels.numpy(), Y)


LOGITS, LABELS = np.random.default_rng(0).normal(size=(6, 3)), np.array([0, 1, 2, 0, 1, 2])
SCORES = zipped(logits=LOGITS, labels=LABELS, ood_noise_logits=LOGITS[:4] / 2)


@fuzz(60, 300, changes=edits)
def test_files_of_logits(tmp_path, changes) -> None:
    (tmp_path / "a.npz").write_bytes(damaged(SCORES, changes))
    found = attempt(lambda: read_logits(tmp_path / "a.npz"))
    if found is not None:
        assert np.array_equal(found.test.logits, LOGITS)
        assert np.array_equal(found.test.labels, LABELS)


# A file of each published set, whether its bytes have a checksum, and the form of an image.
PUBLISHED = {
    "cifar10": ("cifar-10-batches-py/test_batch", False, (3, 32, 32)),
    "svhn": ("test_32x32.mat", True, (3, 32, 32)),
    "mnist": ("MNIST/raw/t10k-images-idx3-ubyte.gz", True, (1, 28, 28)),
    "kmnist": ("KMNIST/raw/t10k-labels-idx1-ubyte", False, (1, 28, 28)),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder: Path = tmp_path_factory.mktemp("published")
    make_cifar10(folder, n_per_batch=2)
    digits = {"X": np.moveaxis(pixels(4, 2, 32, 32, 3), 0, 3), "y": np.array([[10], [1]], np.uint8)}
    savemat(folder / "test_32x32.mat", digits, do_compression=True)  # as the published one is
    make_mnist_like(folder, "MNIST", n=2)
    make_mnist_like(folder, "KMNIST", n=2, gz=False)
    return folder


@pytest.mark.parametrize("name", PUBLISHED)
@fuzz(30, 150, changes=edits)
def test_published_sets(root, name, changes) -> None:
    file, checked, shape = PUBLISHED[name]
    path = root / file
    original = path.read_bytes()
    try:
        path.write_bytes(damaged(original, changes))
        found = attempt(lambda: load_published(name, "test", root, download=False))
    finally:
        path.write_bytes(original)
    if found is not None:
        assert is_whole(found, shape)
        if checked:
            assert np.array_equal(found.images, load_published(name, "test", root, download=False).images)


@fuzz(30, 150, changes=edits, name=st.sampled_from(["fog", "labels"]))
def test_cifar10c(tmp_path, changes, name) -> None:
    if not (tmp_path / "CIFAR-10-C").exists():
        make_cifar10c(tmp_path)
    path = tmp_path / "CIFAR-10-C" / f"{name}.npy"
    original = path.read_bytes()
    try:
        path.write_bytes(damaged(original, changes))
        found = attempt(lambda: load_set("cifar10c/fog/1", data_dir=tmp_path))
    finally:
        path.write_bytes(original)
    assert found is None or is_whole(found, (3, 32, 32))


def picture(kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels(3, 9, 12, 3)).save(file, kind)
    return file.getvalue()


PICTURES = {kind: picture(kind) for kind in ("png", "jpeg", "gif", "bmp", "webp", "tiff", "ppm")}


@fuzz(60, 300, changes=edits, kind=st.sampled_from(sorted(PICTURES)))
def test_pictures(tmp_path, changes, kind) -> None:
    path = tmp_path / f"a.{kind}"
    path.write_bytes(damaged(PICTURES[kind], changes))
    found = attempt(lambda: decode_images([path], 8))
    assert found is None or (found.shape == (1, 3, 8, 8) and found.dtype == np.uint8)


def packed(kind: str) -> bytes:
    file = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a/b.txt", "content " * 20)
            archive.writestr("a/c.txt", "more")
        return file.getvalue()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name in ("a/b.txt", "a/c.txt", "a/" + "long" * 40):
            member = tarfile.TarInfo(name)
            member.size = 160
            tar.addfile(member, io.BytesIO(b"content " * 20))
    return file.getvalue()


ARCHIVES = {kind: packed(kind) for kind in ("zip", "tar.gz")}
NAMES = st.sampled_from([b"a/b.txt", b"a/c.txt", b"a/"])
OTHERS = st.sampled_from([b"../x", b"/x", b"..", b"C:\\x", b"\0", b"\xff\xfe", b"a\\..\\..\\x"])


@fuzz(60, 300, changes=edits, kind=st.sampled_from(sorted(ARCHIVES)), names=st.none() | st.tuples(NAMES, OTHERS))
def test_archives(tmp_path, changes, kind, names) -> None:
    """Whatever is in them, nothing appears beside the folder that they are unpacked in."""
    content = ARCHIVES[kind]
    if names:
        old, new = names
        content = content.replace(old, new.ljust(len(old), b"\0" if kind == "tar.gz" else b"_")[: len(old)])
    content = damaged(content, changes if names is None else changes[:1])
    archive, inside = tmp_path / f"x.{kind}", tmp_path / "inside"
    archive.write_bytes(gzip.compress(content) if kind == "tar.gz" else content)
    try:
        attempt(lambda: unpack(archive, inside))
        assert {path.name for path in tmp_path.iterdir()} <= {archive.name, "inside"}
        assert not any(path.is_symlink() for path in inside.rglob("*"))
    finally:
        for folder in [path for path in [inside, *inside.rglob("*")] if path.is_dir()]:
            folder.chmod(0o700)
        shutil.rmtree(inside, ignore_errors=True)
        archive.unlink()


PICKLE = pickle.dumps({b"data": pixels(2, 2, 30), b"labels": [0, 1], b"more": (1.5, None, {"a": True})}, protocol=2)


@fuzz(80, 400, changes=edits)
def test_pickles(tmp_path, changes) -> None:
    (tmp_path / "p").write_bytes(damaged(PICKLE, changes))
    found = attempt(lambda: load_pickle(tmp_path / "p"))
    assert found is None or isinstance(found, dict)


def shard() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for key, label in (("a", b"0"), ("b", b"1")):
            for ending, content in (("png", PICTURES["png"]), ("cls", label)):
                member = tarfile.TarInfo(f"{key}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return file.getvalue()[: 8 * 512 + 1024]  # without what fills the last record


SHARD = shard()


@fuzz(40, 200, changes=edits)
def test_shards(tmp_path, changes) -> None:
    pytest.importorskip("webdataset")
    (tmp_path / "x.tar").write_bytes(damaged(SHARD, changes))
    shutil.rmtree(tmp_path / "data", ignore_errors=True)
    (tmp_path / "data").mkdir()
    found = attempt(lambda: load_set("shards:x.tar", data_dir=tmp_path / "data", shape=(3, 8, 8)))
    if found is not None:
        assert is_whole(found, (3, 8, 8))
