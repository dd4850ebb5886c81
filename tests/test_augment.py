"""Augmentation against naive loops, and the order of batches."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import pad as pad_image

from ebmhybrid.data import augment, batches, count_batches, mixup
from ebmhybrid.errors import DataError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int = 6, *shape: int) -> torch.Tensor:
    return torch.rand(n, *(shape or (3, 8, 10)), generator=generator(99))


def test_nothing_asked_for_is_nothing_done_and_nothing_drawn():
    x, g = images(), generator()
    before = g.get_state()
    assert augment(x, generator=g) is x
    assert torch.equal(g.get_state(), before)


@pytest.mark.parametrize("pad", [1, 3, 7])
def test_every_crop_is_a_window_of_the_reflect_padded_image(pad):
    x = images(40)
    cropped = augment(x, pad=pad, generator=generator())
    corners = set()
    for one, crop in zip(x, cropped, strict=True):
        padded = pad_image(one[None], (pad,) * 4, mode="reflect")[0]
        found = [
            (top, left)
            for top in range(2 * pad + 1)
            for left in range(2 * pad + 1)
            if torch.equal(padded[:, top : top + 8, left : left + 10], crop)
        ]
        assert found
        corners.add(found[0])
    assert len(corners) > min(40, (2 * pad + 1) ** 2) // 2  # images are shifted by themselves


def test_all_crops_are_equally_likely():
    x = torch.arange(9.0).reshape(1, 1, 3, 3).expand(9000, -1, -1, -1) / 9
    centre = augment(x, pad=1, generator=generator())[:, 0, 1, 1]
    counts = (centre * 9).round().long().bincount(minlength=9)
    assert (counts - 1000).abs().max() < 6 * (1000 * 8 / 9) ** 0.5


def test_flips_are_mirrors_of_about_half_the_images_and_undo_themselves():
    x = images(400)
    once = augment(x, flip=True, generator=generator())
    mirrored = (once == x.flip(3)).flatten(1).all(1)
    same = (once == x).flatten(1).all(1)
    assert (mirrored ^ same).all()
    assert 140 < int(mirrored.sum()) < 260
    assert torch.equal(augment(once, flip=True, generator=generator()), x)


def test_flip_comes_after_the_crop():
    x = images(50)
    both = augment(x, pad=2, flip=True, generator=generator())
    crop = augment(x, pad=2, generator=generator())  # the same draws come first
    assert all(torch.equal(b, c) or torch.equal(b, c.flip(2)) for b, c in zip(both, crop, strict=True))
    assert not torch.equal(both, crop)


def test_noise_has_the_asked_deviation_is_independent_and_is_not_clamped():
    x = torch.zeros(50, 3, 16, 16)
    noise = augment(x, noise_std=0.015, generator=generator())
    assert noise.std().item() == pytest.approx(0.015, rel=0.02)
    assert abs(noise.mean().item()) < 1e-3
    assert noise.min() < 0
    assert not torch.equal(noise[0], noise[1])


def test_the_generator_decides_everything_and_the_input_stays():
    x = images()
    kept, state = x.clone(), torch.get_rng_state()
    arguments = {"pad": 2, "flip": True, "noise_std": 0.1}
    a, b, c = (augment(x, **arguments, generator=generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(x, kept)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_dtype_is_kept(dtype):
    assert augment(images().to(dtype), pad=1, noise_std=0.1, generator=generator()).dtype == dtype


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pad": 8}, "pad must be at least 0 and less than the image's 8x10, got 8"),
        ({"pad": -1}, "got -1"),
        ({"noise_std": -0.1}, "noise_std must be at least 0 and finite, got -0.1"),
        ({"noise_std": float("nan")}, "got nan"),
    ],
)
def test_augment_refuses_what_it_cannot_do(arguments, message):
    with pytest.raises(DataError, match=message):
        augment(images(), **arguments)


@pytest.mark.parametrize("wrong", [torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(1, 4, 4)])
def test_augment_refuses_other_tensors(wrong):
    with pytest.raises(DataError, match="images must be floating point"):
        augment(wrong, pad=1)


def test_mixup_is_one_weight_on_images_and_labels():
    x, y = images(32), torch.arange(32)
    mixed, probabilities = mixup(x, y, 32, alpha=1.0, generator=generator())
    weights = probabilities.sort(descending=True).values[:, :2]
    assert torch.allclose(probabilities.sum(1), torch.ones(32))
    assert len(weights[weights[:, 1] > 0].unique(dim=0)) == 1
    assert torch.allclose(mixed.flatten(1), probabilities @ x.flatten(1), atol=1e-6)


def test_mixup_weights_follow_the_beta_distribution():
    x, y, g = torch.zeros(2, 1, 1, 1), torch.tensor([0, 1]), generator()
    x[0] = 1
    weights = []
    while len(weights) < 1500:
        mixed, _ = mixup(x, y, 2, alpha=0.5, generator=g)
        if mixed.sum() == pytest.approx(1, abs=1e-6) and mixed[0] != 1:  # else an image was mixed with itself
            weights.append(mixed[0].item())
    weights = torch.tensor(weights)
    assert weights.mean().item() == pytest.approx(0.5, abs=0.04)
    assert weights.var().item() == pytest.approx(1 / 8, abs=0.012)  # 1 / (4 (2 alpha + 1))


def test_mixup_is_seeded_and_refuses_wrong_arguments():
    x, y = images(), torch.tensor([0, 1, 2, 0, 1, 2])
    assert torch.equal(mixup(x, y, 3, 0.2, generator(1))[0], mixup(x, y, 3, 0.2, generator(1))[0])
    with pytest.raises(DataError, match="alpha must be a positive number from 1e-6 to 1e6, got 0"):
        mixup(x, y, 3, 0)
    with pytest.raises(DataError, match="from 1e-6 to 1e6, got 1e-40"):
        mixup(x, y, 3, 1e-40)
    for alpha in (1e-6, 1e6):  # of either, all draws are numbers
        assert mixup(x, y, 3, alpha, generator())[0].isfinite().all()
    with pytest.raises(DataError, match=r"labels must lie in 0\.\.1, got 0\.\.2"):
        mixup(x, y, 2, 0.2)


def order(n: int, size: int, **arguments) -> list[list[int]]:
    x = torch.arange(n, dtype=torch.uint8).reshape(n, 1, 1, 1)
    made = []
    for image, label in batches(x, torch.arange(n), size, generator=generator(), **arguments):
        assert image.dtype == torch.float32
        assert torch.equal((image.flatten() * 255).round().long(), label)  # images and labels stay together
        made.append(label.tolist())
    return made


@pytest.mark.parametrize(
    ("n", "size", "sizes"),
    [
        (8, 4, [4, 4]),
        (9, 4, [4, 5]),
        (10, 4, [4, 4, 2]),
        (1, 4, [1]),
        (3, 4, [3]),
        (5, 4, [5]),
        (3, 1, [1, 1, 1]),
    ],
)
def test_batches_hold_each_image_once(n, size, sizes):
    made = order(n, size)
    assert [len(batch) for batch in made] == sizes
    assert count_batches(n, size) == len(sizes)
    flat = [label for batch in made for label in batch]
    assert len(set(flat)) == len(flat) == sum(sizes)


def test_batches_are_shuffled_and_can_be_resumed():
    whole = order(50, 8)
    flat = [label for batch in whole for label in batch]
    assert flat != sorted(flat)
    for start in range(8):
        assert order(50, 8, start=start) == whole[start:]


def test_the_order_is_drawn_at_the_call():
    x, y, g = torch.zeros(20, 1, 1, 1, dtype=torch.uint8), torch.arange(20), generator()
    first = batches(x, y, 4, generator=g)
    second = batches(x, y, 4, generator=g)
    list(second)
    assert torch.equal(torch.cat([label for _, label in first]), torch.randperm(20, generator=generator()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size of at least 1, got 4 images and 0"),
        ({"batch_size": 2, "start": -1}, "start must be at least 0, got -1"),
        ({"batch_size": 2, "labels": torch.arange(3)}, "as many labels as images, got 3 and 4"),
    ],
)
def test_batches_refuse_wrong_arguments_at_the_call(arguments, message):
    defaults = {"images": torch.zeros(4, 1, 1, 1, dtype=torch.uint8), "labels": torch.arange(4), "generator": None}
    with pytest.raises(DataError, match=message):
        batches(**(defaults | arguments))
