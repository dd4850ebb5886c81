"""From a recipe to the parts of its run: data, network, objective, optimiser."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ebmhybrid.data import ImageSet, Splits, count_batches, load_set, load_splits
from ebmhybrid.data.order import LEAST
from ebmhybrid.data.streamed import StreamedSet
from ebmhybrid.data.text_splits import load_text_splits
from ebmhybrid.data.tokens import TokenSet
from ebmhybrid.errors import CheckpointError, DataError, RecipeError
from ebmhybrid.models import Normalize, architecture_of, build_model
from ebmhybrid.models.sync_norm import synchronize_batch_norm
from ebmhybrid.schema import Recipe
from ebmhybrid.training.checkpoint import load_model
from ebmhybrid.training.distributed import ALONE, World
from ebmhybrid.training.objective import CodesLoss, CombinedLoss
from ebmhybrid.training.optimization import build_average, build_optimizer, build_scheduler
from ebmhybrid.training.randomness import derived_seed, seed_global
from ebmhybrid.training.sampler import build_sampler
from ebmhybrid.training.setup import Parts, pick_precision

FITTED_IMAGES = 2000
OF_NO_SIZE = ("folder:", "shards:", "celeba", "textures")  # names of sets of pictures of all sizes


def load_data(recipe: Recipe, data_dir: str, download: bool, strict: bool = False) -> Splits:
    """The recipe's splits in the model's shape; with `strict` a picture that cannot be decoded is an error."""
    data = recipe.data
    if recipe.model.name == "sequence_autoencoder":
        return load_text_splits(
            data.train,
            test=data.test,
            validation_fraction=data.validation_fraction,
            test_fraction=data.test_fraction,
            seed=data.split_seed,
            max_length=data.max_length,
        )
    # Pictures of no common size are decoded at the size asked for, which takes a whole shape; all of them are RGB.
    is_rgb = recipe.model.name.startswith("torchvision/") or data.train.startswith(OF_NO_SIZE)
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
        labelled=not recipe.model.learns_codes,
        stream=data.stream,
        workers=data.workers,
        strict=strict,
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
    # Drawn at random at each step, so they have to be in memory.
    outliers = load_set(recipe.reference.set, data_dir=data_dir, download=download, shape=shape, stream=False)
    return outliers.adapt(shape[0], shape[1])


def build_parts(
    recipe: Recipe,
    splits: Splits,
    device: torch.device,
    outliers: ImageSet | None = None,
    *,
    resuming: bool = False,
    world: World = ALONE,
) -> Parts:
    """Build what the recipe names, with weights drawn from its seed, or those of `model.init` unless it is resumed.

    The caller owns the global random states. Every process of `world` builds the same weights, and from then on draws
    from a seed of its own.
    """
    pad, size = recipe.data.augment.pad, splits.train.shape[-1]
    if pad >= size:
        raise RecipeError(f"data.augment.pad = {pad}: must be less than the image size {size}")
    _check_shares(recipe, len(splits.train), world)
    seed_global(recipe.seed)
    architecture = architecture_of(recipe.model.name, _facts(splits.train), recipe.model.arguments())
    model = build_model(**architecture)
    _try_on(model, splits, recipe)
    if not resuming and recipe.model.init is not None:
        _start_from(model, recipe.model.init)
    elif not resuming and hasattr(model, "fit_palette"):
        # By the seed of the split: likelihoods under palettes of their own would not compare over training seeds.
        model.fit_palette(_some(splits.train), seed=recipe.data.split_seed)  # type: ignore[operator]
    if recipe.training.sync_batch_norm and world.size > 1:
        model = synchronize_batch_norm(model, on_cpu=device.type == "cpu")
    objective = _build_objective(recipe, model, splits, world).to(device)
    seed = recipe.seed
    if not world.main:
        seed = derived_seed(recipe.seed, world.rank)
        seed_global(seed)
    layout = torch.channels_last if recipe.training.channels_last else torch.contiguous_format
    model = model.to(device, memory_format=layout)  # type: ignore[call-overload]
    optimizer = build_optimizer(
        nn.ModuleList([model, objective]), recipe.optimizer, fused=device.type in ("cpu", "cuda")
    )
    precision = pick_precision(recipe.training.precision, device)
    steps_per_epoch = count_batches(len(splits.train), recipe.training.batch_size, world.size)
    total_steps = min(steps_per_epoch * recipe.training.epochs, recipe.training.max_steps or steps_per_epoch * 10**9)
    generator = torch.Generator(device).manual_seed(seed)
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
        sampler=None if jem is None else build_sampler(jem, splits.train, device, generator, layout, world.size),
        outliers=None if outliers is None else outliers.to(device),
        world=world,
    )


def _check_shares(recipe: Recipe, images: int, world: World) -> None:
    """Each process needs two images of each part of a batch, or BatchNorm has nothing to take a variance of."""
    training = recipe.training
    if images < LEAST * world.size:
        raise DataError(
            f"{recipe.data.train}: {images} training images are too few for {world.size} processes, which need two each"
        )
    if training.batch_size < (needed := LEAST * world.size * training.accumulate):
        raise RecipeError(
            f"training.batch_size = {training.batch_size}: must be at least {needed}, two images for each of "
            f"training.accumulate = {training.accumulate} parts on each of {world.size} processes"
        )


def _some(images: ImageSet | StreamedSet) -> Tensor:
    """The images of a set, or of a large one enough to take colours from."""
    return images.take(FITTED_IMAGES).in_memory().images if isinstance(images, StreamedSet) else images.images


def _facts(images: ImageSet | TokenSet) -> dict[str, Any]:
    """What the training data decides about a network."""
    if isinstance(images, TokenSet):
        return {"vocabulary": list(images.vocabulary.tokens), "max_length": images.shape[0]}
    channels, size, _ = images.shape
    return {"num_classes": images.num_classes, "in_channels": channels, "image_size": size}


def _build_objective(recipe: Recipe, model: nn.Module, splits: Splits, world: World) -> CombinedLoss | CodesLoss:
    gather = world.size > 1
    if recipe.objective.learns_codes:
        _, height, width = splits.train.shape if recipe.objective.gcrl else (0, 0, 0)
        return CodesLoss(recipe.objective, height * width, gather=gather)
    num_features = model.head.in_features if recipe.objective.supcon else 0  # type: ignore[union-attr]
    classes = splits.train.num_classes
    return CombinedLoss(recipe.objective, classes, num_features, gather=gather)  # type: ignore[arg-type]


def _try_on(model: nn.Module, splits: Splits, recipe: Recipe) -> None:
    """One input through the fresh model: a size it cannot take is an error now, not after a run directory is made."""
    shape, latent = splits.train.shape, recipe.objective.latent
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):  # codes are drawn from the global generator
            if recipe.model.learns_codes:
                decodes = latent is not None and latent.generative != "none"
                used: Any = model.eval() if decodes else model.eval().encode
                used(next(splits.train.fetch([torch.zeros(1, dtype=torch.int64)]))[0])
                return
            logits = model.eval()(torch.zeros(1, *shape))
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise RecipeError(f"model {recipe.model.name!r} cannot take inputs of {shape}: {reason}") from error
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
    known: dict[str, Any] = {
        "architecture": architecture,
        "classes": list(splits.train.classes),
        "image_shape": list(splits.train.shape),
        "recipe": recipe.to_yaml(),
    }
    if isinstance(normalize := getattr(model, "normalize", None), Normalize):
        known["normalisation"] = {"mean": normalize.mean.flatten().tolist(), "std": normalize.std.flatten().tolist()}
    return known
