"""Tensors that the processes of torch.distributed exchange, and how one waits for them.

On a CPU the messages of a step are small, and a core that falls asleep while it waits for one can take longer to wake
than the message takes, on virtual machines above all. So for a while a waiting process only offers its core to others.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

AWAKE_S = 0.1  # after that the others are busy with something else, and it sleeps

_offer: Callable[[], object] = getattr(os, "sched_yield", lambda: time.sleep(0))


def processes() -> int:
    """How many processes work together: those of torch.distributed's default group, 1 where there is none."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is, from 0 on."""
    return dist.get_rank() if processes() > 1 else 0


def stay_awake(done: Callable[[], bool]) -> None:
    """Return when it is done, or after a while."""
    end = time.monotonic() + AWAKE_S
    while not done() and time.monotonic() < end:
        _offer()


def received(message: dist.Work, device: torch.device) -> None:
    """Wait for a message of tensors on a device. GPUs take it in its turn, and the host does not wait."""
    if device.type == "cpu":
        stay_awake(message.is_completed)
    message.wait()


def all_reduced(values: Tensor) -> Tensor:
    """The sum over processes of a tensor of one shape, contiguous, in the place of the given one."""
    message = dist.all_reduce(values, async_op=True)
    assert message is not None
    received(message, values.device)
    return values


def all_parts(own: Tensor) -> list[Tensor]:
    """The tensors of all processes, of one shape, by rank; without gradient."""
    parts = [torch.empty_like(own, memory_format=torch.contiguous_format) for _ in range(processes())]
    message = dist.all_gather(parts, own.contiguous(), async_op=True)
    assert message is not None
    received(message, own.device)
    return parts
