"""The moving parts of a run and where it stands."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from ebmhybrid.data import ImageSet, Splits
from ebmhybrid.schema import Recipe
from ebmhybrid.training.objective import CodesLoss, CombinedLoss
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
    """The moving parts of a run. What changes in training is in `state_dict`: a resumed run goes on bit by bit."""

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
    progress: Progress = field(default_factory=Progress)

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

    def _stateful(self) -> Iterator[tuple[str, Any]]:
        yield from (
            ("model", self.model),
            ("objective", self.objective),
            ("optimizer", self.optimizer),
            ("scheduler", self.scheduler),
            ("scaler", self.scaler),
        )
        if self.average is not None:
            yield "average", self.average
        if self.sampler is not None:
            yield "sampler", self.sampler

    def state_dict(self) -> dict[str, Any]:
        return {
            **{name: part.state_dict() for name, part in self._stateful()},
            "generator": self.generator.get_state(),
            "torch_rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if self.device.type == "cuda" else [],
            "progress": vars(self.progress),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, part in self._stateful():
            part.load_state_dict(state[name])
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["torch_rng"])
        if state["cuda_rng"] and self.device.type == "cuda":
            torch.cuda.set_rng_state_all(state["cuda_rng"])
        vars(self.progress).update(vars(self._checked(Progress(**state["progress"]))))  # in place: the loop holds it
        if self.sampler is not None:
            self.sampler.check_buffer()

    def _checked(self, at: Progress) -> Progress:
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
    state = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> 1))
