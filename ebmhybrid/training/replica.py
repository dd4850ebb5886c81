"""The network and its objective as DistributedDataParallel wants them: one module, one call a step."""

from __future__ import annotations

import inspect
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from ebmhybrid.messages import all_reduced, processes
from ebmhybrid.training.setup import Parts


class Replica(nn.Module):
    """What one process computes of a step: whatever passes the task makes through the network, and the losses.

    As one module, since gradients are averaged over processes while the backward pass of its call goes on: calls of
    the network's parts would go past the wrapper.
    """

    def __init__(self, parts: Parts, task: Any, forward: Any) -> None:
        super().__init__()
        self.model, self.objective = parts.model, parts.objective
        self.compute = lambda batch: task.losses(parts, forward, batch)  # hides a compiled network from the registry

    def forward(self, batch: Any) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
        loss, terms, logits = self.compute(batch)
        return loss, {name: value.detach() for name, value in terms.items()}, logits


def replicate(parts: Parts, task: Any, forward: Any) -> nn.Module | None:
    """The wrapped replica of a process among several; alone there is none.

    Buffers are not broadcast: every process computes the same bank, and running statistics are averaged.
    """
    if parts.world.size == 1:
        return None
    terms = parts.recipe.objective
    some_rest = parts.head_only  # the encoder
    if terms.gcrl is not None:
        some_rest |= not (terms.gcrl.weight and terms.gcrl.generative_weight and getattr(parts.model, "empty", 0))
    some_rest |= terms.latent is not None and terms.latent.generative == "none"  # its decoder
    # Else torch fills its buckets anew after the first step, that of a resumed run too: sums of three numbers or more
    # then have another order.
    some_rest |= parts.device.type == "cpu" and parts.world.size > 2
    known = inspect.signature(DistributedDataParallel).parameters
    no_broadcast = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # its former name
    options: dict[str, Any] = {
        no_broadcast: False,
        "find_unused_parameters": some_rest,
        "bucket_cap_mb": None if parts.device.type == "cuda" else 25,  # else the first is smaller: a message more
        "gradient_as_bucket_view": not parts.recipe.training.compile,  # whose gradients are laid out otherwise
    }
    replica = DistributedDataParallel(Replica(parts, task, forward), **options)
    if parts.device.type == "cpu":
        replica.register_comm_hook(None, lambda _, bucket: _average_awake(bucket))
    return replica


def _average_awake(bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """The usual mean over processes, for the last of which the core is kept awake: nothing is left to compute."""
    if not bucket.is_last():
        found: torch.futures.Future[Tensor] = allreduce_hook(dist.group.WORLD, bucket)  # type: ignore[arg-type]
        return found
    mean: torch.futures.Future[Tensor] = torch.futures.Future()
    mean.set_result(all_reduced(bucket.buffer().div_(processes())))
    return mean


def step_losses(parts: Parts, task: Any, forward: Any, batch: Any) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
    """The losses of this process's share of a batch."""
    found: tuple[Tensor, dict[str, Tensor], Tensor | None]
    found = task.losses(parts, forward, batch) if parts.replica is None else parts.replica(batch)
    return found


def gradients_wait(parts: Parts, wait: bool) -> AbstractContextManager[None]:
    """Inside, gradients are added up on each process alone: others are to come before they are averaged."""
    if wait and isinstance(parts.replica, DistributedDataParallel):
        found: AbstractContextManager[None] = parts.replica.no_sync()
        return found
    return nullcontext()
