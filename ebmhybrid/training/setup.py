"""The moving parts of a run and where it stands."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from ebmhybrid.data import ImageSet, Splits
from ebmhybrid.data.order import batch_sizes
from ebmhybrid.schema import Recipe
from ebmhybrid.training.distributed import ALONE, World
from ebmhybrid.training.meter import Meter
from ebmhybrid.training.objective import CodesLoss, CombinedLoss
from ebmhybrid.training.randomness import derived_seed, random_state
from ebmhybrid.training.sampler import Sampler

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype of the forward pass; `auto` is bfloat16 on GPUs from Ampere on and x86 CPUs that compute in it.

    Elsewhere it is float32, since bfloat16 would be emulated.
    """
    if name != "auto":
        return PRECISIONS[name]
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        native = device.type == "cpu" and any(getattr(torch.cpu, probe, bool)() for probe in probes)
    return torch.bfloat16 if native else torch.float32


@dataclass
class Progress:
    """Where a run stands: steps taken in all and within the epoch, the best validation so far, and the rollbacks."""

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    best: list[float] = field(default_factory=list)
    rollbacks: int = 0


@dataclass
class Parts:
    """The moving parts of a run. What changes in training is in `state_dict`: a resumed run goes on bit by bit.

    `replica` computes a step's losses where several processes train, and has gradients averaged over them.
    """

    recipe: Recipe
    splits: Splits
    device: torch.device
    model: nn.Module
    average: AveragedModel | None
    objective: CombinedLoss | CodesLoss
    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler
    scaler: torch.amp.GradScaler
    precision: torch.dtype
    generator: torch.Generator
    metadata: dict[str, Any]
    steps_per_epoch: int
    total_steps: int
    sampler: Sampler | None = None
    outliers: ImageSet | None = None
    world: World = ALONE
    replica: nn.Module | None = None
    asked: Callable[[], bool] = bool  # whether a signal has asked this process to stop; without one False
    told: int = 0  # of so many pictures that cannot be decoded
    progress: Progress = field(default_factory=Progress)
    meter: Meter = field(default_factory=Meter)

    @property
    def deployed(self) -> nn.Module:
        """The model that is validated and kept: the weight average where there is one."""
        return self.model if self.average is None else self.average.module

    @property
    def head_only(self) -> bool:
        """Whether the encoder is done and only the linear head on its features goes on learning."""
        return self.recipe.objective.supcon is not None and self.progress.epoch >= self.recipe.encoder_epochs

    @property
    def head_begins(self) -> bool:
        """Whether this is the first epoch of the head alone."""
        return self.head_only and self.progress.epoch == self.recipe.encoder_epochs

    def autocast(self) -> torch.autocast:
        """The region of a forward pass, in the run's precision."""
        return torch.autocast(self.device.type, dtype=self.precision, enabled=self.precision != torch.float32)

    def laid_out(self, images: Tensor) -> Tensor:
        """Images in the memory layout that the run computes in."""
        channels_last = self.recipe.training.channels_last and images.dim() == 4
        return images.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)

    @property
    def batch_sizes(self) -> list[int]:
        """The images of each batch of an epoch, of all processes together."""
        return batch_sizes(len(self.splits.train), self.recipe.training.batch_size, self.world.size)

    @property
    def failed(self) -> dict[int, str]:
        """Why pictures of a streamed set could not be decoded, by number; of other sets it is empty."""
        found: dict[int, str] = getattr(self.splits.train, "failed", {})
        return found

    @cached_property
    def digests(self) -> tuple[str, str | None]:
        """Of the training data, and of the set of reference images."""
        return self.splits.train.digest(), None if self.outliers is None else self.outliers.digest()

    def stateful(self) -> Iterator[tuple[str, Any]]:
        yield from (
            ("model", self.model),
            ("objective", self.objective),
            ("optimizer", self.optimizer),
            ("scheduler", self.scheduler),
            ("scaler", self.scaler),
        )
        yield "meter", self.meter
        if self.average is not None:
            yield "average", self.average

    def state_dict(self) -> dict[str, Any]:
        """What the main process saves. Every process must call it: chains and random states are collected from all."""
        chains = {} if self.sampler is None else {"sampler": self.sampler.chains_of_all(self.world)}
        return {
            **{name: part.state_dict() for name, part in self.stateful()},
            **chains,
            "random": self.world.gathered(random_state(self.generator)),
            "progress": vars(self.progress),
            "accumulate": self.recipe.training.accumulate,
            "failed": dict(self.failed),
            "batch_sizes": [self.batch_sizes[0], self.batch_sizes[-1], len(self.batch_sizes)],
        }

    def checked(self, at: Progress) -> Progress:
        """The same progress, if it can be one of this run.

        Raises:
            ValueError: it cannot.
        """
        counts = (at.step, at.epoch, at.step_in_epoch, at.rollbacks)
        fit = all(isinstance(count, int) and count >= 0 for count in counts) and at.step_in_epoch < self.steps_per_epoch
        if (
            not fit
            or len(at.best) not in (0, 2 if self.recipe.objective.learns_codes else 3)
            or not all(isinstance(value, (int, float)) for value in at.best)
        ):
            raise ValueError(f"its progress makes no sense: {vars(at)}")
        return at


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """The generator of an epoch's order: a function of seed and epoch, so that a resumed epoch is the same one."""
    return torch.Generator().manual_seed(derived_seed(seed, epoch))
