r"""The last layer and its row statistics together, for so many classes that the logits should never stand in memory.

    f = features weight^T + bias        lse_n = log sum_c exp f_nc        pick_n = f[n, targets_n]

The classes are taken a chunk at a time: forward keeps lse and pick alone, backward computes each chunk's logits again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from ebmhybrid.kernels.reference import at_least_float32
from ebmhybrid.kernels.support import triton_runs_on

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
    use_triton: bool | None = None,
) -> LinearEnergy:
    """lse and pick of F.linear(features, weight, bias), of arguments that `kernels.linear_energy` has checked."""
    n, classes = len(features), len(weight)
    chunk = chunk or max(128, CHUNK_ENTRIES // max(1, n))
    use_triton = triton_runs_on(features) if use_triton is None else use_triton
    kind = features.device.type
    if torch.is_autocast_enabled(kind):  # cast here, so that forward and backward see the same numbers
        dtype = torch.get_autocast_dtype(kind)
        features, weight = features.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    with torch.autocast(kind, enabled=False):
        lse, pick = _Chunked.apply(features, weight, bias, targets, min(chunk, classes), use_triton)
    return LinearEnergy(lse, None if targets is None else pick)


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
        if torch.is_grad_enabled():  # create_graph: the second order goes through the whole logits
            return _differentiable_gradient(ctx.needs_input_grad, features, weight, bias, targets, g_lse, g_pick)
        wants_x, wants_w, wants_b = ctx.needs_input_grad[:3]
        gx = torch.zeros_like(at_least_float32(features)) if wants_x else None
        gw = torch.empty_like(weight) if wants_w else None
        gb = torch.empty_like(bias) if wants_b else None
        for part, logits, here, place in _chunks(features, weight, bias, targets, ctx.chunk):
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
        return None if gx is None else gx.to(features.dtype), gw, gb, None, None, None


def _differentiable_gradient(
    wanted: tuple[bool, ...],
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor | None,
    g_lse: Tensor,
    g_pick: Tensor,
) -> tuple[Tensor | None, ...]:
    # Differentiated are names of their own: one of the three may be computed from another, or be the other.
    features, weight = features.view_as(features), weight.view_as(weight)
    bias = None if bias is None else bias.view_as(bias)
    logits = at_least_float32(F.linear(features, weight, bias))
    value = (g_lse * logits.logsumexp(1)).sum()
    if targets is not None:
        value = value + (g_pick * logits.gather(1, targets[:, None]).squeeze(1)).sum()
    tensors = (features, weight, bias)
    inputs = [tensor for tensor, needed in zip(tensors, wanted, strict=False) if needed and tensor is not None]
    grads = iter(torch.autograd.grad(value, inputs, create_graph=True))
    return (*(next(grads) if needed else None for needed in wanted[:3]), None, None, None)
