r"""The row statistics in Triton: one read of the logits forward; one read and one write backward.

A program takes BR rows and walks over their columns in tiles of BC, keeping for each row the maximum m and the sum of
exp(x/T - m) seen so far; a new tile with maximum m' rescales the sum by exp(m - m'). Where m' is infinite 0 is
subtracted in its place, so that inf - inf does not arise, while a NaN is let through and poisons its row. Sums are
float32, offsets are 64 bits wide, every row is written by one program, nothing is atomic. The width and the strides are
compile-time constants: only then does Triton know the alignment that 128-bit loads need.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# Tests make the widest tile small, so that few columns exercise the loop and its tail.
MAX_COLUMNS = 4096


def tile(columns: int) -> tuple[int, int, int]:
    """(rows, columns, warps) of a program's tile: about 2,048 entries, a pure function of the width.

    >>> tile(10), tile(100), tile(1000), tile(128256)
    ((128, 16, 4), (16, 128, 4), (2, 1024, 4), (1, 4096, 8))
    """
    width = min(max(16, triton.next_power_of_2(columns)), MAX_COLUMNS)
    rows = max(1, min(128, 2048 // width))
    return rows, width, 8 if width >= 4096 else 4


@triton.jit
def _forward_kernel(
    x_ptr,
    y_ptr,
    lse_ptr,
    pick_ptr,
    sum_ptr,
    sq_ptr,
    n,
    inverse_temperature,
    C: tl.constexpr,
    ROW: tl.constexpr,
    COLUMN: tl.constexpr,
    HAS_Y: tl.constexpr,
    BR: tl.constexpr,
    BC: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    inside = rows < n
    top = tl.full((BR,), -float("inf"), tl.float32)
    total = tl.zeros((BR,), tl.float32)
    plain = tl.zeros((BR,), tl.float32)
    squares = tl.zeros((BR,), tl.float32)
    for start in range(0, C, BC):
        columns = start + tl.arange(0, BC)
        mask = inside[:, None] & (columns < C)[None, :]
        offsets = rows[:, None] * ROW + columns[None, :].to(tl.int64) * COLUMN
        x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        plain += tl.sum(x, 1)
        squares += tl.sum(x * x, 1)
        z = tl.where(mask, x * inverse_temperature, -float("inf"))
        new_top = tl.maximum(top, tl.max(z, 1))
        shift = tl.where(tl.abs(new_top) == float("inf"), 0.0, new_top)
        total = total * tl.exp(top - shift) + tl.sum(tl.exp(z - shift[:, None]), 1)
        top = new_top
    shift = tl.where(tl.abs(top) == float("inf"), 0.0, top)
    tl.store(lse_ptr + rows, shift + tl.log(total), mask=inside)
    tl.store(sum_ptr + rows, plain, mask=inside)
    tl.store(sq_ptr + rows, squares, mask=inside)
    pick = tl.zeros((BR,), tl.float32)
    if HAS_Y:
        labels = tl.load(y_ptr + rows, mask=inside, other=0)
        known = inside & (labels >= 0) & (labels < C)
        # A label that is none of the classes gives NaN, not a wrong number.
        pick = tl.load(x_ptr + rows * ROW + labels * COLUMN, mask=known, other=float("nan")).to(tl.float32)
    tl.store(pick_ptr + rows, pick, mask=inside)


@triton.jit
def _backward_kernel(
    x_ptr,
    y_ptr,
    lse_ptr,
    g_lse_ptr,
    g_pick_ptr,
    g_sum_ptr,
    g_sq_ptr,
    gx_ptr,
    n,
    inverse_temperature,
    C: tl.constexpr,
    ROW: tl.constexpr,
    COLUMN: tl.constexpr,
    HAS_LSE: tl.constexpr,
    HAS_PICK: tl.constexpr,
    HAS_SUM: tl.constexpr,
    HAS_SQ: tl.constexpr,
    BR: tl.constexpr,
    BC: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    columns = tl.program_id(1) * BC + tl.arange(0, BC)
    inside = rows < n
    mask = inside[:, None] & (columns < C)[None, :]
    offsets = rows[:, None] * ROW + columns[None, :].to(tl.int64) * COLUMN
    x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    gx = tl.zeros((BR, BC), tl.float32)
    if HAS_LSE:
        lse = tl.load(lse_ptr + rows, mask=inside, other=0.0).to(tl.float32)
        g = tl.load(g_lse_ptr + rows, mask=inside, other=0.0).to(tl.float32) * inverse_temperature
        gx += g[:, None] * tl.exp(x * inverse_temperature - lse[:, None])
    if HAS_SQ:
        g = tl.load(g_sq_ptr + rows, mask=inside, other=0.0).to(tl.float32)
        gx += 2.0 * g[:, None] * x
    if HAS_SUM:
        gx += tl.load(g_sum_ptr + rows, mask=inside, other=0.0).to(tl.float32)[:, None]
    if HAS_PICK:
        labels = tl.load(y_ptr + rows, mask=inside, other=-1)
        g = tl.load(g_pick_ptr + rows, mask=inside, other=0.0).to(tl.float32)
        gx += tl.where(labels[:, None] == columns[None, :], g[:, None], 0.0)
    out = rows[:, None] * C + columns[None, :].to(tl.int64)
    tl.store(gx_ptr + out, gx.to(gx_ptr.dtype.element_ty), mask=mask)


def row_stats(x: Tensor, y: Tensor | None, temperature: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """lse, pick, sum, sq of each row; `pick` is 0 without y."""
    n, columns = x.shape
    lse = torch.empty(n, dtype=torch.float32, device=x.device)
    pick, total, squares = torch.empty_like(lse), torch.empty_like(lse), torch.empty_like(lse)
    if n:
        br, bc, warps = tile(columns)
        with torch.cuda.device_of(x):  # Triton launches on the current device, whichever the tensors are on
            _forward_kernel[(triton.cdiv(n, br),)](
                x, x if y is None else y.contiguous(), lse, pick, total, squares, n, 1 / temperature,
                C=columns, ROW=x.stride(0), COLUMN=x.stride(1), HAS_Y=y is not None, BR=br, BC=bc, num_warps=warps,
            )  # fmt: skip
    return lse, pick, total, squares


def row_stats_backward(
    x: Tensor,
    y: Tensor | None,
    lse: Tensor,
    g_lse: Tensor | None,
    g_pick: Tensor | None,
    g_sum: Tensor | None,
    g_sq: Tensor | None,
    temperature: float,
) -> Tensor:
    """The gradient by x in x's dtype, in a buffer of its own: the logits are read by others too."""
    n, columns = x.shape
    gx = torch.empty_like(x, memory_format=torch.contiguous_format)
    if n:
        br, bc, warps = tile(columns)
        lse = lse.contiguous()
        given = (g_lse, None if y is None else g_pick, g_sum, g_sq)
        has = [g is not None for g in given]
        with torch.cuda.device_of(x):
            _backward_kernel[(triton.cdiv(n, br), triton.cdiv(columns, bc))](
                x, x if y is None else y.contiguous(), lse, *(lse if g is None else g.contiguous() for g in given),
                gx, n, 1 / temperature, C=columns, ROW=x.stride(0), COLUMN=x.stride(1),
                HAS_LSE=has[0], HAS_PICK=has[1], HAS_SUM=has[2], HAS_SQ=has[3], BR=br, BC=bc, num_warps=warps,
            )  # fmt: skip
    return gx
