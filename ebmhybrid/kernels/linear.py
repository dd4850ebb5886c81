r"""The last layer and its row statistics together, for so many classes that the logits should never stand in memory.

    f = features weight^T + bias        lse_n = log sum_c exp f_nc        pick_n = f[n, targets_n]

The classes are taken a chunk at a time: forward keeps lse and pick alone, backward computes each chunk's logits again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from ebmhybrid.kernels.reference import at_least_float32
from ebmhybrid.kernels.support import check_backend, triton_as_asked

# Logits in memory at a time: 8 MB in float32.
CHUNK_ENTRIES = 2**21


class LinearEnergy(NamedTuple):
    """lse (N,) = -E(x) at T = 1, and pick (N,) = the target's logit, None without targets. At least float32."""

    lse: Tensor
    pick: Tensor | None


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
    by autograd go through the whole logits; there is no vmap rule. Under autocast the layer computes in autocast's
    dtype, as nn.Linear does.

    Arguments:
        features: (N, D). weight: (C, D). bias: (C,) or None. All of one floating dtype unless under autocast.
        targets: (N,) int64 in [0, C), or None.
        chunk: classes at a time; by default so many that about 2^21 logits are in memory, at least 128.
        backend: auto | torch | triton; by default EBMHYBRID_BACKEND, else auto, which is Triton for the forward pass
            on a GPU and torch elsewhere.

    Returns:
        LinearEnergy(lse, pick), each (N,), of at least float32.

    Raises:
        ValueError: shapes, dtypes or labels that do not fit; a backend that cannot be used.

    >>> weight, features = torch.eye(3), torch.tensor([[1.0, 2.0, 3.0]])
    >>> lse, pick = linear_energy(features, weight, targets=torch.tensor([2]))
    >>> bool(torch.isclose(lse, features.logsumexp(1))), pick
    (True, tensor([3.]))
    """
    _check(features, weight, bias, targets, chunk)
    name, kind = check_backend(backend), features.device.type
    use_triton = name != "torch" and (name == "triton" or features.is_cuda) and triton_as_asked(features, backend)
    chunk = chunk or max(128, CHUNK_ENTRIES // max(1, len(features)))
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind) and features.dtype != torch.float64:
        # Cast here, so that forward and backward see the same numbers; float64 autocast leaves alone.
        dtype = torch.get_autocast_dtype(kind)
        features, weight = features.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    with _no_autocast(kind):
        lse, pick = _Chunked.apply(features, weight, bias, targets, min(chunk, len(weight)), use_triton)
    return LinearEnergy(lse, None if targets is None else pick)


def _check(features: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor | None, chunk: int | None) -> None:
    if features.dim() != 2 or weight.dim() != 2 or features.shape[1] != weight.shape[1] or len(weight) == 0:
        raise ValueError(
            f"features must be (N, D) and weight (C, D) with C >= 1, got {tuple(features.shape)}, {tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be ({len(weight)},), got {tuple(bias.shape)}")
    dtypes = {tensor.dtype for tensor in (features, weight, bias) if tensor is not None}
    kind = features.device.type
    casting = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind) and torch.float64 not in dtypes
    mixed = len(dtypes) > 1 and not casting
    if mixed or not all(dtype.is_floating_point for dtype in dtypes):
        raise ValueError(f"features, weight and bias must share a floating dtype, got {sorted(map(str, dtypes))}")
    if chunk is not None and not (isinstance(chunk, int) and chunk >= 1):
        raise ValueError(f"chunk must be an integer >= 1, got {chunk!r}")
    if targets is None:
        return
    if targets.dtype != torch.int64 or targets.shape != features.shape[:1]:
        raise ValueError(f"targets must be int64 ({len(features)},), got {targets.dtype} {tuple(targets.shape)}")
    if targets.device.type == "cpu" and targets.numel() and not torch.compiler.is_compiling():
        low, high = (int(value) for value in targets.aminmax())
        if low < 0 or high >= len(weight):
            raise ValueError(f"targets must lie in [0, {len(weight) - 1}], got [{low}, {high}]")


def _chunks(
    features: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor | None, chunk: int
) -> Iterator[tuple[slice, Tensor, Tensor | None, Tensor | None]]:
    """(classes, their logits, whether a row's target is one of them, its place among them) a chunk at a time."""
    for start in range(0, len(weight), chunk):
        part = slice(start, start + chunk)
        logits = at_least_float32(F.linear(features, weight[part], None if bias is None else bias[part]))
        if targets is None:
            yield part, logits, None, None
        else:
            place = targets - start
            here = (place >= 0) & (place < logits.shape[1])
            yield part, logits, here, place.clamp(0, logits.shape[1] - 1)[:, None]


def _no_autocast(kind: str) -> AbstractContextManager[object]:
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


class _Chunked(Function):
    @staticmethod
    def forward(
        features: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor | None, chunk: int, use_triton: bool
    ) -> tuple[Tensor, Tensor]:
        if use_triton:
            from ebmhybrid.kernels import fused_linear

            return fused_linear.linear_energy(features, weight, bias, targets)
        parts = []
        # A label that is none of the classes gives NaN, not a wrong number.
        pick = at_least_float32(features.new_empty(0)).new_full((len(features),), 0.0 if targets is None else math.nan)
        for _, logits, here, place in _chunks(features, weight, bias, targets, chunk):
            parts.append(logits.logsumexp(1))
            if here is not None and place is not None:
                pick = torch.where(here, logits.gather(1, place).squeeze(1), pick)
        return torch.stack(parts).logsumexp(0), pick

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        features, weight, bias, targets, ctx.chunk, _ = inputs
        ctx.save_for_backward(features, weight, bias, targets, output[0])

    @staticmethod
    def backward(ctx: Any, g_lse: Tensor, g_pick: Tensor) -> tuple[Tensor | None, ...]:
        features, weight, bias, targets, lse = ctx.saved_tensors
        given, wanted = (features, weight, bias, targets), ctx.needs_input_grad[:3]
        with _no_autocast(features.device.type):  # whatever is on where backward is called
            if torch.is_grad_enabled():  # create_graph: the second order goes through the whole logits
                return *_differentiable_gradient(wanted, *given, g_lse, g_pick), None, None, None
            return *_gradient(wanted, *given, lse, g_lse, g_pick, ctx.chunk), None, None, None


Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


def _gradient(
    wanted: tuple[bool, ...],
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor | None,
    lse: Tensor,
    g_lse: Tensor,
    g_pick: Tensor,
    chunk: int,
) -> Gradients:
    gx = torch.zeros_like(at_least_float32(features)) if wanted[0] else None
    gw = torch.empty_like(weight) if wanted[1] else None
    gb = torch.empty_like(bias) if bias is not None and wanted[2] else None
    for part, logits, here, place in _chunks(features, weight, bias, targets, chunk):
        g = logits.sub_(lse[:, None]).exp_().mul_(g_lse[:, None])
        if here is not None and place is not None:
            g.scatter_add_(1, place, torch.where(here, g_pick, 0)[:, None])
        if gb is not None:
            gb[part] = g.sum(0)
        g = g.to(features.dtype)
        if gx is not None:
            gx += g @ weight[part]
        if gw is not None:
            torch.mm(g.T, features, out=gw[part])
    return None if gx is None else gx.to(features.dtype), gw, gb


def _differentiable_gradient(
    wanted: tuple[bool, ...],
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor | None,
    g_lse: Tensor,
    g_pick: Tensor,
) -> Gradients:
    # Differentiated are names of their own: one of the three may be computed from another, or be the other.
    features, weight = features.view_as(features), weight.view_as(weight)
    bias = None if bias is None else bias.view_as(bias)
    logits = at_least_float32(F.linear(features, weight, bias))
    value = (g_lse * logits.logsumexp(1)).sum()
    if targets is not None:
        value = value + (g_pick * logits.gather(1, targets[:, None]).squeeze(1)).sum()
    tensors = (features, weight, bias)
    inputs = [tensor for tensor, needed in zip(tensors, wanted, strict=True) if needed and tensor is not None]
    grads = iter(torch.autograd.grad(value, inputs, create_graph=True))
    by_x, by_w, by_b = (next(grads) if needed else None for needed in wanted)
    return by_x, by_w, by_b
