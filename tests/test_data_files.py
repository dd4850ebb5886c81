"""Readers on small files of the published layouts: what they find, what they refuse, and what a download leaves."""

from __future__ import annotations

import gzip
import os
import pickle
import shutil
import socket
import tarfile
import urllib.error
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import (
    idx_bytes,
    make_celeba,
    make_cifar10,
    make_cifar10c,
    make_cifar100,
    make_folder,
    make_mnist_like,
    make_npz,
    make_svhn,
    make_textures,
    pixels,
    save_picture,
)

from ebmhybrid.data import ImageSet, load_set, load_splits
from ebmhybrid.data.archives import load_pickle, unpack
from ebmhybrid.data.downloads import load_published
from ebmhybrid.data.published import SOURCES
from ebmhybrid.errors import DataError

UNOFFICIAL = "not the official files (md5 differs)"


def load(name: str, root: Path, split: str = "test") -> ImageSet:
    return load_published(name, split, root, download=False)


def assert_is(images: ImageSet, pair: tuple[np.ndarray, np.ndarray]) -> None:
    assert np.array_equal(images.images.numpy(), pair[0])
    assert np.array_equal(images.labels.numpy(), pair[1])
    assert images.images.is_contiguous()


def tree(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*"))


# --- published sets ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("archive", [False, True])
@pytest.mark.parametrize("python", [2, 3])
def test_cifar10(tmp_path, split, archive, python):
    made = make_cifar10(tmp_path, n_per_batch=20, python=python, archive=archive)
    images = load("cifar10", tmp_path, split)
    assert_is(images, made[split])
    assert images.classes[:3] == ("airplane", "automobile", "bird")
    assert images.notes[0] == f"official {split} split"
    assert images.notes[1].startswith(UNOFFICIAL)
    assert not [name for name in tree(tmp_path) if "incomplete" in name]


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("archive", [False, True])
def test_cifar100(tmp_path, split, archive):
    made = make_cifar100(tmp_path, archive=archive)
    images = load("cifar100", tmp_path, split)
    assert_is(images, made[split])
    assert images.classes[99] == "kind99"
    if not archive:
        (tmp_path / "cifar-100-python" / "meta").unlink()
        assert load("cifar100", tmp_path, split).classes[99] == "99"


@pytest.mark.parametrize("split", ["train", "test"])
def test_svhn_has_its_zeros_back_and_needs_only_the_split_asked_for(tmp_path, split):
    made = make_svhn(tmp_path, splits=(split,))
    images = load("svhn", tmp_path, split)
    assert_is(images, made[split])
    assert images.classes == tuple("0123456789")
    assert images.notes[1] == f"{UNOFFICIAL}: {split}_32x32.mat"


@pytest.mark.parametrize(
    ("name", "kind", "first"),
    [("mnist", "MNIST", "0"), ("fashion_mnist", "FashionMNIST", "T-shirt/top"), ("kmnist", "KMNIST", "o")],
)
@pytest.mark.parametrize("gz", [True, False])
def test_mnist_and_its_likes(tmp_path, name, kind, first, gz):
    made = make_mnist_like(tmp_path, kind, gz=gz)
    for split in ("train", "test"):
        images = load(name, tmp_path, split)
        assert_is(images, made[split])
        assert images.classes[0] == first
        assert images.notes[1:] == ((f"{UNOFFICIAL}: " + ", ".join(_mnist_files(split)),) if gz else ())


def _mnist_files(split: str) -> list[str]:
    prefix = {"train": "train", "test": "t10k"}[split]
    return [f"{prefix}-images-idx3-ubyte.gz", f"{prefix}-labels-idx1-ubyte.gz"]


@pytest.mark.parametrize("zipped", [False, True])
def test_celeba_is_smiling_or_not(tmp_path, zipped):
    smiling = make_celeba(tmp_path, parts=(0, 0, 1, 2, 2), zipped=zipped)
    test, train = load("celeba", tmp_path, "test"), load("celeba", tmp_path, "train")
    assert (test.shape, len(test), len(train)) == ((3, 32, 32), 2, 3)
    assert test.labels.tolist() == [int(s) for s in smiling[3:]]
    assert train.labels.tolist() == [int(s) for s in smiling[:3]]
    assert (test.images[:, 0].float().mean((1, 2)) - torch.tensor([120.0, 160.0])).abs().max() < 4
    assert test.classes == ("not smiling", "smiling")
    assert "label: the attribute Smiling" in test.notes
    assert load_set("celeba", data_dir=tmp_path, shape=(1, 16, 16)).shape == (1, 16, 16)


def test_textures_train_on_the_official_train_and_validation_parts(tmp_path):
    make_textures(tmp_path)
    test, train = load("textures", tmp_path, "test"), load("textures", tmp_path, "train")
    assert (test.classes, test.labels.tolist()) == (("banded", "zigzagged"), [0, 1])
    assert train.labels.tolist() == [0, 1, 0, 1]
    assert (test.images[:, 0].float().mean() - 160).abs() < 4
    assert test.notes[-1] == "whole pictures resized to 32x32 while decoding (bilinear)"
    assert load_published("textures", "test", tmp_path, download=False, size=8).shape == (3, 8, 8)


# --- damaged or hostile files -----------------------------------------------------------------------------------


class Bomb:
    """Writes a file when it is unpickled by anything that runs what a pickle asks for."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self):
        return os.mkdir, (str(self.proof),)


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_pickle_that_runs_something_is_refused_and_not_run(tmp_path, protocol):
    make_cifar10(tmp_path)
    proof, batch = tmp_path / "proof", tmp_path / "cifar-10-batches-py" / "test_batch"
    batch.write_bytes(pickle.dumps({b"data": Bomb(proof)}, protocol=protocol))
    with pytest.raises(DataError, match=r"test_batch: not a pickle of arrays: .*mkdir is not allowed"):
        load("cifar10", tmp_path)
    assert not proof.exists()
    pickle.loads(batch.read_bytes())  # it would have run
    assert proof.exists()


@pytest.mark.parametrize("value", [eval, np.memmap, gzip.open, ImageSet])
def test_only_arrays_can_be_named_in_a_pickle(tmp_path, value):
    (tmp_path / "p").write_bytes(pickle.dumps({"data": value}))
    with pytest.raises(DataError, match="not allowed"):
        load_pickle(tmp_path / "p")


def test_a_pickle_may_use_no_codec_but_latin1(tmp_path):
    (tmp_path / "p").write_bytes(b"c_codecs\nencode\n(Vx\nVrot13\ntR.")
    with pytest.raises(DataError, match="encoding 'rot13' is not allowed"):
        load_pickle(tmp_path / "p")


def rewrite(path: Path, content: object) -> None:
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a pickle of arrays"),
        (pickle.dumps({b"data": pixels(0, 4, 3072)})[:900], "not a pickle of arrays"),
        ([1, 2], "must hold a dict, got list"),
        ({b"labels": [1]}, r"'data' must be uint8 of shape \(N, 3072\), got NoneType"),
        ({b"data": pixels(0, 4, 100), b"labels": [0] * 4}, r"got uint8 \(4, 100\)"),
        ({b"data": np.zeros((4, 3072)), b"labels": [0] * 4}, r"got float64 \(4, 3072\)"),
        ({b"data": pixels(0, 4, 3072), b"labels": [0] * 3}, "'labels' must hold 4 labels"),
        ({b"data": pixels(0, 4, 3072), b"fine_labels": [0] * 4}, "'labels' must hold 4 labels"),
        ({b"data": pixels(0, 4, 3072), b"labels": [0, 1, 2, 10]}, r"labels must lie in 0\.\.9, got 0\.\.10"),
    ],
)
def test_damaged_cifar_batches_are_refused(tmp_path, content, message):
    make_cifar10(tmp_path)
    rewrite(tmp_path / "cifar-10-batches-py" / "test_batch", content)
    with pytest.raises(DataError, match=message):
        load("cifar10", tmp_path)


@pytest.mark.parametrize("name", ["../outside", "/outside", "a/../../outside"])
def test_archives_that_would_write_outside_are_refused(tmp_path, name):
    (tmp_path / "file").write_text("x")
    for archive in (tmp_path / "a.tar.gz", tmp_path / "a.zip"):
        if archive.suffix == ".zip":
            with zipfile.ZipFile(archive, "w") as packed:
                packed.writestr(name, "x")
        else:
            with tarfile.open(archive, "w:gz") as tar:
                info = tar.gettarinfo(tmp_path / "file")
                info.name = name
                with (tmp_path / "file").open("rb") as content:
                    tar.addfile(info, content)
        with pytest.raises(DataError, match=r"refused, member .* would land outside"):
            unpack(archive, tmp_path / "inside" / "deep")
    assert tree(tmp_path) == ["a.tar.gz", "a.zip", "file"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
@pytest.mark.parametrize("filtered", [True, False])
def test_links_and_pipes_in_archives_are_refused(tmp_path, kind, filtered, monkeypatch):
    if not filtered:
        monkeypatch.delattr(tarfile, "data_filter", raising=False)
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        info = tarfile.TarInfo("link")
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(DataError, match="member 'link' is neither a file nor a folder"):
        unpack(tmp_path / "a.tar.gz", tmp_path / "inside")
    assert tree(tmp_path) == ["a.tar.gz"]


def test_archives_unpack_on_a_python_without_the_filter(tmp_path, monkeypatch):
    made = make_cifar10(tmp_path, archive=True)
    monkeypatch.delattr(tarfile, "data_filter", raising=False)
    monkeypatch.setattr(tarfile.TarFile, "extraction_filter", staticmethod(tarfile.fully_trusted_filter), raising=False)
    assert_is(load("cifar10", tmp_path), made["test"])


@pytest.mark.parametrize("keep", [0, 30, 2000])
def test_a_truncated_archive_is_named_and_leaves_nothing(tmp_path, keep):
    make_cifar10(tmp_path, archive=True)
    archive = tmp_path / "cifar-10-python.tar.gz"
    archive.write_bytes(archive.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"cifar-10-python.tar.gz: cannot be unpacked, it may be damaged"):
        load("cifar10", tmp_path)
    assert tree(tmp_path) == ["cifar-10-python.tar.gz"]


def test_an_archive_without_the_files_says_so(tmp_path):
    (tmp_path / "x.txt").write_text("x")
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "x.txt", "cifar-10-batches-py/readme.html")
    with pytest.raises(DataError, match=r"test_batch not found in .* \(.*cifar-10-python.tar.gz does not hold it\)"):
        load("cifar10", tmp_path)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "not an IDX file of bytes in 3 dimensions"),
        (idx_bytes(pixels(0, 5))[:12], "not an IDX file"),
        (idx_bytes(pixels(0, 4, 28, 28))[:-1], r"\(4, 28, 28\) bytes announced, 3135 found; it may be truncated"),
        (gzip.compress(idx_bytes(pixels(0, 4, 28, 28)))[:-20], "cannot read MNIST/raw/.*: EOFError"),
        (b"no gzip", "cannot read MNIST/raw/.*: BadGzipFile"),
    ],
)
def test_damaged_idx_files_are_refused(tmp_path, raw, message):
    make_mnist_like(tmp_path, "MNIST", n=4, gz=False)
    file = tmp_path / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    if "cannot" in message:
        file.unlink()
        file = file.with_name(file.name + ".gz")
    file.write_bytes(raw)
    with pytest.raises(DataError, match=message):
        load("mnist", tmp_path)


def test_damaged_svhn_and_celeba_are_refused(tmp_path):
    make_svhn(tmp_path)
    (tmp_path / "test_32x32.mat").write_bytes(b"no mat file at all, but long enough to be looked at" * 9)
    with pytest.raises(DataError, match=r"svhn: cannot read test_32x32.mat in"):
        load("svhn", tmp_path)
    from scipy.io import savemat

    savemat(tmp_path / "test_32x32.mat", {"X": pixels(0, 4, 32), "y": [[1]]})
    with pytest.raises(DataError, match=r"test_32x32.mat: must hold X of shape \(32, 32, 3, N\) and y"):
        load("svhn", tmp_path)
    make_celeba(tmp_path)
    (tmp_path / "celeba" / "list_attr_celeba.txt").write_text("0\nBald Young\n")
    with pytest.raises(DataError, match=r"celeba: cannot read celeba/img_align_celeba, .*Smiling"):
        load("celeba", tmp_path)


# --- absent files and downloads ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(SOURCES))
@pytest.mark.parametrize("split", ["train", "test"])
def test_absent_files_say_what_to_fetch_and_where_to_put_it(tmp_path, name, split):
    folder = tmp_path / "data"
    with pytest.raises(DataError) as error:
        load(name, folder, split)
    message = str(error.value)
    assert message.startswith(f"{name}: ")
    assert "(downloading is off); fetch" in message
    assert SOURCES[name].page in message
    for remote in SOURCES[name].remotes(split):
        assert str(folder / remote.path) in message
        assert len(remote.md5) == 32
        assert remote.urls or remote.drive_id
    assert "\n" not in message
    assert not folder.exists()


@pytest.mark.parametrize(
    "failure",
    [
        urllib.error.URLError("no\nnetwork"),
        urllib.error.HTTPError("http://x", 404, "Not Found", None, None),  # type: ignore[arg-type]
        RuntimeError("File not found or corrupted."),
        TimeoutError("timed out"),
        ConnectionResetError("reset"),
    ],
)
@pytest.mark.parametrize("name", ["cifar10", "svhn", "mnist", "textures"])
def test_a_failed_download_is_one_line_and_leaves_nothing(tmp_path, name, failure, monkeypatch):
    def fail(url: str, root: str, filename: str, md5: str) -> None:
        assert socket.getdefaulttimeout() == 60
        Path(root, filename).write_bytes(b"half")
        raise failure

    monkeypatch.setattr("torchvision.datasets.utils.download_url", fail)
    with pytest.raises(DataError) as error:
        load_set(name, data_dir=tmp_path / "data")
    message = str(error.value)
    assert f"(the download failed: {type(failure).__name__}: " in message
    assert f"fetch {SOURCES[name].remotes('test')[0].path.split('/')[-1]}" in message
    assert "\n" not in message
    assert not (tmp_path / "data").exists()
    assert socket.getdefaulttimeout() is None


def test_a_dead_network_is_a_data_error_through_torchvision_itself(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("name resolution")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    (tmp_path / "kept.txt").write_text("mine")
    for name in ("cifar100", "kmnist", "celeba"):
        with pytest.raises(DataError, match="the download failed"):
            load_set(name, data_dir=tmp_path)
    assert tree(tmp_path) == ["kept.txt"]


def serve(monkeypatch, origin: Path, dead: str = "") -> list[str]:
    """Replaces torchvision's download by copies from a folder, and says what was asked for."""
    asked: list[str] = []

    def copy(url: str, root: str, filename: str, md5: str) -> None:
        asked.append(url)
        if dead and dead in url:
            raise urllib.error.URLError("dead mirror")
        shutil.copy(next(origin.rglob(filename)), Path(root, filename))

    monkeypatch.setattr("torchvision.datasets.utils.download_url", copy)
    return asked


def test_a_download_is_unpacked_moved_into_place_and_done_once(tmp_path, monkeypatch):
    made = make_cifar10(tmp_path / "origin", archive=True)
    asked = serve(monkeypatch, tmp_path / "origin")
    for _ in range(2):
        assert_is(load_set("cifar10", data_dir=tmp_path / "data"), made["test"])
    assert asked == ["https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"]
    assert sorted(os.listdir(tmp_path / "data")) == ["cifar-10-batches-py"]
    assert len(load_splits("cifar10", data_dir=tmp_path / "data", download=False).train) == 90


def test_a_second_mirror_is_tried_and_the_users_files_stay(tmp_path, monkeypatch):
    make_mnist_like(tmp_path / "data", "MNIST", n=10, gz=False)
    mine = tmp_path / "data" / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    before = mine.read_bytes()
    mine.with_name("t10k-labels-idx1-ubyte").unlink()
    make_mnist_like(tmp_path / "origin", "MNIST", n=10)
    asked = serve(monkeypatch, tmp_path / "origin", dead="amazonaws")
    assert len(load_set("mnist", data_dir=tmp_path / "data")) == 10
    assert [url.split("/")[2] for url in asked[:2]] == ["ossci-datasets.s3.amazonaws.com", "yann.lecun.com"]
    assert mine.read_bytes() == before


def test_celeba_comes_from_google_drive_in_the_three_files_it_needs(tmp_path, monkeypatch):
    make_celeba(tmp_path / "origin", zipped=True)
    asked = []

    def copy(file_id: str, root: str, filename: str, md5: str) -> None:
        asked.append(filename)
        shutil.copy(tmp_path / "origin" / "celeba" / filename, Path(root, filename))

    monkeypatch.setattr("torchvision.datasets.utils.download_file_from_google_drive", copy)
    assert len(load_set("celeba", data_dir=tmp_path / "data")) == 2
    assert sorted(asked) == ["img_align_celeba.zip", "list_attr_celeba.txt", "list_eval_partition.txt"]
    assert "celeba/img_align_celeba.zip" not in tree(tmp_path / "data")


def test_a_data_folder_that_cannot_be_written_is_a_data_error(tmp_path, monkeypatch):
    make_cifar10(tmp_path, archive=True)

    def refuse(*args, **kwargs):
        raise PermissionError("read-only")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    with pytest.raises(DataError, match=r"cannot unpack .*python.tar.gz beside it: PermissionError: read-only"):
        load("cifar10", tmp_path)


def test_a_download_of_something_else_leaves_the_folder_as_it_was(tmp_path, monkeypatch):
    (tmp_path / "origin").mkdir()
    (tmp_path / "origin" / "cifar-10-python.tar.gz").write_bytes(b"<html>moved</html>")
    serve(monkeypatch, tmp_path / "origin")
    with pytest.raises(DataError, match=r"the download failed: DataError: .*cannot be unpacked"):
        load_set("cifar10", data_dir=tmp_path / "data")
    assert not (tmp_path / "data").exists()


# --- a user's own files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(8, 8), (9, 7, 1), (8, 8, 3)])
def test_npz(tmp_path, shape):
    x, _ = make_npz(tmp_path / "a.npz", shape=shape, y=np.array([0, 3, 7, 3] * 10, dtype=np.uint16))
    images = load_set(f"npz:{tmp_path}/a.npz")
    assert_is(images, (np.moveaxis(x.reshape(40, *shape[:2], -1), 3, 1), [0, 3, 7, 3] * 10))
    assert images.classes == tuple("01234567")
    assert load_set(f"npz:{tmp_path}/a.npz:3,7").labels.unique().tolist() == [0, 1]


NAN = np.full((40, 8, 8), np.nan, dtype=np.float32)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"x": NAN},
            "x must be uint8 of shape (N, H, W) or (N, H, W, C) with C = 1 or 3, got float32 with NaN (40, 8, 8)",
        ),
        ({"x": np.zeros((40, 8, 8))}, "got float64 (40, 8, 8)"),
        ({"x": np.full((40, 8, 8), 300)}, "got int64 (40, 8, 8)"),
        ({"x": pixels(0, 40, 8)}, "got uint8 (40, 8)"),
        ({"x": pixels(0, 40, 3, 8, 8)}, "got uint8 (40, 3, 8, 8)"),
        ({"x": pixels(0, 40, 8, 8, 3, 1)}, "got uint8 (40, 8, 8, 3, 1)"),
        ({"x": pixels(0, 0, 8, 8), "y": np.zeros(0, int)}, "holds no images, x is uint8 (0, 8, 8)"),
        ({"x": None}, "arrays x and y are needed, x is not among ['y']"),
        ({"y": None}, "arrays x and y are needed, y is not among ['x']"),
        ({"y": np.zeros(39, int)}, "y must be integers of shape (40,), got int64 (39,)"),
        ({"y": np.zeros((40, 1), int)}, "got int64 (40, 1)"),
        ({"y": np.zeros(40)}, "got float64 (40,)"),
        ({"y": np.arange(40) - 1}, "y must lie in 0..100000, got -1..38"),
        ({"y": np.arange(40) * 10_000}, "y must lie in 0..100000, got 0..390000"),
    ],
)
def test_npz_of_another_form_is_refused(tmp_path, arrays, message):
    make_npz(tmp_path / "a.npz", shape=(8, 8), **arrays)
    with pytest.raises(DataError) as error:
        load_set(f"npz:{tmp_path}/a.npz")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["x", "y"])
def test_npz_of_objects_is_refused_and_not_run(tmp_path, key):
    proof = tmp_path / "proof"
    bomb = np.empty(40, dtype=object)
    bomb[:] = [Bomb(proof)] * 40
    make_npz(tmp_path / "a.npz", **{key: bomb})
    with pytest.raises(DataError, match=r"cannot be read as .npz, it may be truncated or hold objects"):
        load_set(f"npz:{tmp_path}/a.npz")
    assert not proof.exists()


@pytest.mark.parametrize("keep", [0, 10, 200, -30])
def test_truncated_npz_is_refused(tmp_path, keep):
    make_npz(tmp_path / "a.npz")
    file = tmp_path / "a.npz"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"a.npz: cannot be read as .npz"):
        load_set(f"npz:{file}")


def test_absent_npz_and_plain_npy_are_refused(tmp_path):
    with pytest.raises(DataError, match="there is no file"):
        load_set(f"npz:{tmp_path}/none.npz")
    np.save(tmp_path / "a.npy", np.zeros(3))
    with pytest.raises(DataError, match=r"cannot be read as .npz"):
        load_set(f"npz:{tmp_path}/a.npy")


def test_folder(tmp_path):
    colours = make_folder(tmp_path / "pets")
    images = load_set(f"folder:{tmp_path}/pets", shape=(3, 16, 16))
    assert (images.classes, images.labels.tolist()) == (("cat", "dog"), [0, 0, 0, 1, 1, 1])
    assert images.shape == (3, 16, 16)
    assert images.images[:, :, 5, 5].tolist() == [list(colour) for name in ("cat", "dog") for colour in colours[name]]
    assert images.notes == ("whole pictures decoded to RGB and resized to 16x16 (bilinear)",)
    assert load_set(f"folder:{tmp_path}/pets").shape == (3, 32, 32)
    gray = load_set(f"folder:{tmp_path}/pets:1", shape=(1, 8, 8))
    assert (gray.shape, gray.classes, gray.notes[-1]) == ((1, 8, 8), ("dog",), "RGB -> gray (ITU-R 601)")


def test_pictures_of_every_mode_are_decoded(tmp_path):
    from PIL import Image

    folder = tmp_path / "set" / "a"
    save_picture(folder / "rgb.png", (10, 20, 30))
    rgb = Image.open(folder / "rgb.png")
    rgb.convert("L").save(folder / "gray.png")
    rgb.convert("RGBA").save(folder / "alpha.png")
    rgb.convert("P").save(folder / "palette.png", transparency=b"\x00\xff")
    rgb.convert("CMYK").save(folder / "cmyk.jpg")
    assert len(load_set(f"folder:{tmp_path}/set")) == 5
    Image.fromarray(np.full((4, 4), 60_000, np.uint16)).save(folder / "deep.png")
    with pytest.raises(DataError, match=r"deep.png: pictures must have 8 bits a channel, got PIL mode I"):
        load_set(f"folder:{tmp_path}/set", strict=True)


@pytest.mark.parametrize("content", [b"", b"no picture", None])
def test_a_corrupt_picture_is_named(tmp_path, content):
    make_folder(tmp_path / "pets")
    file = tmp_path / "pets" / "dog" / "1.png"
    file.write_bytes(file.read_bytes()[:45] if content is None else content)
    with pytest.raises(DataError, match=r"dog/1.png: cannot be decoded as a picture"):
        load_set(f"folder:{tmp_path}/pets", strict=True)
    left = load_set(f"folder:{tmp_path}/pets")
    assert left.labels.tolist() == [0, 0, 0, 1, 1]
    assert [int(x) for x in left.images[:, 1, 0, 0]] == [0, 10, 20, 0, 20]  # the second dog is missing
    assert left.notes[1].startswith("1 of 6 pictures cannot be decoded and are left out, the first is ")
    assert "dog/1.png: cannot be decoded" in left.notes[1]


def test_empty_folders_are_refused(tmp_path):
    with pytest.raises(DataError, match="there is no folder"):
        load_set(f"folder:{tmp_path}/none")
    with pytest.raises(DataError, match=r"needs one sub-folder of pictures a class, .* has no sub-folder"):
        load_set(f"folder:{tmp_path}")
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match=r"no picture .* in the sub-folders"):
        load_set(f"folder:{tmp_path}")


# --- CIFAR-10-C -------------------------------------------------------------------------------------------------


def test_cifar10c_by_corruption_and_severity(tmp_path):
    made = make_cifar10c(tmp_path, n=10)
    fog, labels = made["fog"].transpose(0, 3, 1, 2), made["labels"]
    assert_is(load_set("cifar10c/fog", data_dir=tmp_path), (fog, labels))
    third = load_set("cifar10c/fog/3", data_dir=tmp_path)
    assert_is(third, (fog[20:30], labels[20:30]))
    assert (third.name, third.notes) == ("cifar10c/fog/3", ("severity 3 of 5",))
    assert load_set("cifar10c/fog/3:0-4", data_dir=tmp_path).num_classes == 5


def test_cifar10c_alone_goes_round_all_corruptions_and_severities(tmp_path):
    made = make_cifar10c(tmp_path, ("fog", "snow"), n=25)
    images = load_set("cifar10c", data_dir=tmp_path)
    assert len(images) == 25
    cells = [(name, severity) for name in ("fog", "snow") for severity in range(5)]
    for i, (image, label) in enumerate(zip(images.images, images.labels, strict=True)):
        name, severity = cells[i % 10]
        assert np.array_equal(image.permute(1, 2, 0).numpy(), made[name][25 * severity + i])
        assert label == made["labels"][i]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar10c/fgo", "there is no corruption 'fgo', did you mean 'fog'?"),
        ("cifar10c/fog/6", "must look like cifar10c/fog/3, with a severity from 1 to 5"),
        ("cifar10c/fog/0", "with a severity from 1 to 5"),
        ("cifar10c/fog/3/1", "with a severity from 1 to 5"),
    ],
)
def test_wrong_cifar10c_names_are_refused(tmp_path, name, message):
    make_cifar10c(tmp_path)
    with pytest.raises(DataError) as error:
        load_set(name, data_dir=tmp_path)
    assert message in str(error.value)


def test_absent_and_damaged_cifar10c_files_are_refused(tmp_path):
    with pytest.raises(
        DataError, match=r"fetch CIFAR-10-C.tar from https://zenodo.org/records/2535967 and unpack it in"
    ):
        load_set("cifar10c/fog", data_dir=tmp_path)
    make_cifar10c(tmp_path)
    fog = tmp_path / "CIFAR-10-C" / "fog.npy"
    np.save(fog, pixels(0, 49, 32, 32, 3))
    with pytest.raises(
        DataError, match=r"fog.npy: must be uint8 \(N, 32, 32, 3\) for N integer labels .* got uint8 \(49,"
    ):
        load_set("cifar10c/fog", data_dir=tmp_path)
    fog.write_bytes(fog.read_bytes()[:500])
    with pytest.raises(DataError, match=r"fog.npy: cannot be read as .npy"):
        load_set("cifar10c/fog", data_dir=tmp_path)
    np.save(fog, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"fog.npy: cannot be read as .npy, it may be truncated or hold objects"):
        load_set("cifar10c/fog", data_dir=tmp_path)
