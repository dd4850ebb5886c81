"""What this process can run: whether Triton is installed, interpreted, and takes a tensor."""

from __future__ import annotations

import os
from functools import cache
from importlib import metadata
from importlib.util import find_spec

import torch
from torch import Tensor

BACKENDS = ("auto", "torch", "triton")
# All read once: Triton itself reads its variable when it is imported, and a traced function must not look things up.
HAS_TRITON = find_spec("triton") is not None
BACKEND = os.environ.get("EBMHYBRID_BACKEND", "auto")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)  # the kernels sum in float32: float64 is for torch


@cache
def triton_version() -> str | None:
    """The installed Triton's version, found without importing it; None if there is none."""
    return metadata.version("triton") if HAS_TRITON else None


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
