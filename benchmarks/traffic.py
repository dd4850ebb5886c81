"""What the processes of a training step tell each other, in bytes: a model, and its check. No speed is claimed.

    python -m benchmarks.traffic --processes 8 64 256 1024 --net 28-10 --classes 1000 --batch 64
    python -m benchmarks.traffic --simulate                  # the rings played message by message, every byte counted
    python -m benchmarks.traffic --measure                   # gloo processes on this machine, bytes of the loopback
    python -m benchmarks.traffic --bandwidth 25 --step-ms 200 --latency-us 10     # assumptions of yours

With R processes that form a ring, as gloo's do and NCCL's may, each sends on the average

    all-reduce of B bytes                   2 (R - 1) / R  B      in 2 (R - 1) messages one after the other
    all-gather of b bytes from each         (R - 1)  b            in R - 1 messages

whatever the sizes are. Numbers are of 4 bytes. Activations are what autograd keeps for the backward pass, counted on
the meta device.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from benchmarks import harness
from benchmarks.layer import kept_bytes
from ebmhybrid.losses.bank import Bank, row_members
from ebmhybrid.models import WideResNet

FLOAT = 4  # bytes
BUCKET = 25 * 2**20  # of gradients, DistributedDataParallel's default; the first is of 1 MiB
Row = dict[str, Any]


def all_reduce_sent(size: float, processes: int) -> float:
    """Bytes that each process sends, on the average, for the sum of `size` bytes of each.

    >>> all_reduce_sent(100.0, 4)
    150.0
    """
    return 2 * (processes - 1) / processes * size


def all_gather_sent(own: float, processes: int) -> float:
    """Bytes that each process sends, on the average, so that all have the `own` bytes of each.

    >>> all_gather_sent(100.0, 4)
    300.0
    """
    return (processes - 1) * own


@dataclass(frozen=True)
class Case:
    """A training step: the network, and each process's share of it."""

    net: str = "28-10"
    classes: int = 1000
    batch: int = 64  # images a process
    image_size: int = 32
    bank_size: int = 65536
    block: int = 16  # examples a row of the bank

    def model(self) -> nn.Module:
        depth, width = map(int, self.net.split("-"))
        with torch.device("meta"):
            return WideResNet(depth=depth, width=width, num_classes=self.classes)

    def rows(self, processes: int) -> int:
        """Rows of the bank that a process sends: what its share of the batch touches."""
        capacity = self.bank_size // self.block * self.block
        return row_members(((self.batch,),) * processes, self.block, capacity, torch.device("cpu"))[0]


def channels(model: nn.Module) -> list[int]:
    """The channels of each batch normalisation."""
    return [module.num_features for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def traffic(case: Case, processes: int) -> dict[str, float]:
    """Bytes that each process sends in a step, by what for; those in brackets are of ways not taken."""
    model, r, c = case.model(), processes, FLOAT * case.classes
    norms, logits = channels(model), case.batch * c
    weights = FLOAT * sum(p.numel() for p in model.parameters())
    together = sum(all_gather_sent(FLOAT * (2 * n + 1), r) + all_reduce_sent(FLOAT * 2 * n, r) for n in norms)
    return {
        "gradients: all-reduce": all_reduce_sent(weights, r),
        f"bank: rows of {case.block} examples, all-gather": all_gather_sent(case.rows(r) * c, r),
        "(bank: all logits instead)": all_gather_sent(logits, r),
        "live negatives: all-gather of C log-sums, all-reduce of C gradients": all_gather_sent(c, r)
        + all_reduce_sent(c, r),
        "(live: all logits and their gradients instead)": all_gather_sent(logits, r) + all_reduce_sent(logits * r, r),
        "sync_batch_norm, if asked for": together,
        "running statistics: all-reduce": all_reduce_sent(
            2 * FLOAT * 2 * sum(norms), r
        ),  # in float64, with the losses,
    }


def messages(case: Case, processes: int) -> int:
    """Messages of a step with a bank that wait for each other, if all are rings: the buckets of gradients, the rows."""
    weights = FLOAT * sum(p.numel() for p in case.model().parameters())
    buckets = 1 + math.ceil(max(0, weights - 2**20) / BUCKET)
    return (processes - 1) * (2 * buckets + 1)


def memory(case: Case, images: int, replay: int, processes: Sequence[int]) -> dict[str, float]:
    """Bytes that a process holds, by what for, in float32."""
    model, picture = case.model(), 3 * case.image_size**2
    weights = FLOAT * sum(p.numel() for p in model.parameters())
    x = torch.empty(case.batch, 3, case.image_size, case.image_size, device="meta")
    with torch.device("meta"):
        bank = Bank(case.classes, case.bank_size, case.block)
    found = {
        "weights": weights,
        "gradients": weights,
        "momentum": weights,
        "(ema: weights once more)": weights,
        f"activations of {case.batch} images": kept_bytes(lambda: model(x)),
        f"bank, K = {case.bank_size}": sum(value.nbytes for value in bank.buffers()),
        f"data set, {images} images": images * picture,
    }
    for r in processes if replay else ():
        found[f"replay buffer of {replay} images on {r}"] = FLOAT * picture * (replay // r)
    return found


def traffic_table(case: Case, processes: Sequence[int]) -> list[Row]:
    found = {r: traffic(case, r) for r in processes}
    rows: list[Row] = [
        {"MB sent by each process": name} | {f"R = {r}": found[r][name] / 1e6 for r in processes}
        for name in found[processes[0]]
    ]
    gradients, bank, logits = list(found[processes[0]])[:3]
    for name, asked in (("bank / gradients", bank), ("(logits / gradients)", logits)):
        rows.append(
            {"MB sent by each process": name}
            | {f"R = {r}": f"{100 * found[r][asked] / max(1e-9, found[r][gradients]):.2g} %" for r in processes}
        )
    age = {f"R = {r}": f"{case.bank_size / (case.batch * r):,.2f}" for r in processes}
    return [*rows, {"MB sent by each process": f"steps that K = {case.bank_size} examples go back"} | age]


def share_table(case: Case, processes: Sequence[int], args: argparse.Namespace) -> list[Row]:
    """Of a step that computes for so long, what sending takes at this bandwidth and latency, if nothing overlaps."""
    rows = []
    for r in processes:
        gradients, bank, logits = list(traffic(case, r).values())[:3]
        count = messages(case, r)
        row: Row = {"R": r, "images a step": case.batch * r, "messages in turn": count}
        waits = count * args.latency_us * 1e-6
        for name, size in (("with bank rows", gradients + bank), ("(with all logits)", gradients + logits)):
            seconds = size / (args.bandwidth * 1e9) + waits
            row[f"ms, {name}"] = 1e3 * seconds
            row[f"share of the step, {name}"] = f"{100 * seconds / (seconds + args.step_ms * 1e-3):.1f} %"
        rows.append(row)
    return rows


def options() -> argparse.ArgumentParser:
    case = Case()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", nargs="+", type=harness.positive, default=[8, 64, 256, 1024], metavar="R")
    parser.add_argument("--net", default=case.net, metavar="DEPTH-WIDTH", help="WideResNet (default: %(default)s)")
    for name in ("classes", "batch", "image_size", "bank_size", "block"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=harness.positive, default=getattr(case, name))
    parser.add_argument("--images", type=harness.positive, default=1_281_167, help="of the data set")
    parser.add_argument("--replay", type=int, default=0, help="images of the replay buffer, of all processes")
    parser.add_argument("--bandwidth", type=float, metavar="GB/S", help="that each process can send by: an assumption")
    parser.add_argument("--step-ms", type=float, default=200.0, help="that a step computes for: an assumption")
    parser.add_argument("--latency-us", type=float, default=0.0, help="of a message: an assumption")
    parser.add_argument(
        "--simulate", action="store_true", help="play the rings instead, for these numbers of processes"
    )
    parser.add_argument("--measure", action="store_true", help="count the bytes of 2 and 4 gloo processes instead")
    return parser


def main(argv: list[str] | None = None) -> None:
    parser = options()
    args = parser.parse_args(argv)
    case = Case(**{name: getattr(args, name) for name in Case.__dataclass_fields__})
    if case.block > case.bank_size:
        parser.error(f"--block {case.block} is more than --bank-size {case.bank_size}")
    if args.simulate:
        from benchmarks.rings import simulate

        print(harness.markdown(simulate(args.processes)))
    elif args.measure:
        from benchmarks.loopback import measure

        print(harness.markdown(measure((2, 4))))
    elif args.bandwidth:
        print(harness.markdown(share_table(case, args.processes, args)))
    else:
        print(harness.markdown(traffic_table(case, args.processes)), end="\n\n")
        held = memory(case, args.images, args.replay, args.processes)
        print(harness.markdown({"held by each process": name, "MB": size / 1e6} for name, size in held.items()))


if __name__ == "__main__":
    main()
