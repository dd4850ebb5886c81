"""OpenOOD's protocol from tiny lists and pictures in its layout, and what takes its place without them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import make_cifar10, make_cifar100, make_mnist_like, make_svhn, make_textures, pixels
from PIL import Image

from ebmhybrid.data.openood import decode, load_openood, read_list
from ebmhybrid.errors import DataError, UsageError

NAMES = {"cifar10": ("cifar100", "tin"), "cifar100": ("cifar10", "tin")}
FAR = ("mnist", "svhn", "texture", "places365")


def _picture(path: Path, seed: int, size: tuple[int, int] = (32, 32), mode: str = "RGB") -> None:
    """A picture of smooth random colours, (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    small = Image.fromarray(pixels(seed, 8, 8, 3)).resize(size, Image.Resampling.BICUBIC)
    small.convert(mode).save(path)


def _lay_out(root: Path, id_name: str = "cifar10") -> None:
    """Two pictures a set, the ID set's in classes 0 and 3, and their lists."""
    lists = root / "benchmark_imglist" / id_name
    lists.mkdir(parents=True)
    kinds = {name: f"{name}/test/{{}}.png -1" for name in (*NAMES[id_name], *FAR)}
    kinds[id_name] = f"{id_name}/test/kind{{}}/0001.png {{}}"
    kinds["tin"] = "tin/val/images/val_{}.JPEG -1"
    for number, (name, line) in enumerate(kinds.items()):
        lines = [line.format(label, label) for label in (3, 0)]
        for i, entry in enumerate(lines):
            _picture(root / "images_classic" / entry.split()[0], 10 * number + i)
        (lists / f"test_{name}.txt").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("id_name", ["cifar10", "cifar100"])
def test_lists_name_the_sets_and_their_groups(tmp_path: Path, id_name: str) -> None:
    _lay_out(tmp_path, id_name)
    test, sets, groups = load_openood(id_name, tmp_path)
    assert groups == {**dict.fromkeys(NAMES[id_name], "near"), **dict.fromkeys(FAR, "far")}
    assert list(sets) == list(groups)
    assert (test.name, test.labels.tolist(), test.num_classes) == (id_name, [3, 0], 10 if id_name == "cifar10" else 100)
    assert test.classes[:4] == ("kind0", "1", "2", "kind3")
    for name, images in {id_name: test, **sets}.items():
        assert (len(images), images.shape, images.name) == (2, (3, 32, 32), name)
        assert images.notes[0] == f"OpenOOD v1.5, benchmark_imglist/{id_name}/test_{name}.txt"
    expected = np.asarray(Image.open(tmp_path / "images_classic" / id_name / "test" / "kind3" / "0001.png"))
    assert np.array_equal(test.images[0].permute(1, 2, 0).numpy(), expected)
    assert sets["svhn"].labels.tolist() == [0, 0]
    assert sets["svhn"].classes == ("unlabelled",)


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((64, 48), (42, 32, 5, 0)),  # (width, height) after resizing, then left and top of the centre
        ((48, 96), (32, 64, 0, 16)),
        ((32, 32), (32, 32, 0, 0)),
        ((28, 28), (32, 32, 0, 0)),
        ((20, 33), (32, 52, 0, 10)),
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_pictures_are_resized_by_the_shorter_side_and_cut(
    tmp_path: Path, size: tuple[int, int], box: Sequence[int], mode: str
) -> None:
    _picture(tmp_path / "a.png", 1, size, mode)
    width, height, left, top = box
    with Image.open(tmp_path / "a.png") as picture:
        whole = picture.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    expected = np.asarray(whole)[top : top + 32, left : left + 32].transpose(2, 0, 1)
    assert np.array_equal(decode(tmp_path / "a.png"), expected)


def test_pictures_are_decoded_as_openood_composes_it(tmp_path: Path) -> None:
    from torchvision import transforms

    official = transforms.Compose(
        [
            transforms.Resize(32, interpolation=transforms.InterpolationMode.BILINEAR),
            transforms.CenterCrop(32),
            transforms.ToTensor(),
        ]
    )
    for number, size in enumerate([(300, 301), (640, 480), (33, 71)]):
        _picture(tmp_path / "a.png", number, size)
        with Image.open(tmp_path / "a.png") as picture:
            expected = official(picture.convert("RGB"))
        assert torch.equal(torch.from_numpy(decode(tmp_path / "a.png").copy()).float() / 255, expected)


def test_sets_are_adapted_to_the_model(tmp_path: Path) -> None:
    _lay_out(tmp_path)
    test, sets, _ = load_openood("cifar10", tmp_path, (1, 16, 16))
    for images in (test, *sets.values()):
        assert images.shape == (1, 16, 16)
        assert images.notes[2:] == ("resized 32x32 -> 16x16 (bilinear)", "RGB -> gray (ITU-R 601)")


@pytest.mark.parametrize(
    "line",
    ["../secret.png -1", "tin/../../secret.png -1", "/etc/passwd -1", "tin\\..\\secret.png -1", "C:/secret.png -1"],
)
def test_paths_out_of_the_folder_are_refused_before_any_picture_is_read(tmp_path: Path, line: str) -> None:
    _lay_out(tmp_path)
    _picture(tmp_path / "secret.png", 0)
    path = tmp_path / "benchmark_imglist" / "cifar10" / "test_tin.txt"
    path.write_text(f"tin/val/images/val_0.JPEG -1\n\n{line}\n")
    with pytest.raises(DataError, match=r"test_tin\.txt:3: a path must lie under images_classic/, got"):
        load_openood("cifar10", tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a.png\n", r"test_svhn\.txt:1: a line must be a path and an integer label, got 'a\.png'"),
        ("a.png x\n", "a line must be a path and an integer label, got 'a.png x'"),
        ("7\n", "a path must lie under images_classic/, got '7'"),
        ("\n \n", "test_svhn.txt: lists no image"),
        ("", "test_svhn.txt: lists no image"),
        ("svhn/test/none.png -1", r"none\.png cannot be read as a picture"),
    ],
)
def test_unusable_lists_are_named(tmp_path: Path, content: str, message: str) -> None:
    _lay_out(tmp_path)
    (tmp_path / "benchmark_imglist" / "cifar10" / "test_svhn.txt").write_text(content)
    with pytest.raises(DataError, match=message):
        load_openood("cifar10", tmp_path)


def test_lists_that_are_absent_or_no_text_are_named(tmp_path: Path) -> None:
    _lay_out(tmp_path)
    path = tmp_path / "benchmark_imglist" / "cifar10" / "test_places365.txt"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(
        DataError, match=r"cannot read .*test_places365\.txt \(UnicodeDecodeError\); the protocol needs"
    ):
        load_openood("cifar10", tmp_path)
    path.unlink()
    with pytest.raises(DataError, match=r"cannot read .*test_places365\.txt \(FileNotFoundError\); the protocol needs"):
        load_openood("cifar10", tmp_path)


def test_a_picture_that_is_damaged_is_named(tmp_path: Path) -> None:
    _lay_out(tmp_path)
    file = tmp_path / "images_classic" / "mnist" / "test" / "0.png"
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(DataError, match=r"mnist/test/0\.png cannot be read as a picture"):
        load_openood("cifar10", tmp_path)


@pytest.mark.parametrize("label", [-1, 10])
def test_labels_of_the_id_set_must_be_classes(tmp_path: Path, label: int) -> None:
    _lay_out(tmp_path)
    path = tmp_path / "benchmark_imglist" / "cifar10" / "test_cifar10.txt"
    path.write_text(path.read_text() + f"cifar10/test/kind0/0001.png {label}\n")
    with pytest.raises(DataError, match=rf"labels must lie in 0\.\.9, got {label} for cifar10/test/kind0/0001\.png"):
        load_openood("cifar10", tmp_path)


def test_names_may_hold_spaces_and_lines_may_end_as_on_windows(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"a b/c.png -1\r\n  d.png 7 \r\n\r\n")
    assert read_list(tmp_path / "list.txt") == [("a b/c.png", -1), ("d.png", 7)]


def test_other_sets_are_no_id_set() -> None:
    with pytest.raises(UsageError, match="got 'cifar1', did you mean 'cifar10'"):
        load_openood("cifar1")


def test_without_lists_the_sets_at_hand_stand_in_and_say_so(tmp_path: Path) -> None:
    made = make_cifar10(tmp_path)
    make_cifar100(tmp_path)
    make_svhn(tmp_path, splits=("test",))
    make_mnist_like(tmp_path, "MNIST")
    make_textures(tmp_path)
    test, sets, groups = load_openood("cifar10", tmp_path, (3, 32, 32), download=False)
    assert groups == {"cifar100": "near", "mnist": "far", "svhn": "far", "textures": "far"}
    assert list(sets) == list(groups)
    assert np.array_equal(test.images.numpy(), made["test"][0])
    assert test.notes[-1] == "OOD sets that are missing: tin; places365"
    for images in (test, *sets.values()):
        assert "not the v1.5 split" in images.notes
        assert images.shape == (3, 32, 32)
    other, sets, groups = load_openood("cifar100", tmp_path, (1, 8, 8), download=False)
    assert (other.name, groups["cifar10"], sets["cifar10"].shape) == ("cifar100", "near", (1, 8, 8))


def test_without_lists_what_cannot_be_had_is_left_out_and_named(tmp_path: Path) -> None:
    make_cifar10(tmp_path)
    make_svhn(tmp_path, splits=("test",))
    test, sets, groups = load_openood("cifar10", tmp_path, download=False)
    assert (list(sets), groups) == (["svhn"], {"svhn": "far"})
    assert "cifar100 (cifar100: cifar-100-python/test not found" in test.notes[-1]


def test_when_nothing_can_be_had_the_message_says_what_to_fetch(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        load_openood("cifar10", tmp_path, download=False)
    text = str(error.value)
    assert f"openood-v1.5: there is no folder {tmp_path}/benchmark_imglist/cifar10" in text
    assert "nor another test set: cifar10: cifar-10-batches-py/test_batch not found" in text
    assert "(downloading is off)" in text
    make_cifar10(tmp_path)
    with pytest.raises(DataError, match=r"nor any other OOD set: cifar100 \(cifar100: cifar-100-python/test not found"):
        load_openood("cifar10", tmp_path, download=False)
    assert "\n" not in text
