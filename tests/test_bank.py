"""The ring of log-sums against a plain list of examples."""

from __future__ import annotations

import math
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ebmhybrid.losses import Bank
from ebmhybrid.losses import bank as module
from ebmhybrid.losses.bank import Counts, block_sums, places, row_members


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


# Several processes, one after the other


class Waiting(Exception):
    """Where a process would wait for the others."""


def push_together(banks: list[Bank], parts: list[list[torch.Tensor]]) -> Counts:
    """Each process's push: first up to what it sends, then with what all have sent. Returns the counts."""
    counts = tuple(tuple(map(len, own)) for own in parts)
    sent: list[torch.Tensor] = []

    def send(own: torch.Tensor) -> list[torch.Tensor]:
        sent.append(own)
        raise Waiting

    for exchange in (send, lambda own: sent):
        for process, bank in enumerate(banks):
            with patch.object(module, "rank", lambda who=process: who), patch.object(module, "all_parts", exchange):
                try:
                    bank.push(*parts[process], counts=counts)
                except Waiting:
                    assert exchange is send
    return counts


def shares(counts: list[tuple[int, int]], seed: int) -> tuple[list[list[torch.Tensor]], list[torch.Tensor]]:
    """Random scores of each process, and of one process that has the whole batch, in two parts each."""
    parts = [[scores(n, 2, 1000 * seed + 10 * who + i) for i, n in enumerate(own)] for who, own in enumerate(counts)]
    return parts, [torch.cat(part) for part in zip(*parts, strict=True)]


COUNTS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4)), min_size=2, max_size=5)


@settings(max_examples=80, deadline=None)
@given(size=st.integers(1, 40), block=st.integers(1, 12), steps=st.lists(COUNTS, min_size=1, max_size=6))
def test_processes_hold_the_bank_of_one_whatever_their_shares(size: int, block: int, steps: list) -> None:
    processes = len(steps[0])
    one = Bank(2, size, min(block, size)).double()
    banks = [Bank(2, size, min(block, size)).double() for _ in range(processes)]
    for step, counts in enumerate(steps):
        counts = (counts * processes)[:processes]
        parts, whole = shares(counts, step)
        one.push(*whole)
        push_together(banks, parts)
        for bank in banks:
            for name, value in one.state_dict().items():
                torch.testing.assert_close(bank.state_dict()[name], value, rtol=1e-12, atol=1e-12)
                assert torch.equal(bank.state_dict()[name], banks[0].state_dict()[name])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("block", [1, 4])
def test_a_non_finite_score_of_one_process_leaves_out_all(bad: float, part: int, block: int) -> None:
    banks = [Bank(2, 16, block).double() for _ in range(3)]
    counts = [(2, 1), (3, 2), (1, 1)]
    push_together(banks, shares(counts, 0)[0])
    before = {name: value.clone() for name, value in banks[0].state_dict().items()}
    poisoned, _ = shares(counts, 1)
    poisoned[1][part][-1, 1] = bad
    push_together(banks, poisoned)
    for bank in banks:
        assert all(torch.equal(value, before[name]) for name, value in bank.state_dict().items())
    poisoned[1][part][-1, 1] = 0
    push_together(banks, poisoned)
    assert int(banks[0].count()) > int(before["counts"].sum())


def test_what_a_process_sends_is_its_rows_and_no_more() -> None:
    """At K = 65536 and 128 images of each process: 8 rows instead of 128, or one with a block of 128."""
    for block, rows in ((None, 8), (128, 1)):
        bank = Bank(10, 65536, block)
        width, members = row_members(((128,),) * 4, bank.block, bank.capacity, torch.device("cpu"))
        assert (width, members.shape) == (rows, (4 * rows, 1))


def test_the_places_of_parts_and_their_blocks() -> None:
    assert places(((3, 1), (2, 1)), 100) == (((0, 3), (5, 6)), ((3, 5), (6, 7)))
    assert places(((3,), (0,), (2,)), 3) == (((0, 1),), ((1, 1),), ((1, 3),))
    assert block_sums(torch.zeros(5, 1), 2, 3).exp().squeeze(1).tolist() == pytest.approx([1, 3, 1])
    assert block_sums(torch.zeros(4, 1), 6, 2).exp().squeeze(1).tolist() == pytest.approx([2, 2])


def test_a_bank_takes_its_block_and_refuses_others() -> None:
    bank = Bank(2, 100, block=8)
    assert (bank.block, bank.num_rows, bank.capacity) == (8, 12, 96)
    assert Bank(2, 65536).block == Bank(2, 65536, block=16).block == 16
    for wrong in (0, 5, 1.0, True, "2"):
        with pytest.raises(ValueError, match="block must be an integer from 1 to the bank's size of 4, got"):
            Bank(2, 4, block=wrong)


def test_parts_of_a_batch_are_one_batch() -> None:
    one, two = Bank(2, 9, block=3).double(), Bank(2, 9, block=3).double()
    first, second = scores(4, 2, 0), scores(1, 2, 1)
    one.push(torch.cat([first, second]))
    two.push(first, second)
    assert all(torch.equal(one.state_dict()[name], value) for name, value in two.state_dict().items())
    with pytest.raises(ValueError, match=r"\(N, 2\), got \(1, 3\)"):
        two.push(first, torch.zeros(1, 3))
