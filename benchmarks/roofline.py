"""Bytes that each way of computing the row-wise objectives moves, and the GPU times they predict; nothing is timed.

    python -m benchmarks.roofline
    python -m benchmarks.roofline --shape 8192 1000 --dtype bfloat16 --bandwidth 2.0

The plain torch versions run forward and backward on the meta device, where a dispatch mode adds up what each operator
reads and writes (an operator that makes several passes inside, such as logsumexp, by the passes it makes). The fused
row kernel reads the logits once forward, and reads them and writes their gradient once backward. Bytes over bandwidth
is the time that a kernel limited by memory takes at best: the predictions say what to expect of a GPU, and a
measurement (`python -m benchmarks.kernel` there) replaces them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

# The shares of peak bandwidth that kernels of this kind are expected to reach: rows of few and of many columns.
SHARE_NARROW, SHARE_WIDE = 0.6, 0.85
BANDWIDTH = {"A100 80 GB": 2.0, "H100 SXM": 3.35}  # TB/s, the makers' figures
SHAPES = [(8192, 1000), (8192, 32768), (4096, 128256)]  # smaller ones are bound by launches, not by memory

# Extra passes over the input inside one operator, in reads and writes: amax, sub, exp and sum of torch's logsumexp.
INNER_PASSES = {torch.ops.aten.logsumexp.default: 5}


class BytesMoved(TorchDispatchMode):
    """Adds up the bytes of every operator's tensor arguments and results; views move nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view and func is not torch.ops.aten.detach.default:
            inputs = [value for value in tree_flatten((args, kwargs or {}))[0] if isinstance(value, Tensor)]
            outputs = [value for value in tree_flatten(result)[0] if isinstance(value, Tensor)]
            self.total += sum(value.numel() * value.element_size() for value in inputs + outputs)
            self.total += INNER_PASSES.get(func, 0) * (inputs[0].numel() * inputs[0].element_size() if inputs else 0)
        return result


def energy(x: Tensor, y: Tensor, log_d: Tensor) -> Tensor:
    return x.float().logsumexp(1).mean()


def ce_and_energy(x: Tensor, y: Tensor, log_d: Tensor) -> Tensor:
    return F.cross_entropy(x.float(), y) + energy(x, y, log_d)


def hybrid(x: Tensor, y: Tensor, log_d: Tensor) -> Tensor:
    """Cross-entropy, energy and the released contrast against given denominators, as one would write them."""
    p = F.normalize(x.float(), dim=1)
    scores = torch.log(torch.exp(p) + (x.shape[1] - 1)) / 0.1
    positive = scores.gather(1, y[:, None]).squeeze(1)
    return ce_and_energy(x, y, log_d) + F.softplus(log_d[y] - positive).mean()


OBJECTIVES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "energy": energy,
    "cross-entropy + energy": ce_and_energy,
    "hybrid: + released contrast": hybrid,
}


def eager_bytes(objective: Callable[[Tensor, Tensor, Tensor], Tensor], n: int, c: int, dtype: torch.dtype) -> int:
    """Bytes that plain torch moves in a forward and a backward pass."""
    x = torch.empty(n, c, dtype=dtype, device="meta", requires_grad=True)
    y = torch.empty(n, dtype=torch.int64, device="meta")
    with BytesMoved() as moved:
        torch.autograd.grad(objective(x, y, torch.empty(c, device="meta")), x)
    return moved.total


def fused_bytes(n: int, c: int, dtype: torch.dtype) -> int:
    """One read forward, one read and one write backward, and the few numbers a row: statistics, gradients, label."""
    return 3 * n * c * dtype.itemsize + n * (4 * 4 + 5 * 4 + 2 * 8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs=2, type=int, metavar=("N", "C"), help="one shape instead of the table's")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--bandwidth", type=float, metavar="TB/S", help="one bandwidth instead of the makers' figures")
    args = parser.parse_args()

    dtype = getattr(torch, args.dtype)
    devices = {f"{args.bandwidth:g} TB/s": args.bandwidth} if args.bandwidth else BANDWIDTH
    print(f"*predicted* from bytes moved, {args.dtype} logits, forward + backward; no GPU was used\n")
    print(
        "| objective | N x C | eager MB | fused MB | ratio | " + " | ".join(f"fused, {d}, µs" for d in devices) + " |"
    )
    print("|---|---|--:|--:|--:|" + "--:|" * len(devices))
    for name, objective in OBJECTIVES.items():
        for n, c in [tuple(args.shape)] if args.shape else SHAPES:
            eager, fused = eager_bytes(objective, n, c, dtype), fused_bytes(n, c, dtype)
            share = SHARE_NARROW if c < 1000 else SHARE_WIDE
            times = " | ".join(f"{fused / (share * tb * 1e12) * 1e6:.1f}" for tb in devices.values())
            print(f"| {name} | {n} x {c} | {eager / 1e6:.2f} | {fused / 1e6:.2f} | {eager / fused:.1f} | {times} |")


if __name__ == "__main__":
    main()
