"""Reference images: shares, ranges, and what each family keeps of the data."""

from __future__ import annotations

import pytest
import torch

from ebmhybrid.data import FAMILIES, reference_images
from ebmhybrid.data.reference import inversions, patches, smooth
from ebmhybrid.errors import DataError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int = 8, *shape: int) -> torch.Tensor:
    return torch.rand(n, *(shape or (3, 32, 32)), generator=generator(99))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 28, 28), (3, 32, 32), (1, 3, 3)])
@pytest.mark.parametrize("families", [["smooth"], ["patches"], ["inversions"], list(FAMILIES)])
def test_shape_range_and_seed(shape, families):
    x = images(5, *shape)
    a, b, c = (reference_images(x, 7, families, generator(seed)) for seed in (1, 1, 2))
    assert a.shape == (7, *shape)
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


def test_nothing_is_drawn_from_the_global_state():
    before = torch.get_rng_state()
    reference_images(images(), 9, generator=generator())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"families": ["smoth"]}, "unknown family of reference images 'smoth', did you mean 'smooth'?"),
        ({"families": []}, "at least 1 family"),
        ({"n": 0}, "at least 1 family and 1 image"),
        ({"images": torch.zeros(2, 1, 4, 4, dtype=torch.uint8)}, "must be floating point"),
        ({"images": torch.zeros(0, 1, 4, 4)}, "must be floating point"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(DataError) as error:
        reference_images(**({"images": images(), "n": 3} | arguments))
    assert message in str(error.value)
