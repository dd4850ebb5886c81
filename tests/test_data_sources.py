"""Sets by name that need no file, the grammar of names, and how a set becomes train, validation and test."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from data_files import make_cifar10, make_folder, make_npz, pixels

from ebmhybrid.data import ImageSet, data_names, load_set, load_splits
from ebmhybrid.data.builtin import SHAPES, interpolations
from ebmhybrid.errors import DataError


def test_digits_are_scikit_learns_scaled_to_bytes():
    from sklearn.datasets import load_digits

    source, digits = load_digits(), load_set("digits")
    assert (len(digits), digits.shape, digits.classes) == (1797, (1, 8, 8), tuple("0123456789"))
    assert np.array_equal(digits.images[:, 0].numpy(), np.round(source.images * 255 / 16))
    assert np.array_equal(digits.labels.numpy(), source.target)


@pytest.mark.parametrize(("shape", "want"), [(None, (3, 32, 32)), ((1, 8, 8), (1, 8, 8)), ((3, 80, 80), (3, 80, 80))])
def test_photos_are_patches_of_the_photographs(shape, want):
    from sklearn.datasets import load_sample_images

    photos = load_set("photos", shape=shape)
    assert photos.shape == want
    assert len(photos) <= 2000
    assert photos.labels.unique().tolist() == [0, 1]
    assert photos.notes[0].startswith(f"non-overlapping {min(want[1], 64)}x{min(want[1], 64)} patches")
    if shape is None:
        assert len(photos) == 2 * 13 * 20
        second = load_sample_images().images[0][:32, 32:64].transpose(2, 0, 1)
        assert np.array_equal(photos.images[1].numpy(), second)
        assert len(photos.images.flatten(1).unique(dim=0)) > 0.95 * len(photos)


def test_noise_is_uniform_and_seeded():
    noise = load_set("noise", shape=(1, 8, 8), seed=1)
    assert (len(noise), noise.shape, noise.classes) == (2000, (1, 8, 8), ("noise",))
    counts = noise.images.flatten().bincount(minlength=256).double()
    expected = noise.images.numel() / 256
    assert float(((counts - expected) ** 2 / expected).sum()) < 255 + 6 * (2 * 255) ** 0.5  # chi-squared, 6 sigma
    assert torch.equal(noise.images, load_set("noise", shape=(1, 8, 8), seed=1).images)
    assert not torch.equal(noise.images, load_set("noise", shape=(1, 8, 8), seed=2).images)


def test_shapes_are_seeded_balanced_and_differ_in_all_that_should_not_matter():
    shapes = load_set("shapes")
    assert (len(shapes), shapes.shape, shapes.classes) == (2000, (3, 32, 32), SHAPES)
    assert shapes.labels.bincount().min() > 400
    assert torch.equal(shapes.images, load_set("shapes").images)
    assert not torch.equal(shapes.images, load_set("shapes", seed=1).images)
    corner = shapes.images[:, :, 0, 0].float()
    assert (corner.std(0) > 50).all()  # backgrounds from dark to light
    assert load_set("shapes", shape=(1, 8, 8)).shape == (1, 8, 8)


def test_shapes_can_be_learned():
    """Nearest neighbours of the figure's outline tell the classes apart far above the chance of 1/4."""
    shapes = load_set("shapes", shape=(1, 16, 16))
    x = shapes.images.float().flatten(1)
    x = (x - x[:, :1]).abs()  # figure against the background in the corner
    x = x / x.norm(dim=1, keepdim=True)
    nearest = (x[:500] @ x[500:].T).argmax(1)
    assert (shapes.labels[500:][nearest] == shapes.labels[:500]).float().mean() > 0.6


def test_interpolations_are_means_of_two_different_images():
    base = load_set("digits:0-1")
    mixed = load_set("interp:digits:0-1", seed=3)
    order = torch.randperm(len(base), generator=torch.Generator().manual_seed(3))
    a, b = base.images[order].int(), base.images[order.roll(1)].int()
    assert (mixed.images - (a + b) / 2).abs().max() <= 0.5
    assert (mixed.name, len(mixed), mixed.classes) == ("interp:digits:0-1", len(base), ("interpolation",))
    assert mixed.labels.unique().tolist() == [0]
    assert mixed.notes == ("means of two random images of digits:0-1, seed 3",)


def test_interpolations_of_all_byte_pairs_round_half_up():
    values = torch.tensor([0, 255, 254, 1, 128, 127], dtype=torch.uint8)
    base = ImageSet("bytes", values.reshape(-1, 1, 1, 1), torch.zeros(6, dtype=torch.int64), ("a",))
    for seed in range(10):
        order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
        pairs = zip(values[order].tolist(), values[order.roll(1)].tolist(), strict=True)
        assert interpolations(base, seed).images.flatten().tolist() == [(a + b + 1) // 2 for a, b in pairs]
    with pytest.raises(DataError, match="needs at least 2 images, bytes has 1"):
        interpolations(base.select([0]))


@pytest.mark.parametrize("name", ["digits", "photos", "noise", "shapes", "interp:digits:3", "digits:0-6"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32)])
def test_every_set_comes_in_the_models_shape(name, shape):
    loaded = load_set(name, shape=shape)
    assert loaded.name == name
    assert loaded.shape == shape


@pytest.mark.parametrize("shape", [(3, 32), (2, 32, 32), (3, 32, 16), (3, 0, 0)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(DataError, match=r"shape must be \(C, H, W\)"):
        load_set("digits", shape=shape)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digit", "unknown data set 'digit', did you mean 'digits'?"),
        ("cifra10", "unknown data set 'cifra10', did you mean 'cifar10'?"),
        ("fashionmnist", "did you mean 'fashion_mnist'?"),
        ("", "unknown data set '', valid: NAME:0-6, celeba"),
        ("npz:", "unknown data set 'npz:'"),
        ("interp:", "unknown data set 'interp:'"),
        ("folder:3", "folder:3: there is no folder 3"),
        ("interp:digit", "unknown data set 'digit'"),
        ("digits:12", "classes must be rising and lie in 0..9, got '12'"),
        ("digits:", "classes must look like 0-6 or 7,9, got ''"),
        ("digits:a-b", "classes must look like 0-6 or 7,9, got 'a-b'"),
    ],
)
def test_wrong_names_are_refused_with_the_nearest(name, message):
    with pytest.raises(DataError) as error:
        load_set(name)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_every_name_has_a_one_line_description():
    names = dict(data_names())
    assert {"digits", "photos", "noise", "shapes", "cifar10", "cifar100", "svhn", "mnist", "textures"} <= names.keys()
    assert all(text and "\n" not in text for text in names.values())


def test_splits_of_digits_share_no_image_and_are_fixed_by_the_seed():
    splits = load_splits("digits", seed=1)
    parts = [splits.train, splits.validation, splits.test]
    everything = load_set("digits")
    rows = torch.cat([part.images for part in parts]).flatten(1).int()
    assert torch.equal(rows.unique(dim=0), everything.images.flatten(1).int().unique(dim=0))
    assert [len(part) for part in parts] == [1258, 180, 359]
    assert splits.record() == load_splits("digits", seed=1).record()
    assert splits.record() != load_splits("digits", seed=2).record()
    assert splits.test.notes == ("test: 359 of 1797 images, stratified, seed 1",)


def test_splits_keep_only_the_classes_of_the_filter():
    splits = load_splits("digits:3,5", shape=(3, 16, 16))
    for part in (splits.train, splits.validation, splits.test):
        assert part.classes == ("3", "5")
        assert part.labels.unique().tolist() == [0, 1]
        assert part.shape == (3, 16, 16)


def test_an_official_test_split_is_the_test_part(tmp_path):
    made = make_cifar10(tmp_path, n_per_batch=40)
    splits = load_splits("cifar10", data_dir=tmp_path, download=False, seed=0)
    assert np.array_equal(splits.test.images.numpy(), made["test"][0])
    assert (len(splits.train), len(splits.validation)) == (180, 20)
    assert splits.validation.labels.bincount().tolist() == [2] * 10
    both = torch.cat([splits.train.images, splits.validation.images]).flatten(1).int().unique(dim=0)
    assert torch.equal(both, torch.from_numpy(made["train"][0]).flatten(1).int().unique(dim=0))
    filtered = load_splits("cifar10:0-2", data_dir=tmp_path, download=False)
    assert filtered.test.num_classes == filtered.train.num_classes == 3


def test_another_set_can_be_the_test_part(tmp_path):
    make_npz(tmp_path / "train.npz", n=40)
    x, _ = make_npz(tmp_path / "test.npz", n=12, classes=3, x=pixels(1, 12, 8, 8, 3))
    splits = load_splits(f"npz:{tmp_path}/train.npz", test=f"npz:{tmp_path}/test.npz", validation_fraction=0.25)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (30, 10, 12)
    assert np.array_equal(splits.test.images.permute(0, 2, 3, 1).numpy(), x)
    assert splits.test.classes == splits.train.classes  # the test set has no image of class 3


def test_a_test_set_of_other_classes_is_refused(tmp_path):
    make_npz(tmp_path / "train.npz", classes=3)
    make_npz(tmp_path / "test.npz", classes=4)
    make_folder(tmp_path / "ab", ("ant", "bee"), n=4)
    make_folder(tmp_path / "ba", ("bee", "cat"), n=4)
    with pytest.raises(DataError, match=r"test.npz: has 4 classes, the train set npz:.*train.npz 3"):
        load_splits(f"npz:{tmp_path}/train.npz", test=f"npz:{tmp_path}/test.npz")
    with pytest.raises(DataError, match=r"its classes \(bee, cat, ...\) are not those of the train set .*\(ant, bee"):
        load_splits(f"folder:{tmp_path}/ab", test=f"folder:{tmp_path}/ba")
    with pytest.raises(DataError, match=r"its classes \(0, 1, ...\) are not those of the train set digits:3-4"):
        load_splits("digits:3-4", test="digits:0-1")
    numbered = load_splits(f"folder:{tmp_path}/ab", test="digits:0-1", shape=(1, 8, 8))
    assert numbered.test.classes == ("ant", "bee")


@pytest.mark.parametrize("name", ["noise", "interp:digits", "digits:4"])
def test_training_needs_two_classes(name):
    with pytest.raises(DataError, match=f"training needs at least 2 classes, {name} has 1"):
        load_splits(name)


def test_a_test_set_that_was_trained_on_is_refused_and_a_stray_duplicate_is_not(tmp_path):
    x, _ = make_npz(tmp_path / "train.npz", n=40)
    fresh = pixels(1, 200, 8, 8, 3)
    fresh[:2] = x[:2]
    make_npz(tmp_path / "few.npz", n=200, x=fresh)
    assert len(load_splits(f"npz:{tmp_path}/train.npz", test=f"npz:{tmp_path}/few.npz").test) == 200
    fresh[:3] = x[:3]
    make_npz(tmp_path / "more.npz", n=200, x=fresh)
    with pytest.raises(DataError, match=r"more\.npz: 3 of its 200 images are also in .*train\.npz"):
        load_splits(f"npz:{tmp_path}/train.npz", test=f"npz:{tmp_path}/more.npz")


def test_a_class_with_too_few_images_is_refused(tmp_path):
    make_npz(tmp_path / "a.npz", n=5, y=np.array([0, 0, 0, 1, 1]))
    with pytest.raises(DataError, match=r"a.npz: class 1 has 2 images, a split in 3 parts needs as many"):
        load_splits(f"npz:{tmp_path}/a.npz")


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        ({"validation_fraction": 0.0}, "digits: the shares of a split must be positive and sum to 1"),
        ({"validation_fraction": 0.9, "test_fraction": 0.2}, r"validation_fraction 0\.9 and test_fraction 0\.2 leave"),
    ],
)
def test_shares_that_leave_nothing_are_refused(fractions, message):
    with pytest.raises(DataError, match=message):
        load_splits("digits", **fractions)


def test_loading_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    for name in ("noise", "shapes", "interp:digits"):
        load_set(name, shape=(1, 8, 8))
    load_splits("digits")
    assert torch.equal(torch.get_rng_state(), before)


def test_importing_is_light():
    code = (
        "import sys, ebmhybrid.data.sources as s; "
        "heavy = {'torchvision', 'sklearn', 'scipy', 'PIL'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
