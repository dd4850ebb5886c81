"""Memory of a last layer of very many classes and its cross-entropy, with and without N x C logits.

    python -m benchmarks.layer
    python -m benchmarks.layer --batch 256 --features 640 --classes 1000 100000

Bytes are what torch's allocator held at the peak of a forward and a backward pass, the weight's gradient aside, which
both ways return; `kept` is what autograd keeps from one pass to the other.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import harness
from ebmhybrid import linear_energy

FLOAT = 4  # bytes


def kept_bytes(call: Callable[[], Tensor]) -> int:
    """Bytes that autograd keeps of a call for its backward pass, each storage once, parameters aside.

    >>> x = torch.ones(3, 2, requires_grad=True)
    >>> kept_bytes(lambda: (x * 2).exp().sum())
    24
    """
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not (tensor.is_leaf and tensor.requires_grad):
            storage = tensor.untyped_storage()
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = call()
    del result  # only now: what it holds must not be freed, and its place taken, while the call goes on
    return sum(kept.values())


def whole(x: Tensor, layer: nn.Linear, y: Tensor) -> Tensor:
    return F.cross_entropy(layer(x), y)


def chunked(x: Tensor, layer: nn.Linear, y: Tensor) -> Tensor:
    lse, pick = linear_energy(x, layer.weight, layer.bias, y)
    assert pick is not None
    return (lse - pick).mean()


def table(batch: int, features: int, classes: Sequence[int]) -> list[dict[str, Any]]:
    """A line for each number of classes."""
    rows = []
    for count in classes:
        x, y = torch.randn(batch, features, requires_grad=True), torch.randint(count, (batch,))
        layer = nn.Linear(features, count)
        gradient = FLOAT * layer.weight.numel()
        row = {
            "C": f"{count:,}",
            "N x C logits, MB": FLOAT * batch * count / 1e6,
            "weight's gradient, MB": gradient / 1e6,
        }
        for name, loss in (("logits", whole), ("linear_energy", chunked)):

            def gradients(x: Tensor = x, y: Tensor = y, layer: nn.Linear = layer, loss: Any = loss) -> Any:
                return torch.autograd.grad(loss(x, layer, y), [x, *layer.parameters()])

            row[f"{name}: peak, MB"] = (harness.peak_bytes(gradients) - gradient) / 1e6
            row[f"{name}: kept, MB"] = kept_bytes(lambda loss=loss, x=x, y=y, layer=layer: loss(x, layer, y)) / 1e6
        rows.append(row)
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=harness.positive, default=256)
    parser.add_argument("--features", type=harness.positive, default=64)
    parser.add_argument("--classes", nargs="+", type=harness.positive, default=[1_000, 10_000, 100_000, 500_000])
    args = parser.parse_args(argv)
    print(harness.markdown(table(args.batch, args.features, args.classes)))


if __name__ == "__main__":
    main()
