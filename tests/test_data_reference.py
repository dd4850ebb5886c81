"""Reference images: shares, ranges, and what each family keeps of the data."""

from __future__ import annotations

import naive_reference as naive
import pytest
import torch

from ebmhybrid.data import FAMILIES, reference_families, reference_images
from ebmhybrid.data.reference_families import (
    collages,
    displaced,
    inversions,
    mixtures,
    patches,
    smooth,
    spectral,
    turned,
    warps,
)
from ebmhybrid.errors import DataError

EVERY = list(FAMILIES)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int = 8, *shape: int) -> torch.Tensor:
    return torch.rand(n, *(shape or (3, 32, 32)), generator=generator(99))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 28, 28), (3, 32, 32), (1, 3, 3)])
@pytest.mark.parametrize("families", [*([family] for family in EVERY), EVERY], ids="+".join)
def test_shape_range_and_seed(shape, families):
    x = images(5, *shape)
    a, b, c = (reference_images(x, 7, families, generator(seed)) for seed in (1, 1, 2))
    assert a.shape == (7, *shape)
    assert a.dtype == x.dtype
    assert a.min() >= 0
    assert a.max() <= 1
    assert torch.isfinite(a).all()
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(x, images(5, *shape))


def test_equal_shares_with_the_rest_to_the_first():
    made = reference_images(torch.full((4, 1, 8, 8), 0.125), 8, ["inversions", "patches", "smooth"], generator())
    assert (made[:3] == 0.875).all()
    assert (made[3:6] == 0.125).all()
    assert all(len(field.unique()) > 10 for field in made[6:])
    assert reference_images(images(), 1, ["patches", "smooth"], generator()).shape == (1, 3, 32, 32)


def test_inversions_are_negatives_none_twice_before_all():
    x = images(4)
    made = inversions(x, 6, generator())
    sources = [[torch.equal(1 - one, other) for other in x].index(True) for one in made]
    assert sorted(sources[:4]) == [0, 1, 2, 3]
    assert sources[4:] == sources[:2]


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 30, 29)])
def test_patches_are_a_permutation_of_the_images_patches(shape):
    x = images(1, *shape)
    made = patches(x, 3, generator())
    h, w = shape[1] // 4, shape[2] // 4

    def cells(image: torch.Tensor) -> set[tuple[float, ...]]:
        cut = [image[:, i * h : i * h + h, j * w : j * w + w] for i in range(4) for j in range(4)]
        return {tuple(cell.flatten().tolist()) for cell in cut}

    for one in made:
        assert cells(one) == cells(x[0])
        assert not torch.equal(one, x[0])
        assert torch.equal(one[:, 4 * h :], x[0, :, 4 * h :])
        assert torch.equal(one[:, :, 4 * w :], x[0, :, :, 4 * w :])


def test_smooth_fields_are_smoother_than_noise_and_vary_in_scale_contrast_and_brightness():
    fields = smooth(images(), 200, generator())
    step = (fields[..., 1:] - fields[..., :-1]).square().mean((1, 2, 3)) / fields.var((1, 2, 3)) / 2
    assert step.median() < 0.2  # 1 for independent pixels
    assert step.max() / step.min() > 20
    contrast, brightness = fields.std((1, 2, 3)), fields.mean((1, 2, 3))
    assert contrast.max() > 3 * contrast.min()
    assert brightness.max() - brightness.min() > 0.4
    grey = fields.mean(1, keepdim=True)
    colour = (fields - grey).square().mean((1, 2, 3)) / fields.var((1, 2, 3))
    assert colour.min() < 0.02  # from grey
    assert colour.max() > 0.5  # to channels of their own, of which 2/3 of the variance are about their mean


def sources(one: torch.Tensor, x: torch.Tensor) -> list[int]:
    """The images that share most pixels with this one, the nearest first."""
    return (one == x).all(1).flatten(1).sum(1).argsort(descending=True).tolist()


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 30, 29), (1, 8, 8)])
def test_collages_have_each_pixel_from_one_of_two_images_by_a_smooth_mask(shape):
    x = images(6, *shape)
    shares, borders, seen = [], [], set()
    for one in collages(x, 60, generator()):
        first, second = sources(one, x)[:2]
        mask = (one == x[first]).all(0)
        assert torch.equal(mask | (one == x[second]).all(0), torch.ones_like(mask))  # a pixel is whole: no colour mixed
        shares.append(mask.float().mean().item())
        borders.append((mask[:, 1:] != mask[:, :-1]).float().mean().item())
        seen.add(frozenset((first, second)))
    slack = 2 / min(shape[1:])  # the threshold is that of every fourth pixel
    assert 0.25 - slack <= min(1 - share for share in shares)
    assert max(shares) <= 0.75 + slack
    assert max(shares) - min(shares) > 0.15  # of the larger part, in [1/2, 3/4]
    assert max(borders) < 0.5 * (16 / shape[2]) ** 0.5  # 1/2 for independent pixels
    assert len(seen) > 3


def test_mixtures_lie_between_two_images_with_one_weight_each():
    x = images(5).double()
    made = mixtures(x, 40, generator())
    found = torch.linalg.lstsq(x.flatten(1).T, made.flatten(1).T).solution.T.sort(descending=True).values
    torch.testing.assert_close(found[:, :2].sum(1), torch.ones(40, dtype=torch.double))
    torch.testing.assert_close(found[:, 2:], torch.zeros(40, 3, dtype=torch.double))
    weights = found[:, 1].tolist()
    assert 0.3 - 1e-6 <= min(weights) < 0.35
    assert 0.45 < max(weights) <= 0.5


def test_every_image_takes_part_in_pairs_and_none_with_itself():
    x = torch.stack([torch.full((1, 8, 8), number / 4) for number in range(5)])
    found = [one.unique().tolist() for one in collages(x, 5, generator())]
    assert all(len(values) == 2 for values in found)
    assert sorted(value for values in found for value in values) == sorted([0.0, 0.25, 0.5, 0.75, 1.0] * 2)


@pytest.mark.parametrize("shape", [(6, 5), (4, 6), (5, 5)])
def test_turned_phases_are_those_of_the_two_literal_sums(shape):
    x = images(2, 2, *shape).double()
    noise = torch.randn(2, 1, *shape, generator=generator(1), dtype=torch.double)
    literal = torch.stack(
        [torch.stack([naive.turned(a, other[0]) for a in one]) for one, other in zip(x, noise, strict=True)]
    )
    torch.testing.assert_close(turned(x, noise), literal, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(3, 32, 32), (3, 15, 9)])
def test_spectral_images_keep_amplitudes_mean_colours_and_the_channels_phases_to_each_other(shape):
    x = 0.5 + 0.01 * images(1, *shape).double()  # nothing to clamp
    made = spectral(x, 4, generator())
    own, theirs = torch.fft.fft2(x), torch.fft.fft2(made)
    torch.testing.assert_close(theirs.abs(), own.abs().expand_as(theirs))
    torch.testing.assert_close(made.mean((2, 3)), x.mean((2, 3)).expand(4, 3))
    torch.testing.assert_close(theirs[:, 0] * theirs[:, 1].conj(), (own[:, 0] * own[:, 1].conj()).expand(4, -1, -1))
    form = [
        torch.corrcoef(torch.stack([one.flatten(), x[0].flatten()]))[0, 1].item()
        for one in made - x.mean((2, 3), keepdim=True)
    ]
    assert max(map(abs, form)) < 0.3
    assert not torch.allclose(made[0], made[1])


@pytest.mark.parametrize("shape", [(8, 8), (5, 7)])
@pytest.mark.parametrize("amplitude", [0.0, 0.3, 2.5])
def test_displaced_pixels_are_those_of_the_literal_sum(shape, amplitude):
    x = images(2, 2, *shape).double()
    shift = amplitude * (2 * torch.rand(2, 2, *shape, generator=generator(1), dtype=torch.double) - 1)
    literal = torch.stack(
        [torch.stack([naive.displaced(a, by) for a in one]) for one, by in zip(x, shift, strict=True)]
    )
    torch.testing.assert_close(displaced(x, shift), literal, rtol=0, atol=1e-10)
    if not amplitude:
        torch.testing.assert_close(literal, x)


def test_warps_move_pixels_smoothly_and_by_their_amplitude():
    rows = ((torch.arange(32) + 0.5) / 32)[:, None].expand(32, 32)
    x = torch.stack([rows, rows.T])[None].double()  # a pixel's values are its place
    shift = warps(x, 200, generator()) - x
    largest = shift[:, :, 12:20, 12:20].abs().amax((1, 2, 3))  # inside nothing is mirrored
    assert shift.abs().max() <= 0.35 + 1e-9
    assert largest.max() > 0.25
    assert shift.abs().amax((1, 2, 3)).min() > 0.05
    steps = (shift[:, :, :, 1:] - shift[:, :, :, :-1])[:, :, 12:20, 12:20].abs().amax((1, 2, 3))
    assert (steps / largest).median() < 0.3


def test_the_largest_displacement_of_a_warp_is_a_tenth_to_a_third_of_a_side_and_more(monkeypatch):
    seen = []
    monkeypatch.setattr(reference_families, "displaced", lambda images, shift: seen.append(shift) or images)
    warps(images(), 200, generator())
    largest = seen[0].abs().amax((1, 2, 3))
    assert 0.1 <= largest.min() < 0.11
    assert 0.34 < largest.max() <= 0.35 + 1e-6


@pytest.mark.parametrize("family", ["warps", "collages", "mixtures", "patches"])
def test_what_is_constant_stays_constant_and_in_range(family):
    ones = torch.ones(3, 1, 28, 28)
    assert torch.allclose(FAMILIES[family](ones, 20, generator()), ones[:1], atol=1e-6)
    assert FAMILIES[family](ones, 20, generator()).max() <= 1


@pytest.mark.parametrize("family", ["collages", "mixtures"])
def test_of_a_single_image_there_is_no_other(family):
    x = images(1)
    torch.testing.assert_close(FAMILIES[family](x, 3, generator()), x.expand(3, -1, -1, -1))


@pytest.mark.parametrize("family", EVERY)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_come_back_as_they_are(family, dtype):
    made = FAMILIES[family](images(3).to(dtype), 4, generator())
    assert made.dtype == dtype
    assert 0 <= made.min() <= made.max() <= 1


@pytest.mark.parametrize("family", EVERY)
def test_large_images_in_half_precision_have_places_beyond_its_range(family):
    made = FAMILIES[family](images(2)[:, :1, :1, :1].expand(2, 1, 1200, 1200).half(), 2, generator())
    assert made.isfinite().all()


@pytest.mark.parametrize("family", EVERY)
def test_no_value_is_read_back(family):
    """The meta device has none."""
    assert FAMILIES[family](images().to("meta"), 5).shape == (5, 3, 32, 32)


@pytest.mark.parametrize("family", EVERY)
def test_nothing_is_drawn_from_the_global_state(family):
    before = torch.get_rng_state()
    reference_images(images(), 9, [family], generator())
    assert torch.equal(torch.get_rng_state(), before)


def test_families_that_are_not_named_are_three():
    made, named = (
        reference_images(images(), 7, *families, generator=generator())
        for families in ((), (["smooth", "patches", "inversions"],))
    )
    assert torch.equal(made, named)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"families": ["smoth"]}, "unknown family of reference images 'smoth', did you mean 'smooth'?"),
        ({"families": []}, "at least 1 family"),
        ({"n": 0}, "at least 1 family and 1 image"),
        ({"images": torch.zeros(2, 1, 4, 4, dtype=torch.uint8)}, "must be floating point"),
        ({"images": torch.zeros(0, 1, 4, 4)}, "must be floating point"),
        ({"images": torch.zeros(2, 1, 0, 4)}, "must be floating point"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(DataError) as error:
        reference_images(**({"images": images(), "n": 3} | arguments))
    assert message in str(error.value)
