"""Gaussian codes: their densities against torch's distributions, integrals, closed forms and loops."""

from __future__ import annotations

import math

import naive_mim as literal
import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from ebmhybrid.codes import FLOOR, Codes, Posterior, floor_log_std, kl_to_prior, log_posterior, log_prior


def random_codes(n: int = 4, d: int = 3, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """z, mean and log_std, float64, each wanting its gradient."""
    generator = torch.Generator().manual_seed(seed)
    z, mean, log_std = torch.randn(3, n, d, dtype=torch.float64, generator=generator)
    return z.requires_grad_(), mean.requires_grad_(), log_std.requires_grad_()


def assert_same(value: Tensor, expected: Tensor, at: tuple[Tensor, ...]) -> None:
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    weights = torch.arange(1.0, len(value) + 1, dtype=torch.float64)
    found = torch.autograd.grad((weights * value).sum(), at, retain_graph=True)
    wanted = torch.autograd.grad((weights * expected).sum(), at, retain_graph=True)
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("n", "d"), [(1, 1), (4, 3)])
def test_densities_equal_the_loops_and_torchs_distributions(n: int, d: int) -> None:
    z, mean, log_std = random_codes(n, d)
    loop = [literal.normal_log_density(*row) for row in zip(z, mean, log_std.exp(), strict=True)]
    assert_same(log_posterior(z, mean, log_std), torch.stack(loop), (z, mean, log_std))
    other = Independent(Normal(mean, log_std.exp()), 1).log_prob(z)
    assert_same(log_posterior(z, mean, log_std), other, (z, mean, log_std))
    loop = [literal.normal_log_density(row, torch.zeros_like(row), torch.ones_like(row)) for row in z]
    assert_same(log_prior(z), torch.stack(loop), (z,))
    torch.testing.assert_close(log_prior(z), log_posterior(z, torch.zeros_like(z), torch.zeros_like(z)))


def test_the_density_of_a_posterior_integrates_to_one() -> None:
    grid = torch.linspace(-12, 12, 4001, dtype=torch.float64)[:, None]
    mean, log_std = torch.full_like(grid, 0.7), torch.full_like(grid, -0.4)
    for density in (log_posterior(grid, mean, log_std), log_prior(grid)):
        assert torch.trapezoid(density.exp(), grid[:, 0]).item() == pytest.approx(1, rel=1e-10)


@pytest.mark.parametrize(("n", "d"), [(1, 1), (5, 4)])
def test_kl_equals_torchs_distributions(n: int, d: int) -> None:
    _, mean, log_std = random_codes(n, d, seed=1)
    prior = Independent(Normal(torch.zeros_like(mean), torch.ones_like(mean)), 1)
    expected = kl_divergence(Independent(Normal(mean, log_std.exp()), 1), prior)
    assert_same(kl_to_prior(mean, log_std), expected, (mean, log_std))


@pytest.mark.parametrize(("mean", "log_std"), [(0.0, 0.0), (1.5, -1.0), (-0.3, 0.8)])
def test_kl_equals_its_integral(mean: float, log_std: float) -> None:
    """The integral of q log(q / P) over z, by the trapezoidal rule."""
    grid = torch.linspace(-25, 25, 20001, dtype=torch.float64)[:, None]
    q = log_posterior(grid, torch.full_like(grid, mean), torch.full_like(grid, log_std))
    expected = torch.trapezoid(q.exp() * (q - log_prior(grid)), grid[:, 0])
    one = torch.ones(1, 1, dtype=torch.float64)
    torch.testing.assert_close(kl_to_prior(mean * one, log_std * one)[0], expected, rtol=1e-9, atol=1e-9)


def test_kl_is_least_and_zero_at_the_prior_and_a_sum_over_latents() -> None:
    zero = torch.zeros(1, 3, dtype=torch.float64)
    assert kl_to_prior(zero, zero).item() == 0
    _, mean, log_std = random_codes(50, 3, seed=2)
    kl = kl_to_prior(mean, log_std)
    assert (kl > 0).all()
    parts = [kl_to_prior(mean[:, [k]], log_std[:, [k]]) for k in range(3)]
    torch.testing.assert_close(kl, torch.stack(parts).sum(0))


def test_the_floor_holds_and_far_above_it_nothing_changes() -> None:
    raw = torch.tensor([-math.inf, -1e6, -30.0, -6.0, 0.0, 20.0], dtype=torch.float64, requires_grad=True)
    floored = floor_log_std(raw)
    assert (floored >= FLOOR).all()
    assert floored[:2].tolist() == [FLOOR, FLOOR]
    assert floored[3].item() == pytest.approx(FLOOR + math.log(2), rel=1e-12)
    assert floored[5].item() == pytest.approx(20, abs=1e-9)
    expected = FLOOR + torch.log1p((raw.detach()[1:5] - FLOOR).exp())
    torch.testing.assert_close(floored[1:5].detach(), expected, rtol=1e-12, atol=1e-12)
    (slope,) = torch.autograd.grad(floored.sum(), raw)
    torch.testing.assert_close(slope[:5], torch.sigmoid(raw.detach() - FLOOR)[:5], rtol=1e-9, atol=1e-12)
    assert floor_log_std(torch.tensor([-50.0]), floor=-2.0).item() == -2


def test_a_sample_is_the_mean_and_noise_times_sigma() -> None:
    _, mean, log_std = random_codes(4, 3, seed=3)
    z = Posterior(mean, log_std).sample(torch.Generator().manual_seed(5))
    noise = torch.randn(4, 3, generator=torch.Generator().manual_seed(5)).double()
    torch.testing.assert_close(z, mean + log_std.exp() * noise)
    by_mean, by_log_std = torch.autograd.grad(z.sum(), (mean, log_std))
    torch.testing.assert_close(by_mean, torch.ones_like(mean))
    torch.testing.assert_close(by_log_std, log_std.exp() * noise)
    assert torch.equal(z, Posterior(mean, log_std).sample(torch.Generator().manual_seed(5)))
    torch.manual_seed(5)
    assert torch.equal(z, Posterior(mean, log_std).sample())


def test_samples_have_the_posteriors_moments() -> None:
    mean, log_std = torch.tensor([[1.0, -2.0]]), torch.tensor([[0.5, -1.0]])
    many = Posterior(mean.expand(20000, 2), log_std.expand(20000, 2)).sample(torch.Generator().manual_seed(0))
    error = log_std.exp()[0] / math.sqrt(20000)
    assert ((many.mean(0) - mean[0]).abs() < 4 * error).all()
    assert ((many.std(0) - log_std.exp()[0]).abs() < 4 * error).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_samples_keep_the_dtype(dtype: torch.dtype) -> None:
    zeros = torch.zeros(2, 3, dtype=dtype)
    assert Posterior(zeros, zeros).sample().dtype == dtype


def test_densities_at_the_edges() -> None:
    """No rows, a NaN, an infinite z, and a sigma at the floor that no division turns into infinity."""
    empty = torch.zeros(0, 3)
    for values in (log_posterior(empty, empty, empty), log_prior(empty), kl_to_prior(empty, empty)):
        assert values.shape == (0,)
    one = torch.ones(1, 2)
    assert log_posterior(one, one, torch.full((1, 2), FLOOR)).item() == pytest.approx(12 - math.log(2 * math.pi))
    assert log_prior(torch.tensor([[math.inf, 0.0]])).item() == -math.inf
    assert log_prior(torch.tensor([[math.nan, 0.0]])).isnan().all()
    assert kl_to_prior(one, torch.tensor([[0.0, math.nan]])).isnan().all()


def test_codes_are_read_by_name() -> None:
    codes = Codes(*torch.arange(4.0))
    assert (codes.log_likelihood, codes.mean, codes.log_std, codes.z) == (0, 1, 2, 3)
