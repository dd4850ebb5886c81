"""Langevin dynamics against literal loops and known laws, where chains start, and the buffer that keeps them."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import naive_sampling as naive
import pytest
import torch
from torch import Tensor, nn

import ebmhybrid as eh
from ebmhybrid.sampling import GaussianStart, ReplayBuffer, UniformStart, langevin_step, proximal_sgld, sgld

SIGMAS = 4.5  # of Monte-Carlo error: one of 150,000 right programs would fail a check, and seeds are fixed


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normals(steps: int, *shape: int, seed: int = 0) -> list[Tensor]:
    """The draws that a sampler makes with this seed."""
    generator = seeded(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(steps)]


def small_net(inputs: int = 3) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(inputs, 8), nn.Tanh(), nn.Linear(8, 4)).double()


def density_of(net: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x: 2 * eh.log_density(net(x))


def literal_density(net: nn.Module) -> naive.Density:
    """The same by numbers: two times the log of a sum of exponentials."""

    def density(x: Any) -> float:
        with torch.no_grad():
            logits = net(torch.tensor([list(x)], dtype=torch.float64))[0].tolist()
        return 2 * math.log(sum(math.exp(value) for value in logits))

    return density


def starts(rows: int = 3, inputs: int = 3, seed: int = 5) -> Tensor:
    return torch.rand(rows, inputs, generator=seeded(seed), dtype=torch.float64)


def close(found: Tensor, expected: Any, tolerance: float = 1e-8) -> None:
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=found.dtype), rtol=0, atol=tolerance)


# --- one chain against the loop ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"clamp": (0.0, 1.0)},
        {"clip": 0.1},
        {"anneal": 0.1},
        {"clamp": (-0.2, 1.1), "clip": 0.3, "anneal": 0.5},
    ],
    ids=str,
)
def test_every_step_is_that_of_the_literal_loop(options: dict[str, Any]) -> None:
    net, x0, path = small_net(), starts(), []
    last = sgld(
        density_of(net),
        x0,
        4,
        0.7,
        0.3,
        generator=seeded(2),
        on_step=lambda k, x: path.append((k, x.clone())),
        **options,
    )
    draws = normals(4, 3, 3, seed=2)
    for row in range(3):
        noises = [draw[row].tolist() for draw in draws]
        expected = naive.sgld(literal_density(net), x0[row].tolist(), noises, 0.7, 0.3, **options)
        for (_, x), there in zip(path, expected, strict=True):
            close(x[row], there)
        assert [k for k, _ in path] == [1, 2, 3, 4]
        assert torch.equal(last, path[-1][1])


def test_one_step_takes_noise_and_a_step_for_each_element() -> None:
    net, x = small_net(), starts()
    noise, sizes = 0.2 * normals(1, 3, 3)[0], torch.tensor([0.1, 0.5, 2.0], dtype=torch.float64)
    for clamp in (None, (0.0, 1.0)):
        found = langevin_step(density_of(net), x, sizes, noise, clamp=clamp)
        for row in range(3):
            slope = naive.slope(literal_density(net), x[row].tolist())
            low, high = clamp or (-math.inf, math.inf)
            moves = [x[row, i].item() + sizes[i].item() * slope[i] + noise[row, i].item() for i in range(3)]
            close(found[row], [naive.bounded(value, low, high) for value in moves])


def test_without_noise_it_is_gradient_ascent_with_a_known_path() -> None:
    precision, centre, x0 = torch.tensor([1.0, 4.0]).double(), torch.tensor([0.5, -1.0]).double(), starts(5, 2)

    def quadratic(x: Tensor) -> Tensor:
        return -(precision * (x - centre).square()).sum(1) / 2

    values: list[Tensor] = [quadratic(x0)]
    last = sgld(quadratic, x0, 6, 0.2, 0.0, on_step=lambda k, x: values.append(quadratic(x)))
    close(last, centre + (1 - 0.2 * precision) ** 6 * (x0 - centre), 1e-12)
    assert all((after > before).all() for before, after in pairwise(values))


def test_annealed_steps_shrink_to_their_last_size() -> None:
    seen = [torch.zeros(1, 1).double()]
    sgld(lambda x: x.sum(1), seen[0], 5, 0.8, 0.0, anneal=0.25, on_step=lambda k, x: seen.append(x))
    sizes = torch.cat(seen).diff(dim=0).flatten()
    close(sizes, [0.8 * 0.25 ** (k / 4) for k in range(5)], 1e-12)
    close(sgld(lambda x: x.sum(1), seen[0], 1, 0.8, 0.0, anneal=0.25), [[0.8]], 1e-12)


def test_a_clamp_keeps_every_chain_in_the_box_and_a_clip_bounds_every_move() -> None:
    x0, seen = starts(50), []
    sgld(
        lambda x: 100 * x.sum(1), x0, 5, 1.0, 3.0, clamp=(0, 1), generator=seeded(), on_step=lambda k, x: seen.append(x)
    )
    assert all(x.min() >= 0 and x.max() <= 1 for x in seen)
    assert (seen[-1] == 1).any()
    moved = sgld(lambda x: 100 * x.square().sum(1) * torch.tensor([1, -1] * 25), x0, 1, 0.1, 0.0, clip=0.5) - x0
    close(moved.abs(), torch.full_like(moved, 0.05), 1e-12)


# --- laws ----------------------------------------------------------------------------------------------------------


def check_moments(x: Tensor, mean: Tensor, cov: Tensor) -> None:
    """Within SIGMAS standard errors of N independent Gaussian rows: cov / N, and (c_ii c_jj + c_ij^2) / N."""
    mean_error = (cov.diagonal() / len(x)).sqrt()
    cov_error = ((cov.diagonal()[:, None] * cov.diagonal() + cov.square()) / len(x)).sqrt()
    assert ((x.mean(0) - mean).abs() <= SIGMAS * mean_error).all(), (x.mean(0), mean, mean_error)
    assert ((x.T.cov() - cov).abs() <= SIGMAS * cov_error).all(), (x.T.cov(), cov, cov_error)


@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_an_anisotropic_gaussian_has_the_exact_covariance_of_its_chain(temperature: float) -> None:
    turn = torch.tensor([[0.8, -0.6], [0.6, 0.8]]).double()
    precisions, centre, step = [1.0, 14.0], torch.tensor([2.0, -1.0]).double(), 0.1
    matrix = turn @ torch.diag(torch.tensor(precisions).double()) @ turn.T
    std = math.sqrt(2 * step * temperature)

    def quadratic(x: Tensor) -> Tensor:
        return -((x - centre) @ matrix * (x - centre)).sum(1) / 2

    x = sgld(quadratic, centre.expand(20000, 2), 80, step, std, generator=seeded())
    along = [naive.chain_variance(precision, step, std) for precision in precisions]
    check_moments(x, centre, turn @ torch.diag(torch.tensor(along).double()) @ turn.T)
    # at small steps that is the density's own, at temperature s^2 / 2a
    for precision in precisions:
        small = naive.chain_variance(precision, 1e-4, math.sqrt(2e-4 * temperature))
        assert small == pytest.approx(temperature / precision, rel=1e-3)


def test_a_mixture_of_gaussians_has_both_modes_in_proportion() -> None:
    """From one point the chains find both modes; their law after K steps is known exactly, by a table."""
    weights, place, step, steps, count = (0.3, 0.7), 1.5, 0.15, 150, 20000
    turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]]).double()
    means = torch.stack([-place * turn[:, 0], place * turn[:, 0]])

    def mixture(x: Tensor) -> Tensor:
        squares = (x[:, None] - means).square().sum(2)
        return torch.logsumexp(torch.tensor(weights).double().log() - squares / 2, 1)

    def slope(y: float) -> float:  # along the line of the modes; across it the density is a standard normal
        low, high = (w * math.exp(-((y - m) ** 2) / 2) for w, m in zip(weights, (-place, place), strict=True))
        return (low * (-place - y) + high * (place - y)) / (low + high)

    x = sgld(mixture, torch.zeros(count, 2).double(), steps, step, math.sqrt(2 * step), generator=seeded(1)) @ turn
    grid, law = naive.chain_law(slope, 0.0, steps, step, math.sqrt(2 * step), 7.0, 281)
    for moment in (1, 2):
        expected = sum(p * y**moment for p, y in zip(law, grid, strict=True))
        spread = sum(p * y ** (2 * moment) for p, y in zip(law, grid, strict=True)) - expected**2
        found = x[:, 0].pow(moment).mean().item()
        assert abs(found - expected) <= SIGMAS * math.sqrt(spread / count), moment
    high = sum(p for p, y in zip(law, grid, strict=True) if y > 0) + law[len(grid) // 2] / 2
    assert abs((x[:, 0] > 0).double().mean().item() - high) <= SIGMAS * math.sqrt(high * (1 - high) / count)
    assert high == pytest.approx(0.3 * 0.0668 + 0.7 * 0.9332, abs=0.01)  # and the mixture's own is near
    across = naive.chain_variance(1.0, step, math.sqrt(2 * step))
    check_moments(x[:, 1:], torch.zeros(1).double(), torch.full((1, 1), across).double())


def test_noise_is_the_generators_and_the_global_state_is_left_alone() -> None:
    x0, rng = torch.zeros(4, 2), torch.get_rng_state()

    def run(generator: torch.Generator | None) -> Tensor:
        return sgld(lambda x: -x.square().sum(1), x0, 3, generator=generator)

    first = run(seeded(1))
    assert torch.equal(first, run(seeded(1)))
    assert not torch.equal(first, run(seeded(2)))
    assert torch.equal(torch.get_rng_state(), rng)
    run(None)
    assert not torch.equal(torch.get_rng_state(), rng)
    generator = seeded(1)
    assert not torch.equal(run(generator), run(generator))


# --- preconditioned ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("decay", "clip"), [(0.0, math.inf), (0.6, math.inf), (0.9, 0.2)])
def test_preconditioned_steps_are_those_of_the_literal_loop(decay: float, clip: float) -> None:
    net, x0 = small_net(), starts()
    bound = None if clip == math.inf else clip
    found = sgld(density_of(net), x0, 4, 0.1, 0.2, generator=seeded(3), precondition=decay, damping=0.05, clip=bound)
    draws = normals(4, 3, 3, seed=3)
    for row in range(3):
        noises = [draw[row].tolist() for draw in draws]
        close(found[row], naive.psgld(literal_density(net), x0[row].tolist(), noises, 0.1, 0.2, decay, 0.05, clip))


def test_preconditioning_keeps_the_covariance_and_mixes_evenly() -> None:
    """V tends to E g^2 = lambda, so that an element moves as a chain of step a / sqrt(lambda) would."""
    precisions, step, count = (1.0, 16.0), 0.05, 8000

    def quadratic(x: Tensor) -> Tensor:
        return -(torch.tensor(precisions) * x.square()).sum(1) / 2

    x0 = torch.randn(count, 2, generator=seeded(4), dtype=torch.float64) / torch.tensor(precisions).sqrt()
    std = math.sqrt(2 * step)
    x = sgld(quadratic, x0, 1000, step, std, generator=seeded(), precondition=0.999)
    expected = [naive.chain_variance(p, step / p**0.5, std / p**0.25) for p in precisions]
    check_moments(x, torch.zeros(2).double(), torch.diag(torch.tensor(expected).double()))


@pytest.mark.parametrize(("decay", "excess"), [(0.99, (0.10, 0.04)), (0.9, (0.52, 0.21))])
def test_a_short_memory_makes_the_variances_too_large(decay: float, excess: tuple[float, float]) -> None:
    """The limit of the method that docs/sampling.md gives figures of, within Monte-Carlo error of 8,000 chains."""
    precisions, step, count = torch.tensor([1.0, 16.0], dtype=torch.float64), 0.05, 8000
    x0 = torch.randn(count, 2, generator=seeded(4), dtype=torch.float64) / precisions.sqrt()
    density = lambda x: -(precisions * x.square()).sum(1) / 2  # noqa: E731
    x = sgld(density, x0, 1000, step, math.sqrt(2 * step), generator=seeded(), precondition=decay)
    exact = [naive.chain_variance(p, step / p**0.5, math.sqrt(2 * step) / p**0.25) for p in precisions.tolist()]
    for found, wanted, more in zip(x.var(0).tolist(), exact, excess, strict=True):
        assert found / wanted - 1 == pytest.approx(more, abs=5 * math.sqrt(2 / count) * (1 + more))


def test_where_the_density_is_flat_a_preconditioned_step_is_bounded_by_the_damping() -> None:
    x0 = torch.zeros(2, 2)
    settings: dict[str, Any] = {"precondition": 0.9, "damping": 0.01}
    moved = sgld(lambda x: x[:, 0] * 3, x0, 1, 0.1, 0.0, **settings)
    close(moved, [[0.1 * 3 / 3.01, 0.0]] * 2, 1e-6)
    noisy = sgld(lambda x: x[:, 0] * 3, x0, 1, 0.1, 0.2, generator=seeded(), **settings)
    draw = torch.randn(2, 2, generator=seeded())
    close(noisy[:, 1], 0.2 * 10 * draw[:, 1], 1e-5)


# --- what a sampler leaves alone -----------------------------------------------------------------------------------


def wide_resnet(norm: str = "batch", **options: Any) -> eh.WideResNet:
    torch.manual_seed(0)
    model = eh.WideResNet(10, 1, 4, in_channels=1, norm=norm, **options)  # type: ignore[arg-type]
    with torch.no_grad():
        model(torch.rand(8, 1, 8, 8))  # running statistics that are not the first ones
    return model.eval()


@pytest.mark.parametrize("proximal", [False, True])
def test_the_model_and_the_starts_are_left_as_they_were(proximal: bool) -> None:
    model, x0 = wide_resnet(dropout=0.5), torch.rand(3, 1, 8, 8)
    model.stages[1].train()  # a mode is the caller's business
    state, kept = {key: value.clone() for key, value in model.state_dict().items()}, x0.clone()
    modes = [module.training for module in model.modules()]
    model.stages[1].eval()
    found = []
    for _ in range(2):
        if proximal:
            found.append(proximal_sgld(model.stem, lambda u: eh.log_density(model.after_stem(u)), x0, 2))
        else:
            found.append(sgld(lambda x: eh.log_density(model(x)), x0, 2, noise_std=0.0))
    model.stages[1].train()
    assert torch.equal(*found)
    assert not found[0].requires_grad
    assert torch.equal(x0, kept)
    assert not torch.equal(found[0], x0)
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_a_chain_does_not_see_the_others(norm: str) -> None:
    model = wide_resnet(norm).double()
    x, noise = torch.rand(4, 1, 8, 8).double(), 0.1 * torch.randn(4, 1, 8, 8).double()

    def run(rows: slice) -> Tensor:
        here = x[rows]
        for _ in range(3):
            here = langevin_step(lambda x: eh.log_density(model(x)), here, 5.0, noise[rows], clamp=(0, 1))
        return here

    together = run(slice(None))
    for row in range(4):
        close(together[row], run(slice(row, row + 1))[0], 1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_and_memory_format_are_those_of_the_starts(dtype: torch.dtype) -> None:
    model = wide_resnet().to(dtype)
    x0 = torch.rand(2, 1, 8, 8, dtype=dtype).to(memory_format=torch.channels_last)
    for found in (
        sgld(lambda x: eh.log_density(model(x)), x0, 2),
        proximal_sgld(model.stem, lambda u: eh.log_density(model.after_stem(u)), x0, 2, noise_std=0.1),
    ):
        assert found.dtype == dtype
        assert found.is_contiguous(memory_format=torch.channels_last)


def test_under_autocast_the_chains_stay_float32() -> None:
    model, x0 = wide_resnet("none"), torch.rand(4, 1, 8, 8)
    plain = sgld(lambda x: eh.log_density(model(x)), x0, 3, 1.0, 0.1, generator=seeded())
    with torch.autocast("cpu", torch.bfloat16):
        half = sgld(lambda x: eh.log_density(model(x)), x0, 3, 1.0, 0.1, generator=seeded())
        near = proximal_sgld(model.stem, lambda u: eh.log_density(model.after_stem(u)), x0, 3)
    assert half.dtype == near.dtype == torch.float32
    assert not torch.equal(half, plain)
    torch.testing.assert_close(half, plain, rtol=0, atol=2e-2)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_runs_where_gradients_are_off(mode: Any) -> None:
    first, rest, x0 = small_net(), density_of(nn.Identity()), starts()
    expected = sgld(lambda x: rest(first(x)), x0, 3, noise_std=0.0)
    near = proximal_sgld(first, rest, x0, 3)
    with mode():
        assert torch.equal(sgld(lambda x: rest(first(x)), x0.clone(), 3, noise_std=0.0), expected)
        assert torch.equal(proximal_sgld(first, rest, x0.clone(), 3), near)


def test_no_step_and_no_chain() -> None:
    x0 = torch.rand(2, 3)
    same = sgld(lambda x: x.sum(1), x0, 0)
    assert torch.equal(same, x0)
    assert same.data_ptr() != x0.data_ptr()
    never = pytest.fail
    assert sgld(lambda x: never("no chain to move"), torch.zeros(0, 3), 5).shape == (0, 3)
    assert proximal_sgld(lambda x: never("no chain to move"), never, torch.zeros(0, 3), 5).shape == (0, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": -1}, "steps must be a whole number from 0 on, got -1"),
        ({"steps": 2.0}, "steps must be a whole number from 0 on, got 2.0"),
        ({"step_size": -0.1}, "step_size must be at least 0 and finite, got -0.1"),
        ({"noise_std": math.nan}, "noise_std must be at least 0 and finite, got nan"),
        ({"step_size": math.inf}, "step_size must be at least 0 and finite, got inf"),
        ({"clamp": (1.0, 0.0)}, r"clamp must be \(low, high\) with low < high, got \(1.0, 0.0\)"),
        ({"clip": 0.0}, "clip must be above 0, got 0.0"),
        ({"anneal": 0.0}, r"anneal must lie in \(0, 1\], got 0.0"),
        ({"anneal": 1.5}, r"anneal must lie in \(0, 1\], got 1.5"),
        ({"precondition": 1.0}, r"precondition must lie in \[0, 1\), got 1.0"),
        ({"damping": 0.0}, "damping must be above 0 and finite, got 0.0"),
        (
            {"x0": torch.zeros(2, 2, dtype=torch.uint8)},
            r"x0 must be floating point of shape \(N, ...\), got torch.uint8",
        ),
        ({"x0": [[0.0]]}, "x0 must be floating point of shape .* got list"),
        ({"x0": torch.tensor(1.0)}, r"x0 must be floating point .* got torch.float32 \(\)"),
        ({"log_density": lambda x: x}, r"a log density must be one value a row, \(2,\), got \(2, 3\)"),
        ({"log_density": lambda x: x.sum()}, r"one value a row, \(2,\), got \(\)"),
        ({"log_density": lambda x: x.sum(1)[:1]}, r"one value a row, \(2,\), got \(1,\)"),
        ({"log_density": lambda x: x.detach().sum(1)}, "can be differentiated by x; this one cannot"),
        ({"log_density": lambda x: torch.ones(2, requires_grad=True)}, "can be differentiated by x; this one cannot"),
    ],
)
def test_unusable_arguments_are_named(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"log_density": lambda x: x.sum(1), "x0": torch.zeros(2, 3)} | changes
    with pytest.raises(ValueError, match=message):
        sgld(**arguments)


# --- a step in a graph ---------------------------------------------------------------------------------------------


def test_a_step_can_be_differentiated_and_needs_second_derivatives() -> None:
    net, noise = small_net(), 0.01 * torch.randn(3, 3).double()
    x = (0.4 + 0.2 * starts()).requires_grad_()

    def step(x: Tensor) -> Tensor:
        return langevin_step(density_of(net), x, 0.5, noise, clamp=(0.0, 1.0), through=True)

    assert torch.autograd.gradcheck(step, (x,))
    assert torch.autograd.gradcheck(lambda x: step(step(x)), (x,))
    assert not langevin_step(density_of(net), x, 0.5, noise).requires_grad  # else a long chain would keep its graphs
    far = langevin_step(lambda x: 100 * x.square().sum(1), x, 1.0, 0.0, clamp=(0.0, 1.0), through=True)
    assert torch.equal(torch.autograd.grad(far.sum(), x)[0], torch.zeros(3, 3).double())


def test_a_step_compiles_whole() -> None:
    model, x = wide_resnet(), torch.rand(3, 1, 8, 8)
    noise = 0.005 * torch.randn(3, 1, 8, 8)

    def step(x: Tensor, noise: Tensor) -> Tensor:
        return langevin_step(lambda x: eh.log_density(model(x)), x, 0.25, noise, clamp=(0.0, 1.0), clip=1.0)

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    expected = step(x, noise)
    found = compiled(x, noise)
    close(found, expected, 1e-6)
    assert not found.requires_grad
    assert (expected - (x + noise).clamp(0, 1)).abs().max() > 1e-4  # the slope plays a part
    torch._dynamo.reset()


# --- the proximal sampler ------------------------------------------------------------------------------------------


class Curved(nn.Module):
    """A first layer that is not affine, so that inner steps differ."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.linear = nn.Linear(3, 5).double()

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(2 * self.linear(x)) + x.square().sum(1, keepdim=True)


def listed(layer: nn.Module) -> naive.Map:
    def of(x: Any) -> list[float]:
        with torch.no_grad():
            return layer(torch.tensor([list(x)], dtype=torch.float64))[0].tolist()

    return of


@pytest.mark.parametrize("noise_std", [0.0, 0.1])
@pytest.mark.parametrize(("step_size", "inner_steps"), [(0.0, 3), (0.2, 1), (0.2, 4), (0.2, 0)])
def test_proximal_steps_are_those_of_the_literal_loop(noise_std: float, step_size: float, inner_steps: int) -> None:
    first, net, x0 = Curved(), small_net(5), starts()
    settings = {"inner_steps": inner_steps, "inner_step_size": 0.15, "clip": 0.2}
    found = proximal_sgld(
        first, density_of(net), x0, 3, step_size, noise_std, generator=seeded(6), clamp=(0.0, 1.0), **settings
    )
    draws = normals(3, 3, 3, seed=6)
    for row in range(3):
        noises = [draw[row].tolist() for draw in draws]
        expected = naive.proximal(
            listed(first),
            literal_density(net),
            x0[row].tolist(),
            noises,
            step_size,
            noise_std,
            inner_steps,
            0.15,
            0.2,
            (0.0, 1.0),
        )
        close(found[row], expected, 1e-7)


def test_without_inner_steps_it_is_plain_langevin_dynamics() -> None:
    first, rest, x0 = Curved(), density_of(small_net(5)), starts()
    found = proximal_sgld(first, rest, x0, 4, 0.3, 0.1, inner_steps=0, clip=1e-3, generator=seeded(1))
    plain = sgld(lambda x: rest(first(x)), x0, 4, 0.3, 0.1, generator=seeded(1), clamp=(0.0, 1.0))
    close(found, plain, 1e-12)


def test_with_an_affine_first_layer_the_inner_steps_are_one_long_step() -> None:
    first, rest, x0 = nn.Linear(3, 5).double(), density_of(small_net(5)), starts()
    free: dict[str, Any] = {"clip": None, "clamp": None}

    def plain(step_size: float, steps: int) -> Tensor:
        return sgld(lambda x: rest(first(x)), x0, steps, step_size, 0.0)

    close(proximal_sgld(first, rest, x0, 3, 0.0, inner_steps=1, inner_step_size=0.2, **free), plain(0.2, 3), 1e-12)
    close(proximal_sgld(first, rest, x0, 3, 0.1, inner_steps=4, inner_step_size=0.2, **free), plain(0.9, 3), 1e-12)
    curved = Curved()
    assert not torch.allclose(
        proximal_sgld(curved, rest, x0, 1, 0.0, inner_steps=4, inner_step_size=0.2, **free),
        sgld(lambda x: rest(curved(x)), x0, 1, 0.8, 0.0),
    )


def test_published_settings_of_images_in_minus_one_to_one_give_the_same_walk_here() -> None:
    """x = (x' + 1) / 2: a / 4, b / 4, 2 clip, s / 2."""
    first, rest, theirs = Curved(), density_of(small_net(5)), 2 * starts() - 1
    there = proximal_sgld(
        first,
        rest,
        theirs,
        3,
        1.0,
        0.02,
        inner_steps=5,
        inner_step_size=0.2,
        clip=0.2,
        clamp=(-1, 1),
        generator=seeded(),
    )
    ours: dict[str, Any] = {"inner_steps": 5, "inner_step_size": 0.05, "clip": 0.4, "generator": seeded()}
    here = proximal_sgld(lambda x: first(2 * x - 1), rest, (theirs + 1) / 2, 3, 0.25, 0.01, **ours)
    close(here, (there + 1) / 2, 1e-12)
    there = sgld(lambda x: rest(first(x)), theirs, 3, 1.0, 0.01, generator=seeded())
    here = sgld(lambda x: rest(first(2 * x - 1)), (theirs + 1) / 2, 3, generator=seeded())
    close(here, (there + 1) / 2, 1e-12)


def test_a_wide_resnet_comes_apart_after_its_first_convolution() -> None:
    for norm in ("none", "batch", "instance"):
        model, images = wide_resnet(norm), torch.rand(3, 1, 8, 8)
        u = model.stem(images)
        kept = u.clone()
        assert u.shape == (3, 16, 8, 8)
        assert torch.equal(model.after_stem(u), model(images))
        assert torch.equal(u, kept)
        flat = nn.functional.conv2d((images - 0.5) / 0.5, model.conv.weight, model.conv.bias, padding=1)
        close(u, flat, 1e-6)
    with pytest.raises(ValueError, match=r"images must be \(N, 1, H, W\)"):
        model.stem(torch.zeros(2, 3, 8, 8))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inner_steps": -1}, "inner_steps must be a whole number from 0 on, got -1"),
        ({"inner_step_size": math.nan}, "inner_step_size must be at least 0 and finite, got nan"),
        ({"steps": 0.5}, "steps must be a whole number"),
        ({"clip": -1.0}, "clip must be above 0, got -1.0"),
        ({"clamp": (0, 0)}, "clamp must be"),
        ({"rest": lambda u: u}, r"one value a row, \(2,\), got \(2, 3\)"),
        ({"rest": lambda u: torch.ones(2, requires_grad=True)}, "can be differentiated by x; this one cannot"),
        ({"first": lambda x: x.detach()}, "can be differentiated by x; this one cannot"),
        ({"x0": torch.zeros(2, dtype=torch.int64)}, "x0 must be floating point"),
    ],
)
def test_unusable_proximal_arguments_are_named(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"first": lambda x: x * 2, "rest": lambda u: u.sum(1), "x0": torch.zeros(2, 3)}
    with pytest.raises(ValueError, match=message):
        proximal_sgld(**(arguments | changes))


# --- where chains start --------------------------------------------------------------------------------------------


def test_uniform_starts_fill_the_unit_box() -> None:
    start = UniformStart((3, 4, 4))
    images = start(torch.zeros(500, dtype=torch.int64), seeded())
    assert images.shape == (500, 3, 4, 4)
    assert 0 <= images.min() < 0.001 < 0.999 < images.max() <= 1
    assert abs(images.mean() - 0.5) < SIGMAS * math.sqrt(1 / 12 / images.numel())
    assert torch.equal(images, start(torch.ones(500), seeded()))
    assert start.double()(torch.zeros(2)).dtype == torch.float64
    assert start.state_dict() == {}


def correlated(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images of 2 x 2 of two classes whose pixels go together, well inside the box."""
    z = torch.randn(count, 4, generator=seeded(seed), dtype=torch.float64)
    mix = torch.tensor([[3.0, 0, 0, 0], [2, 1, 0, 0], [-2, 0, 1, 0], [0, 0, 0, 2]]).double() / 80
    labels = torch.arange(count) % 2
    images = torch.tensor([0.4, 0.6]).double()[labels][:, None] + z @ mix.T * (1 + labels[:, None])
    return images.view(count, 1, 2, 2), labels


def test_gaussian_starts_have_the_moments_of_their_class() -> None:
    images, labels = correlated(400, 0)
    start = GaussianStart.fit(images, labels, 2).double()
    drawn = start(torch.arange(40000) % 2, seeded(1)).flatten(1)
    for label in (0, 1):
        own = images[labels == label].flatten(1)
        cov = own.T.cov(correction=0) + 2.5e-5 * torch.eye(4)
        check_moments(drawn[label::2], own.mean(0), cov.double())


def test_gaussian_starts_follow_the_class_the_generator_and_the_box() -> None:
    images, labels = correlated(20, 0)
    start = GaussianStart.fit(images.float(), labels, 2)
    first = start(torch.tensor([1, 0, 1]), seeded(2))
    assert torch.equal(first, start(torch.tensor([1, 0, 1]), seeded(2)))
    assert not torch.equal(first, start(torch.tensor([1, 0, 1]), seeded(3)))
    own = images[labels == 1].flatten(1)
    close(start.factors[1] @ start.factors[1].T, own.T.cov(correction=0) + 2.5e-5 * torch.eye(4), 1e-7)
    # a row's draw is the mean and factor of its own class, times its own normals
    z = torch.randn(3, 4, generator=seeded(2))
    for row, label in enumerate((1, 0, 1)):
        close(first[row].flatten(), start.means[label].flatten() + start.factors[label] @ z[row], 1e-6)
    torch.testing.assert_close(start.means[1], images[labels == 1].float().mean(0))
    wide = GaussianStart(start.means, 100 * start.factors)(labels, seeded())
    assert wide.min() == 0
    assert wide.max() == 1
    assert start(torch.zeros(0, dtype=torch.int64)).shape == (0, 1, 2, 2)
    assert start.state_dict() == {}


def test_gaussian_starts_from_bytes_and_from_constant_pixels() -> None:
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).repeat(6, 1).view(6, 3, 1, 1)
    start = GaussianStart.fit(pixels, torch.zeros(6, dtype=torch.int64), 1)
    close(start.means.flatten(), [0.0, 0.2, 1.0], 1e-6)
    close(start.factors[0], math.sqrt(2.5e-5) * torch.eye(3), 1e-7)
    with pytest.raises(ValueError, match="class 1 has no training image"):
        GaussianStart.fit(pixels, torch.zeros(6, dtype=torch.int64), 2)
    with pytest.raises(ValueError, match="class 0 has no training image"):
        GaussianStart.fit(pixels[:0], torch.zeros(0, dtype=torch.int64), 1)
    with pytest.raises(ValueError, match=r"ridge must be above 0.* got 0\.0"):
        GaussianStart.fit(pixels, torch.zeros(6, dtype=torch.int64), 1, ridge=0.0)


# --- the replay buffer ---------------------------------------------------------------------------------------------


class Marked(nn.Module):
    """A start whose images carry 100 plus their class, so that a fresh one is known by its value."""

    def forward(self, labels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return (100 + labels.double()).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).clone()


def test_chains_of_a_class_go_on_from_its_slots_and_fresh_ones_at_the_given_rate() -> None:
    buffer = ReplayBuffer(1003, Marked(), num_classes=10, reinit=0.2)
    assert len(buffer) == 1000  # rounded down to equal shares
    assert buffer.labels.tolist() == [k // 100 for k in range(1000)]
    close(buffer.images[:, 0, 0, 0], 100.0 + buffer.labels)
    buffer.images.copy_(torch.arange(1000.0).view(-1, 1, 1, 1).expand(-1, 1, 2, 2) / 10000)
    labels = torch.randint(10, (20000,), generator=seeded())
    images, slots = buffer.draw(labels, seeded(1))
    assert images.shape == (20000, 1, 2, 2)
    assert torch.equal(buffer.labels[slots], labels)
    values = images[:, 0, 0, 0]
    afresh = values >= 100
    close(values[afresh], 100.0 + labels[afresh])
    close(values[~afresh], slots[~afresh] / 10000, 1e-6)
    assert abs(afresh.double().mean().item() - 0.2) <= SIGMAS * math.sqrt(0.2 * 0.8 / 20000)
    counts = slots.bincount(minlength=1000).double()  # each slot about 20 times
    assert counts.min() > 0
    assert abs(counts.var().item() / 20 - 1) < SIGMAS * math.sqrt(2 / 1000)


def test_pooled_chains_take_any_slot_and_labels_their_fresh_starts_alone() -> None:
    buffer = ReplayBuffer(40, Marked(), num_classes=4, pooled=True, reinit=0.0)
    labels = torch.full((400,), 3)
    images, slots = buffer.draw(labels, seeded())
    assert set(slots.tolist()) == set(range(40))
    close(images[:, 0, 0, 0], 100.0 + slots // 10)
    buffer.reinit = 1.0
    assert (buffer.draw(labels, seeded())[0] == 103).all()
    plain = ReplayBuffer(40, Marked(), reinit=0.0)
    assert set(plain.draw(torch.zeros(400, dtype=torch.int64), seeded())[1].tolist()) == set(range(40))


@pytest.mark.parametrize("reinit", [0.0, 1.0])
def test_never_or_always_afresh(reinit: float) -> None:
    buffer = ReplayBuffer(8, Marked(), num_classes=2, reinit=reinit)
    buffer.images.zero_()
    images, _ = buffer.draw(torch.arange(1000) % 2)
    assert (images == 0).all() if reinit == 0 else (images >= 100).all()


def test_what_is_put_comes_back_and_nothing_else_changes() -> None:
    buffer = ReplayBuffer(6, UniformStart((1, 2, 2)), num_classes=3, reinit=0.0, generator=seeded())
    before, slots = buffer.images.clone(), torch.tensor([4, 1])
    images = torch.rand(2, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    buffer.put(slots, images)
    assert torch.equal(buffer.images[slots], images.detach().float())
    others = [0, 2, 3, 5]
    assert torch.equal(buffer.images[others], before[others])
    assert not buffer.images.requires_grad
    buffer.put(slots[:0], images[:0])
    kept = buffer.images.clone()
    drawn, where = buffer.draw(torch.tensor([2, 0]))
    drawn += 1  # a chain that moves leaves the buffer alone
    assert torch.equal(buffer.images, kept)
    assert torch.equal(drawn - 1, kept[where]) or torch.allclose(drawn - 1, kept[where], atol=1e-6)


def test_of_a_slot_named_twice_the_last_image_stays() -> None:
    """Two threads that write without more ado leave sometimes one image and sometimes the other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for seed in range(8):
            buffer = ReplayBuffer(1500, UniformStart((1, 16, 16)))
            slots = torch.randint(1500, (2000,), generator=seeded(seed))
            buffer.put(slots, torch.arange(2000.0).view(-1, 1, 1, 1).expand(-1, 1, 16, 16).contiguous())
            last = {slot: row for row, slot in enumerate(slots.tolist())}
            found = buffer.images[list(last)].flatten(1)
            assert torch.equal(found, torch.tensor([*last.values()]).float()[:, None].expand_as(found))
    finally:
        torch.set_num_threads(threads)


def test_draws_follow_the_generator_and_the_state_dict_carries_the_images() -> None:
    images, labels = correlated(60, 0)
    start = GaussianStart.fit(images, labels, 2)
    first = ReplayBuffer(20, start, num_classes=2, reinit=0.5, generator=seeded(1))
    again = ReplayBuffer(20, start, num_classes=2, reinit=0.5, generator=seeded(1))
    other = ReplayBuffer(20, start, num_classes=2, reinit=0.5, generator=seeded(2))
    asked, rng = torch.tensor([0, 1, 1, 0] * 5), torch.get_rng_state()
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images)
    for a, b in zip(first.draw(asked, seeded(3)), again.draw(asked, seeded(3)), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first.draw(asked, seeded(3))[0], first.draw(asked, seeded(4))[0])
    assert torch.equal(torch.get_rng_state(), rng)
    assert set(first.state_dict()) == {"images"}
    other.load_state_dict(first.state_dict())
    assert torch.equal(other.images, first.images)
    assert torch.equal(other.draw(asked, seeded(3))[0], first.draw(asked, seeded(3))[0])
    assert "num_classes=2, pooled=False, reinit=0.5" in repr(first)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"capacity": 3}, "got capacity=3 for 4 classes"),
        ({"num_classes": 0}, "got capacity=8 for 0 classes"),
        ({"reinit": 1.5}, r"reinit must lie in \[0, 1\], got 1.5"),
        ({"reinit": math.nan}, r"reinit must lie in \[0, 1\], got nan"),
    ],
)
def test_unusable_buffers_are_named(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"capacity": 8, "start": Marked(), "num_classes": 4} | changes
    with pytest.raises(ValueError, match=message):
        ReplayBuffer(**arguments)


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("gaussian", [False, True])
def test_sampling_reads_no_value_back(gaussian: bool, pooled: bool) -> None:
    """On the meta device `.item()`, `nonzero()` and any choice by value raise: it has no values."""
    images, labels = torch.rand(40, 1, 8, 8), torch.arange(40) % 4
    start = GaussianStart.fit(images, labels, 4) if gaussian else UniformStart((1, 8, 8))
    buffer = ReplayBuffer(40, start, num_classes=4, pooled=pooled).to("meta")
    model = wide_resnet().to("meta")
    x0, slots = buffer.draw(labels.to("meta"))
    options: dict[str, Any] = {"clamp": (0.0, 1.0), "clip": 1.0, "anneal": 0.5}
    x = sgld(lambda x: eh.log_density(model(x)), x0, 2, **options)
    x = sgld(lambda x: eh.log_density(model(x)), x, 2, precondition=0.9)
    x = proximal_sgld(model.stem, lambda u: eh.log_density(model.after_stem(u)), x, 2, noise_std=0.1)
    buffer.put(slots, x)
    assert x.device.type == slots.device.type == buffer.images.device.type == "meta"


def test_chains_persist_over_training_steps() -> None:
    """Draw, move, put: a class's chains climb its own hill from step to step."""
    hills = torch.tensor([0.2, 0.8])
    buffer = ReplayBuffer(20, UniformStart((1, 1, 2)), num_classes=2, reinit=0.0, generator=seeded())
    generator = seeded(1)
    for _ in range(120):
        labels = torch.randint(2, (16,), generator=generator)
        x0, slots = buffer.draw(labels, generator)
        centres = hills[labels]
        x = sgld(
            lambda x, m=centres: -(x - m.view(-1, 1, 1, 1)).square().sum((1, 2, 3)), x0, 1, 0.1, generator=generator
        )
        buffer.put(slots, x)
    close(buffer.images, hills[buffer.labels].view(-1, 1, 1, 1).expand(-1, 1, 1, 2), 0.05)
