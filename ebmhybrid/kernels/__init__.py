"""The fused kernels, and the one place where a path is chosen: plain torch, the closed-form operator, or Triton.

    composite   plain torch through autograd: fewest launches, best for small logits, and any derivative works
    operator    one operator with a closed-form gradient: on a GPU the Triton kernel, on the CPU torch in one buffer

`backend="auto"` measures nothing: it decides by device, dtype, size and what is asked for, as `choose` says. The
environment variable EBMHYBRID_BACKEND sets another default.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Literal

import torch
from torch import Tensor

from ebmhybrid.errors import UsageError, nearest
from ebmhybrid.kernels import linear, reference, support
from ebmhybrid.kernels.linear import LinearEnergy
from ebmhybrid.kernels.reference import NAMES, RowStats, at_least_float32

__all__ = ["NAMES", "LinearEnergy", "RowStats", "at_least_float32", "choose", "describe", "linear_energy", "row_stats"]

# Below so many logits an operator's call costs more than it saves: predicted for GPUs, measured on a CPU by
# `python -m benchmarks.kernel`.
GPU_ENTRIES = 2**20
CPU_ENTRIES = 2**17

Path = Literal["composite", "operator"]


def check_backend(backend: str | None) -> str:
    """The name of a backend, by default the environment's; a UsageError for one that there is none of."""
    name = support.BACKEND if backend is None else backend
    if name not in support.BACKENDS:
        where = "EBMHYBRID_BACKEND" if backend is None else "backend"
        raise UsageError(f"{where} must be auto, torch or triton, got {name!r}; {nearest(name, support.BACKENDS)}")
    return name


def choose(x: Tensor, want: Collection[str] = NAMES, backend: str | None = None) -> Path:
    """Which path `row_stats` takes for these logits.

    `torch` is always the composite, `triton` the operator with the Triton kernels or an error. `auto` takes the
    operator on a GPU from 2^20 half or single precision logits on, and in a compiled function only above 1,024 classes,
    since below the compiler fuses the composite as well; on the CPU where a gradient of `lse` and of another statistic
    is to be taken of 2^17 logits or more, because there autograd's own buffers cost more than the operator's.

    Raises:
        UsageError: an unknown backend, or `triton` where its kernels do not run.
    """
    name = check_backend(backend)
    if name == "torch":
        return "composite"
    if name == "triton":
        if not support.triton_runs_on(x):
            raise UsageError(f"backend 'triton' cannot be used: {support.why_not_triton(x)}; auto and torch can")
        return "operator"
    if x.is_cuda and support.triton_runs_on(x):
        pays = x.numel() >= GPU_ENTRIES and (x.shape[1] > 1024 or not torch.compiler.is_compiling())
    else:
        pays = x.numel() >= CPU_ENTRIES and x.requires_grad and "lse" in want and len(want) > 1
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
        y: (N,) int64 in [0, C), needed for `pick`.
        temperature: T > 0, of `lse` alone.
        want: names of the statistics that are used; others may come as None. By default all that y allows.
        backend: auto | torch | triton; by default EBMHYBRID_BACKEND, else auto. See :func:`choose`.

    Returns:
        RowStats(lse, pick, sum, sq), each (N,).

    Raises:
        ValueError: shapes, dtypes or names that do not fit; a backend that cannot be used.

    >>> stats = row_stats(torch.tensor([[0.0, 0.0], [3.0, 4.0]]), torch.tensor([0, 1]))
    >>> stats.lse[:1].exp(), stats.pick, stats.sum, stats.sq
    (tensor([2.]), tensor([0., 4.]), tensor([0., 7.]), tensor([ 0., 25.]))
    """
    if x.dim() != 2 or not x.is_floating_point() or x.shape[1] == 0:
        raise ValueError(f"x must be floating point (N, C) with C >= 1, got {x.dtype} {tuple(x.shape)}")
    if y is not None and (y.dtype != torch.int64 or y.shape != x.shape[:1]):
        raise ValueError(f"y must be int64 ({x.shape[0]},), got {y.dtype} {tuple(y.shape)}")
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature must be a positive number, got {temperature}")
    if want is None:
        want = NAMES if y is not None else ("lse", "sum", "sq")
    elif unknown := sorted(set(want) - set(NAMES)):
        raise ValueError(f"want: unknown statistic {unknown[0]!r}; {nearest(unknown[0], NAMES)}")
    if "pick" in want and y is None:
        raise ValueError("want: 'pick' needs y")
    if choose(x, want, backend) == "composite":
        return reference.row_stats(x, y, temperature, want)
    from ebmhybrid.kernels import operator  # registers with torch; most processes never need it

    return operator.row_stats(x, y, temperature)


def linear_energy(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    targets: Tensor | None = None,
    *,
    chunk: int | None = None,
    backend: str | None = None,
) -> LinearEnergy:
    """The log density and the target's logit of a linear head, without its N x C logits: for very many classes.

        f = features weight^T + bias,   lse_n = log sum_c exp f_nc = -E(x_n),   pick_n = f[n, targets_n]

    Cross-entropy is (lse - pick).mean(). Source: the idea of not keeping the logits is that of cut cross-entropy
    (Wijmans et al. 2024). Memory beside inputs and gradients is O(N chunk); the gradient is exact. Second derivatives
    work, and go through the whole logits. Under autocast the layer computes in autocast's dtype, as nn.Linear does.

    Arguments:
        features: (N, D). weight: (C, D). bias: (C,) or None. All of one floating dtype unless under autocast.
        targets: (N,) int64 in [0, C), or None.
        chunk: classes at a time; by default so many that 2^21 logits are in memory.
        backend: as in :func:`row_stats`; `auto` is Triton for the forward pass on a GPU, else torch.

    Returns:
        LinearEnergy(lse, pick), each (N,), of at least float32.

    Raises:
        ValueError: shapes, dtypes or labels that do not fit; a backend that cannot be used.

    >>> weight, features = torch.eye(3), torch.tensor([[1.0, 2.0, 3.0]])
    >>> lse, pick = linear_energy(features, weight, targets=torch.tensor([2]))
    >>> bool(torch.isclose(lse, features.logsumexp(1))), pick
    (True, tensor([3.]))
    """
    _check_linear(features, weight, bias, targets, chunk)
    name = check_backend(backend)
    if name == "triton" and not support.triton_runs_on(features):
        raise UsageError(f"backend 'triton' cannot be used: {support.why_not_triton(features)}; auto and torch can")
    use_triton = name == "triton" or (name == "auto" and features.is_cuda and support.triton_runs_on(features))
    return linear.linear_energy(features, weight, bias, targets, chunk=chunk, use_triton=use_triton)


def _check_linear(
    features: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor | None, chunk: int | None
) -> None:
    if features.dim() != 2 or weight.dim() != 2 or features.shape[1] != weight.shape[1] or len(weight) == 0:
        raise ValueError(
            f"features must be (N, D) and weight (C, D) with C >= 1, got {tuple(features.shape)}, {tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be ({len(weight)},), got {tuple(bias.shape)}")
    dtypes = {tensor.dtype for tensor in (features, weight, bias) if tensor is not None}
    mixed = len(dtypes) > 1 and not torch.is_autocast_enabled(features.device.type)
    if mixed or not all(dtype.is_floating_point for dtype in dtypes):
        raise ValueError(f"features, weight and bias must share a floating dtype, got {sorted(map(str, dtypes))}")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    if targets is None:
        return
    if targets.dtype != torch.int64 or targets.shape != features.shape[:1]:
        raise ValueError(f"targets must be int64 ({len(features)},), got {targets.dtype} {tuple(targets.shape)}")
    if targets.device.type == "cpu" and targets.numel() and not torch.compiler.is_compiling():
        low, high = (int(value) for value in targets.aminmax())
        if low < 0 or high >= len(weight):
            raise ValueError(f"targets must lie in [0, {len(weight) - 1}], got [{low}, {high}]")


def describe() -> str:
    """Which path this machine takes and why, in a line, for `ebmhybrid doctor`."""
    name, version, cuda = check_backend(None), support.triton_version(), torch.cuda.is_available()
    if name == "torch":
        return "torch (EBMHYBRID_BACKEND): plain torch for everything"
    if name == "triton":
        runs = version and (cuda or support.INTERPRETED)
        missing = "there is no GPU" if version else "Triton is not installed"
        return "triton (EBMHYBRID_BACKEND): " + (f"Triton {version} for everything" if runs else f"refused, {missing}")
    if cuda and version:
        return f"auto: Triton {version} from {GPU_ENTRIES:,} logits on, plain torch below"
    if cuda:
        return "auto: plain torch, because Triton is not installed"
    if support.INTERPRETED and version:
        return f"auto: plain torch on the CPU; Triton {version} runs interpreted, for tests, with backend triton"
    return f"auto: plain torch on the CPU, with a closed-form gradient from {CPU_ENTRIES:,} logits on; " + (
        f"Triton {version} waits for a GPU" if version else "Triton is not installed"
    )
