"""GCRL's loss: against a double loop, its bounds and laws, and what may be left out."""

from __future__ import annotations

import math

import pytest
import torch
from naive_gcrl import gcrl, nt_xent
from torch import Tensor

from ebmhybrid.losses.gcrl import gcrl_loss, nt_xent_loss


def parts(n: int = 5, width: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    log_likelihood = -10 * torch.rand(n, dtype=torch.float64, generator=generator)
    anchors, positives = (torch.randn(n, width, dtype=torch.float64, generator=generator) for _ in range(2))
    return log_likelihood.requires_grad_(), anchors.requires_grad_(), positives.requires_grad_()


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("temperature", [0.1, 2.0])
def test_nt_xent_is_the_papers_double_loop(n: int, temperature: float) -> None:
    _, anchors, positives = parts(n)
    ours, theirs = nt_xent_loss(anchors, positives, temperature), nt_xent(anchors, positives, temperature)
    torch.testing.assert_close(ours, theirs)
    ours_grad, theirs_grad = (torch.autograd.grad(loss, (anchors, positives)) for loss in (ours, theirs))
    torch.testing.assert_close(ours_grad, theirs_grad)


def test_the_loss_is_the_weighted_sum() -> None:
    inputs = parts()
    ours = gcrl_loss(inputs[0], 7, *inputs[1:], weight=0.3, generative_weight=2.0, temperature=0.5)
    theirs = gcrl(inputs[0], 7, *inputs[1:], 0.3, 2.0, 0.5)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(loss, inputs) for loss in (ours, theirs)))


def test_the_defaults_are_weights_of_one_and_a_temperature_of_a_tenth() -> None:
    inputs = parts()
    torch.testing.assert_close(gcrl_loss(inputs[0], 7, *inputs[1:]), gcrl(inputs[0], 7, *inputs[1:], 1.0, 1.0, 0.1))


def test_terms_are_unweighted_and_named() -> None:
    inputs = parts()
    loss, terms = gcrl_loss(inputs[0], 4, *inputs[1:], weight=0.5, generative_weight=3.0, return_terms=True)
    assert set(terms) == {"generative", "contrast"}
    torch.testing.assert_close(terms["generative"], -inputs[0].mean() / 4)
    torch.testing.assert_close(terms["contrast"], nt_xent_loss(*inputs[1:]))
    torch.testing.assert_close(loss, 3 * terms["generative"] + 0.5 * terms["contrast"])


def test_a_loss_without_weight_needs_nothing_and_reads_nothing() -> None:
    log_likelihood, anchors, positives = parts()
    loss, terms = gcrl_loss(log_likelihood, 4, None, None, weight=0.0, return_terms=True)
    assert set(terms) == {"generative"}
    torch.testing.assert_close(loss, terms["generative"])
    loss, terms = gcrl_loss(None, 4, anchors, positives, generative_weight=0.0, return_terms=True)
    assert set(terms) == {"contrast"}
    torch.testing.assert_close(loss, terms["contrast"])
    poisoned = torch.full_like(log_likelihood, math.nan)
    assert torch.isfinite(gcrl_loss(poisoned, 4, anchors, positives, generative_weight=0.0))


def test_the_bounds_of_nt_xent() -> None:
    """Its chance level, 0 for one image, and the least value of two: the pairs at opposite poles."""
    same = torch.ones(6, 4, dtype=torch.float64)
    torch.testing.assert_close(nt_xent_loss(same, same).item(), math.log(11))
    assert nt_xent_loss(same[:1], -same[:1]).item() == 0
    poles = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    expected = math.log(1 + 2 * math.exp(-2 / 0.5))
    torch.testing.assert_close(nt_xent_loss(poles, poles, temperature=0.5).item(), expected)


def test_nt_xent_knows_no_length_no_order_and_no_side() -> None:
    _, anchors, positives = parts()
    loss = nt_xent_loss(anchors, positives)
    torch.testing.assert_close(nt_xent_loss(positives, anchors), loss)
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(nt_xent_loss(anchors[order], positives[order]), loss)
    torch.testing.assert_close(nt_xent_loss(3 * anchors, 0.1 * positives), loss)
    anchors32, positives32 = 1e-30 * anchors.float(), 1e25 * positives.float()
    torch.testing.assert_close(nt_xent_loss(anchors32, positives32), loss.float(), rtol=1e-5, atol=1e-5)
    assert nt_xent_loss(anchors, positives[order]) != loss


def test_half_precision_is_computed_in_float32() -> None:
    log_likelihood, anchors, positives = (part.detach().bfloat16() for part in parts())
    loss = gcrl_loss(log_likelihood, 64, anchors, positives)
    assert loss.dtype == torch.float32
    wide = gcrl_loss(log_likelihood.double(), 64, anchors.double(), positives.double())
    torch.testing.assert_close(loss.double(), wide, rtol=1e-5, atol=1e-5)


def test_infinite_and_undefined_values_are_not_hidden() -> None:
    log_likelihood, anchors, positives = (part.detach() for part in parts())
    log_likelihood[0] = -math.inf
    assert gcrl_loss(log_likelihood, 4, anchors, positives) == math.inf
    anchors[0, 0] = math.nan
    assert gcrl_loss(None, 4, anchors, positives, generative_weight=0.0).isnan()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"log_likelihood": None}, "log_likelihood must be given where generative_weight is not 0, got None"),
        ({"log_likelihood": torch.zeros(0)}, r"log_likelihood must be .* N >= 1, got torch.float32 \(0,\)"),
        ({"log_likelihood": torch.zeros(2, 2)}, r"log_likelihood must be .* got torch.float32 \(2, 2\)"),
        ({"log_likelihood": torch.zeros(2, dtype=torch.int64)}, "log_likelihood must be .* got torch.int64"),
        ({"num_tokens": 0}, "num_tokens must be an integer >= 1, got 0"),
        ({"num_tokens": 4.0}, "num_tokens must be an integer >= 1, got 4.0"),
        ({"num_tokens": True}, "num_tokens must be an integer >= 1, got True"),
        ({"log_likelihood": [1.0, 2.0]}, "log_likelihood must be .* got list"),
        ({"anchors": torch.eye(2, 3).numpy()}, "anchors must be .* got ndarray"),
        ({"log_likelihood": torch.zeros(4)}, "anchors must be 4 rows as log_likelihood, got 2"),
        ({"anchors": None}, "anchors and positives must be given where weight is not 0, got None"),
        ({"positives": None}, "anchors and positives must be given where weight is not 0, got None"),
        ({"anchors": torch.zeros(0, 3)}, r"anchors must be .* \(0, 3\)"),
        ({"anchors": torch.zeros(2)}, r"anchors must be .* \(2,\)"),
        ({"positives": torch.zeros(2, 3, dtype=torch.int64)}, "positives must be .* torch.int64"),
        ({"positives": torch.zeros(1, 3)}, r"positives must be \(2, 3\) as anchors, got \(1, 3\)"),
        ({"weight": -1.0}, "weight must be a finite number from 0 up, got -1.0"),
        ({"generative_weight": math.inf}, "generative_weight must be a finite number from 0 up, got inf"),
        ({"weight": "1"}, "weight must be a finite number from 0 up, got '1'"),
        ({"weight": True}, "weight must be a finite number from 0 up, got True"),
        ({"weight": 0.0, "generative_weight": 0.0}, "both 0: nothing would be trained"),
        ({"temperature": 0.0}, "temperature must be a finite number from 1e-06 up, got 0.0"),
        ({"temperature": 10**400}, "temperature must be .* got 1000"),
        ({"temperature": 1e-320}, "temperature must be .* got 1e-320"),
        ({"temperature": True}, "temperature must be .* got True"),
    ],
)
def test_wrong_input_is_named(change, message) -> None:
    right = {
        "log_likelihood": torch.zeros(2),
        "num_tokens": 4,
        "anchors": torch.eye(2, 3),
        "positives": torch.eye(2, 3),
    }
    with pytest.raises(ValueError, match=message):
        gcrl_loss(**(right | change))


def test_views_that_are_no_tensors_are_named() -> None:
    with pytest.raises(ValueError, match=r"anchors must be .* got NoneType"):
        nt_xent_loss(None, torch.eye(2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"positives must be .* got ndarray"):
        nt_xent_loss(torch.eye(2), torch.eye(2).numpy())  # type: ignore[arg-type]
