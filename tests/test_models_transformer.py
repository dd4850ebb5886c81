"""The image transformer: against loops, its likelihood summed over all images, its cache, its samples."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import naive_gcrl as naive
import pytest
import torch
from sklearn.datasets import load_sample_images
from torch import Tensor, nn

from ebmhybrid.data import load_set
from ebmhybrid.errors import EbmhybridError
from ebmhybrid.losses.gcrl import gcrl_loss
from ebmhybrid.models import build_model
from ebmhybrid.models.attention import Block, Cache
from ebmhybrid.models.image_transformer import ImageTransformer
from ebmhybrid.models.palette import default_palette, fit_palette, quantize
from ebmhybrid.recipe import load_recipe

TINY: dict[str, Any] = {"image_size": 2, "levels": 3, "patch": 1, "dim": 8, "layers": 2, "heads": 2, "projection": 4}


def tiny(dtype: torch.dtype = torch.float64, seed: int = 0, **options: Any) -> ImageTransformer:
    """A network with weights so large that its distribution is far from uniform."""
    torch.manual_seed(seed)
    model = ImageTransformer(**{**TINY, **options}).to(dtype).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.5 * torch.randn_like(weight))
    return model


def random_images(model: ImageTransformer, n: int = 3) -> Tensor:
    return torch.rand(n, *model.image_shape, dtype=model.palette.dtype)


def memory_of(model: ImageTransformer, n: int, with_memory: bool) -> Tensor | None:
    """e(x) of one fixed image for each of n samples, or None."""
    image = torch.rand(1, *model.image_shape, generator=torch.Generator().manual_seed(5)).to(model.palette)
    return model.encode(image).detach().expand(n, -1, -1) if with_memory else None


def all_images(model: ImageTransformer) -> Tensor:
    return model.images(naive.every_sequence(model.levels, model.num_tokens))


# ----------------------------------------------------------------------------------------------------- loops


@pytest.mark.parametrize("options", [{}, {"in_channels": 3, "image_size": 4, "patch": 2, "mean": 0.25, "std": 0.375}])
def test_encoder_and_decoder_are_the_loops(options: dict[str, Any]) -> None:
    model = tiny(**options)
    images, weights = random_images(model, 2), model.state_dict()
    memory = model.encode(images)
    patch, mean, std = model.patches.kernel_size[0], options.get("mean", 0.5), options.get("std", 0.5)
    for image, encoded in zip(images, memory, strict=True):
        torch.testing.assert_close(encoded, naive.encode(weights, image, patch, 2, 2, mean, std))
    torch.testing.assert_close(model.features(images), memory.mean(1))
    tokens = model.tokens(images)
    for given in (None, memory):
        logits, likelihoods = model.logits(tokens, given), model.log_likelihood(images, given)
        for i, sequence in enumerate(tokens.tolist()):
            wanted = naive.logits(weights, sequence, 2, 2, None if given is None else given[i])
            torch.testing.assert_close(logits[i], wanted)
            torch.testing.assert_close(likelihoods[i], naive.log_likelihood(wanted, sequence))


@pytest.mark.parametrize("channels", [1, 3])
def test_tokens_are_the_nearest_colours(channels: int) -> None:
    images = 1.4 * torch.rand(2, channels, 3, 3, dtype=torch.float64) - 0.2  # outside [0, 1] too
    palette = torch.rand(7, channels, dtype=torch.float64)
    palette[5] = palette[2]  # a tie goes to the lower index
    assert quantize(images, palette).tolist() == naive.tokens(images, palette)


def test_tokens_do_not_depend_on_how_many_distances_are_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    images, palette = torch.rand(3, 3, 5, 5), torch.rand(9, 3)
    whole = quantize(images, palette)
    monkeypatch.setattr("ebmhybrid.models.palette.DISTANCES", 9 * 7)
    assert torch.equal(quantize(images, palette), whole)


# --------------------------------------------------------------------------------------------- a distribution


@pytest.mark.parametrize("with_memory", [False, True])
def test_the_probabilities_of_all_images_sum_to_one(with_memory: bool) -> None:
    model = tiny()
    images = all_images(model)
    assert len(images) == 81
    chances = model.log_likelihood(images, memory_of(model, 81, with_memory)).exp()
    assert chances.sum().item() == pytest.approx(1, abs=1e-12)
    assert chances.max() > 3 / 81  # far from uniform, or the tests below say little


def check_frequencies(model: ImageTransformer, samples: Tensor, log_chances: Tensor) -> None:
    """A chi-square test of how often each of the 81 images was drawn; rare ones are counted together."""
    from scipy.stats import chisquare

    places = (model.tokens(samples) * torch.tensor([27, 9, 3, 1])).sum(1)
    observed, expected = places.bincount(minlength=81).double(), len(samples) * log_chances.double().exp()
    rare = expected < 5
    observed, expected = (torch.cat([v[~rare], v[rare].sum()[None]]) for v in (observed, expected))
    assert len(expected) > 20
    assert chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 0.001


@pytest.mark.parametrize("with_memory", [False, True])
def test_samples_and_likelihood_agree(with_memory: bool) -> None:
    """The mean log-likelihood of 4,000 samples is minus the entropy, and their frequencies are the probabilities."""
    model, count = tiny(torch.float32), 4000
    exact = model.log_likelihood(all_images(model), memory_of(model, 81, with_memory)).detach()
    entropy = -(exact.exp() * exact).sum()
    memory = memory_of(model, count, with_memory)
    samples = model.sample(count, torch.Generator().manual_seed(1), memory)
    found = model.log_likelihood(samples, memory).detach()
    assert abs(found.mean() + entropy) < 4 * found.std() / math.sqrt(count)
    check_frequencies(model, samples, exact)


def test_the_temperature_divides_every_conditional_s_logits() -> None:
    model, tokens = tiny(torch.float32), naive.every_sequence(3, 4)
    tempered = (model.logits(tokens).detach() / 1.7).log_softmax(2)
    exact = tempered.gather(2, tokens[:, :, None]).sum((1, 2))
    check_frequencies(model, model.sample(4000, torch.Generator().manual_seed(2), temperature=1.7), exact)


def test_samples_come_from_the_generator_alone() -> None:
    model = tiny(torch.float32)
    before = torch.get_rng_state()
    first, second = (model.sample(16, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(first, model.sample(16, torch.Generator().manual_seed(4)))
    torch.manual_seed(3)
    assert torch.equal(model.sample(16), first)  # without one, torch's own
    assert first.shape == (16, 1, 2, 2)
    assert set(first.flatten().tolist()) <= {0.0, 0.5, 1.0}
    assert not first.requires_grad


def test_each_sample_has_the_memory_of_its_row() -> None:
    """At a low temperature the mode of each conditional is drawn, whatever the other rows are."""
    model, generator = tiny(torch.float32), torch.Generator().manual_seed(0)
    memory = model.encode(random_images(model, 6))
    together = model.sample(6, generator, memory, temperature=1e-4)
    alone = [model.sample(1, generator, memory[i : i + 1], temperature=1e-4) for i in range(6)]
    assert torch.equal(together, torch.cat(alone))
    assert len(together.unique(dim=0)) > 1


# ----------------------------------------------------------------------------------------------------- cache


@pytest.mark.parametrize("with_memory", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_the_cache_changes_no_logit(dtype: torch.dtype, tolerance: float, with_memory: bool) -> None:
    model = ImageTransformer(image_size=8, levels=17, patch=2, dim=32, heads=4).to(dtype).eval()
    images = random_images(model, 5)
    tokens, memory = model.tokens(images), model.encode(images) if with_memory else None
    whole = model.logits(tokens, memory)
    contexts, caches = model.decoder.contexts(memory, 5), [Cache(64) for _ in model.decoder.blocks]
    before = torch.cat([torch.full((5, 1), 17), tokens[:, :-1]], dim=1)
    for t in range(64):
        step = model.decoder.step(before[:, t : t + 1], contexts, caches)
        assert (step - whole[:, t]).abs().max() <= tolerance, t
    assert whole.std() > 0.1


def test_the_cache_is_made_once_and_holds_what_was_appended() -> None:
    cache, parts = Cache(3), [torch.rand(2, 1, 1, 4) for _ in range(3)]
    cache.append(parts[0], -parts[0])
    place = cache.append(parts[1], -parts[1])[0].data_ptr()
    keys, values = cache.append(parts[2], -parts[2])
    assert keys.data_ptr() == place
    assert torch.equal(keys, torch.cat(parts, dim=2))
    assert torch.equal(values, -keys)


# ------------------------------------------------------------------------------------------ what sees what


def test_the_decoder_is_causal() -> None:
    model = tiny(image_size=3)
    tokens = model.tokens(random_images(model, 2))
    logits = model.logits(tokens)
    for t in range(9):
        changed = tokens.clone()
        changed[:, t] = (changed[:, t] + 1) % 3
        other = model.logits(changed)
        assert torch.equal(other[:, : t + 1], logits[:, : t + 1])
        assert all((other[:, i] != logits[:, i]).any() for i in range(t + 1, 9))


def test_the_encoder_sees_the_whole_image_and_no_other_image() -> None:
    model = tiny()
    images = random_images(model, 3)
    memory = model.encode(images)
    changed = images.clone()
    changed[:, :, 1, 1] += 0.3
    assert (model.encode(changed) != memory).flatten(2).any(2).all()
    torch.testing.assert_close(model.encode(images[1:2]), memory[1:2])
    torch.testing.assert_close(model.log_likelihood(images[1:2]), model.log_likelihood(images)[1:2])


def test_the_encoder_sees_more_than_the_quantised_image() -> None:
    model = tiny()
    images = random_images(model)
    near = model.images(model.tokens(images))
    assert torch.equal(model.log_likelihood(images), model.log_likelihood(near))
    assert not torch.allclose(model.features(images), model.features(near))


def test_features_have_gradients_in_the_image_and_likelihoods_do_not() -> None:
    model, images = tiny(), torch.rand(2, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(model.features(images).square().sum(), images)
    assert (slope != 0).all()
    (slope,) = torch.autograd.grad(model.log_likelihood(images).sum(), images, allow_unused=True)
    assert slope is None


def test_logits_are_the_head_of_hidden() -> None:
    model = tiny()
    tokens, memory = model.tokens(random_images(model)), model.encode(random_images(model))
    for given in (None, memory):
        hidden = model.hidden(tokens, given)
        assert hidden.shape == (3, 4, 8)
        torch.testing.assert_close(model.decoder.head(hidden), model.logits(tokens, given))


# ------------------------------------------------------------------------------------------- a training step


def test_a_step_gives_what_was_asked_for_and_computes_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (view, other, target) = tiny().train(), torch.rand(3, 5, 1, 2, 2, dtype=torch.float64)
    encoded: list[Tensor] = []
    decoded: list[Tensor] = []
    model.patches.register_forward_hook(lambda module, inputs, output: encoded.append(inputs[0]))
    model.decoder.norm.register_forward_hook(lambda module, inputs, output: decoded.append(output))
    both = model(view, other, target)
    assert [len(x) for x in encoded] == [10]
    assert len(decoded) == 1
    torch.testing.assert_close(both.anchors, model.project(model.features(view)))
    torch.testing.assert_close(both.positives, model.project(model.features(other)))
    encoded.clear(), decoded.clear()
    contrastive = model(view, other)
    assert (contrastive.log_likelihood, decoded) == (None, [])
    torch.testing.assert_close(contrastive.anchors, both.anchors)
    encoded.clear()
    generative = model(view, target=target)
    assert (generative.anchors, generative.positives) == (None, None)
    assert [len(x) for x in encoded] == [5]
    encoded.clear()
    assert model.eval()(view, target=target).log_likelihood is not None
    assert encoded == []


@pytest.mark.parametrize("with_other", [False, True])
def test_the_memory_is_that_of_the_view_or_the_empty_one(with_other: bool) -> None:
    (view, other, target) = torch.rand(3, 200, 1, 2, 2, dtype=torch.float64)
    model = tiny(empty=0.3)
    shown, exact = model.log_likelihood(target, model.encode(view)), model.log_likelihood(target)
    model.train()
    found = model(view, other if with_other else None, target).log_likelihood
    emptied = torch.isclose(found, exact)
    torch.testing.assert_close(found, torch.where(emptied, exact, shown))
    assert 40 <= emptied.sum() <= 80  # of 200 at .3: 60 +- 3 standard deviations
    torch.testing.assert_close(model.eval()(view, other, target).log_likelihood, exact)
    for empty, wanted in ((0.0, shown), (1.0, exact)):
        model.train().empty = empty
        torch.testing.assert_close(model(view, other, target).log_likelihood, wanted)


@pytest.mark.parametrize("with_other", [False, True])
def test_a_model_that_never_saw_the_empty_memory_is_not_evaluated_with_it(with_other: bool) -> None:
    view, other, target = torch.rand(3, 5, 1, 2, 2, dtype=torch.float64)
    model = tiny(empty=0.0).eval()
    found = model(view, other if with_other else None, target).log_likelihood
    torch.testing.assert_close(found, model.log_likelihood(target, model.encode(view)))
    assert (found - model.log_likelihood(target)).abs().min() > 1e-3


@pytest.mark.parametrize("temperature", [1e-6, 1e6])
def test_the_ends_of_the_temperatures_can_be_drawn_at(temperature: float) -> None:
    assert tiny(torch.float32).sample(3, temperature=temperature).isfinite().all()


def test_which_memories_are_empty_is_drawn_from_torch_s_global_generator() -> None:
    model, images = tiny().train(), torch.rand(64, 1, 2, 2, dtype=torch.float64)
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(model(images, target=images).log_likelihood)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_gradients_reach_every_weight() -> None:
    model, images = tiny().train(), torch.rand(16, 1, 2, 2, dtype=torch.float64)
    out = model(images, images + 0.01, images)
    gcrl_loss(out.log_likelihood, 4, out.anchors, out.positives).backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert torch.isfinite(weight.grad).all(), name
        assert weight.grad.any(), name


def test_dropout_is_of_training_alone() -> None:
    model, images = tiny(dropout=0.5), torch.rand(4, 1, 2, 2, dtype=torch.float64)
    assert torch.equal(model.features(images), model.features(images))
    assert torch.equal(model.log_likelihood(images), model.log_likelihood(images))
    model.train()
    assert not torch.equal(model.features(images), model.features(images))
    assert not torch.equal(model.log_likelihood(images), model.log_likelihood(images))
    plain = tiny().train()
    assert torch.equal(plain.features(images), plain.features(images))


def test_dropout_is_on_the_embeddings_and_on_each_part_of_a_block() -> None:
    """Where all is dropped, a block leaves its input as it is, and nothing of the image or of the tokens is left."""
    block, x = Block(8, 2, dropout=1.0, cross=True), torch.rand(3, 5, 8)
    assert torch.equal(block(x, block.cross.keys_values(torch.rand(3, 2, 8)), causal=True), x)
    model = tiny(dropout=0.5).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 1.0
    images = random_images(model)
    assert torch.equal(model.encode(images), model.norm.bias.expand(3, 4, 8))
    assert torch.equal(model.hidden(model.tokens(images)), model.decoder.norm.bias.expand(3, 4, 8))


def test_training_on_digits_lowers_both_losses() -> None:
    digits = load_set("digits").images[:256].float() / 255
    torch.manual_seed(0)
    model = ImageTransformer(levels=17, patch=4, dim=32, layers=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    values = []
    for i in range(40):
        target = digits[torch.arange(16 * i, 16 * i + 16) % 256]
        view, other = (target + 0.05 * torch.randn_like(target) for _ in range(2))
        out = model(view, other, target)
        loss, terms = gcrl_loss(out.log_likelihood, 64, out.anchors, out.positives, return_terms=True)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append((terms["generative"].item(), terms["contrast"].item()))
    assert values[0][0] == pytest.approx(math.log(17), abs=0.3)
    assert values[-1][0] < 1.9
    assert values[-1][1] < 0.5 * values[0][1]


def test_likelihoods_of_weights_in_bfloat16_are_float32() -> None:
    model = ImageTransformer(**TINY)
    tokens, exact = naive.every_sequence(3, 4), model.log_likelihood(all_images(model))
    found = model.to(torch.bfloat16).decoder.log_likelihood(tokens)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact, rtol=0.02, atol=0)
    assert model.decoder.sample(5).shape == (5, 4)


def test_bfloat16_is_near_float32_and_likelihoods_stay_wide() -> None:
    torch.manual_seed(0)
    model = ImageTransformer(levels=17, dim=32).train()
    model.empty = 0.0
    images = torch.rand(4, 1, 8, 8)
    wide = model(images, images, images)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(images, images, images)
        samples = model.sample(2, torch.Generator().manual_seed(0))
    assert half.log_likelihood.dtype == torch.float32
    torch.testing.assert_close(half.log_likelihood, wide.log_likelihood, rtol=0.005, atol=0)
    torch.testing.assert_close(half.anchors.float(), wide.anchors, rtol=0.1, atol=0.02)
    assert samples.shape == (2, 1, 8, 8)
    gcrl_loss(half.log_likelihood, 64, half.anchors, half.positives).backward()
    assert all(torch.isfinite(weight.grad).all() for weight in model.parameters() if weight.grad is not None)


@pytest.mark.parametrize("channels", [1, 3])
def test_bits_per_dimension_of_the_uniform_distribution(channels: int) -> None:
    model = ImageTransformer(in_channels=channels, image_size=4, levels=8, patch=2, dim=8, layers=1, heads=1)
    nn.init.zeros_(model.decoder.head.weight)
    nn.init.zeros_(model.decoder.head.bias)
    bits = model.bits_per_dimension(model.log_likelihood(torch.rand(2, channels, 4, 4)))
    torch.testing.assert_close(bits, torch.full((2,), 3.0 / channels))


# --------------------------------------------------------------------------------------------------- palettes


def test_seventeen_grey_levels_hold_the_digits_as_they_are() -> None:
    digits = load_set("digits").images.float() / 255
    model = ImageTransformer(levels=17)
    back = model.images(model.tokens(digits))
    assert (back * 255 - digits * 255).abs().max() <= 0.5
    assert torch.equal((back * 16).round(), (digits * 16).round())


@pytest.mark.parametrize(("levels", "channels"), [(2, 1), (16, 1), (2, 3), (8, 3), (100, 3), (512, 3)])
def test_the_default_palette_is_distinct_and_within_the_cube(levels: int, channels: int) -> None:
    palette = default_palette(levels, channels)
    assert palette.shape == (levels, channels)
    assert len(palette.unique(dim=0)) == levels
    assert (palette.min(), palette.max()) == (0, 1)


def photo_pixels() -> Tensor:
    return torch.from_numpy(load_sample_images().images[1].copy()).permute(2, 0, 1)[None]


def test_a_fitted_palette_is_nearer_to_its_images_than_the_grid() -> None:
    photo = photo_pixels()[:, :, 100:260, 200:360]
    fitted = fit_palette(photo, 27)
    pixels = photo.double().div(255).flatten(2)[0].T
    errors = [torch.cdist(pixels, p.double()).min(1).values.square().mean() for p in (fitted, default_palette(27, 3))]
    assert errors[0] < 0.25 * errors[1]
    assert 0 <= fitted.min() <= fitted.max() <= 1
    # each colour is the mean of the pixels that take it
    tokens = quantize(photo.float() / 255, fitted)[0]
    means = torch.stack([pixels[tokens == k].mean(0) for k in range(27)])
    assert (means - fitted).abs().max() < 0.03


def test_the_palette_depends_on_the_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ebmhybrid.models.palette.FITTED_PIXELS", 2000)
    photo, before = photo_pixels()[:, :, :64, :64], torch.get_rng_state()
    first = fit_palette(photo, 8, seed=1)
    assert torch.equal(fit_palette(photo, 8, seed=1), first)
    assert not torch.equal(fit_palette(photo, 8, seed=2), first)
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(fit_palette(photo.float() / 255, 8, seed=1), first)


def test_a_model_s_palette_is_kept_with_its_weights() -> None:
    options = {**TINY, "in_channels": 3, "image_size": 8, "levels": 5}
    model, other = ImageTransformer(**options), ImageTransformer(**options)
    images = photo_pixels()[:, :, :8, :64].unfold(3, 8, 8)[0].permute(2, 0, 1, 3)
    model.fit_palette(images)
    torch.testing.assert_close(model.palette, fit_palette(images, 5))
    assert not torch.equal(model.palette, other.palette)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.palette, model.palette)
    scaled = images.float() / 255
    assert torch.equal(other.tokens(scaled), model.tokens(scaled))


def test_grey_levels_stay_evenly_spaced() -> None:
    model = ImageTransformer(levels=5)
    model.fit_palette(load_set("digits").images)
    assert model.palette.flatten().tolist() == [0, 0.25, 0.5, 0.75, 1]


# ----------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_channels": 2}, "in_channels must be 1 or 3, got 2"),
        ({"image_size": 0}, "image_size must be a whole number from 1 to 256, got 0"),
        ({"image_size": 9}, "image_size must be a multiple of patch = 2, got 9"),
        ({"levels": 1}, "levels must be a whole number from 2 to 65536, got 1"),
        ({"levels": 16.0}, "levels must be a whole number from 2 to 65536, got 16.0"),
        ({"patch": 0}, "patch must be a whole number from 1 to 256, got 0"),
        ({"dim": 0}, "dim must be a whole number from 1 to 8192, got 0"),
        ({"dim": 66}, "dim must be a multiple of heads = 4, got 66"),
        ({"layers": 0}, "layers must be a whole number from 1 to 1024, got 0"),
        ({"heads": True}, "heads must be a whole number from 1 to 8192, got True"),
        ({"projection": "64"}, "projection must be a whole number from 1 to 65536, got '64'"),
        ({"empty": 1.5}, r"empty must lie in \[0, 1\], got 1.5"),
        ({"empty": math.nan}, r"empty must lie in \[0, 1\], got nan"),
        ({"empty": "x"}, r"empty must lie in \[0, 1\], got 'x'"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1.0"),
        ({"dropout": "x"}, r"dropout must lie in \[0, 1\), got 'x'"),
        ({"dim": 10**8}, "dim must be a whole number from 1 to 8192, got 100000000"),
        ({"mean": [0.5, 0.5]}, "mean must be 1 or 1 finite numbers"),
        ({"std": 0.0}, "std must be positive"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageTransformer(**options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.encode(torch.rand(2, 3, 2, 2)), r"images must be \(N, 1, 2, 2\), got \(2, 3, 2, 2\)"),
        (lambda m: m.tokens(torch.rand(1, 2, 2)), r"images must be \(N, 1, 2, 2\), got \(1, 2, 2\)"),
        (lambda m: m.log_likelihood(torch.rand(1, 1, 4, 4)), r"images must be .* got \(1, 1, 4, 4\)"),
        (lambda m: m.tokens(torch.full((1, 1, 2, 2), math.nan)), "images must be numbers to have tokens, got NaN"),
        (lambda m: m.sample(0), "n must be a whole number from 1 to 10000000, got 0"),
        (lambda m: m.sample(2.0), "n must be a whole number from 1 to 10000000, got 2.0"),
        (lambda m: m.sample(-1), "n must be .* got -1"),
        (lambda m: m.sample(True), "n must be .* got True"),
        (lambda m: m.sample(2, temperature=0), r"temperature must lie in \[1e-06, 1e\+06\], got 0"),
        (lambda m: m.sample(2, temperature=1e-40), "temperature must lie in .* got 1e-40"),
        (lambda m: m.sample(2, temperature=math.inf), "temperature must lie in .* got inf"),
        (lambda m: m.sample(2, memory=torch.zeros(3, 4, 8)), r"memory must be \(2, 4, 8\), got \(3, 4, 8\)"),
        (lambda m: m.logits(torch.zeros(2, 4).long(), torch.zeros(2, 4)), r"memory must be \(2, 4, 8\), got \(2, 4\)"),
        (lambda m: m(*torch.rand(2, 3, 1, 2, 2), torch.rand(2, 1, 2, 2)), r"target must be \(3, 1, 2, 2\) as view"),
        (lambda m: m(torch.rand(3, 1, 2, 2), torch.rand(2, 1, 2, 2)), r"other must be .* as view, got \(2, 1, 2, 2\)"),
        (lambda m: m.fit_palette(torch.rand(2, 3, 2, 2)), r"images must be \(N, 1, 2, 2\), got \(2, 3, 2, 2\)"),
        (lambda m: fit_palette(torch.rand(0, 3, 2, 2), 2), r"images must be .* got torch.float32 \(0, 3, 2, 2\)"),
        (lambda m: fit_palette(torch.zeros(1, 3, 2, 2).long(), 2), "images must be .* got torch.int64"),
        (lambda m: fit_palette(2 * torch.ones(1, 3, 2, 2), 2), r"must lie in \[0, 1\] or be uint8, got 2..2"),
        (lambda m: fit_palette(torch.full((1, 3, 2, 2), math.nan), 2), "must lie in .* got nan..nan"),
        (lambda m: fit_palette(torch.zeros(1, 3, 2, 2), 2), "levels = 2: must be at most 1, the number of colours"),
    ],
)
def test_wrong_input_is_named(call: Any, message: str) -> None:
    with pytest.raises(EbmhybridError, match=message):
        call(tiny(torch.float32))


def test_infinite_pixels_take_the_outermost_level() -> None:
    images = torch.tensor([-math.inf, math.inf, -3.0, 7.0]).view(1, 1, 2, 2)
    assert ImageTransformer(**TINY).tokens(images).tolist() == [[0, 2, 0, 2]]


def test_no_image_has_no_tokens_and_no_likelihood() -> None:
    model, none = tiny(torch.float32), torch.rand(0, 1, 2, 2)
    assert model.tokens(none).shape == (0, 4)
    assert model.log_likelihood(none).shape == (0,)
    assert model.features(none).shape == (0, 8)


# ---------------------------------------------------------------------------------------- recipes, documents


@pytest.mark.parametrize(
    ("name", "shape", "tokens"),
    [("digits_gcrl", (1, 8), 64), ("fashion_mnist_gcrl", (1, 14), 196), ("cifar10_gcrl", (3, 32), 1024)],
)
def test_each_recipe_s_network_takes_a_step(name: str, shape: tuple[int, int], tokens: int) -> None:
    """Of fewer layers and less width than cifar10_gcrl asks for, which would take minutes here."""
    recipe = load_recipe(name)
    options = dict(recipe.model.options)
    if name.startswith("cifar10"):
        options |= {"dim": 8, "heads": 1, "layers": 1}
    model = build_model("image_transformer", in_channels=shape[0], image_size=shape[1], **options).train()
    images = torch.rand(2, shape[0], shape[1], shape[1])
    out = model(images, images.flip(3), images)
    how = recipe.objective.gcrl
    loss = gcrl_loss(out.log_likelihood, tokens, out.anchors, out.positives, how.weight, how.generative_weight)
    loss.backward()
    assert model.num_tokens == tokens
    assert 0 < loss < math.log(options["levels"]) + 1.2 * math.log(3) + 10
    torch.optim.SGD(model.parameters(), lr=0.01).step()


def test_the_snippets_of_the_page_run() -> None:
    page = (Path(__file__).parent.parent / "docs" / "gcrl.md").read_text()
    names: dict[str, Any] = {}
    snippets = re.findall(r"```python\n(.*?)```", page, re.S)
    assert snippets
    for snippet in snippets:
        exec(snippet, names)
    assert names["samples"].shape == (4, 1, 8, 8)


def test_a_block_without_cross_attention_has_none() -> None:
    assert not any("cross" in name for name, _ in Block(8, 2).named_parameters())
