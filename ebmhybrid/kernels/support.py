"""What this process can run, and what it was asked to: Triton, interpreted or not, and backends by name."""

from __future__ import annotations

import os
from functools import cache
from importlib import metadata
from importlib.util import find_spec

import torch
from torch import Tensor

from ebmhybrid.errors import UsageError, nearest

BACKENDS = ("auto", "torch", "triton")
# All read once: Triton itself reads its variable when it is imported, and a traced function must not look things up.
HAS_TRITON = find_spec("triton") is not None
BACKEND = os.environ.get("EBMHYBRID_BACKEND") or "auto"
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)  # the kernels sum in float32: float64 is for torch


@cache
def triton_version() -> str | None:
    """The installed Triton's version, found without importing it; None if there is none."""
    if not HAS_TRITON:
        return None
    try:
        return metadata.version("triton")
    except metadata.PackageNotFoundError:  # some builds of torch bring it under another distribution's name
        return "of unknown version"


def triton_runs_on(x: Tensor) -> bool:
    """Whether the Triton kernels take this tensor: one on a GPU, or one on the CPU under Triton's interpreter."""
    return (x.is_cuda or (INTERPRETED and x.device.type == "cpu")) and x.dtype in _DTYPES and HAS_TRITON


def why_not_triton(x: Tensor) -> str:
    """The reason for which `triton_runs_on` is false."""
    if not HAS_TRITON:
        return "Triton is not installed"
    if x.dtype not in _DTYPES:
        return f"its kernels do not take {x.dtype}"
    return f"the tensor is on {x.device.type}; its kernels run on cuda, or on the cpu with TRITON_INTERPRET=1"


def check_backend(backend: str | None) -> str:
    """The name of a backend, by default the environment's; a UsageError for one that there is none of."""
    name = BACKEND if backend is None else backend
    if name not in BACKENDS:
        where = "EBMHYBRID_BACKEND" if backend is None else "backend"
        raise UsageError(f"{where} must be auto, torch or triton, got {name!r}; {nearest(name, BACKENDS)}")
    return name


def triton_as_asked(x: Tensor, backend: str | None) -> bool:
    """Whether Triton runs on x; where it does not and the caller named it, a UsageError says why."""
    runs = triton_runs_on(x)
    if backend == "triton" and not runs:
        raise UsageError(f"backend 'triton' cannot be used: {why_not_triton(x)}; auto and torch can")
    return runs
