"""Several processes that train one model: who they are, what they tell each other, and how they end together.

`torchrun` starts them and says in the environment who is who. Each has the whole model and its share of every batch;
gradients are averaged by torch's DistributedDataParallel. Process 0, the main one, writes what there is to write.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ebmhybrid.data.order import share_of
from ebmhybrid.errors import ElsewhereError, TrainingError, UsageError
from ebmhybrid.messages import all_reduced, received

T = TypeVar("T")

TIMEOUT_S = 1800.0  # torch's own for gloo: one process may prepare data for that long while the others wait
# How the backends say that another process is gone or silent; they have no common class of error.
_LOST = "onnection closed by peer|onnection reset|onnection refused|roken pipe|imed out|timeout|NCCL|gloo|ProcessGroup"


@dataclass(frozen=True)
class World:
    """Which process this is of how many. Alone, each method does what it would do among others, without talking."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    talks_by: str = "cpu"  # the device of numbers that the processes exchange

    @property
    def main(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def share(self, total: int) -> tuple[int, int]:
        """Where this process's share of so many things begins and ends."""
        return share_of(total, self.rank, self.size)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over processes of a tensor of one shape, in the place of the given one."""
        if self.size > 1:
            all_reduced(values)
        return values

    def sum_begun(self, values: dict[str, Tensor], averaged: Sequence[Tensor] = ()) -> Callable[[], dict[str, Tensor]]:
        """`sum` of scalars by name, the same names on every process, in one message that is only begun.

        Arguments:
            averaged: tensors that become their means over processes in place, by the same message.

        Returns:
            What waits for the message's end and gives the sums. Until then the tensors are as they were.
        """
        if self.size == 1:
            return lambda: values
        scalars = torch.stack([value.double() for value in values.values()])
        row = torch.cat([scalars, *(tensor.double().flatten() for tensor in averaged)])
        message = dist.all_reduce(row, async_op=True)
        assert message is not None

        def end() -> dict[str, Tensor]:
            received(message, row.device)
            sums, *means = row.split([len(scalars), *(tensor.numel() for tensor in averaged)])
            for tensor, mean in zip(averaged, means, strict=True):
                tensor.copy_(mean.view_as(tensor) / self.size)
            return {name: value.to(values[name].dtype) for name, value in zip(values, sums.unbind(), strict=True)}

        return end

    def highest(self, number: int) -> int:
        """The largest of the processes' numbers."""
        if self.size == 1:
            return number
        value = torch.tensor(number, device=self.talks_by)
        dist.all_reduce(value, dist.ReduceOp.MAX)
        return int(value)

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is done inside succeeds on every process or fails on every one: no one waits for a failed one.

        Raises:
            ElsewhereError: here all went well, and on another process not. The first that failed raises its own error.
        """
        error: Exception | None = None
        try:
            yield
        except Exception as caught:
            if self.size == 1:
                raise
            error = caught
        if self.size == 1:
            return
        first = self.size - self.highest(0 if error is None else self.size - self.rank)
        if error is not None and first == self.rank:
            raise error
        if first < self.size:
            raise ElsewhereError(f"process {first} of {self.size} failed") from error

    def told(self, work: Callable[[], T]) -> T:
        """What `work` gives on the main process, on all of them; the others do not do it."""
        box: list[Any] = [None]
        with self.together():
            if self.main:
                box[0] = work()
        if self.size > 1:
            dist.broadcast_object_list(box, src=0)
        found: T = box[0]
        return found

    def main_first(self, work: Callable[[], T]) -> T:
        """`work` on every process, but on a machine's first one before the others, which find what it has fetched."""
        result: list[T] = []
        for turn in (True, False) if self.size > 1 else (True,):
            with self.together():
                if self.size == 1 or (self.local_rank == 0) == turn:
                    result.append(work())
        return result[0]

    def of_each(self, value: T) -> list[T]:
        """The processes' values on every one, in their order."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def gathered(self, value: T) -> list[T]:
        """The processes' values on the main one, in their order; on the others an empty list."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.gather_object(value, found if self.main else None, dst=0)
        return found if self.main else []

    def gathered_tensors(self, value: Tensor) -> list[Tensor]:
        """The processes' tensors, which have one shape, as `gathered`."""
        if self.size == 1:
            return [value]
        found = [torch.empty_like(value) for _ in range(self.size)] if self.main else None
        dist.gather(value.contiguous(), found, dst=0)
        return found or []


ALONE = World()


def running_statistics(model: nn.Module) -> list[Tensor]:
    """The running means and variances of batch normalisation.

    Each process moves its own by its share of a batch. Averaged over processes they are those of one model, and the
    better estimates.
    """
    found = [
        (module.running_mean, module.running_var)
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None
    ]
    return [buffer for pair in found for buffer in pair]


@contextmanager
def joined(device: str) -> Iterator[World]:
    """Meet the other processes that torchrun has started, if it has; leave them at the end.

    A process group that the caller has made already is used, and left as it is.

    Raises:
        UsageError: an environment that does not say who is who.
        TrainingError: the others do not come.
    """
    if dist.is_available() and dist.is_initialized():
        by = "cpu" if "cpu" in dist.get_backend_config() or dist.get_backend() == "gloo" else "cuda"
        yield World(dist.get_rank(), dist.get_world_size(), _number("LOCAL_RANK", dist.get_rank()), by)
        return
    size = _number("WORLD_SIZE", 1)
    if size <= 1:
        yield World()
        return
    world, timeout = World(_number("RANK"), size, _number("LOCAL_RANK", 0)), timedelta(seconds=_timeout())
    _number("MASTER_PORT")
    if world.rank >= size or not os.environ.get("MASTER_ADDR"):
        raise UsageError(
            f"RANK = {world.rank} must be below WORLD_SIZE = {size}, and MASTER_ADDR name a machine, got "
            f"{os.environ.get('MASTER_ADDR', '')!r}: start them by torchrun"
        )
    if device.startswith("cuda:"):
        raise UsageError(f"device {device!r} is one for {size} processes; take cuda, and each takes its own")
    on_gpu = device in ("auto", "cuda") and torch.cuda.is_available()
    try:
        # gloo beside nccl, for what is no tensor on a GPU
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=timeout)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise TrainingError(f"process {world.rank} of {size} could not meet the others: {reason}") from error
    with watching(world):
        yield world
    # After an error the others may be gone, and to leave in good form would mean to wait for them.
    dist.destroy_process_group()


@contextmanager
def watching(world: World) -> Iterator[None]:
    """Turn a backend's word for a process that is gone into ours.

    Raises:
        TrainingError: a process has ended, or has not answered for EBMHYBRID_PEER_TIMEOUT seconds.
    """
    try:
        yield
    except RuntimeError as error:
        if world.size == 1 or not re.search(_LOST, str(error)):
            raise
        text = " ".join(str(error).split())
        late = re.search("imed out|timeout", text)
        gone = re.search("onnection|roken pipe", text)
        what = "has ended" if gone else f"has not answered for {_timeout():g} s" if late else "could not be talked to"
        reason = re.sub(r"^\[\S+\.cc:\d+\] ", "", text).split(". ")[0][:200]
        raise TrainingError(
            f"process {world.rank} of {world.size}: another process {what} ({reason}). What was saved last is whole: "
            "go on with --resume"
        ) from error


def _timeout() -> float:
    text = os.environ.get("EBMHYBRID_PEER_TIMEOUT", str(TIMEOUT_S))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds < 1e9:
        raise UsageError(f"EBMHYBRID_PEER_TIMEOUT must be a number of seconds from 1 up, got {text!r}")
    return seconds


def _number(name: str, default: int | None = None) -> int:
    text = os.environ.get(name, "" if default is None else str(default))
    if not re.fullmatch(r"\d{1,9}", text):
        raise UsageError(f"{name} must be a number when several processes train, got {text!r}: start them by torchrun")
    return int(text)
