"""The contrastive term against its rivals: the literal N x C x K tensor, the O(K C) sum, and the ring of log-sums.

    python -m benchmarks.loss                            # the grid below, some minutes on one core
    python -m benchmarks.loss --cell 64 10 65536         # one batch size, number of classes and bank size
    python -m benchmarks.loss --cell 128 100 16384 --repeats 15

All three compute the released loss, forward and backward, on the same queue, and must agree before they are timed; the
ring alone also pushes the batch into its bank, as in training. A rival is left out where its tensors would be too
large. Memory is the most that one call holds beyond what it found, and apart from it what is kept from step to step.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import harness
from ebmhybrid.losses import Bank, HDGELoss, class_scores

OURS = "ring (ebmhybrid)"
BATCHES, CLASSES, SIZES = (64, 128, 256), (10, 100, 1000), (1024, 65536, 2**20)
EXTRA = (128, 100, 16384)
LITERAL_BYTES, QUEUE_BYTES = 2e9, 3e8  # of a rival's largest tensor, of which it makes several; more takes too long
BUDGET = 4.0  # seconds a rival and cell, after which it stops at five rounds


def literal(logits: Tensor, y: Tensor, queue: Tensor, temperature: float = 0.1) -> Tensor:
    """Cross-entropy against index 0 of the positive and K negatives, through the whole N x C x K tensor."""
    label = F.one_hot(y, logits.shape[1]).to(logits.dtype)
    positive = torch.logsumexp(label * F.normalize(logits, dim=1), dim=1, keepdim=True)
    negatives = torch.logsumexp(label[:, :, None] * F.normalize(queue, dim=1).T[None], dim=1)
    both = torch.cat([positive, negatives], dim=1) / temperature
    return F.cross_entropy(both, torch.zeros_like(y))


def gathered(logits: Tensor, y: Tensor, queue: Tensor) -> Tensor:
    """The same value from the denominators of the C classes, summed over all K vectors at each step."""
    log_sums = class_scores(queue).logsumexp(0)
    positive = class_scores(logits).gather(1, y[:, None]).squeeze(1)
    return F.softplus(log_sums[y] - positive).mean()


def build(classes: int, size: int) -> tuple[HDGELoss, Tensor]:
    """Our loss and the queue of raw logits that its bank holds, no longer than a rival can use."""
    loss = HDGELoss(classes, bank_size=1, ce_weight=0.0)
    # Not through the constructor, which draws K x C normals: a part fills the bank where none can be compared to it.
    loss.bank = Bank(classes, size)
    queue = torch.randn(size if 4 * size * classes <= QUEUE_BYTES else 65536, classes)
    for part in queue.split(65536):
        loss.fill_bank(part)
    return loss, queue


def gradient(call: Callable[[], Tensor], logits: Tensor) -> Callable[[], object]:
    """A call that runs forward and backward."""
    return lambda: torch.autograd.grad(call(), logits)


def rivals(n: int, classes: int, size: int, ring: HDGELoss, queue: Tensor) -> dict[str, Callable[[], object]]:
    """Those that fit, after a check that value and gradient agree."""
    logits = torch.randn(n, classes).requires_grad_()
    y = torch.randint(classes, (n,))
    losses: dict[str, Callable[[], Tensor]] = {OURS: lambda: ring(logits, y)}
    if 4 * size * classes <= QUEUE_BYTES:
        losses["O(K C) sum"] = lambda: gathered(logits, y, queue)
    if 4 * n * classes * size <= LITERAL_BYTES:
        losses["literal N x C x K"] = lambda: literal(logits, y, queue)
    ring.eval()  # keeps the bank as it is
    own = losses[OURS]()
    for loss in (losses[name] for name in losses if name != OURS):
        value = loss()
        torch.testing.assert_close(own, value, rtol=1e-4, atol=1e-4)
        gradients = [torch.autograd.grad(one, logits, retain_graph=True)[0] for one in (own, value)]
        torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-6)
    ring.train()
    return {name: gradient(loss, logits) for name, loss in losses.items()}


def memory(calls: dict[str, Callable[[], object]], ring: HDGELoss, queue: Tensor) -> dict[str, dict[str, float]]:
    """Megabytes that a call of each rival adds, and that it keeps."""
    kept = {OURS: sum(buffer.nbytes for buffer in ring.buffers())}
    return {
        name: {"peak MB": harness.peak_bytes(call) / 1e6, "kept MB": kept.get(name, queue.nbytes) / 1e6}
        for name, call in calls.items()
    }


def cells(quick: bool) -> Iterator[tuple[int, int, tuple[int, ...]]]:
    """(C, K, batch sizes): a bank is built once for all batch sizes."""
    if quick:
        yield from ((3, 64, (4,)), (5, 128, (8,)))
        return
    for classes, size in itertools.product(CLASSES, SIZES):
        yield classes, size, BATCHES
        if (classes, size) == (EXTRA[1], SIZES[0]):
            yield EXTRA[1], EXTRA[2], (EXTRA[0],)


def sizes(report: harness.Report, n: int, classes: int, small: int, large: int) -> None:
    """Ours alone: a small bank against a large one."""
    logits, y = torch.randn(n, classes).requires_grad_(), torch.randint(classes, (n,))
    rings = {f"K = {size}": build(classes, size)[0] for size in (small, large)}
    calls = {name: gradient(partial(ring, logits, y), logits) for name, ring in rings.items()}
    times = harness.in_turn(calls, 3 * report.args.repeats)
    report.add("sizes", {"N": n, "C": classes}, times, f"K = {small}")


def main(argv: list[str] | None = None) -> None:
    options = harness.parser(__doc__, repeats=7, threads=1)
    options.add_argument("--cell", type=harness.positive, nargs=3, metavar=("N", "C", "K"), help="this cell alone")
    args = harness.parse(options, argv)
    torch.manual_seed(0)
    report = harness.Report("loss", "The contrastive term, forward and backward", args)
    wanted = [(args.cell[1], args.cell[2], (args.cell[0],))] if args.cell else cells(args.quick)
    for classes, size, batches in wanted:
        filled, queue = build(classes, size)
        for n in batches:
            ring = deepcopy(filled)  # timing pushes into the bank
            calls = rivals(n, classes, size, ring, queue)
            held = memory(calls, ring, queue)  # the warm-up too: the literal's calls take seconds
            times = harness.in_turn(calls, args.repeats, warmup=0, budget=BUDGET)
            report.add("rivals", {"N": n, "C": classes, "K": size}, times, OURS, held)
    report.say("### Rivals")
    report.table("rivals")
    if not args.cell:
        for shape in [(4, 3, 64, 512)] if args.quick else [(128, classes, SIZES[0], SIZES[-1]) for classes in CLASSES]:
            sizes(report, *shape)
        report.say("### Ours at two bank sizes, as a multiple of the small one's time")
        report.table("sizes")
    report.write()


if __name__ == "__main__":
    main()
