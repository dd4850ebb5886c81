"""Ring all-reduce and ring all-gather played message by message among simulated processes, every byte counted.

It checks the model in :mod:`benchmarks.traffic`: the results must be right on every process, also for sizes that the
number of processes does not divide, and the bytes those of the formulas. On these rings the exchanges of a training
step are played too, and compared with one process that has the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.traffic import all_gather_sent, all_reduce_sent
from ebmhybrid.losses.bank import Bank

Array = NDArray[np.float64]


class Ring:
    """R processes, each of which can only hand its right neighbour a message; counts what each has sent."""

    def __init__(self, size: int) -> None:
        self.size, self.sent, self.messages = size, [0] * size, 0

    def shift(self, payloads: list[Array]) -> list[Array]:
        """Every process sends to the right at the same time; what each receives from the left."""
        for rank, payload in enumerate(payloads):
            self.sent[rank] += payload.nbytes
        self.messages += 1
        return [payloads[rank - 1].copy() for rank in range(self.size)]


def all_reduce(ring: Ring, values: list[Array]) -> list[Array]:
    """The sum of all processes' vectors, on each: every process sums up one part, then the parts go round."""
    size = ring.size
    parts = [np.array_split(value.copy(), size) for value in values]
    for step in range(size - 1):
        got = ring.shift([parts[rank][(rank - step) % size] for rank in range(size)])
        for rank in range(size):
            parts[rank][(rank - step - 1) % size] += got[rank]
    for step in range(size - 1):
        got = ring.shift([parts[rank][(rank + 1 - step) % size] for rank in range(size)])
        for rank in range(size):
            parts[rank][(rank - step) % size][:] = got[rank]
    return [np.concatenate(own) for own in parts]


def all_gather(ring: Ring, values: list[Array]) -> list[Array]:
    """All processes' vectors one behind the other, on each; they may differ in length."""
    size = ring.size
    have = [{rank: values[rank]} for rank in range(size)]
    for step in range(size - 1):
        got = ring.shift([have[rank][(rank - step) % size] for rank in range(size)])
        for rank in range(size):
            have[rank][(rank - step - 1) % size] = got[rank]
    return [np.concatenate([own[rank] for rank in range(size)]) for own in have]


def check_sums(processes: int, numbers: int) -> Ring:
    """All-reduce of as many whole numbers, which float64 adds exactly; an AssertionError where a sum is wrong."""
    ring, draw = Ring(processes), np.random.default_rng(0)
    values = [draw.integers(-1000, 1000, numbers).astype(np.float64) for _ in range(processes)]
    total = np.sum(values, axis=0)
    for result in all_reduce(ring, values):
        np.testing.assert_array_equal(result, total)
    return ring


def check_gathering(processes: int, numbers: int) -> Ring:
    """All-gather of vectors of `numbers` or one less; an AssertionError where one has others."""
    ring, draw = Ring(processes), np.random.default_rng(0)
    values = [draw.random(numbers - rank % 2) for rank in range(processes)]
    expected = np.concatenate(values)
    for result in all_gather(ring, values):
        np.testing.assert_array_equal(result, expected)
    return ring


def check_bank(processes: int, share: int, block: int, classes: int) -> Ring:
    """The rows of a bank from the shares of a batch: on each process those that one process makes of the whole batch.

    Arguments:
        share: examples a process, a multiple of block.
        block: examples a row.
    """
    scores = np.random.default_rng(0).normal(size=(processes * share, classes))
    own = [np.logaddexp.reduce(part.reshape(-1, block, classes), axis=1) for part in np.split(scores, processes)]
    ring = Ring(processes)
    gathered = all_gather(ring, [rows.ravel() for rows in own])
    bank = Bank(classes, 4096 * block).double()
    assert bank.block == block
    bank.push(torch.from_numpy(scores)[-bank.capacity :])
    rows = bank.rows[: min(processes * share // block, bank.num_rows)].numpy()
    for result in gathered:
        np.testing.assert_allclose(result.reshape(-1, classes)[-len(rows) :], rows, rtol=1e-12)
    return ring


def check_live(processes: int, share: int, classes: int) -> tuple[Ring, Ring]:
    """Live negatives' denominators log D_c and their gradient from [C] log-sums and [C] sums, as of the whole batch.

    The gradient of sum_n log D_{y_n} in a score phi_jc is the number of labels c, over all processes, times
    exp(phi_jc - log D_c): the labels are what is added up on the way back.
    """
    draw = np.random.default_rng(0)
    scores = draw.normal(size=(processes * share, classes))
    counts = np.stack([np.bincount(draw.integers(classes, size=share), minlength=classes) for _ in range(processes)])
    there, back = Ring(processes), Ring(processes)
    parts = np.split(scores, processes)
    gathered = all_gather(there, [np.logaddexp.reduce(part, axis=0) for part in parts])
    summed = all_reduce(back, [own.astype(np.float64) for own in counts])
    log_d = np.logaddexp.reduce(scores, axis=0)
    gradient = counts.sum(0) * np.exp(scores - log_d)
    found = []
    for part, sums, labels in zip(parts, gathered, summed, strict=True):
        denominators = np.logaddexp.reduce(sums.reshape(processes, classes), axis=0)
        np.testing.assert_allclose(denominators, log_d, rtol=1e-12)
        found.append(labels * np.exp(part - denominators))
    np.testing.assert_allclose(np.concatenate(found), gradient, rtol=1e-10)
    return there, back


def simulate(processes: Sequence[int], numbers: int = 3000) -> list[dict[str, Any]]:
    """Play each exchange, look at every process's result, and set the bytes counted against the model's."""
    rows = []
    for r in processes:
        there, back = check_live(r, 2, 7)
        played: list[tuple[str, Ring, float]] = [
            (f"all-reduce of {numbers} numbers", check_sums(r, numbers), all_reduce_sent(8 * numbers, r)),
            ("all-gather of 3 or 2 numbers each", check_gathering(r, 3), all_gather_sent(8 * (3 - r // 2 / r), r)),
            ("bank: rows of 16 of 32 examples, C = 7", check_bank(r, 32, 16, 7), all_gather_sent(8 * 2 * 7, r)),
            ("live negatives there, C = 7", there, all_gather_sent(8 * 7, r)),
            ("live negatives back, C = 7", back, all_reduce_sent(8 * 7, r)),
        ]
        for what, ring, model in played:
            counted = sum(ring.sent) / r
            row = {"R": r, "exchange": what, "messages in turn": ring.messages, "bytes a process": f"{counted:,.2f}"}
            rows.append(row | {"by the model": f"{model:,.2f}", "ratio": f"{counted / model:.12f}" if model else "–"})
    return rows
