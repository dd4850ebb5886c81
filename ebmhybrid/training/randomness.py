"""The random states that a run draws from: the global ones of torch, numpy and Python, and the run's own generator."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


@contextmanager
def kept_random_state() -> Iterator[None]:
    """The caller's global random states are as they were afterwards."""
    python, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 (the global one is what is kept)
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(of_numpy)  # noqa: NPY002


def derived_seed(*numbers: int) -> int:
    """A seed that is a function of the numbers, in [0, 2^63).

    >>> derived_seed(0, 1) == derived_seed(0, 1) != derived_seed(1, 0)
    True
    """
    state = np.random.SeedSequence(list(numbers)).generate_state(1, np.uint64)
    return int(state[0] >> 1)


def seed_global(seed: int) -> None:
    """Seed the global generators of torch, numpy and Python."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002


def random_state(generator: torch.Generator) -> dict[str, Any]:
    """Where all of them stand, as tensors and plain values."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002
    version, values, python_gauss = random.getstate()
    return {
        "generator": generator.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(generator.device) if generator.device.type == "cuda" else None,
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, float(gauss)],
        "python": [version, torch.tensor(values), python_gauss],
    }


def set_random_state(state: dict[str, Any], generator: torch.Generator) -> None:
    """Go on drawing from where `random_state` was taken."""
    generator.set_state(state["generator"])
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and generator.device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], generator.device)
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    version, values, gauss = state["python"]
    random.setstate((version, tuple(values.tolist()), gauss))
