"""The maths and the signs."""

from __future__ import annotations

import math

import naive
import pytest
import torch

import ebmhybrid as eh


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_log_density_equals_the_sum_of_exponentials(temperature: float) -> None:
    logits = naive.random_logits(5, 7, seed=1)
    torch.testing.assert_close(eh.log_density(logits, temperature), naive.log_density(logits, temperature))


def test_bayes_rule_holds_between_the_three_energies() -> None:
    logits = naive.random_logits(6, 4, seed=2)
    y = torch.tensor([0, 1, 2, 3, 0, 1])
    log_p_y_given_x = -eh.joint_energy(logits, y) + eh.energy(logits)
    torch.testing.assert_close(log_p_y_given_x, torch.log_softmax(logits, 1)[torch.arange(6), y])


def test_gradient_of_the_energy_is_minus_the_posterior() -> None:
    logits = naive.random_logits(3, 5, seed=3)
    gradient = naive.grad(eh.energy(logits).sum(), logits)
    torch.testing.assert_close(gradient, -torch.softmax(logits, 1))


def test_shift_invariance_and_edges() -> None:
    logits = naive.random_logits(3, 5, seed=4).detach()
    torch.testing.assert_close(eh.log_density(logits + 1e4), eh.log_density(logits) + 1e4)
    assert eh.log_density(torch.zeros(0, 3)).shape == (0,)
    torch.testing.assert_close(eh.log_density(torch.tensor([[7.0]])), torch.tensor([7.0]))
    assert eh.log_density(torch.tensor([[-math.inf, -math.inf]])).item() == -math.inf
    assert eh.log_density(torch.tensor([[math.inf, 0.0]])).item() == math.inf
    assert eh.log_density(torch.tensor([[math.nan, 0.0]])).isnan().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(dtype: torch.dtype) -> None:
    logits = torch.randn(64, 100, generator=torch.Generator().manual_seed(0)).to(dtype)
    ours = eh.log_density(logits)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), torch.logsumexp(logits.double(), 1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: eh.log_density(torch.zeros(3)), r"\(N, C\).*\(3,\)"),
        (lambda: eh.log_density(torch.zeros(2, 3, dtype=torch.int64)), "floating point.*int64"),
        (lambda: eh.log_density(torch.zeros(2, 0)), "C >= 1"),
        (lambda: eh.energy(torch.zeros(2, 3), temperature=0.0), "positive number, got 0"),
        (lambda: eh.energy(torch.zeros(2, 3), temperature=math.nan), "positive number, got nan"),
        (lambda: eh.joint_energy(torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64)), r"\(2,\), got .*\(3,\)"),
        (lambda: eh.joint_energy(torch.zeros(2, 3), torch.zeros(2)), "int64"),
    ],
)
def test_wrong_input_is_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
