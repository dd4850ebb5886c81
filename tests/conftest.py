"""One thread for every test: the tensors are small, and on a busy machine two-thread kernels stall."""

from __future__ import annotations

import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

torch.set_num_threads(1)
# A shell starts background processes that ignore Ctrl-C, and the tests send it to themselves.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is marked `fuzz` unless it is asked for."""
    if os.environ.get("EBMHYBRID_FUZZ") != "nightly":
        long = [item for item in items if item.get_closest_marker("fuzz")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
