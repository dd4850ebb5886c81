"""The bytes that real gloo processes send over this machine's loopback interface, against the model's.

The kernel counts them in /proc/net/dev with the headers of TCP and IP, acknowledgements and gloo's own words, and what
other programs send meanwhile; so each exchange is made several times, and the round of the fewest bytes counts, less
those of a round in which nothing is exchanged but what all rounds begin and end with.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from benchmarks.traffic import Case, all_gather_sent, all_reduce_sent
from ebmhybrid import HDGELoss
from ebmhybrid.models import WideResNet

ROUNDS = 5
NOTHING = "nothing"
STEP = Case(net="16-2", classes=100, batch=32, bank_size=1024, block=8, image_size=8)


def loopback_bytes() -> int:
    """Bytes sent over `lo` since the machine started; Linux alone tells."""
    for line in Path("/proc/net/dev").read_text(encoding="ascii").splitlines():
        name, _, counts = line.partition(":")
        if name.strip() == "lo":
            return int(counts.split()[8])
    raise OSError("no loopback interface in /proc/net/dev")


def exchanges(processes: int) -> dict[str, tuple[Callable[[], Any], float]]:
    """What is done, and the bytes that each process sends for it by the model."""
    large, rows = torch.ones(2**20), torch.ones(2**18)
    parts = [torch.empty_like(rows) for _ in range(processes)]
    # Without running statistics, which the wrapper would send around.
    model = DistributedDataParallel(WideResNet(16, 2, STEP.classes, norm="layer"))
    loss_fn = HDGELoss(STEP.classes, bank_size=STEP.bank_size, bank_block=STEP.block, gather=True)
    images, labels = torch.rand(STEP.batch, 3, STEP.image_size, STEP.image_size), torch.arange(STEP.batch)
    weights = 4 * sum(p.numel() for p in model.parameters())
    rows_sent = all_gather_sent(STEP.rows(processes) * 4 * STEP.classes, processes)

    def step() -> None:
        loss = loss_fn(model(images), labels)
        assert isinstance(loss, Tensor)
        loss.backward()

    return {
        "all-reduce of 4 MiB": (lambda: dist.all_reduce(large), all_reduce_sent(4 * len(large), processes)),
        "all-gather of 1 MiB": (lambda: dist.all_gather(parts, rows), all_gather_sent(4 * len(rows), processes)),
        "rows of the bank, 4 of 100 numbers": (
            lambda: loss_fn(torch.rand(STEP.batch, STEP.classes), labels),
            rows_sent,
        ),
        f"a step of WRN-{STEP.net} with a bank": (step, all_reduce_sent(weights, processes) + rows_sent),
    }


def _work(rank: int, processes: int, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    torch.manual_seed(0)
    where = f"file://{folder}/meet"
    dist.init_process_group("gloo", where, timedelta(seconds=120), processes, rank)
    found = {}
    for name, (call, model) in {NOTHING: (lambda: None, 0.0), **exchanges(processes)}.items():
        call()  # connections and buckets are made at the first
        counts = []
        for _ in range(ROUNDS):
            dist.barrier()
            before = loopback_bytes()
            dist.barrier()  # no process begins before all have looked
            call()
            dist.barrier()
            counts.append(loopback_bytes() - before)
        found[name] = (min(counts) / processes, model)
    if rank == 0:
        torch.save(found, f"{folder}/found")
    dist.destroy_process_group()


def measure(processes: Sequence[int]) -> list[dict[str, Any]]:
    """A line for each exchange and number of processes."""
    rows = []
    for r in processes:
        with tempfile.TemporaryDirectory() as folder:
            mp.spawn(_work, (r, folder), nprocs=r)
            found = torch.load(f"{folder}/found", weights_only=True)
        idle, _ = found.pop(NOTHING)
        for name, (total, model) in found.items():
            counted = total - idle
            row = {"R": r, "exchange": name, "bytes a process": f"{counted:,.0f}", "by the model": f"{model:,.0f}"}
            rows.append(row | {"more by": f"{100 * (counted / model - 1):.2f} %"})
    return rows
