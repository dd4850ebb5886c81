"""The row-wise losses: the fused path and plain torch give one answer, in the pure functions and in the losses."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import naive
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

import ebmhybrid as eh
from ebmhybrid import kernels
from ebmhybrid.kernels import operator, row_stats, support
from ebmhybrid.losses import rowwise
from ebmhybrid.losses.rowwise import RowTerms, cross_entropy, row_terms, unit_logit, weighted_sum
from ebmhybrid.schema import Objective
from ebmhybrid.training.objective import CombinedLoss

PATHS = ["composite", "operator"]


def labels(n: int, c: int, seed: int = 0) -> Tensor:
    return torch.randint(c, (n,), generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def force(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[int]]:
    """A path forced upon everything; it returns a list that grows by one with each call of the operator."""
    monkeypatch.setattr(support, "BACKEND", "auto")
    monkeypatch.setattr(support, "INTERPRETED", False)
    inner, calls = operator.row_stats, []

    def counted(*args: Any) -> Any:
        calls.append(1)
        return inner(*args)

    monkeypatch.setattr(operator, "row_stats", counted)

    def force(path: str) -> list[int]:
        for module in (kernels, rowwise):  # `rowwise` holds a name of its own
            monkeypatch.setattr(module, "choose", lambda *args, **kwargs: path)
        monkeypatch.setattr(rowwise, "_one_read_pays", lambda *args: path == "operator")
        return calls

    return force


# The pure functions


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("path", PATHS)
def test_cross_entropy_z_loss_and_unit_logit_equal_the_loops(force, path: str, smoothing: float) -> None:
    calls = force(path)
    x, y = naive.random_logits(6, 4, seed=1), labels(6, 4)
    stats = row_stats(x, y)
    assert len(calls) == (path == "operator")
    for ours, literal in (
        (cross_entropy(stats, 4, smoothing), naive.smoothed_cross_entropy(x, y, smoothing)),
        (stats.lse.square().mean(), naive.z_loss(x)),
        (unit_logit(stats), naive.unit_logit(x, y)),
    ):
        torch.testing.assert_close(ours, literal)
        weights = torch.arange(1.0, 1 + ours.numel(), dtype=torch.float64).reshape(ours.shape)
        gradients = [naive.grad((weights * value).sum(), x) for value in (ours, literal)]
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_cross_entropy_is_torchs(smoothing: float) -> None:
    x, y = naive.random_logits(6, 4, seed=2), labels(6, 4)
    expected = F.cross_entropy(x, y, label_smoothing=smoothing, reduction="none")
    torch.testing.assert_close(cross_entropy(row_stats(x, y), 4, smoothing), expected)


def terms_of(terms: RowTerms) -> dict[str, Tensor]:
    return {name: value for name, value in terms._asdict().items() if value is not None}


OPTIONS = [
    {},
    {"label_smoothing": 0.2},
    {"own": "l2"},
    {"own": "none"},
    {"own": "l2", "label_smoothing": 0.2, "z": True},
    {"ce": False, "own": "l2"},
    {"ce": False, "z": True},
    {"ce": False},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_row_terms_are_the_same_on_both_paths(force, options: dict[str, Any], dtype: torch.dtype) -> None:
    x, y = naive.random_logits(6, 4, seed=3).detach().to(dtype).requires_grad_(), labels(6, 4)
    found = []
    for path in PATHS:
        calls = force(path)
        terms = terms_of(row_terms(x, y, **options))
        found.append({name: (value, naive.grad(value.sum(), x)) for name, value in terms.items()})
        assert bool(calls) == (path == "operator")
    wanted = ({"ce"} if options.get("ce", True) else set()) | ({"own"} if "own" in options else set())
    assert found[0].keys() == found[1].keys() == wanted | ({"z"} if options.get("z") else set())
    tolerance = {"rtol": 2e-2, "atol": 1e-3} if dtype == torch.bfloat16 else {"rtol": 1e-12, "atol": 1e-12}
    for name in found[0]:
        (value, gradient), (other, other_gradient) = found[0][name], found[1][name]
        assert value.dtype == other.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert value.shape == other.shape == ((6, 1) if name == "own" else ())
        torch.testing.assert_close(value, other)
        torch.testing.assert_close(gradient, other_gradient, **tolerance)


@pytest.mark.parametrize("path", PATHS)
def test_row_terms_equal_the_loops(force, path: str) -> None:
    force(path)
    x, y = naive.random_logits(6, 4, seed=4), labels(6, 4)
    terms = row_terms(x, y, label_smoothing=0.1, own="l2", z=True)
    torch.testing.assert_close(terms.ce, naive.smoothed_cross_entropy(x, y, 0.1).mean())
    torch.testing.assert_close(terms.own, naive.unit_logit(x, y)[:, None])
    torch.testing.assert_close(terms.z, naive.z_loss(x))
    raw = row_terms(x, y, own="none").own
    torch.testing.assert_close(raw, x[torch.arange(6), y][:, None])


@pytest.mark.parametrize("path", PATHS)
def test_probabilities_have_a_cross_entropy_and_a_z_loss(force, path: str) -> None:
    calls = force(path)
    x, y = naive.random_logits(6, 4, seed=5), torch.softmax(naive.random_logits(6, 4, seed=6).detach(), 1)
    terms = row_terms(x, y, label_smoothing=0.1, z=True)
    torch.testing.assert_close(terms.ce, naive.cross_entropy(x, 0.9 * y + 0.1 / 4))
    torch.testing.assert_close(terms.z, naive.z_loss(x))
    assert calls == []


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("path", PATHS)
def test_a_row_of_zeros_has_a_unit_logit_of_zero_and_a_finite_gradient(force, path: str, dtype: torch.dtype) -> None:
    force(path)
    x = torch.zeros(3, 4, dtype=dtype)
    x[1] = 1e-30  # its square is zero in float32
    x[2] = torch.tensor([3.0, 4.0, 0.0, 0.0])
    own = row_terms(x.requires_grad_(), torch.tensor([0, 0, 1]), own="l2").own
    torch.testing.assert_close(own.flatten(), torch.tensor([0.0, 1e-18, 0.8], dtype=dtype))
    assert naive.grad(own.sum(), x).isfinite().all()
    scaled = row_terms(1e-7 * x.detach(), torch.tensor([0, 0, 1]), own="l2").own
    torch.testing.assert_close(scaled[2, 0].item(), 0.8, rtol=1e-5, atol=0)  # short, but not yet nothing


def test_the_default_path_on_a_cpu_is_plain_torch_but_for_large_contrasts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "BACKEND", "auto")
    monkeypatch.setattr(support, "INTERPRETED", False)
    monkeypatch.setattr(kernels, "CPU_ENTRIES", 12)
    monkeypatch.setattr(rowwise, "ONE_READ_ENTRIES", 24)
    calls: list[int] = []
    inner = operator.row_stats
    monkeypatch.setattr(operator, "row_stats", lambda *args: calls.append(1) or inner(*args))
    x, y = naive.random_logits(6, 4, seed=3), labels(6, 4)
    for options, data, expected in (
        ({}, x, 0),
        ({"own": "none", "z": True}, x, 0),
        ({"own": "l2"}, x[:5], 0),
        ({"own": "l2"}, x.detach(), 0),
        ({"own": "l2"}, x, 1),
    ):
        calls.clear()
        row_terms(data, y[: len(data)], **options)
        assert len(calls) == expected, options


def test_weighted_sum() -> None:
    two, three = torch.tensor(2.0, requires_grad=True), torch.tensor(3.0)
    total = weighted_sum((0.5, two), (2.0, three), (1.0, None), (0.0, torch.tensor(math.nan)))
    assert total.item() == 7.0
    assert naive.grad(total, two).item() == 0.5
    assert weighted_sum((1.0, two)) is two


def test_a_loss_of_no_part_is_refused() -> None:
    with pytest.raises(ValueError, match="weight and ce_weight are both 0: nothing would be trained"):
        eh.HDGELoss(3, weight=0.0, ce_weight=0.0)


# The losses

FORMS = [
    {"form": form, "negatives": negatives, "normalize": normalize, "label_smoothing": smoothing}
    for form in ("released", "paper")
    for negatives in ("bank", "batch", "bank+batch")
    for normalize in ("l2", "none")
    for smoothing in (0.0, 0.1)
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("options", FORMS, ids=lambda options: "-".join(map(str, options.values())))
def test_hdge_is_the_same_on_both_paths(force, options: dict[str, Any], dtype: torch.dtype) -> None:
    found = []
    for path in PATHS:
        calls = force(path)
        torch.manual_seed(0)
        loss_fn = eh.HDGELoss(4, temperature=0.5, bank_size=16, **options)
        loss_fn = loss_fn.double() if dtype == torch.float64 else loss_fn
        results = []
        for step in range(3):
            x = naive.random_logits(6, 4, seed=step).detach().to(dtype).requires_grad_()
            loss, terms = loss_fn(x, labels(6, 4, seed=step), return_terms=True)
            results += [loss, *terms.values(), naive.grad(loss, x)]
        if loss_fn.bank is not None:
            results.append(loss_fn.bank.log_sum())
        found.append(results)
        assert bool(calls) == (path == "operator")
    for composite, fused in zip(*found, strict=True):
        assert composite.dtype == fused.dtype
        half = composite.dtype == torch.bfloat16  # only the gradient, rounded in another place
        torch.testing.assert_close(composite, fused, **({"rtol": 2e-2, "atol": 2e-3} if half else {}))


@pytest.mark.parametrize("weights", [(0.5, 2.0), (1.0, 0.0), (0.0, 1.0)])
@pytest.mark.parametrize("path", PATHS)
def test_the_weights_of_hdge_weigh_the_same_terms(force, path: str, weights: tuple[float, float]) -> None:
    force(path)
    x, y = naive.random_logits(6, 4, seed=1), labels(6, 4)
    loss_fn = eh.HDGELoss(4, weight=weights[0], ce_weight=weights[1], bank_size=9).double()
    bank = naive.random_logits(9, 4, seed=7).detach()
    loss_fn.fill_bank(bank)
    vectors = naive.label_vectors(y, 4)
    literal = weights[0] * naive.released_contrast(x, bank, vectors, 0.1) + weights[1] * naive.cross_entropy(x, vectors)
    loss = loss_fn(x, y)
    torch.testing.assert_close(loss, literal)
    torch.testing.assert_close(naive.grad(loss, x), naive.grad(literal, x))


@pytest.mark.parametrize("path", PATHS)
def test_second_order_through_hdge(force, path: str) -> None:
    force(path)
    x, y = naive.random_logits(4, 3, seed=9, scale=1.0), labels(4, 3)
    loss_fn = eh.HDGELoss(3, temperature=0.5, bank_size=8).double().eval()
    assert torch.autograd.gradcheck(lambda v: loss_fn(v, y), (x,))
    assert torch.autograd.gradgradcheck(lambda v: loss_fn(v, y), (x,))


# The recipe's objective


def combined(**terms: dict[str, Any]) -> CombinedLoss:
    return CombinedLoss(Objective.model_validate(terms), num_classes=4).double()


@pytest.mark.parametrize("path", PATHS)
def test_z_loss_beside_cross_entropy(force, path: str) -> None:
    force(path)
    x, y = naive.random_logits(6, 4, seed=1), labels(6, 4)
    loss, parts = combined(ce={"weight": 2.0, "label_smoothing": 0.1}, z_loss={"weight": 0.3})(x, y)
    literal = 2.0 * naive.smoothed_cross_entropy(x, y, 0.1).mean() + 0.3 * naive.z_loss(x)
    torch.testing.assert_close(loss, literal)
    torch.testing.assert_close(naive.grad(loss, x), naive.grad(literal, x))
    assert parts.keys() == {"ce", "z_loss"}
    torch.testing.assert_close(parts["z_loss"], naive.z_loss(x))
    torch.testing.assert_close(parts["ce"], naive.smoothed_cross_entropy(x, y, 0.1).mean())


@pytest.mark.parametrize("path", PATHS)
def test_z_loss_beside_hdge(force, path: str) -> None:
    force(path)
    x, y = naive.random_logits(6, 4, seed=1), labels(6, 4)
    paper = {"form": "paper", "negatives": "batch", "normalize": "none", "temperature": 1.0}
    loss, parts = combined(hdge={"weight": 0.5, **paper}, z_loss={"weight": 0.3})(x, y)
    ce, contrast = naive.cross_entropy(x, naive.label_vectors(y, 4)), naive.paper_contrast(x, y, 1.0)
    literal = ce + 0.5 * contrast + 0.3 * naive.z_loss(x)
    torch.testing.assert_close(loss, literal)
    torch.testing.assert_close(naive.grad(loss, x), naive.grad(literal, x))
    assert parts.keys() == {"ce", "contrastive", "z_loss"}
    torch.testing.assert_close(parts["z_loss"], naive.z_loss(x))


def test_z_loss_of_mixed_targets() -> None:
    x, y = naive.random_logits(6, 4, seed=1), torch.softmax(naive.random_logits(6, 4, seed=2).detach(), 1)
    loss, _ = combined(ce={}, z_loss={})(x, y)
    torch.testing.assert_close(loss, naive.cross_entropy(x, y) + 1e-4 * naive.z_loss(x))


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({"z_loss": {"weight": 0.1}}, "needs at least one term of: ce, hdge"),
        ({"ce": {}, "z_loss": {"weight": 0.0}}, "greater than 0"),
        ({"ce": {}, "z_loss": {"weight": -1.0}}, "greater than 0"),
        ({"ce": {}, "z_loss": {"wieght": 1.0}}, "wieght"),
    ],
)
def test_objectives_that_cannot_be(terms: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Objective.model_validate(terms)
