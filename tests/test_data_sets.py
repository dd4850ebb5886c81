"""ImageSet and the splits: what they refuse, and the laws they keep."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ebmhybrid.data import ImageSet, Splits, stratified_split
from ebmhybrid.errors import DataError


def make_set(n: int = 10, shape: tuple[int, int, int] = (1, 8, 8), classes: int = 5, **extra) -> ImageSet:
    generator = torch.Generator().manual_seed(n)
    images = torch.randint(256, (n, *shape), generator=generator, dtype=torch.uint8)
    return ImageSet("toy", images, torch.arange(n) % classes, tuple("abcdefghij"[:classes]), **extra)


def test_iterating_gives_every_image_once_in_order_scaled_to_one():
    images = make_set(10, batch_size=4)
    batches = list(images)
    assert [len(y) for _, y in batches] == [4, 4, 2]
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert x.dtype == torch.float32
    assert y.dtype == torch.int64
    assert torch.equal(x, images.images.float() / 255)
    assert torch.equal(y, images.labels)
    assert (len(images), images.shape, images.num_classes) == (10, (1, 8, 8), 5)


IMAGES = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
LABELS = torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES.float(), LABELS, "toy: images must be uint8 of shape (N, C, H, W), got torch.float32 (2, 3, 4, 4)"),
        (IMAGES[0], LABELS, "got torch.uint8 (3, 4, 4)"),
        (IMAGES[:, :2], LABELS, "images must have 1 or 3 channels, got 2"),
        (IMAGES[:0], LABELS[:0], "at least one image of at least one pixel, got (0, 3, 4, 4)"),
        (IMAGES[..., :0], LABELS, "at least one image of at least one pixel, got (2, 3, 4, 0)"),
        (IMAGES, LABELS.int(), "labels must be int64 of shape (2,), got torch.int32 (2,)"),
        (IMAGES, LABELS[:1], "labels must be int64 of shape (2,), got torch.int64 (1,)"),
        (IMAGES, LABELS + 1, "labels must lie in 0..1, got 1..2"),
        (IMAGES, LABELS - 1, "labels must lie in 0..1, got -1..0"),
    ],
)
def test_malformed_sets_are_refused_in_one_line(images, labels, message):
    with pytest.raises(DataError) as error:
        ImageSet("toy", images, labels, ("a", "b"))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_batch_size_must_be_positive():
    with pytest.raises(DataError, match="batch_size must be at least 1, got 0"):
        make_set(batch_size=0)


def test_select_keeps_order_and_classes():
    images = make_set()
    chosen = images.select([7, 2], name="two")
    assert chosen.name == "two"
    assert torch.equal(chosen.images, images.images[[7, 2]])
    assert chosen.labels.tolist() == [2, 2]
    assert chosen.classes == images.classes
    assert torch.equal(images.select(torch.tensor([3])).images, images.images[3:4])


@pytest.mark.parametrize("indices", [[10], [-1]])
def test_select_refuses_what_is_not_there(indices):
    with pytest.raises(DataError, match=r"indices must lie in 0\.\.9"):
        make_set().select(indices)


@settings(max_examples=50, deadline=None)
@given(n=st.integers(1, 60), limit=st.integers(1, 80), classes=st.integers(1, 5))
def test_take_never_exceeds_and_keeps_class_shares(n, limit, classes):
    images = make_set(n, (1, 1, 1), classes)
    taken = images.take(limit)
    assert len(taken) == min(n, limit)
    for label in range(classes):
        share = (images.labels == label).sum() * len(taken) / n
        assert abs((taken.labels == label).sum() - share) < 1 + 1e-4  # as near as evenly spaced picks can be


def test_take_is_deterministic_ascending_and_noted():
    images = ImageSet(
        "toy", torch.arange(100, dtype=torch.uint8).reshape(100, 1, 1, 1), torch.arange(100) % 10, ("a",) * 10
    )
    taken = images.take(20)
    order = taken.images.flatten()
    assert order.tolist() == sorted(set(order.tolist()))
    assert torch.equal(order, images.take(20).images.flatten())
    assert taken.labels.bincount().tolist() == [2] * 10
    assert taken.notes == ("20 of 100 images",)
    assert images.take(100) is images
    with pytest.raises(DataError, match="limit must be at least 1, got 0"):
        images.take(0)


@pytest.mark.parametrize("value", [0, 1, 127, 254, 255])
@pytest.mark.parametrize(("have", "want"), [((1, 28, 28), (3, 32)), ((3, 32, 32), (1, 8)), ((3, 9, 12), (3, 7))])
def test_adapting_keeps_constants(value, have, want):
    images = ImageSet(
        "toy", torch.full((3, *have), value, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), ("a",)
    )
    adapted = images.adapt(*want)
    assert adapted.shape == (want[0], want[1], want[1])
    assert adapted.images.unique().tolist() == [value]
    assert adapted.images.is_contiguous()


def test_adapting_is_noted_and_does_nothing_where_nothing_is_to_do():
    images = make_set(shape=(1, 28, 28))
    assert images.adapt(1, 28) is images
    assert images.adapt(3, 32).notes == ("resized 28x28 -> 32x32 (bilinear)", "gray -> RGB")
    assert make_set(shape=(3, 8, 8)).adapt(1, 8).notes == ("RGB -> gray (ITU-R 601)",)
    with pytest.raises(DataError, match="1 or 3 channels"):
        images.adapt(2, 32)


def test_adapting_in_chunks_is_adapting_at_once(monkeypatch):
    images = make_set(10, (3, 9, 9))
    whole = images.adapt(1, 6).images
    monkeypatch.setattr("ebmhybrid.data.sets.CHUNK_VALUES", 3 * 3 * 81)
    assert torch.equal(images.adapt(1, 6).images, whole)


def test_gray_is_pils_luminance_and_rgb_repeats_gray():
    from PIL import Image

    images = make_set(4, (3, 8, 8))
    gray = images.adapt(1, 8).images[:, 0].numpy().astype(int)
    pil = [np.asarray(Image.fromarray(x.permute(1, 2, 0).numpy()).convert("L")).astype(int) for x in images.images]
    assert np.abs(gray - np.stack(pil)).max() <= 1
    rgb = make_set(4).adapt(3, 8).images
    assert torch.equal(rgb, make_set(4).images.repeat(1, 3, 1, 1))


def test_resizing_is_pils_bilinear():
    from PIL import Image

    images = make_set(4, (1, 32, 32))
    small = images.adapt(1, 12).images[:, 0].numpy().astype(int)
    pil = [np.asarray(Image.fromarray(x[0].numpy()).resize((12, 12), Image.Resampling.BILINEAR)) for x in images.images]
    assert np.abs(small - np.stack(pil).astype(int)).max() <= 1


@pytest.mark.parametrize(
    ("spec", "kept"), [("0-2", [0, 1, 2]), ("4", [4]), ("3,1", [1, 3]), ("0-1,4", [0, 1, 4]), ("1,1-2", [1, 2])]
)
def test_kept_classes_are_relabelled_in_order(spec, kept):
    images = make_set(20)
    chosen = images.keep_classes(spec)
    there = torch.isin(images.labels, torch.tensor(kept))
    assert chosen.name == f"toy:{spec}"
    assert chosen.classes == tuple("abcde"[c] for c in kept)
    assert torch.equal(chosen.images, images.images[there])
    assert [kept[label] for label in chosen.labels] == images.labels[there].tolist()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("5", r"lie in 0\.\.4, got '5'"),
        ("0-9", r"lie in 0\.\.4, got '0-9'"),
        ("3-1", "must be rising"),
        ("", "must look like 0-6 or 7,9, got ''"),
        ("1-", "must look like"),
        ("a", "must look like"),
        ("-1", "must look like"),
        ("1--2", "must look like"),
    ],
)
def test_wrong_class_filters_are_refused(spec, message):
    with pytest.raises(DataError, match=message):
        make_set().keep_classes(spec)


def test_a_filter_that_leaves_no_image_is_refused():
    empty = ImageSet("toy", IMAGES, LABELS, ("a", "b", "c"))
    with pytest.raises(DataError, match="no image has a class in 2"):
        empty.keep_classes("2")


def test_digest_is_of_shape_images_and_labels():
    images = make_set()
    by_hand = hashlib.sha256(b"(10, 1, 8, 8)" + images.images.numpy().tobytes() + images.labels.numpy().tobytes())
    assert images.digest() == by_hand.hexdigest()
    assert images.select(range(10)).digest() == images.digest()
    assert images.select(range(9, -1, -1)).digest() != images.digest()
    other = ImageSet("toy", images.images, images.labels.flip(0), images.classes)
    assert other.digest() != images.digest()


def test_to_moves_both_tensors():
    images = make_set(notes=("kept",))
    moved = images.to("cpu")
    assert torch.equal(moved.images, images.images)
    assert (moved.images.device.type, moved.labels.device.type, moved.notes) == ("cpu", "cpu", ("kept",))


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(3, 40), min_size=1, max_size=6),
    fractions=st.sampled_from([(0.7, 0.1, 0.2), (0.9, 0.1), (0.5, 0.5), (0.05, 0.9, 0.05), (1.0,)]),
    seed=st.integers(0, 2**31),
)
def test_a_split_is_disjoint_covering_stratified_and_fixed_by_its_seed(counts, fractions, seed):
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    parts = stratified_split(labels, fractions, seed)
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(len(labels)))
    assert all(torch.equal(a, b) for a, b in zip(parts, stratified_split(labels, fractions, seed), strict=True))
    for part, fraction in zip(parts, fractions, strict=True):
        for label, count in enumerate(counts):
            got = int((labels[part] == label).sum())
            assert got >= 1
            if all(f * count >= 1 for f in fractions):
                assert abs(got - fraction * count) < 1


def test_rounding_does_not_add_up_over_the_classes():
    labels = torch.arange(100).repeat_interleave(45)
    sizes = [len(part) for part in stratified_split(labels, [0.9, 0.1], seed=0)]
    assert sizes == [4050, 450]


def test_a_split_depends_on_its_seed_and_leaves_the_global_state_alone():
    labels = torch.arange(5).repeat(20)
    before = torch.get_rng_state()
    a, b = stratified_split(labels, [0.5, 0.5], 0), stratified_split(labels, [0.5, 0.5], 1)
    assert not torch.equal(a[0], b[0])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("fractions", "message"),
    [([0.5, 0.6], r"sum to 1, got \[0.5, 0.6\]"), ([1.0, 0.0], "positive"), ([1.2, -0.2], "positive")],
)
def test_fractions_must_be_shares(fractions, message):
    with pytest.raises(DataError, match=message):
        stratified_split(torch.arange(5).repeat(20), fractions, 0)


def test_a_class_of_fewer_images_than_parts_is_refused():
    with pytest.raises(DataError, match="class 1 has 2 images, a split in 3 parts"):
        stratified_split(torch.tensor([0, 0, 0, 1, 1]), [0.4, 0.3, 0.3], 0)


def test_the_record_of_splits_is_plain_data():
    import json

    images = make_set(shape=(3, 4, 4)).adapt(1, 4)
    record = Splits(images, images.select([0]), images.select([1, 2])).record()
    assert list(record) == ["train", "validation", "test"]
    assert [part["n"] for part in record.values()] == [10, 1, 2]
    assert record["train"] == {
        "name": "toy",
        "n": 10,
        "shape": [1, 4, 4],
        "sha256": images.digest(),
        "notes": ["RGB -> gray (ITU-R 601)"],
    }
    assert json.loads(json.dumps(record)) == record
