"""Several processes compute what one does: losses, gradients, bank and weights, for every objective."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import several_processes as processes
import torch

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")
TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return started(tmp_path_factory.mktemp("two"), 2, [*processes.CASES, *processes.UNSYNCED])


def started(folder: Path, count: int, names: list[str]) -> Path:
    torch.multiprocessing.spawn(processes.worker, (str(folder), count, names), nprocs=count)
    return folder


def check_equal(folder: Path, name: str, count: int) -> None:
    theirs = [torch.load(folder / f"{name}.{rank}.pt") for rank in range(count)]
    alone = processes.one_that_does_all(name, count)
    for found in theirs:
        same(found["losses"], alone["losses"], name)
        same(found["correct"], alone["correct"], name)
        same(found["gradients"], alone["gradients"], name)
        for part in ("weights", "objective", "average", "figures"):
            same(found[part], alone[part], f"{name}: {part}")
    same(theirs[0]["chains"], alone["chains"], f"{name}: chains")
    assert len(alone["losses"]) == processes.STEPS


def same(found: Any, expected: Any, what: str) -> None:
    torch.testing.assert_close(
        found, expected, rtol=TOLERANCE, atol=TOLERANCE, msg=lambda text: f"{what}: {text}", check_dtype=False
    )


@pytest.mark.parametrize("name", processes.CASES)
def test_two_processes_with_half_the_batch_equal_one_with_all(name: str, of_two: Path) -> None:
    check_equal(of_two, name, 2)


@pytest.mark.fuzz
def test_four_processes_with_a_quarter_of_the_batch_equal_one_with_all(tmp_path: Path) -> None:
    folder = started(tmp_path, 4, list(processes.CASES))
    for name in processes.CASES:
        check_equal(folder, name, 4)


def test_without_synchronised_batch_norm_processes_share_weights_and_running_statistics(of_two: Path) -> None:
    name = "hdge running means"
    first, second = (torch.load(of_two / f"{name}.{rank}.pt") for rank in range(2))
    for part in ("losses", "gradients", "weights", "objective", "figures"):
        torch.testing.assert_close(first[part], second[part], rtol=0, atol=0)
    alone = processes.one_that_does_all(name, 2)
    assert any(not torch.allclose(first["weights"][key], value) for key, value in alone["weights"].items())
