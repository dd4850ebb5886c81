r"""lse and picked logit of a linear layer in Triton, without its logits: matrix product and logsumexp tile by tile.

A program takes BM rows of the features and a share of the classes, of which it computes tiles of BN logits on the
matrix units and folds each into a running maximum and sum (as in `fused`). It leaves a partial lse and pick for its
share; the shares are few, and plain torch merges them: nothing is atomic, and small batches still fill the device. The
backward pass needs whole products with the weights, which torch's own matrix multiplication does best: see `linear`.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

# Rows, classes and features of a tile, and classes of a program's share; tests make them small.
BM, BN, BK = 64, 128, 64
SHARE = 2048


@triton.jit
def _kernel(
    x_ptr,
    w_ptr,
    b_ptr,
    y_ptr,
    lse_ptr,
    pick_ptr,
    n,
    classes,
    D: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_Y: tl.constexpr,
    PRECISION: tl.constexpr,
    SHARE: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    share = tl.program_id(1).to(tl.int64)
    inside = rows < n
    labels = tl.full((BM,), -1, tl.int64)
    if HAS_Y:
        labels = tl.load(y_ptr + rows, mask=inside, other=-1)
    top = tl.full((BM,), -float("inf"), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    pick = tl.zeros((BM,), tl.float32)
    for start in range(0, SHARE, BN):
        columns = share * SHARE + start + tl.arange(0, BN)
        known = columns < classes
        logits = tl.zeros((BM, BN), tl.float32)
        for first in range(0, D, BK):
            depth = first + tl.arange(0, BK)
            x = tl.load(x_ptr + rows[:, None] * D + depth[None, :], inside[:, None] & (depth < D)[None, :], other=0.0)
            w = tl.load(w_ptr + columns[:, None] * D + depth[None, :], known[:, None] & (depth < D)[None, :], other=0.0)
            logits = tl.dot(x, tl.trans(w), logits, input_precision=PRECISION)
        if HAS_BIAS:
            logits += tl.load(b_ptr + columns, mask=known, other=0.0).to(tl.float32)[None, :]
        # As rounded as the logits of torch's own layer, which the backward pass computes again.
        logits = logits.to(x_ptr.dtype.element_ty).to(tl.float32)
        pick += tl.sum(tl.where(labels[:, None] == columns[None, :], logits, 0.0), 1)
        z = tl.where(known[None, :], logits, -float("inf"))
        new_top = tl.maximum(top, tl.max(z, 1))
        shift = tl.where(tl.abs(new_top) == float("inf"), 0.0, new_top)
        total = total * tl.exp(top - shift) + tl.sum(tl.exp(z - shift[:, None]), 1)
        top = new_top
    shift = tl.where(tl.abs(top) == float("inf"), 0.0, top)
    tl.store(lse_ptr + share * n + rows, shift + tl.log(total), mask=inside)
    tl.store(pick_ptr + share * n + rows, pick, mask=inside)


def tf32_allowed() -> bool:
    """Whether torch's own float32 products may be TensorFloat-32 on a GPU: only where the user has allowed it."""
    matmul = torch.backends.cuda.matmul
    precision = getattr(matmul, "fp32_precision", None)  # from torch 2.9 on; where it is set the older name may raise
    return matmul.allow_tf32 if precision is None else precision == "tf32"


def depth(dtype: torch.dtype, tf32: bool) -> int:
    """Features of a tile: float32 that is not TensorFloat-32 misses the matrix units, and more than 16 would spill."""
    return min(BK, 16) if dtype == torch.float32 and not tf32 else BK


def linear_energy(
    features: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor | None
) -> tuple[Tensor, Tensor]:
    """lse and pick of each row, float32; `pick` is 0 without targets."""
    n, width = features.shape
    classes = len(weight)
    shares = triton.cdiv(classes, SHARE)
    lse = torch.empty(shares, n, dtype=torch.float32, device=features.device)
    pick = torch.empty_like(lse)
    if n:
        tf32 = features.is_cuda and tf32_allowed()
        with torch.cuda.device_of(features):
            _kernel[(triton.cdiv(n, BM), shares)](
                features.contiguous(), weight.contiguous(), features if bias is None else bias.contiguous(),
                features if targets is None else targets.contiguous(), lse, pick, n, classes,
                D=width, HAS_BIAS=bias is not None, HAS_Y=targets is not None,
                PRECISION="tf32" if tf32 else "ieee", SHARE=SHARE, BM=BM, BN=BN,
                BK=depth(features.dtype, tf32), num_warps=4,
            )  # fmt: skip
    picked = pick.sum(0)
    if targets is not None:  # a label that is none of the classes gives NaN, not a wrong number
        picked = picked.masked_fill((targets < 0) | (targets >= classes), math.nan)
    return lse.logsumexp(0), picked
