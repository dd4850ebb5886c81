"""The losses of encoder-decoders against literal versions, closed forms, algebraic optima, laws, edges, wrong input."""

from __future__ import annotations

import math
import re
from datetime import timedelta
from itertools import product
from pathlib import Path
from typing import Any

import naive_mim as literal
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ebmhybrid.codes import FLOOR, floor_log_std
from ebmhybrid.losses.code_contrast import contrastive_log_prob, infonce_log_prob
from ebmhybrid.losses.gathered import gathered
from ebmhybrid.losses.mim import (
    cmim_loss,
    cvae_loss,
    infonce_loss,
    infonce_mim_loss,
    latent_loss,
    mim_loss,
    vae_loss,
)

PAGE = Path(__file__).parent.parent / "docs" / "mim.md"
DOUBLE = torch.float64


def random_batch(n: int = 5, d: int = 3, seed: int = 0) -> list[Tensor]:
    """log_px, mean, log_std, z and positives in float64, each wanting its gradient."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(n,), (n, d), (n, d), (n, d), (n, d)]
    return [torch.randn(shape, dtype=DOUBLE, generator=generator).requires_grad_() for shape in shapes]


def random_codes(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def assert_same(value: Tensor, expected: Tensor, at: list[Tensor]) -> None:
    """Values, and the gradients of a sum that weighs each row differently."""
    torch.testing.assert_close(value, expected, rtol=1e-11, atol=1e-12)
    weights = 1 + torch.arange(value.numel(), dtype=DOUBLE).view_as(value)
    found, wanted = (
        torch.autograd.grad((weights * v).sum(), at, retain_graph=True, allow_unused=True, materialize_grads=True)
        for v in (value, expected)
    )
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)


# The contrast of codes


@pytest.mark.parametrize("temperature", [0.1, 0.5, 3.0])
@pytest.mark.parametrize(("n", "d"), [(1, 3), (2, 1), (3, 2), (7, 4)])
def test_contrasts_equal_the_double_loops(n: int, d: int, temperature: float) -> None:
    z, positives = random_codes(n, d), random_codes(n, d, seed=1)
    assert_same(contrastive_log_prob(z, temperature), literal.cmim_log_prob(z, temperature), [z])
    assert_same(infonce_log_prob(z, None, temperature), literal.infonce_log_prob(z, None, temperature), [z])
    expected = literal.infonce_log_prob(z, positives, temperature)
    assert_same(infonce_log_prob(z, positives, temperature), expected, [z, positives])


def test_gradients_of_the_contrasts_pass_gradcheck() -> None:
    z, positives = random_codes(4, 3), random_codes(4, 3, seed=1)
    assert torch.autograd.gradcheck(contrastive_log_prob, z)
    assert torch.autograd.gradcheck(infonce_log_prob, (z, positives))


@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("batch", [2, 3, 50])
def test_codes_that_point_one_way_have_log_2_and_log_n(batch: int, temperature: float) -> None:
    z = torch.tensor([[3.0, -4.0]], dtype=DOUBLE) * torch.arange(1.0, batch + 1)[:, None]
    same = torch.ones(batch, dtype=DOUBLE)
    torch.testing.assert_close(contrastive_log_prob(z, temperature), -math.log(2) * same, rtol=1e-12, atol=0)
    torch.testing.assert_close(infonce_log_prob(z, None, temperature), -math.log(batch) * same, rtol=1e-12, atol=0)


@pytest.mark.parametrize("length", [1e-40, 1e-30, 1.0, 1e25, 1e38])
def test_codes_of_any_length_are_compared_by_direction_alone(length: float) -> None:
    row = torch.tensor([[0.6, -0.8]])
    same = torch.full((4,), -math.log(2))
    torch.testing.assert_close(contrastive_log_prob((length * row).expand(4, 2)), same, rtol=1e-4, atol=0)
    first = random_codes(5, 3).detach().float()
    torch.testing.assert_close(infonce_log_prob(length * first), infonce_log_prob(first), rtol=1e-3, atol=1e-3)


def test_long_and_short_codes_have_gradients() -> None:
    z = random_codes(5, 3).detach().float()
    for length in (1e-25, 1e25):
        found, unit = (length * z).requires_grad_(), z.clone().requires_grad_()
        for codes in (found, unit):
            contrastive_log_prob(codes).sum().backward()
        torch.testing.assert_close(found.grad * length, unit.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("batch", [2, 5, 8])
def test_orthogonal_codes_have_the_value_that_the_docstring_names(batch: int) -> None:
    z = 7 * torch.eye(batch, 8, dtype=DOUBLE)
    expected = -math.log1p(math.exp(-10)) * torch.ones(batch, dtype=DOUBLE)
    assert expected[0].item() == pytest.approx(-4.54e-5, abs=1e-8)
    torch.testing.assert_close(contrastive_log_prob(z), expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(contrastive_log_prob(z.float()), expected.float(), rtol=1e-5, atol=0)
    expected = torch.full((batch,), -math.log1p((batch - 1) * math.exp(-10)), dtype=DOUBLE)
    torch.testing.assert_close(infonce_log_prob(z), expected, rtol=1e-10, atol=0)


def test_opposite_codes_are_told_apart_best() -> None:
    z = torch.tensor([[2.0, 0.0], [-1.0, 0.0]], dtype=DOUBLE)
    expected = torch.full((2,), -math.log1p(math.exp(-20)), dtype=DOUBLE)
    torch.testing.assert_close(contrastive_log_prob(z), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("n", "d"), [(2, 2), (6, 3), (40, 5)])
def test_bounds_hold_and_infonce_has_log_of_the_negatives_less_odds(n: int, d: int) -> None:
    z, positives = random_codes(n, d).detach(), random_codes(n, d, seed=1).detach()
    cmim, infonce = contrastive_log_prob(z, 0.3), infonce_log_prob(z, None, 0.3)
    assert ((cmim >= -math.log(2)) & (cmim <= 0)).all()
    assert ((infonce >= -math.log(n)) & (infonce <= 0)).all()

    def log_odds(log_prob: Tensor) -> Tensor:
        return log_prob - torch.log(-torch.expm1(log_prob))

    torch.testing.assert_close(log_odds(infonce), log_odds(cmim) - math.log(n - 1), rtol=1e-8, atol=1e-8)
    assert (infonce_log_prob(z, positives, 0.3) >= -math.log1p((n - 1) * math.exp(2 / 0.3))).all()


def test_with_positives_the_bound_log_n_does_not_hold_and_the_wider_one_is_reached() -> None:
    """s_ij may lie above s_ii: here s_ii = -1 and s_ij = 1."""
    z = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=DOUBLE)
    expected = torch.full((2,), -math.log1p(math.exp(20)), dtype=DOUBLE)
    torch.testing.assert_close(infonce_log_prob(z, z.flip(0)), expected, rtol=1e-12, atol=0)


def test_infonce_with_itself_for_positives_is_infonce_without() -> None:
    z = random_codes(6, 4)
    assert_same(infonce_log_prob(z, z), infonce_log_prob(z), [z])


def test_contrasts_see_neither_length_nor_rotation_nor_order() -> None:
    z, positives = random_codes(6, 4).detach(), random_codes(6, 4, seed=1).detach()
    turn = torch.linalg.qr(random_codes(4, 4, seed=2).detach())[0]
    stretch, order = torch.logspace(-3, 4, 6, dtype=DOUBLE)[:, None], torch.tensor([3, 0, 5, 1, 2, 4])
    for function in (contrastive_log_prob, infonce_log_prob, lambda z: infonce_log_prob(z, positives)):
        torch.testing.assert_close(function(stretch * z), function(z), rtol=1e-9, atol=1e-12)
    for function in (contrastive_log_prob, infonce_log_prob):
        torch.testing.assert_close(function(z @ turn), function(z), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(function(z[order]), function(z)[order], rtol=1e-9, atol=1e-12)
    both = infonce_log_prob(z @ turn, stretch * positives @ turn)
    torch.testing.assert_close(both, infonce_log_prob(z, positives), rtol=1e-9, atol=1e-12)
    both = infonce_log_prob(z[order], positives[order])
    torch.testing.assert_close(both, infonce_log_prob(z, positives)[order], rtol=1e-9, atol=1e-12)


def test_a_batch_repeated_moves_cmim_hardly_and_infonce_by_log_2() -> None:
    """Copies enter the mean with weight 1/(2B - 1), so at low temperature they are not nothing: t = 3 here."""
    z = random_codes(200, 8).detach()
    twice = torch.cat([z, z])
    assert contrastive_log_prob(twice, 3.0).mean().item() == pytest.approx(
        contrastive_log_prob(z, 3.0).mean().item(), abs=2e-3
    )
    gap = infonce_log_prob(twice, None, 3.0).mean() - infonce_log_prob(z, None, 3.0).mean()
    assert gap.item() == pytest.approx(-math.log(2), abs=1e-2)


def test_the_order_of_positives_matters() -> None:
    """Two views of a row agree: positives in another order are worse."""
    z = random_codes(6, 4).detach()
    near = z + 0.1 * random_codes(6, 4, seed=1).detach()
    assert infonce_log_prob(z, near).mean() > -0.2
    assert infonce_log_prob(z, near.roll(1, 0)).mean() < -1


def test_a_batch_of_one_is_exactly_zero_with_zero_gradient() -> None:
    z, positives = random_codes(1, 3), random_codes(1, 3, seed=1)
    for value in (contrastive_log_prob(z), infonce_log_prob(z), infonce_log_prob(z, positives)):
        assert value.tolist() == [0]
        assert torch.autograd.grad(value.sum(), z)[0].tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_codes_of_zeros_count_as_orthogonal_and_have_finite_gradients(dtype: torch.dtype) -> None:
    z = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]], dtype=dtype, requires_grad=True)
    expected = torch.full((3,), -math.log1p(math.exp(-10)), dtype=dtype)
    torch.testing.assert_close(contrastive_log_prob(z), expected, rtol=1e-4, atol=0)
    expected = torch.full((3,), -math.log1p(2 * math.exp(-10)), dtype=dtype)
    torch.testing.assert_close(infonce_log_prob(z), expected, rtol=1e-4, atol=0)
    for value in (contrastive_log_prob(z), infonce_log_prob(z), infonce_log_prob(z, z.detach() + 1)):
        (grad,) = torch.autograd.grad(value.sum(), z)
        assert grad.isfinite().all()


def test_tiny_and_huge_codes_and_low_temperatures_stay_finite() -> None:
    z = torch.tensor([[1e-8, 2e-8], [1e15, -1e15], [-1.0, 0.5]], requires_grad=True)
    for temperature in (1e-3, 1e3):
        for value in (contrastive_log_prob(z, temperature), infonce_log_prob(z, None, temperature)):
            assert value.isfinite().all()
            assert torch.autograd.grad(value.sum(), z)[0].isfinite().all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_row_that_is_not_finite_is_not_hidden(bad: float) -> None:
    z = torch.tensor([[bad, 1.0], [1.0, 2.0], [0.5, -1.0]])
    assert contrastive_log_prob(z).isnan().all()
    assert infonce_log_prob(z).isnan().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    z, positives = random_codes(8, 16).detach().to(dtype).requires_grad_(), random_codes(8, 16, seed=1).to(dtype)
    for value, exact in (
        (contrastive_log_prob(z), contrastive_log_prob(z.double())),
        (infonce_log_prob(z, positives), infonce_log_prob(z.double(), positives.double())),
    ):
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), exact, rtol=2e-5, atol=2e-6)
        (grad,) = torch.autograd.grad(value.sum(), z)
        assert grad.isfinite().all()
        assert grad.dtype == dtype
    log_px, zeros = torch.zeros(8, dtype=dtype), torch.zeros(8, 16, dtype=dtype)
    loss, terms = latent_loss(log_px, zeros, zeros, z)
    assert {value.dtype for value in (loss, *terms.values())} == {torch.float32}


def test_autocast_does_not_reach_the_cosines() -> None:
    z = random_codes(8, 16).detach().float()
    with torch.autocast("cpu", torch.bfloat16):
        inside = contrastive_log_prob(z)
    assert torch.equal(inside, contrastive_log_prob(z))


class Largest(TorchFunctionMode):
    """The most elements that a tensor has that any call inside returned."""

    elements = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor):
            self.elements = max(self.elements, made.numel())
        return made


def test_memory_grows_with_the_square_of_the_batch_and_not_with_the_codes() -> None:
    z, positives = random_codes(20, 7), random_codes(20, 7, seed=1)
    for function in (contrastive_log_prob, infonce_log_prob, lambda z: infonce_log_prob(z, positives)):
        with Largest() as largest:
            function(z)
        assert largest.elements == 400


def test_noise_alone_tells_samples_apart_where_nothing_reads_them() -> None:
    """The page's warning: of one mean for every image, a large sigma lowers InfoNCE and cMIM's contrast."""
    noise = random_codes(64, 32).detach()
    for log_prob, worst in ((contrastive_log_prob, math.log(2)), (infonce_log_prob, math.log(64))):
        assert log_prob(1 + 1e-3 * noise).mean().item() == pytest.approx(-worst, abs=1e-3)
        assert log_prob(1 + 30 * noise).mean().item() > -0.1


# The losses


def test_every_loss_equals_its_loops_with_gradients() -> None:
    log_px, mean, log_std, z, positives = every = random_batch()
    mim, vae = literal.mim(log_px, mean, log_std, z), literal.vae(log_px, mean, log_std)
    cmim = literal.cmim_log_prob(z, 0.4).mean()
    infonce, paired = (literal.infonce_log_prob(z, p, 0.4).mean() for p in (None, positives))
    assert_same(vae_loss(log_px, mean, log_std), vae, every)
    assert_same(mim_loss(log_px, mean, log_std, z), mim, every)
    assert_same(cvae_loss(log_px, mean, log_std, z, 0.4), vae - cmim, every)
    assert_same(cmim_loss(log_px, mean, log_std, z, 0.4), mim - cmim, every)
    assert_same(infonce_loss(z, None, 0.4), -infonce, every)
    assert_same(infonce_loss(z, positives, 0.4), -paired, every)
    assert_same(infonce_mim_loss(log_px, mean, log_std, z, None, 0.4), mim - infonce, every)
    assert_same(infonce_mim_loss(log_px, mean, log_std, z, positives, 0.4), mim - paired, every)


def test_the_temperature_is_a_tenth_unless_said() -> None:
    log_px, mean, log_std, z, positives = random_batch()
    assert torch.equal(cmim_loss(log_px, mean, log_std, z), cmim_loss(log_px, mean, log_std, z, 0.1))
    assert torch.equal(cvae_loss(log_px, mean, log_std, z), cvae_loss(log_px, mean, log_std, z, 0.1))
    assert torch.equal(infonce_loss(z, positives), infonce_loss(z, positives, 0.1))
    one, other = (infonce_mim_loss(log_px, mean, log_std, z, positives, *t) for t in ((), (0.1,)))
    assert torch.equal(one, other)
    assert torch.equal(contrastive_log_prob(z), contrastive_log_prob(z, 0.1))


NAMED = {
    "vae": (lambda b: vae_loss(*b[:3], return_terms=True), {"generative": "vae", "contrast": "none"}),
    "mim": (lambda b: mim_loss(*b[:4], return_terms=True), {"generative": "mim", "contrast": "none"}),
    "cvae": (lambda b: cvae_loss(*b[:4], return_terms=True), {"generative": "vae", "contrast": "cmim"}),
    "cmim": (lambda b: cmim_loss(*b[:4], return_terms=True), {}),
    "infonce": (lambda b: infonce_loss(b[3], b[4], return_terms=True), {"generative": "none", "contrast": "infonce"}),
    "infonce_mim": (lambda b: infonce_mim_loss(*b, return_terms=True), {"contrast": "infonce"}),
}


@pytest.mark.parametrize("name", NAMED)
def test_terms_add_up_and_their_names_are_the_options(name: str) -> None:
    named, options = NAMED[name]
    batch = random_batch()
    loss, terms = named(batch)
    positives = batch[4] if options.get("contrast") == "infonce" else None
    again, same = latent_loss(*batch[:4], positives=positives, **options)
    assert torch.equal(loss, again)
    assert terms.keys() == same.keys()
    assert all(torch.equal(terms[key], same[key]) for key in terms)
    assert set(terms) == ({"contrast"} if name == "infonce" else {"log_likelihood", "latent"}) | (
        set() if name in ("vae", "mim") else {"contrast"}
    )
    assert_same(loss, -sum(terms.values()), batch)


def test_terms_are_the_means_that_their_names_say() -> None:
    log_px, mean, log_std, z, _ = random_batch()
    _, mim = mim_loss(log_px, mean, log_std, z, return_terms=True)
    _, vae = vae_loss(log_px, mean, log_std, return_terms=True)
    assert torch.equal(mim["log_likelihood"], log_px.mean())
    assert torch.equal(vae["log_likelihood"], log_px.mean())
    nothing = torch.zeros_like(log_px)
    torch.testing.assert_close(mim["latent"], -literal.mim(nothing, mean, log_std, z))
    torch.testing.assert_close(vae["latent"], -literal.vae(nothing, mean, log_std))


@pytest.mark.parametrize("weight", [0, 0.25, 3.0])
def test_the_weight_is_the_contrasts_alone(weight: float) -> None:
    batch = random_batch()
    loss, terms = latent_loss(*batch[:4], contrast_weight=weight, temperature=0.4)
    torch.testing.assert_close(terms["contrast"], literal.cmim_log_prob(batch[3], 0.4).mean())
    expected = -(terms["log_likelihood"] + terms["latent"] + weight * terms["contrast"])
    assert_same(loss, expected, batch)


def test_without_a_decoder_nothing_but_codes_is_read() -> None:
    z = random_codes(4, 3)
    loss, terms = latent_loss(None, None, None, z, generative="none", contrast="infonce")
    assert torch.equal(loss, infonce_loss(z))
    assert list(terms) == ["contrast"]


def test_one_row_is_the_mim_loss_of_that_row() -> None:
    log_px, mean, log_std, z, _ = random_batch(n=1)
    assert torch.equal(cmim_loss(log_px, mean, log_std, z), mim_loss(log_px, mean, log_std, z))
    assert infonce_loss(z).item() == 0


def test_an_impossible_row_makes_the_loss_infinite_and_nan_is_kept() -> None:
    log_px, mean, log_std, z, _ = (value.detach() for value in random_batch())
    log_px[1] = -math.inf
    assert mim_loss(log_px, mean, log_std, z).item() == math.inf
    log_px[1] = math.nan
    assert vae_loss(log_px, mean, log_std).isnan()


CODES = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"z": torch.zeros(0, 3)}, r"z must be codes, .* N >= 1 .*got torch.float32 \(0, 3\)"),
        ({"z": torch.zeros(2, 0)}, r"z must be codes, .* D >= 1, got torch.float32 \(2, 0\)"),
        ({"z": torch.zeros(3)}, r"z must be codes, .*got torch.float32 \(3,\)"),
        ({"z": torch.zeros(2, 3, dtype=torch.int64)}, r"z must be codes, floating .*got torch.int64"),
        ({"z": [[0.0]]}, "z must be codes, .*got list"),
        ({"mean": torch.zeros(2, 4)}, r"mean must be floating point \(2, 3\), as z is, got torch.float32 \(2, 4\)"),
        ({"log_std": None}, r"log_std must be floating point \(2, 3\), as z is, got NoneType"),
        ({"log_std": torch.zeros(3)}, r"log_std must be floating point \(2, 3\)"),
        ({"log_px": None}, r"log_px must be floating point \(2,\), as z is, got NoneType"),
        ({"log_px": torch.zeros(2, 1)}, r"log_px must be floating point \(2,\)"),
        ({"log_px": torch.tensor(0.0)}, r"log_px must be floating point \(2,\)"),
        ({"temperature": 0.0}, "temperature must be a finite number from 1e-06 up, got 0.0"),
        ({"temperature": math.nan}, "temperature must be .* got nan"),
        ({"temperature": math.inf}, "temperature must be .* got inf"),
        ({"temperature": "low"}, "temperature must be .* got 'low'"),
        ({"temperature": 10**400}, "temperature must be .* got 1000"),
        ({"temperature": 1e-320}, "temperature must be .* got 1e-320"),
        ({"temperature": True}, "temperature must be .* got True"),
        ({"contrast_weight": -1}, "contrast_weight must be a finite number from 0 up, got -1"),
        ({"contrast_weight": math.inf}, "contrast_weight must be .* got inf"),
        ({"contrast_weight": 10**400}, "contrast_weight must be .* got 1000"),
        ({"contrast_weight": True}, "contrast_weight must be .* got True"),
        ({"generative": "gan"}, "generative must be one of none, vae, mim, got 'gan'"),
        ({"contrast": "nce"}, "contrast must be one of none, cmim, infonce, got 'nce'"),
        ({"generative": "none", "contrast": "none"}, "both 'none': nothing would be trained"),
        ({"positives": CODES}, "positives go with contrast='infonce', got contrast='cmim'"),
        ({"positives": CODES, "contrast": "none"}, "positives go with contrast='infonce', got contrast='none'"),
        ({"positives": torch.zeros(4, 3), "contrast": "infonce"}, r"positives must be floating point \(2, 3\)"),
        ({"positives": CODES.long(), "contrast": "infonce"}, r"positives must be floating point .*got torch.int64"),
    ],
)
def test_wrong_input_is_named(options: dict[str, Any], message: str) -> None:
    good = {"log_px": torch.zeros(2), "mean": CODES, "log_std": CODES, "z": CODES}
    with pytest.raises(ValueError, match=message):
        latent_loss(**(good | options))


def test_named_losses_check_too() -> None:
    with pytest.raises(ValueError, match="temperature must be a finite number from 1e-06 up, got -1"):
        infonce_loss(CODES, temperature=-1)
    with pytest.raises(ValueError, match="z must be codes"):
        contrastive_log_prob(torch.zeros(0, 3))
    with pytest.raises(ValueError, match="z must be codes"):
        vae_loss(torch.zeros(0), torch.zeros(0, 3), torch.zeros(0, 3))


# Where the optima lie. The losses are quadratic in (x, noise) for a linear Gaussian model, so their mean over the 2n
# points +-sqrt(n) e_k, which have a standard normal's moments up to the third, is their expectation exactly.


def points(n: int) -> Tensor:
    axes = math.sqrt(n) * torch.eye(n, dtype=DOUBLE)
    return torch.cat([axes, -axes])


def our_loss(name: str, model: literal.LinearGaussian) -> Tensor:
    """The package's loss of a linear Gaussian model, its expectation over data and noise exact."""
    d, latent = model.W.shape
    x_noise, z_noise = points(d + latent).split([d, latent], dim=1)
    x = model.m + x_noise @ torch.linalg.cholesky(model.S).T
    mean = x @ model.A.T + model.a
    log_std = model.sigma.log().expand_as(mean)
    z = mean + model.sigma * z_noise
    log_px = torch.distributions.Normal(z @ model.W.T, model.s).log_prob(x).sum(1)
    return vae_loss(log_px, mean, log_std) if name == "vae" else mim_loss(log_px, mean, log_std, z)


def linear_model(orthogonal: bool = False) -> literal.LinearGaussian:
    """Three observed dimensions of some mean and covariance, two latent ones; no optimum yet."""
    m, root, W, A, a, log_sigma = (
        random_codes(*shape, seed=seed).detach()
        for seed, shape in enumerate([(1, 3), (3, 3), (3, 2), (2, 3), (1, 2), (1, 2)])
    )
    if orthogonal:
        W = torch.linalg.qr(W)[0] * torch.tensor([1.5, 0.6], dtype=DOUBLE)
    S = root @ root.T + 0.1 * torch.eye(3, dtype=DOUBLE)
    return literal.LinearGaussian(m[0], S, W, 0.7, A, a[0], log_sigma[0].exp())


def minimised(loss: Any, start: list[Tensor]) -> list[Tensor]:
    """L-BFGS from `start`; a hundred steps are more than these need."""
    values = [value.clone().requires_grad_() for value in start]
    optimizer = torch.optim.LBFGS(
        values, max_iter=100, tolerance_grad=1e-11, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(*values)
        value.backward()
        return value

    optimizer.step(closure)
    return [value.detach() for value in values]


@pytest.mark.parametrize("name", ["mim", "vae"])
def test_losses_have_their_expectation_in_closed_form(name: str) -> None:
    model = linear_model()
    changing = [model.W, model.A, model.a, model.sigma]
    W, A, a, sigma = (value.requires_grad_() for value in changing)
    model = model._replace(W=W, A=A, a=a, sigma=sigma)
    expected = model.vae() if name == "vae" else model.mim()
    assert_same(our_loss(name, model), expected, changing)


def test_a_mim_has_its_optimum_where_the_algebra_puts_it() -> None:
    """A is the posterior mean under the prior N(0, 2 I), a = 0, and every sigma is at its floor.

    With p(x|z) = N(W z, s^2 I) given, mu = A x + a and w_k the columns of W, the loss of one x is, up to a constant,

        |x - W mu|^2 / (2 s^2) + |mu|^2 / 4  +  sum_k [ c_k sigma_k^2 + 1/2 log sigma_k ],   c_k = |w_k|^2/(2 s^2) + 1/4

    since E_q |x - W z|^2 = |x - W mu|^2 + sum_k sigma_k^2 |w_k|^2, E_q log q = -sum_k log sigma_k + const and
    E_q log P = -(|mu|^2 + sum_k sigma_k^2)/2 + const. It falls apart in mu and sigma. The first part is a ridge
    regression: (W'W/s^2 + I/2) mu = W'x/s^2, so A = (W'W + s^2/2 I)^-1 W' and a = 0, whatever the data. In the second
    d/d(log sigma_k) = 2 c_k sigma_k^2 + 1/2 > 0 at every sigma: there is no stationary point, the loss falls without
    bound as sigma goes to 0, and with a floor the optimum is at the floor.
    """
    start = linear_model()
    floor = -3.0

    def loss(A: Tensor, a: Tensor, raw: Tensor) -> Tensor:
        return our_loss("mim", start._replace(A=A, a=a, sigma=floor_log_std(raw, floor).exp()))

    A, a, raw = minimised(loss, [start.A, start.a, torch.zeros(2, dtype=DOUBLE)])
    ridge = start.W.T @ start.W + start.s**2 / 2 * torch.eye(2, dtype=DOUBLE)
    torch.testing.assert_close(A, torch.linalg.solve(ridge, start.W.T), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(a, torch.zeros_like(a), rtol=0, atol=1e-6)
    torch.testing.assert_close(floor_log_std(raw, floor), torch.full_like(raw, floor), rtol=0, atol=1e-4)


@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0])
@pytest.mark.parametrize("log_sigma", [-8.0, 0.0, 2.0])
def test_a_mim_pulls_sigma_down_at_every_sigma_and_for_every_decoder(log_sigma: float, scale: float) -> None:
    """d loss / d log sigma_k = 1/2 + 2 c_k sigma_k^2, with W = 0 too, where the decoder does not look at z."""
    model = linear_model()
    model = model._replace(W=scale * model.W)
    free = torch.full((2,), log_sigma, dtype=DOUBLE, requires_grad=True)
    (slope,) = torch.autograd.grad(our_loss("mim", model._replace(sigma=free.exp())), free)
    c = model.W.square().sum(0) / (2 * model.s**2) + 0.25
    torch.testing.assert_close(slope, 0.5 + 2 * c * math.exp(2 * log_sigma), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("orthogonal", [False, True])
def test_the_vae_has_its_optimum_at_the_posterior(orthogonal: bool) -> None:
    """A = (W'W + s^2 I)^-1 W' is the posterior's mean map; 1/sigma_k^2 = 1 + |w_k|^2/s^2 its precision's diagonal.

    Where the columns of W are orthogonal, the posterior is such a diagonal Gaussian: by conditioning the joint
    Gaussian, A = W'(W W' + s^2 I)^-1 and its covariance is I - A W. The loss is then -E log N(x; 0, W W' + s^2 I).
    """
    start = linear_model(orthogonal)

    def loss(A: Tensor, a: Tensor, log_sigma: Tensor) -> Tensor:
        return our_loss("vae", start._replace(A=A, a=a, sigma=log_sigma.exp()))

    A, a, log_sigma = minimised(loss, [start.A, start.a, start.sigma.log()])
    marginal = start.W @ start.W.T + start.s**2 * torch.eye(3, dtype=DOUBLE)
    exact = torch.linalg.solve(marginal, start.W).T
    torch.testing.assert_close(A, exact, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(a, torch.zeros_like(a), rtol=0, atol=1e-7)
    precision = 1 + start.W.square().sum(0) / start.s**2
    torch.testing.assert_close((-2 * log_sigma).exp(), precision, rtol=1e-6, atol=0)
    if orthogonal:
        covariance = torch.eye(2, dtype=DOUBLE) - exact @ start.W
        torch.testing.assert_close((2 * log_sigma).exp().diag(), covariance, rtol=1e-6, atol=1e-9)
        second = start.S + start.m[:, None] * start.m
        nll = 0.5 * (torch.linalg.solve(marginal, second).trace() + torch.logdet(2 * math.pi * marginal))
        torch.testing.assert_close(loss(A, a, log_sigma), nll, rtol=1e-9, atol=0)


def scalar_model(v: float, s: float, w: Tensor, alpha: Tensor, sigma: Tensor) -> literal.LinearGaussian:
    one = torch.ones(1, dtype=DOUBLE)
    return literal.LinearGaussian(0 * one, v * one[None], w.view(1, 1), s, alpha.view(1, 1), 0 * one, sigma.view(1))


@pytest.mark.parametrize(("v", "s", "log_sigma"), [(2.0, 0.5, -1.0), (1.0, 1.0, -2.0), (4.0, 0.3, -6.0)])
def test_with_a_learned_decoder_the_floor_sets_a_mims_scale(v: float, s: float, log_sigma: float) -> None:
    """x ~ N(0, v), p(x|z) = N(w z, s^2), q(z|x) = N(alpha x, sigma^2), sigma at its floor, w and alpha free.

    With r = w alpha and u = w^2 the loss is, up to a constant,

        (1 - r)^2 v / (2 s^2)  +  u sigma^2 / (2 s^2) + r^2 v / (4 u)

    The last two are least at u = r s sqrt(v) / (sqrt 2 sigma), where their sum is r sigma sqrt(v) / (sqrt 2 s), and
    then the whole at r = 1 - s sigma / sqrt(2 v), or 0 if that is negative. So alpha^2 v / sigma^2, the code's signal
    to its noise, is sqrt 2 r sqrt(v) / (s sigma): each unit off log sigma's floor adds about half a nat of I(x; z).
    """
    sigma = torch.tensor(log_sigma, dtype=DOUBLE).exp()
    start = [torch.tensor(value, dtype=DOUBLE) for value in (1.3, 0.4)]
    w, alpha = minimised(lambda w, alpha: our_loss("mim", scalar_model(v, s, w, alpha, sigma)), start)
    r = 1 - s * sigma / math.sqrt(2 * v)
    torch.testing.assert_close(w * alpha, r, rtol=1e-6, atol=0)
    torch.testing.assert_close(w.square(), r * s * math.sqrt(v / 2) / sigma, rtol=1e-5, atol=0)
    signal = alpha.square() * v / sigma.square()
    torch.testing.assert_close(signal, math.sqrt(2) * r * math.sqrt(v) / (s * sigma), rtol=1e-5, atol=0)


def test_a_mim_with_a_learned_decoder_forgets_x_only_above_a_floor_that_nobody_sets() -> None:
    """s sigma > sqrt(2 v), beyond which r = 0."""
    start = [torch.tensor(value, dtype=DOUBLE) for value in (1.3, 0.4)]
    sigma = torch.tensor(1.6, dtype=DOUBLE)
    w, alpha = minimised(lambda w, alpha: our_loss("mim", scalar_model(1.0, 1.0, w, alpha, sigma)), start)
    assert max(w.abs().item(), alpha.abs().item()) < 1e-5


def test_the_vae_with_a_learned_decoder_is_probabilistic_pca() -> None:
    """Tipping & Bishop 1999: w^2 = v - s^2, and the posterior there has alpha = w/v and sigma^2 = s^2/v."""
    v, s = 2.0, 0.5
    start = [torch.tensor(value, dtype=DOUBLE) for value in (0.7, 0.4, -0.3)]
    w, alpha, log_sigma = minimised(
        lambda w, alpha, log_sigma: our_loss("vae", scalar_model(v, s, w, alpha, log_sigma.exp())), start
    )
    assert w.item() ** 2 == pytest.approx(v - s**2, rel=1e-6)
    assert alpha.item() == pytest.approx(w.item() / v, rel=1e-6)
    assert math.exp(2 * log_sigma.item()) == pytest.approx(s**2 / v, rel=1e-6)


# More than one process

ROWS, LATENT = 6, 3


def shared_problem() -> tuple[Tensor, Tensor, Tensor]:
    """Inputs of two views and the weights of an encoder that all processes share."""
    generator = torch.Generator().manual_seed(3)
    views = torch.randn(2, ROWS, 4, dtype=DOUBLE, generator=generator)
    return views[0], views[1], torch.randn(3, LATENT, 4, dtype=DOUBLE, generator=generator)


def part_loss(name: str, rows: slice, weights: Tensor, gather: bool) -> Tensor:
    x, other, _ = shared_problem()
    mean, log_std, positives = x[rows] @ weights[0].T, x[rows] @ weights[1].T, other[rows] @ weights[0].T
    z = mean + log_std.exp() * (x[rows] @ weights[2].T)
    log_px = -x[rows].square().sum(1) * z.square().sum(1)
    if name == "infonce":
        return infonce_loss(z, positives, gather=gather)
    contrast = "infonce" if name == "infonce itself" else "cmim"
    return latent_loss(log_px, mean, log_std, z, contrast=contrast, gather=gather)[0]


LOSSES = ("cmim", "infonce", "infonce itself")
SHARES = ((ROWS // 2, ROWS // 2), (ROWS - 2, 2), (0, ROWS))


def one_of_two(rank: int, folder: str) -> None:
    """What each of two processes does: a loss and gradient of its share of a batch, weighted by its rows."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=timedelta(minutes=2)
    )
    found = {}
    for name, shares in product(LOSSES, SHARES):
        begin = sum(shares[:rank])
        own = slice(begin, begin + shares[rank])
        weights = shared_problem()[2].requires_grad_()
        loss = 2 * shares[rank] / ROWS * part_loss(name, own, weights, gather=True)
        loss.backward()
        alone = part_loss(name, own, weights.detach(), gather=False) if all(shares) else torch.tensor(math.nan)
        found[name, shares] = loss.detach(), weights.grad, alone
    rows, beside = torch.zeros(1, 2, requires_grad=True), torch.zeros(2, 2, requires_grad=True)
    weights = torch.arange(4.0).view(2, 2) + 10 * rank
    before = 1 * beside  # made first, so backward comes to it after the gathering
    ((gathered(rows)[0] + before) * weights).sum().backward()
    found["rows"], found["beside"] = rows.grad, beside.grad
    try:  # no process may raise alone, while the other waits for it
        latent_loss(*torch.zeros(1, 0), *torch.zeros(3, 0, 2), gather=True)
    except ValueError as error:
        found["none"] = str(error)
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")
def test_two_processes_have_the_value_and_gradient_of_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(one_of_two, (str(tmp_path),), nprocs=2)
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for name, shares in product(LOSSES, SHARES):
        weights = shared_problem()[2].requires_grad_()
        loss = part_loss(name, slice(None), weights, gather=False)
        (grad,) = torch.autograd.grad(loss, weights)
        losses, grads, alone = zip(*(part[name, shares] for part in parts), strict=True)
        torch.testing.assert_close(sum(losses) / 2, loss.detach(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(sum(grads) / 2, grad, rtol=1e-11, atol=1e-11)
        assert not abs(sum(alone) / 2 - loss.item()) < 1e-3
    # Each process's own row of the weights' sum over processes; a gradient that others share is not written to.
    assert [part["rows"].tolist() for part in parts] == [[[10, 12]], [[14, 16]]]
    assert [part["beside"].tolist() for part in parts] == [[[0, 1], [2, 3]], [[10, 11], [12, 13]]]
    assert [part["none"] for part in parts] == 2 * ["some process must hold at least one row, got [0, 0]"]


@pytest.mark.parametrize("gather", [False, True])
@pytest.mark.parametrize("name", ["cvae", "cmim", "infonce", "infonce_mim"])
def test_named_losses_gather_when_they_are_asked_to(name: str, gather: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if another process held twice these columns: they are what the rows are compared with."""

    def with_others(rows: Tensor) -> tuple[Tensor, int]:
        return torch.cat([rows, rows.flip(0), rows.flip(0)]), 0

    monkeypatch.setattr("ebmhybrid.losses.code_contrast.gathered", with_others)
    batch = random_batch()
    function = {"cvae": cvae_loss, "cmim": cmim_loss, "infonce_mim": infonce_mim_loss}.get(name)
    arguments = batch[:4]
    if function is None:
        function, arguments = infonce_loss, batch[3:4]
    _, terms = function(*arguments, gather=gather, return_terms=True)
    z = with_others(batch[3])[0] if gather else batch[3]
    literal_log_prob = literal.cmim_log_prob if name.startswith("c") else lambda z, t: literal.infonce_log_prob(z, z, t)
    torch.testing.assert_close(terms["contrast"], literal_log_prob(z, 0.1)[: len(batch[3])].mean())


def test_without_other_processes_gathering_is_nothing() -> None:
    z = random_codes(4, 3)
    assert gathered(z) == (z, 0)
    with pytest.raises(ValueError, match=r"some process must hold at least one row, got \[0\]"):
        contrastive_log_prob(z[:0], gather=True)
    assert torch.equal(contrastive_log_prob(z, gather=True), contrastive_log_prob(z))


# The page


def test_the_snippets_of_the_page_run_and_print_its_table(capsys: pytest.CaptureFixture[str]) -> None:
    page = PAGE.read_text()
    names: dict[str, Any] = {}
    for snippet in re.findall(r"```python\n(.*?)```", page, re.S):
        exec(snippet, names)
    first, *rows = capsys.readouterr().out.splitlines()
    assert set(names["terms"]) == {"log_likelihood", "latent", "contrast"}
    assert names["loss"].isfinite()
    assert "log_likelihood" in first
    (table,) = re.findall(r"```text\n(.*?)```", page, re.S)
    for printed, shown in zip(rows, table.splitlines(), strict=True):
        assert re.sub(r"-?\d\.\d+", "", printed) == re.sub(r"-?\d\.\d+", "", shown)
        found, expected = ([float(v) for v in re.findall(r"-?\d\.\d+", line)] for line in (printed, shown))
        assert found == pytest.approx(expected, abs=2e-4)


def test_the_page_has_every_loss_and_the_variance_that_the_algebra_gives() -> None:
    page = PAGE.read_text()
    for function in (vae_loss, mim_loss, cvae_loss, cmim_loss, infonce_loss, infonce_mim_loss):
        assert f"| `{function.__name__}` |" in page
    sigma = math.exp(FLOOR)
    variance = math.sqrt(2) * (1 - sigma / math.sqrt(2)) * sigma + sigma**2
    assert f"the variance of z over the data is {variance:.4f}".replace(" 0.", " .") in page
