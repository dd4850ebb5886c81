"""The ring of log-sums against a plain list of examples."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ebmhybrid.losses import Bank


def scores(n: int, c: int, seed: int) -> torch.Tensor:
    return torch.randn(n, c, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 40), batch=st.integers(1, 12), classes=st.integers(1, 4), steps=st.integers(1, 20))
def test_small_banks_equal_a_queue_for_every_size_and_batch(size, batch, classes, steps) -> None:
    bank, queue = Bank(classes, size).double(), []
    for step in range(steps):
        bank.push(scores(batch, classes, step))
        queue = [*queue, *scores(batch, classes, step)][-size:]
        torch.testing.assert_close(bank.log_sum(), torch.stack(queue).logsumexp(0))
        assert int(bank.count()) == len(queue)


def test_batch_sizes_may_change_and_a_large_bank_sums_by_blocks() -> None:
    bank, queue = Bank(3, 8192).double(), []  # two examples a row
    for step, n in enumerate([64, 128, 2, 500, 9000, 64] * 2):
        bank.push(scores(n, 3, step))
        queue = [*queue, *scores(n, 3, step)][-8192:]
    torch.testing.assert_close(bank.log_sum(), torch.stack(queue).logsumexp(0))


def test_a_short_row_is_counted_as_what_it_holds() -> None:
    bank = Bank(2, 8192).double()
    bank.push(scores(3, 2, 0))
    assert int(bank.count()) == 3
    assert int(bank.pointer) == 2
    torch.testing.assert_close(bank.log_sum(), scores(3, 2, 0).logsumexp(0))


def test_nothing_drifts_after_many_pushes() -> None:
    bank = Bank(2, 64)
    for step in range(3000):
        bank.push(scores(8, 2, step).float())
    exact = torch.cat([scores(8, 2, step) for step in range(2992, 3000)]).logsumexp(0)
    torch.testing.assert_close(bank.log_sum().double(), exact, rtol=0, atol=2e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_non_finite_batch_is_not_pushed(bad: float) -> None:
    bank = Bank(2, 16).double()
    bank.push(scores(8, 2, 0))
    before = {k: v.clone() for k, v in bank.state_dict().items()}
    poisoned = scores(8, 2, 1)
    poisoned[3, 1] = bad
    bank.push(poisoned)
    for name, value in bank.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_empty_bank_and_empty_push() -> None:
    bank = Bank(2, 16)
    bank.push(torch.zeros(0, 2))
    assert (bank.log_sum() == -math.inf).all()
    assert int(bank.count()) == 0


def test_memory_is_bounded_by_rows_not_by_k() -> None:
    small, large = Bank(100, 4096), Bank(100, 1_048_576)
    assert large.rows.numel() == small.rows.numel() <= 4096 * 100 * 1.05
    assert large.capacity == 1_048_576


@pytest.mark.parametrize(("classes", "size"), [(0, 4), (4, 0), (-1, 4)])
def test_impossible_sizes_are_refused(classes: int, size: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Bank(classes, size)


def test_scores_of_the_wrong_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(N, 3\), got \(2, 4\)"):
        Bank(3, 8).push(torch.zeros(2, 4))
