"""Corruptions against literal versions with loops, PIL, SciPy and colorsys; laws of strength, size and batches."""

from __future__ import annotations

import colorsys
import io
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor

from ebmhybrid.data.sets import ImageSet
from ebmhybrid.errors import EbmhybridError, UsageError
from ebmhybrid.evaluate import calibration
from ebmhybrid.evaluate import corruption_blur as blur
from ebmhybrid.evaluate import corruption_kinds as kinds_module
from ebmhybrid.evaluate import corruption_weather as weather
from ebmhybrid.evaluate.accuracy import wilson_interval
from ebmhybrid.evaluate.corruption_kinds import CORRUPTIONS, FAMILIES
from ebmhybrid.evaluate.corruptions import Corrupted, corrupted, evaluate_corruptions, means
from ebmhybrid.evaluate.plots_corruptions import corruption_figure, severity_curve
from ebmhybrid.evaluate.predictions import predict, softmax

KINDS = tuple(CORRUPTIONS)
RANDOM = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "glass_blur",
    "motion_blur",
    "snow",
    "fog",
    "elastic_transform",
)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def photos() -> Tensor:
    """(24, 3, 64, 64) patches of scikit-learn's two photographs, reduced four times."""
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(0)
    patches = []
    for i in range(24):
        photo = load_sample_images().images[i % 2]
        top, left = rng.integers(0, photo.shape[0] - 256), rng.integers(0, photo.shape[1] - 256)
        patch = Image.fromarray(photo[top : top + 256, left : left + 256])
        patches.append(np.array(patch.resize((64, 64), Image.Resampling.BOX)))
    return torch.from_numpy(np.stack(patches)).permute(0, 3, 1, 2).float() / 255


def _at(photos: Tensor, side: int) -> Tensor:
    return torch.nn.functional.adaptive_avg_pool2d(photos, side).clamp(0, 1)


def _noise(channels: int = 3, height: int = 10, width: int = 13, count: int = 3) -> Tensor:
    return torch.rand(count, channels, height, width, generator=_generator(5), dtype=torch.float64)


def _looked_up(image: Tensor, dx: Any, dy: Any) -> np.ndarray:
    """SciPy's bilinear look-up of (C, H, W) at displaced places, mirrored at the edges."""
    rows, columns = np.mgrid[: image.shape[1], : image.shape[2]].astype(np.float64)
    places = np.broadcast_arrays(rows + np.asarray(dy), columns + np.asarray(dx))
    return np.stack([ndimage.map_coordinates(channel, places, order=1, mode="reflect") for channel in image.numpy()])


# every kind: range, shape, dtype, repetition, batches, strength


@pytest.mark.parametrize(
    "shape", [(4, 1, 8, 8), (2, 3, 8, 8), (2, 3, 64, 64), (2, 1, 9, 40), (2, 3, 40, 9), (1, 3, 32, 32)]
)
@pytest.mark.parametrize("kind", KINDS)
def test_images_stay_images(kind: str, shape: tuple[int, ...]) -> None:
    images = torch.rand(shape, generator=_generator())
    images[0, :, 0, :4] = torch.tensor([0.0, 1.0, 0.0, 1.0])
    before, state = images.clone(), torch.get_rng_state()
    for severity in (1, 5):
        made = CORRUPTIONS[kind](images, severity, _generator())
        assert made.shape == images.shape
        assert made.dtype == images.dtype
        assert torch.isfinite(made).all()
        assert made.min() >= 0
        assert made.max() <= 1
        assert not torch.equal(made, images)
    assert torch.equal(images, before)  # not changed in place
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("kind", KINDS)
def test_float64_is_kept_and_agrees_with_float32(kind: str) -> None:
    images = torch.rand(3, 3, 16, 16, generator=_generator())
    single = CORRUPTIONS[kind](images, 3, _generator())
    double = CORRUPTIONS[kind](images.double(), 3, _generator())
    half = CORRUPTIONS[kind](images.bfloat16(), 3, _generator())
    assert double.dtype == torch.float64
    assert half.dtype == torch.bfloat16
    close = (double - single).abs() < 1e-5
    assert close.double().mean() > (0.95 if kind == "shot_noise" else 0.9999)  # a Poisson count may tip over


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_repeats_itself_and_only_random_ones_depend_on_the_seed(kind: str) -> None:
    images = torch.rand(3, 3, 16, 16, generator=_generator())
    first = CORRUPTIONS[kind](images, 3, _generator(1))
    assert torch.equal(first, CORRUPTIONS[kind](images, 3, _generator(1)))
    other = CORRUPTIONS[kind](images, 3, _generator(2))
    assert torch.equal(first, other) is (kind not in RANDOM)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_images_of_a_batch_get_random_numbers_of_their_own(kind: str) -> None:
    images = torch.rand(1, 3, 16, 16, generator=_generator()).expand(2, -1, -1, -1)
    made = CORRUPTIONS[kind](images, 3, _generator(1))
    assert torch.equal(made[0], made[1]) is (kind not in RANDOM)


@pytest.mark.parametrize("side", [8, 32])
@pytest.mark.parametrize("kind", KINDS)
def test_a_set_gives_the_same_images_in_batches_of_any_size(kind: str, side: int, photos: Tensor) -> None:
    images, labels = _at(photos, side)[:11], torch.arange(11)
    whole = torch.cat([made for made, _ in corrupted([(images, labels)], kind, 4)])
    for size in (1, 3, 10):
        cut = corrupted(list(zip(images.split(size), labels.split(size), strict=True)), kind, 4)
        parts = list(cut)
        assert torch.equal(torch.cat([part for _, part in parts]), labels)
        torch.testing.assert_close(torch.cat([made for made, _ in parts]), whole, rtol=0, atol=2e-6)
    # what a later image gets does not hang on the values of the ones before, only on their number
    if kind != "shot_noise":
        shown = corrupted([(torch.cat([1 - images[:5], images[5:]]), labels)], kind, 4)
        torch.testing.assert_close(next(iter(shown))[0][5:], whole[5:], rtol=0, atol=2e-6)


@pytest.mark.parametrize("side", [8, 32, 64])
@pytest.mark.parametrize("kind", KINDS)
def test_a_higher_severity_changes_photographs_more(kind: str, side: int, photos: Tensor) -> None:
    images = _at(photos, side)
    change = [(CORRUPTIONS[kind](images, s, _generator(s)) - images).abs().mean().item() for s in range(1, 6)]
    assert change[0] > 1e-4
    steps = np.diff(change)
    if kind == "pixelate" and side == 8:  # int(8 scale) is 7, 7, 6, 6, 5
        assert (steps[[0, 2]] == 0).all()
        assert (steps[[1, 3]] > 0).all()
    else:
        assert (steps > 0).all(), change


@pytest.mark.parametrize(
    ("kind", "nothing"),
    [
        ("gaussian_noise", (0,)),
        ("impulse_noise", (0,)),
        ("defocus_blur", (0,)),
        ("glass_blur", (0, 0)),
        ("motion_blur", (0,)),
        ("zoom_blur", (0,)),
        ("snow", (0, 3, 0)),
        ("fog", (0, 3)),
        ("brightness", (0,)),
        ("contrast", (1,)),
        ("elastic_transform", (0,)),
        ("pixelate", (1,)),
    ],
)
def test_strength_zero_changes_nothing(kind: str, nothing: tuple[float, ...], photos: Tensor) -> None:
    for images in (photos[:2], _at(photos, 8)[:2].double()):
        made = CORRUPTIONS[kind].function(images, *nothing, _generator())
        torch.testing.assert_close(made, images, rtol=0, atol=3e-6)


@pytest.mark.parametrize("kind", ["defocus_blur", "motion_blur", "zoom_blur", "fog", "snow", "elastic_transform"])
def test_strength_is_a_share_of_the_side(kind: str) -> None:
    """The same smooth scene at 32 and at 64 pixels changes as much, but for how pixels share points between them."""
    change = []
    for side in (32, 64):
        line = (torch.arange(side) + 0.5) / side
        scene = 0.5 + 0.4 * torch.sin(9 * line[:, None] + 2) * torch.cos(11 * line)
        images = scene.expand(40, 1, side, side)
        change.append((CORRUPTIONS[kind](images, 5, _generator()) - images).abs().mean().item())
    assert change[1] == pytest.approx(change[0], rel=0.25)


def test_every_kind_is_of_a_family_and_has_five_strengths() -> None:
    assert len(KINDS) == 14
    assert {corruption.family for corruption in CORRUPTIONS.values()} == set(FAMILIES)
    for name, corruption in CORRUPTIONS.items():
        assert corruption.name == name == corruption.function.__name__
        assert len(corruption.strengths) == 5


# noise


def test_gaussian_noise_is_one_draw_an_image() -> None:
    images = _noise()
    generator = _generator(3)
    draws = [torch.randn(images.shape[1:], generator=generator).double() for _ in images]
    expected = torch.stack([image + 0.08 * draw for image, draw in zip(images, draws, strict=True)])
    torch.testing.assert_close(kinds_module.gaussian_noise(images, 0.08, _generator(3)), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("severity", "sigma"), [(1, 0.04), (3, 0.08), (5, 0.10)])
def test_gaussian_noise_has_its_standard_deviation(severity: int, sigma: float) -> None:
    gray = torch.full((8, 3, 64, 64), 0.5)
    change = CORRUPTIONS["gaussian_noise"](gray, severity, _generator()) - gray
    assert change.std().item() == pytest.approx(sigma, rel=0.01)
    assert abs(change.mean().item()) < 1e-3


@pytest.mark.parametrize(("severity", "photons"), [(1, 500), (5, 50)])
def test_shot_noise_has_mean_x_and_variance_x_over_photons(severity: int, photons: float) -> None:
    for level in (0.0, 0.2, 0.5):
        flat = torch.full((8, 3, 64, 64), level)
        made = CORRUPTIONS["shot_noise"](flat, severity, _generator())
        assert made.mean().item() == pytest.approx(level, abs=2e-3)
        assert made.var().item() == pytest.approx(level / photons, rel=0.03)
        torch.testing.assert_close(made * photons, (made * photons).round(), rtol=0, atol=1e-3)


def test_impulse_noise_sets_a_share_of_values_to_both_ends() -> None:
    gray = torch.full((8, 3, 64, 64), 0.5)
    made = CORRUPTIONS["impulse_noise"](gray, 5, _generator())
    assert set(made.unique().tolist()) == {0.0, 0.5, 1.0}
    for end in (0.0, 1.0):
        assert (made == end).float().mean().item() == pytest.approx(0.035, rel=0.05)


# blur


def test_sample_is_scipys_bilinear_look_up() -> None:
    images = _noise()
    shifts = torch.randn(3, 2, 10, 13, generator=_generator(1), dtype=torch.float64) * 3
    made = blur.sample(images, shifts[:, 0], shifts[:, 1])
    for image, shift, out in zip(images, shifts.numpy(), made.numpy(), strict=True):
        np.testing.assert_allclose(out, _looked_up(image, shift[0], shift[1]), atol=1e-12)


@pytest.mark.parametrize("radius", [0.05, 0.5, 1.0, 1.5, 3.2])
def test_disk_is_the_mean_of_its_points_shared_among_pixels(radius: float) -> None:
    reach = math.ceil(radius)
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1))
    points = [(i / 16, j / 16) for i in range(-16, 17) for j in range(-16, 17) if i * i + j * j <= 256]
    for x, y in points:
        left, top = math.floor(x * radius), math.floor(y * radius)
        right_share, lower_share = x * radius - left, y * radius - top
        for column, share in ((left, 1 - right_share), (left + 1, right_share)):
            for row, other in ((top, 1 - lower_share), (top + 1, lower_share)):
                if share * other > 0:
                    kernel[column + reach, row + reach] += share * other / len(points)
    made = blur.disk(radius).numpy()
    np.testing.assert_allclose(made, kernel, atol=1e-5)
    assert made.sum() == pytest.approx(1)
    np.testing.assert_allclose(made, made.T, atol=1e-6)
    np.testing.assert_allclose(made, made[::-1], atol=1e-6)


def test_defocus_is_scipys_convolution_with_the_disk() -> None:
    images = _noise(height=32, width=40)
    made = CORRUPTIONS["defocus_blur"](images, 5, _generator())
    for image, out in zip(images, made, strict=True):
        for channel, blurred in zip(image, out, strict=True):
            expected = ndimage.convolve(channel.numpy(), blur.disk(1.5).double().numpy(), mode="mirror")
            np.testing.assert_allclose(blurred.numpy(), expected, atol=1e-7)


def test_glass_scatters_within_its_reach_and_blurs() -> None:
    images = _noise(height=32, width=40)
    generator = _generator(4)
    shifts = [(2 * torch.rand((2, 32, 40), generator=generator).double() - 1) * 1.5 for _ in images]
    made = blur.glass_blur(images, 1.5, 0.0, _generator(4))
    smooth = blur.glass_blur(images, 1.5, 1.0, _generator(4))
    for image, shift, out, soft in zip(images, shifts, made, smooth, strict=True):
        expected = _looked_up(image, shift[0].numpy(), shift[1].numpy())
        np.testing.assert_allclose(out.numpy(), expected, atol=1e-12)
        for scattered, blurred in zip(expected, soft.numpy(), strict=True):
            reference = ndimage.gaussian_filter(scattered, 1.0, mode="mirror", radius=3)
            np.testing.assert_allclose(blurred, reference, atol=1e-6)


@pytest.mark.parametrize("sigma", [0.3, 2.0])
def test_motion_is_a_one_sided_gaussian_trail(sigma: float) -> None:
    images = _noise(height=16, width=17)
    angle = torch.tensor([0.0, 0.7, -2.0], dtype=torch.float64)
    made = blur.motion(images, sigma, angle)
    steps = np.linspace(0, 3, int(3 * sigma) + 8)
    weights = np.exp(-(steps**2) / 2) / np.exp(-(steps**2) / 2).sum()
    for image, direction, out in zip(images, angle.tolist(), made.numpy(), strict=True):
        trail = [
            weight * _looked_up(image, step * sigma * math.cos(direction), step * sigma * math.sin(direction))
            for step, weight in zip(steps, weights, strict=True)
        ]
        np.testing.assert_allclose(out, sum(trail), atol=1e-12)


def test_motion_keeps_to_its_directions() -> None:
    """A vertical edge is drawn out; along a horizontal edge at most as much, as directions lie within 45 degrees."""
    edge = (torch.arange(32) < 16).float()
    upright, level = edge.expand(300, 1, 32, 32), edge[:, None].expand(300, 1, 32, 32)
    across = (CORRUPTIONS["motion_blur"](upright, 5, _generator()) - upright).abs().mean((1, 2, 3))
    along = (CORRUPTIONS["motion_blur"](level, 5, _generator()) - level).abs().mean((1, 2, 3))
    assert (along <= across + 1e-6).all()
    assert along.max() > 0.9 * across.min()  # nearly 45 degrees does occur
    assert along.min() < 0.05 * across.max()


def test_zoom_is_the_mean_of_enlarged_images() -> None:
    images = _noise(height=11, width=16)
    made = blur.zoom_blur(images, 0.25, _generator())
    rows, columns = np.mgrid[:11, :16].astype(np.float64)
    for image, out in zip(images, made.numpy(), strict=True):
        enlarged = [
            _looked_up(image, (columns - 7.5) / factor + 7.5 - columns, (rows - 5) / factor + 5 - rows)
            for factor in np.linspace(1, 1.25, 16)
        ]
        np.testing.assert_allclose(out, np.mean(enlarged, axis=0), atol=1e-7)


# weather


def test_brightness_adds_to_the_value_of_hsv() -> None:
    images = _noise(height=8, width=8)
    images[0, :, 0, 0] = 0
    made = CORRUPTIONS["brightness"](images, 4, _generator())
    for image, out in zip(images, made, strict=True):
        for row in range(8):
            for column in range(8):
                hue, saturation, value = colorsys.rgb_to_hsv(*image[:, row, column].tolist())
                expected = colorsys.hsv_to_rgb(hue, saturation, min(value + 0.2, 1))
                assert out[:, row, column].tolist() == pytest.approx(expected, abs=1e-9)
    gray = _noise(channels=1)
    torch.testing.assert_close(CORRUPTIONS["brightness"](gray, 4, _generator()), (gray + 0.2).clamp(max=1))


def test_fog_mixes_in_a_cloud_that_fills_zero_to_one(photos: Tensor) -> None:
    images = photos[:4].double()
    density = 0.75
    made = weather.fog(images, density, 2.5, _generator())
    for image, out in zip(images, made, strict=True):
        brightest = image.max().item()
        cloud = (out * (brightest + density) / brightest - image) / density
        assert cloud.min().item() == pytest.approx(0, abs=1e-6)
        assert cloud.max().item() == pytest.approx(1, abs=1e-6)
        torch.testing.assert_close(cloud[0], cloud[2], rtol=0, atol=1e-6)  # the same cloud in every channel
        assert out.max() <= brightest + 1e-9
    assert torch.equal(weather.fog(torch.zeros(1, 1, 8, 8), 1, 2, _generator()), torch.zeros(1, 1, 8, 8))


def test_fog_is_rougher_where_octaves_decay_less() -> None:
    black = torch.full((20, 1, 32, 32), 0.5)
    rough, smooth = (weather.fog(black, 1, decay, _generator()) for decay in (1.2, 3))
    assert rough.diff(dim=3).abs().mean() > 2 * smooth.diff(dim=3).abs().mean()


def test_snow_of_points_covers_its_share_twice() -> None:
    black = torch.zeros(60, 1, 32, 32)
    made = weather.snow(black, 0.05, 0.0, 0.0, _generator())
    assert (made > 0).float().mean().item() == pytest.approx(1 - 0.95**2, rel=0.05)
    single = made[(made > 0) & (made < 0.99)]
    assert single.min() > 0.499
    assert made.sum().item() / made.numel() == pytest.approx(2 * 0.05 * 0.75, rel=0.05)
    torch.testing.assert_close(made, made.flip(2, 3))


def test_snow_falls() -> None:
    """Flakes are drawn out downwards: neighbours in a column are more alike than neighbours in a row."""
    layer = weather.snow(torch.zeros(60, 1, 32, 32), 0.05, 5.0, 0.0, _generator())
    assert layer.diff(dim=2).abs().mean() < 0.7 * layer.diff(dim=3).abs().mean()


def test_snow_whitens_by_its_veil() -> None:
    images = _noise(height=8, width=8)
    made = weather.snow(images, 0.0, 3.0, 0.3, _generator())
    for image, out in zip(images, made, strict=True):
        red, green, blue = image
        gray = 0.299 * red + 0.587 * green + 0.114 * blue
        for channel, whitened in zip(image, out, strict=True):
            expected = 0.7 * channel + 0.3 * torch.maximum(channel, 1.5 * gray + 0.5)
            torch.testing.assert_close(whitened, expected, rtol=0, atol=1e-9)


# digital


def test_contrast_pulls_each_channel_to_its_mean() -> None:
    images = _noise()
    made = CORRUPTIONS["contrast"](images, 5, _generator())
    for image, out in zip(images.tolist(), made.tolist(), strict=True):
        for channel, flat in zip(image, out, strict=True):
            mean = sum(map(sum, channel)) / 130
            expected = [[mean + 0.15 * (value - mean) for value in row] for row in channel]
            np.testing.assert_allclose(flat, expected, atol=1e-12)


def test_elastic_looks_up_along_a_smooth_field() -> None:
    images = _noise(height=32, width=32)
    made = kinds_module.elastic_transform(images, 1.6, _generator(2))
    generator = _generator(2)
    for image, out in zip(images, made.numpy(), strict=True):
        points = torch.randn((2, 8, 8), generator=generator).double()[None] * 1.6
        field = torch.nn.functional.interpolate(points, size=(32, 32), mode="bicubic", antialias=True)[0].numpy()
        np.testing.assert_allclose(out, _looked_up(image, field[0], field[1]), atol=1e-12)
        assert np.abs(np.diff(field)).mean() < 0.5 * np.abs(field).mean()


@pytest.mark.parametrize(("severity", "scale"), [(1, 0.95), (3, 0.85), (5, 0.65)])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (32, 32), (64, 33)])
def test_pixelate_is_pils_box_filter_down_and_up(severity: int, scale: float, height: int, width: int) -> None:
    images = _noise(height=height, width=width).float()
    made = CORRUPTIONS["pixelate"](images, severity, _generator())
    for image, out in zip(images, made, strict=True):
        for channel, coarse in zip(image, out, strict=True):
            small = Image.fromarray(channel.numpy()).resize((int(scale * width), int(scale * height)), 4)
            np.testing.assert_allclose(coarse.numpy(), np.array(small.resize((width, height), 4)), atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("severity", "quality"), [(1, 80), (5, 40)])
def test_jpeg_is_pils(severity: int, quality: int, channels: int, photos: Tensor) -> None:
    images = ((_at(photos, 32)[:4, :channels] * 255).round() - 0.4).clamp(min=0) / 255  # rounded, not cut off
    made = CORRUPTIONS["jpeg_compression"](images, severity, _generator())
    for image, out in zip(images, made, strict=True):
        pixels = np.rint(image.double().numpy() * 255).astype(np.uint8).transpose(1, 2, 0)
        buffer = io.BytesIO()
        Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels).save(buffer, "JPEG", quality=quality)
        decoded = np.asarray(Image.open(buffer)).reshape(32, 32, channels).transpose(2, 0, 1)
        np.testing.assert_array_equal(np.rint(out.numpy() * 255), decoded)


# wrong input


@pytest.mark.parametrize("severity", [0, 6, -1, 2.0, True, "3", None])
def test_a_severity_must_be_one_of_five(severity: Any) -> None:
    images = torch.rand(1, 1, 8, 8)
    with pytest.raises(UsageError, match="severity must be an integer from 1 to 5, got"):
        CORRUPTIONS["fog"](images, severity, _generator())
    with pytest.raises(UsageError, match="severity must be an integer from 1 to 5, got"):
        corrupted([], "fog", severity)
    with pytest.raises(UsageError, match="severity must be an integer from 1 to 5, got"):
        evaluate_corruptions(_first_pixels, [], severities=[1, severity])


def test_an_unknown_kind_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="unknown corruption 'gausian_noise': did you mean 'gaussian_noise'"):
        corrupted([], "gausian_noise", 1)
    with pytest.raises(UsageError, match="unknown corruption 'frost': valid: brightness, contrast"):
        evaluate_corruptions(_first_pixels, [], ["fog", "frost"])
    with pytest.raises(UsageError, match="at least one corruption"):
        evaluate_corruptions(_first_pixels, [], [])
    with pytest.raises(UsageError, match="at least one severity"):
        evaluate_corruptions(_first_pixels, [], severities=[])


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.full((1, 3, 8, 8), 1.5), r"must lie in \[0, 1\], got \[1.5, 1.5\]"),
        (torch.full((1, 3, 8, 8), -0.1), r"must lie in \[0, 1\]"),
        (torch.full((1, 3, 8, 8), math.nan), "must be finite"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "floating point"),
        (torch.zeros(3, 8, 8), "floating point of shape"),
        (torch.zeros(1, 2, 8, 8), "1 or 3"),
        (torch.zeros(1, 3, 7, 8), "at least 8"),
        (torch.zeros(1, 3, 8, 7), "at least 8"),
    ],
)
def test_what_is_no_image_is_refused(images: Tensor, message: str) -> None:
    for kind in ("gaussian_noise", "jpeg_compression"):
        with pytest.raises(EbmhybridError, match=message):
            CORRUPTIONS[kind](images, 1, _generator())


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_batch_stays_empty_and_rounding_beyond_one_is_cut(kind: str) -> None:
    assert CORRUPTIONS[kind](torch.zeros(0, 1, 8, 8), 1, _generator()).shape == (0, 1, 8, 8)
    made = CORRUPTIONS[kind](torch.full((1, 1, 8, 8), 1 + 5e-7), 1, _generator())
    assert made.max() <= 1


# sets


def _digits(count: int = 60, side: int = 8) -> ImageSet:
    """A made-up set of three classes."""
    images = torch.randint(0, 256, (count, 1, side, side), generator=_generator(7), dtype=torch.uint8)
    return ImageSet("made up", images, torch.arange(count) % 3, ("a", "b", "c"), ("of noise",), batch_size=17)


def _first_pixels(images: Tensor) -> Tensor:
    return 4 * images.flatten(1)[:, 20:23]


def test_a_corrupted_set_says_what_it_is() -> None:
    data = _digits()
    fog = corrupted(data, "fog", 3, seed=4)
    assert fog.name == "made up+fog/3"
    assert fog.notes == ("of noise", "fog of severity 3, generated with seed 4")
    digests = {
        corrupted(other, kind, severity, seed).digest()
        for other in (data, data.take(30))
        for kind in ("fog", "snow")
        for severity in (1, 2)
        for seed in (0, 1)
    }
    assert len(digests) == 16
    assert fog.digest() == corrupted(_digits(), "fog", 3, seed=4).digest()
    assert corrupted([], "fog", 3).digest() is None
    assert corrupted([], "fog", 3).name == "test+fog/3"


def test_another_strength_is_another_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    before = corrupted(_digits(), "contrast", 3).digest()
    changed = kinds_module.Corruption("contrast", "digital", kinds_module.contrast, ((0.7,),) * 5)
    monkeypatch.setitem(CORRUPTIONS, "contrast", changed)
    assert corrupted(_digits(), "contrast", 3).digest() != before


def test_passes_repeat_and_seeds_kinds_and_severities_draw_for_themselves() -> None:
    data = _digits(8)
    images = next(iter(data))[0]

    def noise(kind: str, severity: int, seed: int) -> Tensor:
        return next(iter(corrupted(data, kind, severity, seed)))[0] - images

    fog = corrupted(data, "fog", 3)
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(fog, fog, strict=True))
    assert not torch.equal(noise("gaussian_noise", 1, 0), noise("gaussian_noise", 1, 1))
    inside = ((images > 0.4) & (images < 0.6)).float()
    first, second = (noise("gaussian_noise", level, 0) * inside for level in (1, 2))
    assert abs(np.corrcoef(first.flatten(), second.flatten())[0, 1]) < 0.3


def test_a_subset_is_the_sets_own() -> None:
    data = _digits()
    taken = corrupted(data, "contrast", 2).take(9)
    assert isinstance(taken, Corrupted)
    expected = CORRUPTIONS["contrast"](next(iter(data.take(9)))[0], 2, _generator())
    assert torch.equal(next(iter(taken))[0], expected)
    assert "9 of 60 images" in taken.notes
    plain = [(images, labels) for images, labels in data]
    assert len(predict(_first_pixels, corrupted(plain, "fog", 1), limit=20)) == 20


# the evaluation


def test_a_cell_is_the_models_figures_on_the_corrupted_images() -> None:
    data, temperature = _digits(), 2.5
    result = evaluate_corruptions(_first_pixels, data, ["snow", "contrast"], [2, 5], temperature=temperature, seed=3)
    for row in result.rows[1:5]:
        shown = list(corrupted(data, row["corruption"], row["severity"], seed=3))
        logits = torch.cat([_first_pixels(images) for images, _ in shown]).double().numpy()
        labels = torch.cat([labels for _, labels in shown]).numpy()
        right = int((logits.argmax(1) == labels).sum())
        assert row["n"] == 60
        assert row["accuracy"] == right / 60
        assert (row["accuracy_low"], row["accuracy_high"]) == wilson_interval(right, 60)
        assert row["nll"] == pytest.approx(calibration.nll(softmax(logits), labels), rel=1e-12)
        assert row["ece_15"] == calibration.ece(softmax(logits), labels, 15)
        assert row["ece_15_scaled"] == calibration.ece(softmax(logits / temperature), labels, 15)
        assert row["source"] == "generated"
        assert row["set"] == "made up"
    clean = result.rows[0]
    assert (clean["corruption"], clean["severity"], clean["source"], clean["family"]) == ("none", 0, "clean", None)
    assert clean["accuracy"] == predict(_first_pixels, data).correct.mean()


def test_rows_are_clean_cells_and_unweighted_means() -> None:
    result = evaluate_corruptions(_first_pixels, _digits(30))
    assert [row["corruption"] for row in result.rows[:6]] == ["none"] + ["gaussian_noise"] * 5
    cells = [row for row in result.rows if row["cells"] == 1 and row["corruption"] != "none"]
    assert len(cells) == 70
    tail = {(row["corruption"], row["severity"]): row for row in result.rows[71:]}
    assert list(tail) == [*(("mean", s) for s in range(1, 6)), *((f"{f} mean", None) for f in FAMILIES), ("mean", None)]
    for metric in ("accuracy", "nll", "ece_15"):
        for severity in range(1, 6):
            of_level = [row[metric] for row in cells if row["severity"] == severity]
            assert tail["mean", severity][metric] == pytest.approx(sum(of_level) / 14, rel=1e-12)
        for family, count in zip(FAMILIES, (15, 20, 15, 20), strict=True):
            of_family = [row[metric] for row in cells if CORRUPTIONS[row["corruption"]].family == family]
            assert tail[f"{family} mean", None]["cells"] == len(of_family) == count
            assert tail[f"{family} mean", None][metric] == pytest.approx(sum(of_family) / count, rel=1e-12)
        assert tail["mean", None][metric] == pytest.approx(sum(row[metric] for row in cells) / 70, rel=1e-12)
    assert tail["mean", None]["accuracy_low"] is None
    assert "ece_15_scaled" not in result.rows[0]
    assert json.loads(json.dumps(result.as_dict()))["rows"] == list(result.rows)
    assert result.as_dict()["seed"] == 0


def test_figures_do_not_depend_on_the_batch_size() -> None:
    data = _digits()
    images, labels = data.images.float() / 255, data.labels
    found = [
        evaluate_corruptions(
            _first_pixels, list(zip(images.split(size), labels.split(size), strict=True)), None, 3
        ).rows
        for size in (60, 1, 23)
    ]
    for rows in found[1:]:
        for row, other in zip(found[0], rows, strict=True):
            assert row["accuracy"] == other["accuracy"]
            assert row["nll"] == pytest.approx(other["nll"], rel=1e-6)
            assert row["ece_15"] == pytest.approx(other["ece_15"], abs=1e-6)


class _OnDemand(Mapping[int, ImageSet]):
    """Severities of a corruption that counts how many sets were read."""

    def __init__(self, shade: int, reads: list[tuple[int, int]]) -> None:
        self.shade, self.reads = shade, reads

    def __getitem__(self, severity: int) -> ImageSet:
        self.reads.append((self.shade, severity))
        images = (_digits().images // self.shade).clamp(max=255 - 20 * severity)
        return ImageSet(f"file/{self.shade}/{severity}", images, _digits().labels, ("a", "b", "c"))

    def __iter__(self) -> Iterator[int]:
        return iter((1, 2, 4))

    def __len__(self) -> int:
        return 3


def test_sets_from_files_are_read_once_each_and_only_those_asked_for() -> None:
    reads: list[tuple[int, int]] = []
    sets = {"frost": _OnDemand(2, reads), "fog": _OnDemand(3, reads), "spatter": _OnDemand(4, reads)}
    result = evaluate_corruptions(_first_pixels, _digits(), severities=(1, 4), sets=sets, limit=12)
    assert reads == [(2, 1), (2, 4), (3, 1), (3, 4), (4, 1), (4, 4)]
    assert [row["family"] for row in result.rows[1:7]] == ["weather"] * 4 + ["extra"] * 2
    assert {row["source"] for row in result.rows[1:]} == {"files"}
    assert {row["n"] for row in result.rows} == {12}
    assert result.seed is None
    expected = predict(_first_pixels, sets["fog"][4], limit=12).correct.mean()
    assert result.rows[4]["accuracy"] == expected
    by_name = {(row["corruption"], row["severity"]): row for row in result.rows}
    counted = [row["accuracy"] for row in result.rows[1:5]]
    assert by_name["mean", None]["cells"] == 4  # the validation corruptions of the paper stay out of the mean
    assert by_name["mean", None]["accuracy"] == pytest.approx(np.mean(counted))
    assert by_name["extra mean", None]["cells"] == 2


def test_sets_that_lack_what_is_asked_for_are_refused_before_any_pass() -> None:
    reads: list[tuple[int, int]] = []
    sets = {"fog": _OnDemand(2, reads)}
    with pytest.raises(UsageError, match=r"corruption 'fog' has no severity 3, it has \[1, 2, 4\]"):
        evaluate_corruptions(_first_pixels, _digits(), sets=sets)
    with pytest.raises(UsageError, match="unknown corruption 'snow': valid: fog"):
        evaluate_corruptions(_first_pixels, _digits(), ["snow"], [1], sets=sets)
    with pytest.raises(UsageError, match="at least one corruption"):
        evaluate_corruptions(_first_pixels, _digits(), sets={})
    assert not reads


def test_extra_kinds_alone_have_no_mean_over_all() -> None:
    cell = {"set": "a", "source": "files", "corruption": "spatter", "family": "extra", "severity": 1, "n": 3}
    rows = means([cell | {"accuracy": 0.5, "nll": 1.0, "ece_15": 0.1}])
    assert [(row["corruption"], row["n"]) for row in rows] == [("extra mean", 3)]


def test_a_mean_over_sets_of_different_sizes_names_the_smallest() -> None:
    cell = {"set": "a", "source": "files", "corruption": "fog", "family": "weather", "nll": 1.0, "ece_15": 0.1}
    cells = [cell | {"severity": 1, "n": 30, "accuracy": 1.0}, cell | {"severity": 2, "n": 10, "accuracy": 0.0}]
    assert means(cells)[-1]["n"] == 10
    assert means(cells)[-1]["accuracy"] == 0.5  # unweighted


def test_clean_predictions_at_hand_are_not_made_again() -> None:
    seen: list[int] = []

    def counting(images: Tensor) -> Tensor:
        seen.append(len(images))
        return _first_pixels(images)

    data = _digits()
    clean = predict(_first_pixels, data)
    result = evaluate_corruptions(counting, data, ["fog"], 2, clean=clean)
    assert sum(seen) == 60
    assert result.rows == evaluate_corruptions(_first_pixels, data, "fog", [2]).rows
    assert result.rows[0]["accuracy"] == clean.correct.mean()


def test_progress_counts_cells() -> None:
    seen: list[tuple[str, int]] = []

    def progress(items: Any, text: str) -> Iterator[Any]:
        items = list(items)
        seen.append((text, len(items)))
        return iter(items)

    evaluate_corruptions(_first_pixels, _digits(), ["fog", "snow"], progress=progress)
    assert seen == [("made up", 4), ("made up: corruptions", 10)]


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_a_temperature_must_be_positive(temperature: float) -> None:
    with pytest.raises(EbmhybridError, match="temperature must be positive and finite, got"):
        evaluate_corruptions(_first_pixels, _digits(), temperature=temperature)


def test_labels_and_empty_sets_are_checked() -> None:
    with pytest.raises(EbmhybridError, match="labels must lie in"):
        evaluate_corruptions(lambda images: images.flatten(1)[:, :2], _digits(), "fog", 1)
    with pytest.raises(EbmhybridError, match="is empty"):
        evaluate_corruptions(_first_pixels, [], "fog", 1)


def test_one_image_is_enough() -> None:
    result = evaluate_corruptions(_first_pixels, _digits().take(1), severities=5)
    assert len(result.rows) == 1 + 14 + 1 + 4 + 1
    assert all(math.isfinite(row["nll"]) for row in result.rows)


# figures


def test_curves_are_means_of_cells_from_the_clean_figure() -> None:
    rows = evaluate_corruptions(_first_pixels, _digits(), ["fog", "snow", "contrast"], [1, 4], temperature=2.0).rows
    cells = {(row["corruption"], row["severity"]): row["accuracy"] for row in rows}
    levels, values = severity_curve(rows, "accuracy", "weather")
    assert levels == [0, 1, 4]
    assert values == pytest.approx([cells["none", 0], *((cells["fog", s] + cells["snow", s]) / 2 for s in (1, 4))])
    assert severity_curve(rows, "accuracy") == ([0, 1, 4], [cells["none", 0], cells["mean", 1], cells["mean", 4]])


def test_figures_have_a_line_for_each_family_the_mean_and_the_scaled_mean() -> None:
    result = evaluate_corruptions(_first_pixels, _digits(), ["fog", "contrast"], temperature=2.0)
    accuracy, error = result.plot().axes
    assert [line.get_label() for line in accuracy.lines] == ["weather", "digital", "mean"]
    assert [line.get_label() for line in error.lines] == ["weather", "digital", "mean", "mean, temperature-scaled"]
    (panel,) = corruption_figure(result.rows, "nll").axes
    assert list(panel.lines[-1].get_ydata()) == severity_curve(result.rows, "nll")[1]
    assert panel.get_title() == "made up, n = 60"
    looks = {(line.get_color(), line.get_linestyle()) for line in error.lines}
    assert len(looks) == 4


# documents


def test_the_snippets_of_the_page_run(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parent.parent / "docs" / "corruptions.md").read_text()
    names: dict[str, Any] = {}
    for snippet in re.findall(r"```python\n(.*?)```", page, re.S):
        exec(snippet, names)
    assert "weather mean" in capsys.readouterr().out
    assert names["figure"].axes


def test_the_page_has_every_kind_with_its_strengths() -> None:
    page = (Path(__file__).parent.parent / "docs" / "corruptions.md").read_text()
    for name, corruption in CORRUPTIONS.items():
        (line,) = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
        numbers = [float(number) for number in re.findall(r"\.?\d+(?:\.\d+)?", line.split("|")[3])]
        expected = [value for column in zip(*corruption.strengths, strict=True) for value in column]
        assert numbers == pytest.approx(expected), name
