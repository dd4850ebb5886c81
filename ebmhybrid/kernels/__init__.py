"""The fused kernels, and the one place where a path is chosen: plain torch, the closed-form operator, or Triton.

    composite   plain torch through autograd: fewest launches, best for small logits, and any derivative works
    operator    one operator with a closed-form gradient: on a GPU the Triton kernel, on the CPU torch in one buffer

`backend="auto"` measures nothing: it decides by device, dtype, size and what is asked for, as `choose` says. The
environment variable EBMHYBRID_BACKEND sets another default, followed where it can be: `triton` there means Triton for
every tensor that its kernels take, and as an argument it means Triton or an error.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Literal

import torch
from torch import Tensor

from ebmhybrid.errors import nearest
from ebmhybrid.kernels import reference, support
from ebmhybrid.kernels.linear import LinearEnergy, linear_energy
from ebmhybrid.kernels.reference import NAMES, RowStats, at_least_float32

__all__ = ["NAMES", "LinearEnergy", "RowStats", "at_least_float32", "choose", "describe", "linear_energy", "row_stats"]

# Below so many logits an operator's call costs more than it saves: predicted for GPUs, measured on a CPU by
# `python -m benchmarks.kernel`.
GPU_ENTRIES = 2**20
CPU_ENTRIES = 2**17

Path = Literal["composite", "operator"]


def choose(x: Tensor, want: Collection[str] = NAMES, backend: str | None = None) -> Path:
    """Which path `row_stats` takes for these logits.

    `torch` is always the composite, `triton` the operator with the Triton kernels or an error. `auto` takes the
    operator on a GPU from 2^20 half or single precision logits on, and in a compiled function only above 1,024 classes,
    since below the compiler fuses the composite as well; on the CPU where a gradient of `lse` and of another statistic
    is to be taken of 2^17 logits or more, because there autograd's own buffers cost more than the operator's.

    Raises:
        UsageError: an unknown backend, or the argument `triton` where its kernels do not run.
    """
    name = support.check_backend(backend)
    if name == "torch" or (name == "auto" and x.numel() < min(CPU_ENTRIES, GPU_ENTRIES)):
        return "composite"
    if name == "triton":
        return "operator" if support.triton_as_asked(x, backend) else "composite"
    if x.is_cuda and support.triton_runs_on(x):
        pays = x.numel() >= GPU_ENTRIES and (x.shape[1] > 1024 or not torch.compiler.is_compiling())
    else:
        pays = x.numel() >= CPU_ENTRIES and x.requires_grad and torch.is_grad_enabled()
        pays = pays and "lse" in want and len(want) > 1
        pays = pays and x.device.type == "cpu" and not torch.compiler.is_compiling() and not support.INTERPRETED
    return "operator" if pays else "composite"


def row_stats(
    x: Tensor,
    y: Tensor | None = None,
    temperature: float = 1.0,
    *,
    want: Collection[str] | None = None,
    backend: str | None = None,
) -> RowStats:
    """What energies and row-wise losses need of each row of logits, in one read where a fused path runs.

        lse = logsumexp_c x_nc / T,   pick = x[n, y_n],   sum = sum_c x_nc,   sq = sum_c x_nc^2

    Source: the online logsumexp is Milakov & Gimelshein 2018; the statistics are those of :mod:`.reference`.

    Arguments:
        x: (N, C) floating point, any strides; N = 0 is allowed. Half precision is summed and returned in float32.
        y: (N,) int64 in [0, C), needed for `pick`. Not checked: elsewhere torch raises its own error, and Triton gives
            NaN.
        temperature: T > 0, of `lse` alone.
        want: names of the statistics that are used; others may come as None. By default all that y allows.
        backend: auto | torch | triton; by default EBMHYBRID_BACKEND, else auto. See :func:`choose`.

    Returns:
        RowStats(lse, pick, sum, sq), each (N,). As with torch.logsumexp, the gradient of lse is off by the rounding of
        max |x| / T.

    Raises:
        ValueError: shapes, dtypes or names that do not fit; a backend that cannot be used.

    >>> stats = row_stats(torch.tensor([[0.0, 0.0], [3.0, 4.0]]), torch.tensor([0, 1]))
    >>> stats.lse[:1].exp(), stats.pick, stats.sum, stats.sq
    (tensor([2.]), tensor([0., 4.]), tensor([0., 7.]), tensor([ 0., 25.]))
    """
    shape = x.shape  # looked up once: for small logits such things are some percent of the whole
    if len(shape) != 2 or not shape[1] or not x.is_floating_point():
        raise ValueError(f"x must be floating point (N, C) with C >= 1, got {x.dtype} {tuple(shape)}")
    if y is not None and (y.dtype != torch.int64 or y.shape != shape[:1]):
        raise ValueError(f"y must be int64 ({shape[0]},), got {y.dtype} {tuple(y.shape)}")
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature must be a positive number, got {temperature}")
    if want is None:
        want = NAMES if y is not None else ("lse", "sum", "sq")
    else:
        _check_want(want, y)
    if choose(x, want, backend) == "composite":
        return reference.row_stats(x, y, temperature, want)
    from ebmhybrid.kernels import operator  # registers with torch; most processes never need it

    return operator.row_stats(x, y, temperature)


def _check_want(want: Collection[str], y: Tensor | None) -> None:
    if unknown := sorted(set(want) - set(NAMES)):
        raise ValueError(f"want: unknown statistic {unknown[0]!r}; {nearest(unknown[0], NAMES)}")
    if "pick" in want and y is None:
        raise ValueError("want: 'pick' needs y")


def describe() -> str:
    """Which path this machine takes and why, in a line, for `ebmhybrid doctor`."""
    name, version, cuda = support.check_backend(None), support.triton_version(), torch.cuda.is_available()
    if name == "torch":
        return "torch (EBMHYBRID_BACKEND): plain torch for everything"
    asked = "" if name == "auto" else " (EBMHYBRID_BACKEND)"
    if not version:
        return f"{name}{asked}: plain torch, because Triton is not installed"
    if cuda:
        return f"{name}{asked}: Triton {version}" + (f" from {GPU_ENTRIES:,} logits on" if name == "auto" else "")
    if support.INTERPRETED:
        interpreted = "for everything" if name == "triton" else "where it is asked for by name"
        return f"{name}{asked}: plain torch on the CPU; Triton {version} is interpreted, {interpreted}"
    return f"{name}{asked}: plain torch on the CPU; Triton {version} waits for a GPU"
