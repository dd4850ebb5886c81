"""The contrastive term against its rivals: the literal N x C x K tensor, the O(K C) sum, and the ring of log-sums.

    python -m benchmarks.loss                      # N = 64, C = 10, K = 65536
    python -m benchmarks.loss --n 128 --c 100 --k 16384 --repeats 7

All three compute the released loss (forward and backward) on the same queue, which is checked once; then they are timed
in turn in one process, where the ring alone also pushes the batch into its bank, as in training;
the table gives medians and the spread, and ratios to the ring. With --json FILE the raw times are written too.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ebmhybrid.losses import HDGELoss, class_scores


def literal(logits: Tensor, y: Tensor, queue: Tensor, temperature: float = 0.1) -> Tensor:
    """Cross-entropy against index 0 of the positive and K negatives, through the whole N x C x K tensor."""
    label = F.one_hot(y, logits.shape[1]).to(logits.dtype)
    positive = torch.logsumexp(label * F.normalize(logits, dim=1), dim=1, keepdim=True)
    negatives = torch.logsumexp(label[:, :, None] * F.normalize(queue, dim=1).T[None], dim=1)
    both = torch.cat([positive, negatives], dim=1) / temperature
    return F.cross_entropy(both, torch.zeros(len(y), dtype=torch.int64))


def gathered(logits: Tensor, y: Tensor, queue: Tensor) -> Tensor:
    """The same value from the denominators of the C classes, summed over all K vectors at each step."""
    log_sums = class_scores(queue).logsumexp(0)
    positive = class_scores(logits).gather(1, y[:, None]).squeeze(1)
    return F.softplus(log_sums[y] - positive).mean()


def measure(call: Callable[[], Tensor], logits: Tensor) -> float:
    start = time.perf_counter()
    torch.autograd.grad(call(), logits)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("n", 64), ("c", 10), ("k", 65536), ("repeats", 7)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()

    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(args.n, args.c, generator=generator).requires_grad_()
    y = torch.randint(args.c, (args.n,), generator=generator)
    queue = torch.randn(args.k, args.c, generator=generator)
    ring = HDGELoss(args.c, bank_size=args.k, ce_weight=0.0)
    ring.fill_bank(queue)
    calls: dict[str, Callable[[], Tensor]] = {
        "literal N x C x K": lambda: literal(logits, y, queue),
        "O(K C) sum": lambda: gathered(logits, y, queue),
        "ring (ebmhybrid)": lambda: ring(logits, y),  # pushes the batch into the bank too
    }
    ring.eval()  # keeps the bank as it is
    for call in calls.values():
        torch.testing.assert_close(call(), calls["literal N x C x K"](), rtol=1e-4, atol=1e-4)
        measure(call, logits)
    ring.train()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(args.repeats):
        for name, call in calls.items():
            times[name].append(measure(call, logits))

    base = statistics.median(times["ring (ebmhybrid)"])
    print(f"N={args.n} C={args.c} K={args.k}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
          f"{platform.machine()}, {args.repeats} repeats\n")  # fmt: skip
    print("| loss, forward + backward | median ms | min | max | ratio to the ring |")
    print("|---|--:|--:|--:|--:|")
    for name, values in times.items():
        ms = [1e3 * value for value in (statistics.median(values), min(values), max(values))]
        print(f"| {name} | {ms[0]:.3f} | {ms[1]:.3f} | {ms[2]:.3f} | {ms[0] / 1e3 / base:.1f} |")
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({"n": args.n, "c": args.c, "k": args.k, "seconds": times}, file, indent=2)


if __name__ == "__main__":
    main()
