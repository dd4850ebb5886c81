"""The row statistics as one operator with a closed-form gradient: `torch.ops.ebmhybrid.row_stats` and its backward.

What makes it survive torch.func, vmap, double backward, torch.compile and opcheck together: the library operators carry
no autograd formula (one registered with `register_autograd` fails under torch.func.grad, and its jvp is silently zero);
an autograd Function with a vmap rule stands outside each of them, one for the values and one for the gradient. Rows are
independent, so vmap is a reshape. Forward-mode derivatives are the composite's: ask for `backend="torch"` there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ebmhybrid.kernels import reference
from ebmhybrid.kernels.reference import RowStats
from ebmhybrid.kernels.support import triton_runs_on

_LIBRARY = torch.library.Library("ebmhybrid", "DEF")
_LIBRARY.define("row_stats(Tensor x, Tensor? y, float temperature) -> (Tensor, Tensor, Tensor, Tensor)")
_LIBRARY.define(
    "row_stats_backward(Tensor x, Tensor? y, Tensor lse, Tensor? g_lse, Tensor? g_pick, Tensor? g_sum, Tensor? g_sq, "
    "float temperature) -> Tensor"
)

Four = tuple[Tensor, Tensor, Tensor, Tensor]


def _forward(x: Tensor, y: Tensor | None, temperature: float) -> Four:
    if triton_runs_on(x):
        from ebmhybrid.kernels import fused

        return fused.row_stats(x, y, temperature)
    lse, pick, total, sq = reference.row_stats(x, y, temperature)
    assert lse is not None
    assert total is not None
    assert sq is not None
    return lse, torch.zeros_like(lse) if pick is None else pick, total, sq


def _backward(x: Tensor, y: Tensor | None, lse: Tensor, *rest: Any) -> Tensor:
    if triton_runs_on(x):
        from ebmhybrid.kernels import fused

        return fused.row_stats_backward(x, y, lse, *rest)
    return reference.row_stats_backward(x, y, lse, *rest)


def _fake_forward(x: Tensor, y: Tensor | None, temperature: float) -> Four:
    row = reference.at_least_float32(x.new_empty(0)).new_empty(x.shape[0])
    return row, torch.empty_like(row), torch.empty_like(row), torch.empty_like(row)


def _fake_backward(x: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


_LIBRARY.impl("row_stats", _forward, "CompositeExplicitAutograd")
_LIBRARY.impl("row_stats_backward", _backward, "CompositeExplicitAutograd")
torch.library.register_fake("ebmhybrid::row_stats", _fake_forward, lib=_LIBRARY)
torch.library.register_fake("ebmhybrid::row_stats_backward", _fake_backward, lib=_LIBRARY)


def _rows(batch: int, dim: int | None, tensor: Tensor | None) -> Tensor | None:
    """A tensor of a vmapped call with its batch moved into the rows: (B, N, ...) -> (B N, ...)."""
    if tensor is None:
        return None
    moved = tensor.unsqueeze(0).expand(batch, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return moved.flatten(0, 1)


class _Values(Function):
    @staticmethod
    def forward(x: Tensor, y: Tensor | None, temperature: float) -> Four:
        return torch.ops.ebmhybrid.row_stats(x, y, temperature)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Four) -> None:
        x, y, ctx.temperature = inputs
        ctx.save_for_backward(x, y, output[0])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, None, None]:
        x, y, lse = ctx.saved_tensors
        g_lse, g_pick, g_sum, g_sq = grads
        if y is None:
            g_pick = None  # the zeros that stand for the pick of no label depend on nothing
        return _Gradient.apply(x, y, lse, g_lse, g_pick, g_sum, g_sq, ctx.temperature), None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], x: Tensor, y: Tensor | None, temperature: float) -> Any:
        batch = info.batch_size
        out = _Values.apply(_rows(batch, in_dims[0], x), _rows(batch, in_dims[1], y), temperature)
        return tuple(value.unflatten(0, (batch, -1)) for value in out), (0, 0, 0, 0)


class _Gradient(Function):
    """gx as a function of x, the label and the four incoming gradients, itself differentiable."""

    @staticmethod
    def forward(  # each argument by name: torch.compile takes the first of a variable number for a context
        x: Tensor,
        y: Tensor | None,
        lse: Tensor,
        g_lse: Tensor | None,
        g_pick: Tensor | None,
        g_sum: Tensor | None,
        g_sq: Tensor | None,
        temperature: float,
    ) -> Tensor:
        return torch.ops.ebmhybrid.row_stats_backward(x, y, lse, g_lse, g_pick, g_sum, g_sq, temperature)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, y, _, g_lse, g_pick, g_sum, g_sq, ctx.temperature = inputs
        ctx.save_for_backward(x, y, g_lse, g_sq)
        ctx.present = [g is not None for g in (g_lse, g_pick, g_sum, g_sq)]

    @staticmethod
    def backward(ctx: Any, gg: Tensor) -> tuple[Tensor | None, ...]:
        x, y, g_lse, g_sq = ctx.saved_tensors
        # lse is a function of x and is differentiated as such: no gradient goes to it on its own.
        by_x, *by_grads = reference.row_stats_second(x, y, gg, g_lse, g_sq, ctx.temperature)
        kept = [value if there else None for value, there in zip(by_grads, ctx.present, strict=True)]
        return by_x, None, None, *kept, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        *tensors, temperature = args
        flat = [_rows(info.batch_size, dim, tensor) for dim, tensor in zip(in_dims[:-1], tensors, strict=True)]
        return _Gradient.apply(*flat, temperature).unflatten(0, (info.batch_size, -1)), 0


def row_stats(x: Tensor, y: Tensor | None = None, temperature: float = 1.0) -> RowStats:
    """All four statistics in one read of x; without y `pick` is None."""
    lse, pick, total, sq = _Values.apply(x, y, temperature)
    return RowStats(lse, None if y is None else pick, total, sq)
