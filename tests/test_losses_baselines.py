"""The rivals' losses against literal versions, a kept library, laws, edges and wrong input."""

from __future__ import annotations

import math

import naive
import naive_baselines as literal
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ebmhybrid import energy
from ebmhybrid.losses.baselines import (
    LogitNormLoss,
    ProjectionHead,
    SupConLoss,
    energy_margin_loss,
    logit_norm_loss,
    outlier_exposure_loss,
    supcon_loss,
)

LABELS = {"mixed": [0, 1, 0, 2, 1], "one class": [3, 3, 3, 3, 3], "each its own": [0, 1, 2, 3, 4]}


def one_hot(y: Tensor, classes: int) -> Tensor:
    return F.one_hot(y, classes).double()


def random_views(n: int, v: int, d: int = 6, seed: int = 0) -> Tensor:
    return naive.random_logits(n * v, d, seed).detach().reshape(n, v, d).requires_grad_()


def assert_same(value: Tensor, expected: Tensor, at: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(value, expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(naive.grad(value, at), naive.grad(expected, at), rtol=tolerance, atol=tolerance)


# LogitNorm. The paper's equation has no 1e-7 beside the norm: it moves a value by some 1e-7 / ||f|| / T.


@pytest.mark.parametrize("temperature", [0.04, 1.0])
@pytest.mark.parametrize(("n", "c"), [(1, 2), (5, 3), (4, 10)])
def test_logit_norm_equals_the_papers_loops(n, c, temperature) -> None:
    logits, y = naive.random_logits(n, c, seed=n), torch.arange(n) % c
    expected = literal.logit_norm(logits, one_hot(y, c), temperature)
    assert_same(logit_norm_loss(logits, y, temperature), expected, logits, tolerance=1e-5)
    soft = torch.softmax(naive.random_logits(n, c, seed=9).detach(), 1)
    expected = literal.logit_norm(logits, soft, temperature)
    assert_same(logit_norm_loss(logits, soft, temperature), expected, logits, tolerance=1e-5)
    assert_same(logit_norm_loss(logits, one_hot(y, c)), logit_norm_loss(logits, y), logits)
    torch.testing.assert_close(logit_norm_loss(logits.half(), soft), logit_norm_loss(logits.half(), soft.float()))


def test_logit_norm_adds_1e_7_to_the_norm_as_released() -> None:
    """At ||f|| = 1e-7 the unit logits are half as long."""
    logits = torch.tensor([[0.6e-7, 0.8e-7]], dtype=torch.float64)
    expected = F.cross_entropy(torch.tensor([[0.3, 0.4]], dtype=torch.float64) / 0.04, torch.tensor([1]))
    torch.testing.assert_close(logit_norm_loss(logits, torch.tensor([1])), expected, rtol=1e-12, atol=0)


def test_logit_norm_does_not_see_the_length_of_logits() -> None:
    logits, y = naive.random_logits(6, 4, seed=1), torch.arange(6) % 4
    loss = logit_norm_loss(logits, y)
    torch.testing.assert_close(logit_norm_loss(50 * logits, y), loss, rtol=1e-5, atol=0)
    along = (naive.grad(loss, logits) * logits).sum(1)
    torch.testing.assert_close(along, torch.zeros_like(along), rtol=0, atol=1e-5)


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_logit_norm_has_the_floor_its_docstring_names(classes) -> None:
    """Best is the label's logit alone above equal others; at C = 2, T = 1 the floor is log(1 + exp(-sqrt 2))."""
    best = 50 * (one_hot(torch.arange(classes), classes) - 1 / classes)
    loss = logit_norm_loss(best, torch.arange(classes), 1.0)
    floor = math.log1p((classes - 1) * math.exp(-math.sqrt(classes / (classes - 1))))
    assert loss.item() == pytest.approx(floor, rel=1e-7)
    assert literal.logit_norm_floor(classes, 1.0) == pytest.approx(floor, rel=1e-12)
    for seed in range(20):
        near = best + naive.random_logits(classes, classes, seed, scale=5.0).detach()
        assert logit_norm_loss(near, torch.arange(classes), 1.0).item() > floor


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_logit_norm_of_half_precision_is_computed_in_float32(dtype) -> None:
    logits, y = naive.random_logits(8, 10, seed=3).detach().to(dtype).requires_grad_(), torch.arange(8)
    loss = logit_norm_loss(logits, y)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), logit_norm_loss(logits.double(), y), rtol=1e-5, atol=0)
    assert naive.grad(loss, logits).isfinite().all()


def test_logit_norm_of_zero_logits_has_finite_gradient() -> None:
    logits, y = torch.zeros(2, 4, requires_grad=True), torch.tensor([0, 3])
    loss = logit_norm_loss(logits, y, 0.5)
    assert loss.item() == pytest.approx(math.log(4))
    expected = (0.25 - F.one_hot(y, 4)) / 2 / 0.5 / 1e-7
    torch.testing.assert_close(naive.grad(loss, logits), expected)


def test_logit_norm_edges() -> None:
    one_class = torch.tensor([[3.0]], requires_grad=True)
    assert logit_norm_loss(one_class, torch.tensor([0])).item() == 0
    assert logit_norm_loss(torch.tensor([[math.nan, 1.0]]), torch.tensor([0])).isnan()
    assert logit_norm_loss(torch.tensor([[math.inf, 1.0]]), torch.tensor([0])).isnan()


def test_logit_norm_module_is_a_drop_in() -> None:
    logits, y = naive.random_logits(5, 3, seed=2), torch.tensor([0, 1, 2, 1, 0])
    for module, temperature in ((LogitNormLoss(), 0.04), (LogitNormLoss(0.3), 0.3)):
        assert module(logits, y) == logit_norm_loss(logits, y, temperature)
        assert not list(module.parameters())
        assert repr(module) == f"LogitNormLoss(temperature={temperature})"


@pytest.mark.parametrize(
    ("logits", "y", "message"),
    [
        (torch.zeros(3), torch.tensor([0]), "logits must be floating point"),
        (torch.zeros(2, 3, dtype=torch.int64), torch.tensor([0, 1]), "logits must be floating point"),
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), "N >= 1"),
        (torch.zeros(2, 3), torch.tensor([0, 3]), r"labels must lie in \[0, 2\], got \[0, 3\]"),
        (torch.zeros(2, 3), torch.tensor([-100, 1]), r"labels must lie in \[0, 2\], got \[-100, 1\]"),
        (torch.zeros(2, 3), torch.tensor([0]), r"y must be int64 \(2,\) or probabilities \(2, 3\)"),
        (torch.zeros(1, 2), torch.tensor([[0.9, 0.9]]), "sum to 1"),
    ],
)
def test_logit_norm_refuses(logits, y, message) -> None:
    with pytest.raises(ValueError, match=message):
        logit_norm_loss(logits, y)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_every_temperature_is_checked(temperature) -> None:
    for call in (
        lambda: logit_norm_loss(torch.zeros(1, 2), torch.tensor([0]), temperature),
        lambda: supcon_loss(torch.ones(1, 2, 3), torch.tensor([0]), temperature),
        lambda: LogitNormLoss(temperature),
        lambda: SupConLoss(temperature),
    ):
        with pytest.raises(ValueError, match="temperature must be a number > 0, got"):
            call()


# Supervised contrast.


@pytest.mark.parametrize("temperature", [0.1, 1.0])
@pytest.mark.parametrize("views", [1, 2, 3])
@pytest.mark.parametrize("labels", LABELS)
def test_supcon_equals_the_papers_loops(labels, views, temperature) -> None:
    z, y = random_views(5, views), torch.tensor(LABELS[labels])
    expected = literal.supcon(z, y, temperature)
    value = supcon_loss(z, y, temperature)
    if views == 1 and labels == "each its own":
        assert value.item() == expected.item() == 0
        assert not naive.grad(value, z).any()
    else:
        assert_same(value, expected, z)


@pytest.mark.parametrize(("labels", "views"), [("mixed", 1), ("mixed", 2), ("each its own", 2)])
def test_supcon_equals_pytorch_metric_learning(labels, views) -> None:
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    z, y = random_views(5, views, seed=4), torch.tensor(LABELS[labels])
    theirs = losses.SupConLoss(temperature=0.1)(z.reshape(5 * views, -1), y.repeat_interleave(views))
    assert_same(supcon_loss(z, y, 0.1), theirs, z)


def test_supcon_of_one_class_is_a_loss_where_pytorch_metric_learning_has_none() -> None:
    """Without negatives the equation still spreads the positives; their loss is then 0."""
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    z, y = random_views(5, 2), torch.zeros(5, dtype=torch.int64)
    assert losses.SupConLoss()(z.reshape(10, -1), y.repeat_interleave(2)).item() == 0
    assert supcon_loss(z, y).item() > math.log(9)


def test_supcon_known_values() -> None:
    """Classes at one point each, right angles between: each view has V - 1 positives at 1 and the others at 0."""
    z = torch.eye(4, dtype=torch.float64)[:, None].expand(4, 2, 4)
    for temperature in (0.1, 1.0):
        expected = math.log1p(6 * math.exp(-1 / temperature))
        assert supcon_loss(z, torch.arange(4), temperature).item() == pytest.approx(expected, rel=1e-12)
    same_point = torch.ones(3, 2, 4, dtype=torch.float64)
    assert supcon_loss(same_point, torch.tensor([0, 0, 1])).item() == pytest.approx(math.log(5))


def test_supcon_sees_neither_length_nor_order_nor_the_names_of_classes() -> None:
    z, y = random_views(5, 2), torch.tensor(LABELS["mixed"])
    loss = supcon_loss(z, y)
    torch.testing.assert_close(supcon_loss(3 * z, y), loss)
    torch.testing.assert_close(supcon_loss(z.flip(1), y), loss)
    torch.testing.assert_close(supcon_loss(z.flip(0), y.flip(0)), loss)
    torch.testing.assert_close(supcon_loss(z, 100 - 7 * y), loss)


def test_supcon_gradcheck() -> None:
    y = torch.tensor([0, 1, 0])
    assert torch.autograd.gradcheck(lambda z: supcon_loss(z, y, 0.5), (random_views(3, 2, d=3),))


def test_supcon_edges() -> None:
    two = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]], requires_grad=True)
    loss = supcon_loss(two, torch.tensor([0]))  # one image: the one other view is the positive
    assert loss.item() == 0
    assert not naive.grad(loss, two).any()
    alone = torch.rand(2, 1, 3, requires_grad=True)
    loss = supcon_loss(alone, torch.tensor([0, 1]))  # no positives
    assert loss.item() == 0
    assert not naive.grad(loss, alone).any()
    zero = torch.cat([torch.zeros(1, 2, 3), torch.rand(2, 2, 3)]).requires_grad_()
    assert naive.grad(supcon_loss(zero, torch.tensor([0, 1, 0])), zero).isfinite().all()
    assert supcon_loss(torch.full((2, 2, 3), math.nan), torch.tensor([0, 1])).isnan()
    close = random_views(4, 2).detach().requires_grad_()  # at a small T the largest similarity dominates
    loss = supcon_loss(close, torch.tensor([0, 1, 0, 1]), 1e-4)
    assert loss.isfinite()
    assert naive.grad(loss, close).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_supcon_of_half_precision_is_computed_in_float32_under_autocast_too(dtype) -> None:
    z, y = random_views(8, 2).detach().to(dtype), torch.arange(8) % 3
    expected = supcon_loss(z.double(), y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = supcon_loss(z, y)
    for loss in (supcon_loss(z, y), under_autocast):
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("projections", "labels", "message"),
    [
        (torch.ones(4, 3), torch.zeros(4, dtype=torch.int64), r"projections must be floating point \(N, V, D\)"),
        (torch.ones(1, 1, 3), torch.tensor([0]), "two views or more in all"),
        (torch.ones(0, 2, 3), torch.zeros(0, dtype=torch.int64), "two views or more in all"),
        (torch.ones(2, 2, 0), torch.tensor([0, 1]), r"got torch.float32 \(2, 2, 0\)"),
        (torch.ones(2, 2, 3, dtype=torch.int64), torch.tensor([0, 1]), "floating point"),
        (torch.ones(2, 2, 3), torch.tensor([0]), r"labels must be int64 \(2,\), got torch.int64 \(1,\)"),
        (torch.ones(2, 2, 3), torch.tensor([0.0, 1.0]), "labels must be int64"),
    ],
)
def test_supcon_refuses(projections, labels, message) -> None:
    with pytest.raises(ValueError, match=message):
        supcon_loss(projections, labels)


def test_supcon_module_holds_the_temperature() -> None:
    z, y = random_views(4, 2), torch.tensor([0, 1, 0, 1])
    assert SupConLoss()(z, y) == supcon_loss(z, y) == supcon_loss(z, y, 0.1)
    assert SupConLoss(0.3)(z, y) == supcon_loss(z, y, 0.3)
    assert repr(SupConLoss(0.3)) == "SupConLoss(temperature=0.3)"


def test_projection_head_is_linear_relu_linear() -> None:
    head = ProjectionHead(6, out=4)
    x = torch.randn(5, 2, 6)
    first, last = head[0], head[2]
    hidden = (x @ first.weight.T + first.bias).clamp_min(0)
    torch.testing.assert_close(head(x), hidden @ last.weight.T + last.bias)
    assert first.weight.shape == (6, 6)
    assert ProjectionHead(6)(x).shape == (5, 2, 128)
    with pytest.raises(ValueError, match="at least 1, got 0 and 128"):
        ProjectionHead(0)
    with pytest.raises(ValueError, match="at least 1, got 3 and 0"):
        ProjectionHead(3, 0)


# Energy margins and outlier exposure.


@pytest.mark.parametrize(("inside", "outside"), [(-23.0, -5.0), (-4.0, -2.5), (-30.0, 10.0), (-2.0, -1.9)])
def test_energy_margin_equals_the_papers_loops(inside, outside) -> None:
    data, outliers = naive.random_logits(7, 4, seed=1), naive.random_logits(5, 4, seed=2)
    value = energy_margin_loss(data, outliers, inside, outside)
    expected = literal.energy_margin(data, outliers, inside, outside)
    assert_same(value, expected, data)
    if outside > -2.5:  # below it some outlier has a gradient
        assert_same(value, expected, outliers)


def test_energy_margin_defaults_are_those_of_cifar10() -> None:
    data, outliers = naive.random_logits(7, 4, seed=1), 5 + naive.random_logits(5, 4, seed=2)
    assert energy_margin_loss(data, outliers) == energy_margin_loss(data, outliers, -23.0, -5.0)
    assert energy_margin_loss(data, outliers) != energy_margin_loss(data, outliers, -23.0, -5.1)


def test_energy_margin_pushes_data_down_and_outliers_up_and_stops_at_the_margins() -> None:
    logits = torch.tensor([[1.0], [3.0]], requires_grad=True)  # energies -1 and -3
    value = energy_margin_loss(logits, logits, inside=-2.0, outside=-1.5)
    assert value.item() == (1**2 + 0) / 2 + (0 + 1.5**2) / 2
    torch.testing.assert_close(naive.grad(value, logits), torch.tensor([[-1.0], [1.5]]))
    done = energy_margin_loss(torch.tensor([[5.0]]), torch.tensor([[1.0]]), inside=-5.0, outside=-1.0)
    assert done.item() == 0


def test_energy_margin_descends_towards_the_margins() -> None:
    torch.manual_seed(0)
    data, outliers = torch.randn(8, 3, requires_grad=True), torch.randn(8, 3, requires_grad=True)
    optimizer = torch.optim.SGD([data, outliers], lr=0.5)
    for _ in range(200):
        optimizer.zero_grad()
        energy_margin_loss(data, outliers, inside=-6.0, outside=2.0).backward()
        optimizer.step()
    torch.testing.assert_close(energy(data), torch.full((8,), -6.0), rtol=0, atol=0.01)
    torch.testing.assert_close(energy(outliers), torch.full((8,), 2.0), rtol=0, atol=0.01)


def test_energy_margin_without_one_side_or_both() -> None:
    data, outliers = naive.random_logits(4, 3, seed=1), naive.random_logits(2, 3, seed=2)
    none = data[:0]
    whole = energy_margin_loss(data, outliers, -5.0, 0.0)
    alone = energy_margin_loss(data, none, -5.0, 0.0), energy_margin_loss(none, outliers, -5.0, 0.0)
    assert min(alone) > 0
    torch.testing.assert_close(sum(alone), whole)
    nothing = energy_margin_loss(none, none, -5.0, 0.0)
    assert nothing.item() == 0
    nothing.backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_outlier_losses_of_half_precision_are_computed_in_float32(dtype) -> None:
    logits = (10 * naive.random_logits(6, 5, seed=1).detach()).to(dtype)
    for loss in (lambda f: energy_margin_loss(f, f, -40.0, 0.0), outlier_exposure_loss):
        assert loss(logits).dtype == torch.float32
        torch.testing.assert_close(loss(logits).double(), loss(logits.double()), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("inside", "outside"), [(-5.0, -23.0), (-5.0, -5.0), (math.nan, 0.0), (-1.0, math.nan), (-math.inf, 0.0)]
)
def test_energy_margin_refuses_margins(inside, outside) -> None:
    with pytest.raises(ValueError, match="margins must be numbers with inside < outside, got"):
        energy_margin_loss(torch.zeros(1, 2), torch.zeros(1, 2), inside, outside)


def test_outlier_losses_refuse_what_is_no_logits() -> None:
    with pytest.raises(ValueError, match="logits must be floating point"):
        energy_margin_loss(torch.zeros(3), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="logits must be floating point"):
        energy_margin_loss(torch.zeros(1, 2), torch.zeros(3))
    with pytest.raises(ValueError, match="logits must be floating point"):
        outlier_exposure_loss(torch.zeros(3))
    with pytest.raises(ValueError, match=r"M >= 1, got \(0, 3\)"):
        outlier_exposure_loss(torch.zeros(0, 3))


@pytest.mark.parametrize("n", [1, 6])
def test_outlier_exposure_equals_the_papers_loops(n) -> None:
    logits = naive.random_logits(n, 4, seed=n)
    assert_same(outlier_exposure_loss(logits), literal.outlier_exposure(logits), logits)


def test_outlier_exposure_is_least_at_the_uniform_prediction() -> None:
    logits = torch.full((3, 5), 7.0, requires_grad=True)
    loss = outlier_exposure_loss(logits)
    assert loss.item() == pytest.approx(math.log(5))
    torch.testing.assert_close(naive.grad(loss, logits), torch.zeros(3, 5), rtol=0, atol=1e-7)
    assert outlier_exposure_loss(naive.random_logits(3, 5, seed=0)).item() > math.log(5)
