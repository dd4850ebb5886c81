"""Autoencoders and their likelihoods: against naive ones, as distributions, at edges; shapes, codes, a training."""

from __future__ import annotations

import copy
import json
import math

import naive_likelihoods as naive
import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from ebmhybrid.codes import floor_log_std, kl_to_prior, log_posterior, log_prior
from ebmhybrid.models import WideResNet
from ebmhybrid.models.autoencoder import Autoencoder
from ebmhybrid.models.likelihoods import LIKELIHOODS, likelihood_named

NAMES = list(LIKELIHOODS)
ENCODERS = [{"encoder": "conv"}, {"encoder": "wide_resnet"}]
LEVELS = torch.arange(256, dtype=torch.float64) / 255


def drawn(name: str, channels: int = 3, n: int = 4, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Parameters and 8-bit images with zeros and ones among their pixels."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (n, channels, 3, 5), generator=generator).to(dtype) / 255
    images[0, 0, 0, :2] = torch.tensor([0.0, 1.0])
    images[-1, -1] = images[-1, -1].round()
    k = LIKELIHOODS[name].channels(channels)
    return torch.randn(n, k, 3, 5, generator=generator, dtype=torch.float64).to(dtype) * 1.5, images


def pixels(*parameters: float, n: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """The same parameters of one pixel, n times."""
    return torch.tensor(parameters, dtype=dtype).view(1, -1, 1, 1).expand(n, -1, 1, 1)


# Likelihoods


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_log_prob_is_the_naive_sum(name: str, channels: int) -> None:
    parameters, images = drawn(name, channels)
    parts = LIKELIHOODS[name].channels(channels) // channels
    kinds = [np.split(p, parts) for p in parameters.numpy()]
    naively = [getattr(naive, name)(*kind, image) for kind, image in zip(kinds, images.numpy(), strict=True)]
    found = LIKELIHOODS[name].log_prob(parameters, images)
    torch.testing.assert_close(found, torch.tensor(naively, dtype=torch.float64), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_the_value(name: str) -> None:
    parameters, images = drawn(name, channels=2, n=2)
    log_prob = LIKELIHOODS[name].log_prob
    assert torch.autograd.gradcheck(lambda p: log_prob(p, images), parameters.requires_grad_())


@pytest.mark.parametrize("location", [-7.0, -1.0, -0.3, 0.0, 0.999, 40.0])
@pytest.mark.parametrize("raw", [-50.0, -7.0, -3.0, 0.0, 4.0, 50.0])
def test_the_logistic_sums_to_one_over_the_levels(location: float, raw: float) -> None:
    log_p = LIKELIHOODS["logistic"].log_prob(pixels(location, raw, n=256), LEVELS.view(-1, 1, 1, 1))
    assert log_p.logsumexp(0).item() == pytest.approx(0, abs=1e-9)


def test_the_bernoulli_sums_and_the_gaussian_integrates_to_one() -> None:
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64).view(2, 1, 1, 1)
    assert LIKELIHOODS["bernoulli"].log_prob(pixels(1.7, n=2), ends).exp().sum().item() == pytest.approx(1)
    line = torch.linspace(-9, 9, 20001, dtype=torch.float64)
    density = LIKELIHOODS["gaussian"].log_prob(pixels(0.4, -1.0, n=len(line)), line.view(-1, 1, 1, 1)).exp()
    assert torch.trapezoid(density, line).item() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize(("location", "level"), [(-1.0, 254), (1.0, 1), (3.0, 100), (0.0, 128)])
@pytest.mark.parametrize("raw", [-4.5, -1.0, 5.5, 6.5])
def test_the_logistic_keeps_its_digits_in_the_tails_in_float32(location: float, level: int, raw: float) -> None:
    image = LEVELS[level].float().view(1, 1, 1, 1)
    found = LIKELIHOODS["logistic"].log_prob(pixels(location, raw, n=1, dtype=torch.float32), image)
    expected = naive.log_probability_of_a_level(location, naive.floored(raw, -7.0), level, digits=400)
    assert found.item() == pytest.approx(expected, rel=2e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("first", [-1e4, -30.0, -1.0, 0.0, 1.0, 30.0, 1e4])
@pytest.mark.parametrize("second", [-1e4, -7.0, 0.0, 12.0, 1e4])
def test_values_and_gradients_are_finite_at_the_edges(name: str, first: float, second: float) -> None:
    images = torch.tensor([0.0, 1.0, 0.5, 1 / 255]).view(4, 1, 1, 1)
    kinds = (first, second)[: LIKELIHOODS[name].channels(1)]
    parameters = pixels(*kinds, n=4, dtype=torch.float32).clone().requires_grad_()
    log_p = LIKELIHOODS[name].log_prob(parameters, images)
    log_p.sum().backward()
    assert torch.isfinite(log_p).all()
    assert parameters.grad is not None
    assert torch.isfinite(parameters.grad).all()


def test_floors_are_minus_7_and_minus_6() -> None:
    at, zero = torch.full((1, 1, 1, 1), 128 / 255, dtype=torch.float64), torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    half = math.exp(7.0) / 255
    logistic = LIKELIHOODS["logistic"].log_prob(pixels(1 / 255, -100.0, n=1), at)
    assert logistic.item() == pytest.approx(math.log(math.tanh(half / 2)))
    gaussian = LIKELIHOODS["gaussian"].log_prob(pixels(0.0, -100.0, n=1), zero)
    assert gaussian.item() == pytest.approx(6 - 0.5 * math.log(2 * math.pi))


def test_the_logistic_is_of_the_nearest_level() -> None:
    log_prob, parameters = LIKELIHOODS["logistic"].log_prob, pixels(0.1, -3.0, n=3)
    near = torch.tensor([100.4, 100.0, 99.6], dtype=torch.float64).view(3, 1, 1, 1) / 255
    found = log_prob(parameters, near)
    assert found.unique().numel() == 1
    assert log_prob(parameters[:1], near[:1] + 0.2 / 255) != found[0]


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_summed_in_float32(name: str) -> None:
    parameters, images = drawn(name, n=3, dtype=torch.bfloat16)
    found = LIKELIHOODS[name].log_prob(parameters, images.float())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, LIKELIHOODS[name].log_prob(parameters.float(), images.float()), rtol=0, atol=0)
    assert LIKELIHOODS[name].mean(parameters).dtype == torch.float32


@pytest.mark.parametrize("name", NAMES)
def test_one_image_sees_nothing_of_the_others(name: str) -> None:
    parameters, images = drawn(name)
    whole = LIKELIHOODS[name].log_prob(parameters, images)
    torch.testing.assert_close(whole[1:2], LIKELIHOODS[name].log_prob(parameters[1:2], images[1:2]))
    parameters[0, 0, 0, 0] = math.nan
    spoilt = LIKELIHOODS[name].log_prob(parameters, images)
    assert torch.isnan(spoilt[0])
    assert torch.equal(spoilt[1:], whole[1:])
    assert LIKELIHOODS[name].log_prob(parameters[:0], images[:0]).shape == (0,)


def test_means_are_images() -> None:
    parameters = torch.tensor([-2.0, 0.0, 0.5, 2.0]).view(1, 1, 2, 2)
    both = torch.cat([parameters, torch.zeros_like(parameters)], dim=1)
    values = {
        "bernoulli": parameters.sigmoid().flatten().tolist(),
        "logistic": [0, 0.5, 0.75, 1],
        "gaussian": [0, 0, 0.5, 1],
    }
    for name, expected in values.items():
        mean = LIKELIHOODS[name].mean(parameters if name == "bernoulli" else both)
        assert mean.shape == (1, 1, 2, 2)
        assert mean.flatten().tolist() == pytest.approx(expected)


@pytest.mark.parametrize("name", ["bernoulli", "logistic"])
def test_samples_come_as_often_as_the_probabilities_say(name: str) -> None:
    n, kinds = 100_000, (0.4, -2.0)[: LIKELIHOODS[name].channels(1)]
    levels = LEVELS if name == "logistic" else torch.tensor([0.0, 1.0], dtype=torch.float64)
    images = LIKELIHOODS[name].sample(pixels(*kinds, n=n), torch.Generator().manual_seed(0)).flatten()
    p = LIKELIHOODS[name].log_prob(pixels(*kinds, n=len(levels)), levels.view(-1, 1, 1, 1)).exp()
    counts = torch.bincount((images * (len(levels) - 1)).round().long(), minlength=len(levels))
    torch.testing.assert_close(levels[(images * (len(levels) - 1)).round().long()], images)
    # Of 257 frequencies in all, none further off than 4.5 standard deviations.
    assert ((counts / n - p).abs() < 4.5 * (p * (1 - p) / n).sqrt() + 1e-4).all()


def test_gaussian_samples_have_its_moments_and_stay_images() -> None:
    images = LIKELIHOODS["gaussian"].sample(pixels(0.5, -3.0, n=100_000), torch.Generator().manual_seed(0))
    assert images.mean().item() == pytest.approx(0.5, abs=1e-3)
    assert images.std().log().item() == pytest.approx(naive.floored(-3.0, -6.0), abs=0.01)
    wide = LIKELIHOODS["gaussian"].sample(pixels(0.5, 1.0, n=100))
    assert wide.min() == 0
    assert wide.max() == 1


def test_bits_per_dimension() -> None:
    even = torch.tensor([-12 * math.log(256)])
    assert LIKELIHOODS["logistic"].bits_per_dimension(even, 12).item() == pytest.approx(8)
    assert LIKELIHOODS["gaussian"].bits_per_dimension(torch.zeros(1), 12).item() == pytest.approx(8)
    assert LIKELIHOODS["gaussian"].bits_per_dimension(torch.tensor([12 * math.log(2)]), 12).item() == pytest.approx(7)
    assert LIKELIHOODS["bernoulli"].bits_per_dimension(even, 12).isnan().all()
    assert {name: p.exact_for for name, p in LIKELIHOODS.items()} == {
        "bernoulli": "binary images",
        "logistic": "8-bit images",
        "gaussian": "",
    }


def test_wrong_parameters_and_names_are_named() -> None:
    with pytest.raises(ValueError, match=r"\(N, 2 C, H, W\) for images .* got \(1, 3, 4, 4\) and \(1, 3, 4, 4\)"):
        LIKELIHOODS["logistic"].log_prob(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4))
    with pytest.raises(ValueError, match=r"got \(2, 1, 4, 4\) and \(1, 1, 4, 4\)"):
        LIKELIHOODS["bernoulli"].log_prob(torch.zeros(2, 1, 4, 4), torch.zeros(1, 1, 4, 4))
    with pytest.raises(ValueError, match=r"got \(1, 16\) and \(1, 16\)"):
        LIKELIHOODS["bernoulli"].log_prob(torch.zeros(1, 16), torch.zeros(1, 16))
    with pytest.raises(ValueError, match="likelihood = 'gausian': did you mean 'gaussian'"):
        likelihood_named("gausian")


# Autoencoders


def small(**options) -> Autoencoder:
    return Autoencoder(**{"image_size": 8, "latent": 6, "width": 16, **options})


def images_of(model: Autoencoder, n: int = 3) -> Tensor:
    return torch.rand(n, *model.image_shape, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("size", [8, 9, 14, 28, 32, 64])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("name", ["bernoulli", "gaussian"])
def test_every_image_size_from_8_to_64(size: int, channels: int, encoder: dict, name: str) -> None:
    model = small(image_size=size, in_channels=channels, likelihood=name, **encoder)
    images = images_of(model, 2)
    codes = model(images)
    assert codes.log_likelihood.shape == (2,)
    assert codes.mean.shape == codes.log_std.shape == codes.z.shape == (2, 6)
    assert model.hidden(codes.z).shape == (2, 16, size, size)
    assert model.decode(codes.z).shape == (2, model.likelihood.channels(channels), size, size)
    assert model.mean_image(codes.z).shape == images.shape
    assert model.sample(2, noise=True).shape == images.shape


@pytest.mark.parametrize("name", NAMES)
def test_forward_is_encode_sample_and_log_likelihood(name: str) -> None:
    model = small(likelihood=name)
    images = images_of(model)
    torch.manual_seed(3)
    codes = model(images)
    torch.manual_seed(3)
    posterior = model.encode(images)
    assert torch.equal(posterior.mean, codes.mean)
    assert torch.equal(posterior.log_std, codes.log_std)
    assert torch.equal(posterior.sample(), codes.z)
    assert torch.equal(model.log_likelihood(images, codes.z), codes.log_likelihood)
    torch.testing.assert_close(model.likelihood.log_prob(model.decode(codes.z), images), codes.log_likelihood)
    assert torch.equal(model.likelihood.mean(model.decode(codes.z)), model.mean_image(codes.z))


def test_codes_are_drawn_from_the_posterior() -> None:
    model, n = small(min_log_std=-2.0), 4000
    with torch.no_grad():
        codes = model(images_of(model, 1).expand(n, -1, -1, -1))
    std = codes.log_std[:1].exp()
    standard = (codes.z - codes.mean[:1]) / std
    assert standard.mean(0).abs().max() < 4 / math.sqrt(n)
    assert (standard.std(0) - 1).abs().max() < 4 / math.sqrt(2 * n)


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("norm", ["none", "layer"])
def test_an_image_does_not_see_the_others(encoder: dict, norm: str) -> None:
    model = small(norm=norm, **encoder)
    images = images_of(model, 5)
    whole = model.encode(images)
    for i in range(5):
        alone = model.encode(images[i : i + 1])
        torch.testing.assert_close(alone.mean, whole.mean[i : i + 1], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(alone.log_std, whole.log_std[i : i + 1], rtol=1e-4, atol=1e-5)
    decoded = model.mean_image(whole.mean)
    torch.testing.assert_close(model.mean_image(whole.mean[:1]), decoded[:1], rtol=1e-4, atol=1e-5)
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    assert any(isinstance(m, nn.GroupNorm) for m in model.decoder.modules()) == (norm == "layer")


@pytest.mark.parametrize("loss", ["vae", "mim"])
def test_a_short_training_lowers_the_loss(loss: str) -> None:
    digits = torch.tensor(load_digits().images[:512], dtype=torch.float32).unsqueeze(1) / 16
    model = small(latent=16)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for step in range(100):
        codes = model(digits[(step * 64) % 512 :][:64])
        if loss == "vae":
            latent = kl_to_prior(codes.mean, codes.log_std)
        else:
            latent = -0.5 * (log_posterior(codes.z, codes.mean, codes.log_std) + log_prior(codes.z))
        value = (latent - codes.log_likelihood).mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    with torch.no_grad():
        error = (model.mean_image(model.encode(digits).mean) - digits).square().mean()
    assert np.mean(losses[-8:]) < losses[0] - {"vae": 12, "mim": 60}[loss]
    # The best constant image is as far off as the pixels' variance: the codes carry something.
    assert error < {"vae": 0.9, "mim": 0.5}[loss] * digits.var(0).mean()
    assert codes.log_std.min() >= -6


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_reaches_every_parameter(encoder: dict, name: str) -> None:
    model = small(likelihood=name, **encoder)
    codes = model(images_of(model))
    (codes.log_likelihood.sum() + codes.mean.sum() + codes.log_std.sum()).backward()
    assert [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_the_log_likelihood_reaches_the_encoder_through_the_code() -> None:
    model = small()
    model(images_of(model)).log_likelihood.sum().backward()
    mean, raw = model.encoder.head.weight.grad.chunk(2)
    assert mean.abs().sum() > 0
    assert raw.abs().sum() > 0


@pytest.mark.parametrize("floor", [-6.0, -2.5])
def test_log_std_stays_above_its_floor(floor: float) -> None:
    model = small(min_log_std=floor)
    images = images_of(model)
    raw = model.encoder(images)[:, 6:]
    torch.testing.assert_close(model.encode(images).log_std, floor_log_std(raw, floor))
    with torch.no_grad():
        model.encoder.head.bias[6:] = -1e4
    assert model.encode(images).log_std.unique().tolist() == [floor]
    assert torch.isfinite(model(images).log_likelihood).all()


@pytest.mark.parametrize("name", NAMES)
def test_samples_are_those_of_their_generator(name: str) -> None:
    model = small(likelihood=name)
    for noise in (False, True):
        first, again, other = (model.sample(5, torch.Generator().manual_seed(s), noise) for s in (1, 1, 2))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        assert not first.requires_grad
    state = torch.get_rng_state()
    model.sample(5, torch.Generator().manual_seed(1), noise=True)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    z = torch.randn(5, 6)
    torch.testing.assert_close(model.sample(5, torch.Generator().manual_seed(1)), model.mean_image(z))
    torch.manual_seed(1)
    torch.testing.assert_close(model.sample(5), model.mean_image(z))
    for n in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match=f"n must be a whole number from 1 to 10000000, got {n}"):
            model.sample(n)  # type: ignore[arg-type]


@pytest.mark.parametrize("encoder", ENCODERS)
def test_options_and_weights_make_the_model_again(encoder: dict) -> None:
    options = {
        "image_size": 9,
        "latent": 4,
        "width": 16,
        "likelihood": "gaussian",
        "mean": [0.3],
        "std": 0.2,
        **encoder,
    }
    model = Autoencoder(**options)
    state = copy.deepcopy(model.state_dict())
    other = Autoencoder(**json.loads(json.dumps(options)))
    other.load_state_dict(state)
    z = torch.randn(2, 4)
    assert torch.equal(other.decode(z), model.decode(z))
    assert torch.equal(other.encode(images_of(model)).mean, model.encode(images_of(model)).mean)
    pointers = [p.data_ptr() for p in state.values()]
    assert len(set(pointers)) == len(pointers)  # safetensors refuses tensors that share memory


@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_model_owns_its_normalisation(encoder: dict) -> None:
    plain, shifted = small(mean=0.0, std=1.0, **encoder), small(mean=0.3, std=0.5, **encoder)
    shifted.load_state_dict(plain.state_dict())
    images = images_of(plain)
    torch.testing.assert_close(shifted.encode(images).mean, plain.encode((images - 0.3) / 0.5).mean)
    torch.testing.assert_close(shifted.normalize(images), (images - 0.3) / 0.5)


def test_the_wide_resnet_encoder_is_the_projects() -> None:
    model = small(encoder="wide_resnet", width=32, depth=16, norm="layer")
    assert isinstance(model.encoder, WideResNet)
    expected = WideResNet(depth=16, width=2, num_classes=12, in_channels=1, norm="layer")
    assert {k: v.shape for k, v in model.encoder.state_dict().items()} == {
        k: v.shape for k, v in expected.state_dict().items()
    }
    assert len(list(small(encoder="wide_resnet").encoder.parameters())) == len(
        list(WideResNet(depth=10, width=1, norm="none").parameters())
    )


@pytest.mark.parametrize("encoder", ENCODERS)
def test_autocast_and_channels_last_change_little(encoder: dict) -> None:
    model = small(likelihood="gaussian", in_channels=3, **encoder)
    images, z = images_of(model), torch.randn(3, 6)
    plain_mean, plain = model.encode(images).mean, model.log_likelihood(images, z)
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    turned = images.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last.encode(turned).mean, plain_mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(last.log_likelihood(turned, z), plain, rtol=1e-4, atol=1e-2)
    with torch.autocast("cpu", torch.bfloat16):
        codes = last(turned)
        log_likelihood = last.log_likelihood(turned, z)
        codes.log_likelihood.sum().backward()
    assert {t.dtype for t in codes} == {torch.float32}
    torch.testing.assert_close(codes.mean, plain_mean, rtol=0.1, atol=0.02)
    torch.testing.assert_close(log_likelihood, plain, rtol=0.01, atol=1.0)
    assert all(torch.isfinite(p.grad).all() for p in last.parameters() if p.grad is not None)


def test_the_gaussians_spread_is_one_number_a_channel() -> None:
    model = small(likelihood="gaussian", in_channels=3)
    assert model.shared is not None
    with torch.no_grad():
        model.shared.copy_(torch.tensor([-1.0, -2.0, -3.0]))
    spread = model.decode(torch.randn(2, 6))[:, 3:]
    assert torch.equal(spread, torch.tensor([-1.0, -2.0, -3.0]).view(1, 3, 1, 1).expand(2, 3, 8, 8))
    assert small().shared is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_channels": 2}, "in_channels must be 1 or 3, got 2"),
        ({"image_size": 7}, "image_size must be a whole number from 8 to 64, got 7"),
        ({"image_size": 65}, "from 8 to 64, got 65"),
        ({"image_size": 8.5}, "from 8 to 64, got 8.5"),
        ({"latent": 0}, "latent must be a whole number from 1 to 65536, got 0"),
        ({"latent": True}, "latent must be a whole number from 1 to 65536, got True"),
        ({"latent": 2**16 + 1}, "latent must be .* got 65537"),
        ({"width": "wide"}, "width must be a whole number from 1 to 1024, got 'wide'"),
        ({"width": 10**8}, "width must be a whole number from 1 to 1024, got 100000000"),
        ({"encoder": "resnet"}, "encoder must be one of conv, wide_resnet, got 'resnet'"),
        ({"norm": "batch"}, "norm must be one of none, layer, got 'batch'"),
        ({"likelihood": "bernouli"}, "likelihood = 'bernouli': did you mean 'bernoulli'"),
        ({"likelihood": [1]}, r"likelihood = \[1\]: valid: bernoulli, gaussian, logistic"),
        ({"encoder": "wide_resnet", "width": 24}, "width must be a multiple of 16 for encoder wide_resnet, got 24"),
        ({"encoder": "wide_resnet", "depth": 11}, "depth must be 6 n"),
        ({"encoder": "wide_resnet", "depth": "x"}, "depth must be a whole number from 10 to 1000, got 'x'"),
        ({"encoder": "wide_resnet", "depth": 10.0}, "depth must be a whole number from 10 to 1000, got 10.0"),
        ({"depth": 10}, "depth is an option of encoder wide_resnet alone, got 10 for conv"),
        ({"min_log_std": 1.0}, r"min_log_std must lie in \[-20, 0\], got 1.0"),
        ({"min_log_std": math.nan}, "min_log_std must lie in .* got nan"),
        ({"min_log_std": "x"}, "min_log_std must lie in .* got 'x'"),
        ({"min_log_std": None}, "min_log_std must lie in .* got None"),
        ({"min_log_std": False}, "min_log_std must lie in .* got False"),
        ({"std": 0.0}, "std must be positive"),
    ],
)
def test_wrong_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**options)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_wrong_images_and_codes_are_named(encoder: dict) -> None:
    model = small(**encoder)
    for images in (torch.rand(2, 1, 9, 9), torch.rand(2, 3, 8, 8), torch.rand(1, 8, 8)):
        with pytest.raises(ValueError, match=r"images must be \(N, 1, 8, 8\), got"):
            model.encode(images)
    with pytest.raises(ValueError, match=r"z must be \(N, 6\), got \(2, 5\)"):
        model.decode(torch.zeros(2, 5))
    with pytest.raises(ValueError, match="parameters must be"):
        model.log_likelihood(torch.rand(2, 1, 9, 9), torch.zeros(2, 6))
