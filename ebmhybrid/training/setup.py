"""Everything a recipe builds before the first step: data, model, objective, optimiser, generators."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from ebmhybrid.data import ImageSet, Splits, count_batches, load_set, load_splits
from ebmhybrid.errors import CheckpointError, RecipeError
from ebmhybrid.models import build_model
from ebmhybrid.schema import Recipe
from ebmhybrid.training.checkpoint import load_model
from ebmhybrid.training.objective import CombinedLoss
from ebmhybrid.training.optimization import build_average, build_optimizer, build_scheduler
from ebmhybrid.training.sampler import Sampler, build_sampler

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
    objective: CombinedLoss
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
        if not fit or len(at.best) not in (0, 3) or not all(isinstance(value, (int, float)) for value in at.best):
            raise ValueError(f"its progress makes no sense: {vars(at)}")
        return at


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """The generator of an epoch's order: a function of seed and epoch, so that a resumed epoch is the same one."""
    state = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> 1))


def load_data(recipe: Recipe, data_dir: str, download: bool) -> Splits:
    """The recipe's splits in the model's shape."""
    data = recipe.data
    # Pictures of no common size are decoded at the size asked for, which takes a whole shape; all of them are RGB.
    is_rgb = recipe.model.name.startswith("torchvision/") or data.train.startswith(("folder:", "celeba", "textures"))
    channels: int | None = data.channels or (3 if is_rgb else None)
    shape = (channels, data.image_size, data.image_size) if channels and data.image_size else None
    splits = load_splits(
        data.train,
        test=data.test,
        validation_fraction=data.validation_fraction,
        test_fraction=data.test_fraction,
        seed=data.split_seed,
        data_dir=data_dir,
        download=download,
        shape=shape,
    )
    own = splits.train.shape
    size = data.image_size or own[1]
    if size != own[2] and not data.image_size:
        raise RecipeError(f"{data.train}: its images are {own[1]}x{own[2]}, not square: set data.image_size")
    return Splits(*(part.adapt(channels or own[0], size) for part in (splits.train, splits.validation, splits.test)))


def load_outliers(recipe: Recipe, splits: Splits, data_dir: str, download: bool) -> ImageSet | None:
    """The set that reference images are drawn from, in the shape of the training images; None where they are made."""
    if recipe.reference is None or recipe.reference.set is None:
        return None
    shape = splits.train.shape
    outliers = load_set(recipe.reference.set, data_dir=data_dir, download=download, shape=shape)
    return outliers.adapt(shape[0], shape[1])


def build_parts(
    recipe: Recipe, splits: Splits, device: torch.device, outliers: ImageSet | None = None, *, resuming: bool = False
) -> Parts:
    """Build what the recipe names, with weights drawn from its seed, or those of `model.init` unless it is resumed.

    The caller owns torch's global random state.
    """
    pad = recipe.data.augment.pad
    if pad >= splits.train.shape[1]:
        size = splits.train.shape[1]
        raise RecipeError(f"data.augment.pad = {pad}: must be less than the image size {size}")
    torch.manual_seed(recipe.seed)
    architecture = {
        "name": recipe.model.name,
        "num_classes": splits.train.num_classes,
        "in_channels": splits.train.shape[0],
        **recipe.model.arguments(),
    }
    model = build_model(**architecture)
    _try_on(model, splits, recipe)
    if recipe.model.init is not None and not resuming:
        _start_from(model, recipe.model.init)
    num_features = model.head.in_features if recipe.objective.supcon else 0  # type: ignore[union-attr]
    objective = CombinedLoss(recipe.objective, splits.train.num_classes, num_features).to(device)  # type: ignore[arg-type]
    layout = torch.channels_last if recipe.training.channels_last else torch.contiguous_format
    model = model.to(device, memory_format=layout)  # type: ignore[call-overload]
    optimizer = build_optimizer(
        nn.ModuleList([model, objective]), recipe.optimizer, fused=device.type in ("cpu", "cuda")
    )
    precision = pick_precision(recipe.training.precision, device)
    steps_per_epoch = count_batches(len(splits.train), recipe.training.batch_size)
    total_steps = min(steps_per_epoch * recipe.training.epochs, recipe.training.max_steps or steps_per_epoch * 10**9)
    generator = torch.Generator(device).manual_seed(recipe.seed)
    jem, encoder_steps = recipe.objective.jem, min(total_steps, recipe.encoder_epochs * steps_per_epoch)
    stages = [steps for steps in (encoder_steps, total_steps - encoder_steps) if steps]
    return Parts(
        recipe=recipe,
        splits=splits,
        device=device,
        model=model,
        average=build_average(model, recipe.training.ema),
        objective=objective,
        optimizer=optimizer,
        scheduler=build_scheduler(optimizer, recipe.schedule, stages, steps_per_epoch),
        scaler=torch.amp.GradScaler(device.type, enabled=precision == torch.float16),
        precision=precision,
        generator=generator,
        metadata=_metadata(recipe, splits, architecture, model),
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        sampler=build_sampler(jem, splits.train, device, generator, layout) if jem is not None else None,
        outliers=None if outliers is None else outliers.to(device),
    )


def _try_on(model: nn.Module, splits: Splits, recipe: Recipe) -> None:
    """One image through the fresh model: a size it cannot take is an error now, not after a run directory is made."""
    shape = splits.train.shape
    try:
        with torch.no_grad():
            logits: Tensor = model.eval()(torch.zeros(1, *shape))
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise RecipeError(f"model {recipe.model.name!r} cannot take images of {shape}: {reason}") from error
    if logits.shape != (1, splits.train.num_classes):
        raise RecipeError(
            f"model {recipe.model.name!r} gives {tuple(logits.shape)}, not (1, {splits.train.num_classes})"
        )


def _start_from(model: nn.Module, path: str) -> None:
    """Take over the weights of a run or weight file of the same architecture."""
    try:
        model.load_state_dict(load_model(path).state_dict())
    except CheckpointError as error:
        raise CheckpointError(f"model.init = {path!r}: {error}") from error
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise RecipeError(f"model.init = {path!r}: its weights do not fit the model ({reason[:300]})") from error


def _metadata(recipe: Recipe, splits: Splits, architecture: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    normalize = model.normalize
    assert isinstance(normalize, nn.Module)
    return {
        "architecture": architecture,
        "classes": list(splits.train.classes),
        "image_shape": list(splits.train.shape),
        "normalisation": {
            "mean": normalize.mean.flatten().tolist(),  # type: ignore[operator]
            "std": normalize.std.flatten().tolist(),  # type: ignore[operator]
        },
        "recipe": recipe.to_yaml(),
    }
