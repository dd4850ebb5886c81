"""A classifier that judges samples: trained by us on the same images, without the model that is sampled.

Its features stand in for those of a network that would have to be downloaded, and it says whether a sample shows the
class that was asked for. The sampled model cannot say so itself: its chains climb its own logits.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import torch
from torch import nn

from ebmhybrid.data import Splits, batch_indices
from ebmhybrid.errors import CheckpointError, TrainingError, UsageError
from ebmhybrid.evaluate.files import check_writable
from ebmhybrid.generation.chains import Progress
from ebmhybrid.recipe import parse_recipe
from ebmhybrid.schema import Recipe
from ebmhybrid.training import load_model
from ebmhybrid.training.build import build_parts
from ebmhybrid.training.checkpoint import find_weights, save_weights, weights_digest
from ebmhybrid.training.classify import validate
from ebmhybrid.training.setup import Parts, epoch_generator
from ebmhybrid.training.step import train_step

STEPS, BATCH = 600, 64
_TERMS = {"ce": "cross-entropy", "hdge": "HDGE", "jem": "JEM", "logit_norm": "LogitNorm", "supcon": "SupCon"}


@dataclass(frozen=True, eq=False)
class Judge:
    """A judge in evaluation mode, and its name with its accuracy, for every figure that rests on it."""

    model: nn.Module
    name: str


def given_judge(run: str | Path, model: nn.Module, weights: Path, splits: Splits, device: torch.device) -> Judge:
    """The judge that a user names.

    Arguments:
        run: a run directory or a weight file.
        model: the sampled model, as `load_model` gives it.
        weights: its file.
        splits: its data.

    Raises:
        CheckpointError: no run there, no classifier's, or one of other classes or another shape.
        UsageError: the sampled model itself, or other weights of its run.
    """
    judge = load_model(run, device).to(memory_format=torch.channels_last)
    if not hasattr(judge, "num_classes"):
        raise CheckpointError(f"{run}: cannot judge, it is an encoder-decoder and no classifier")
    for what in ("classes", "image_shape"):
        own, other = (one.metadata[what] for one in (judge, model))  # type: ignore[index]
        if own != other:
            raise CheckpointError(f"{run}: cannot judge, its {what} are {own}, and those of the samples {other}")
    own_run = find_weights(run).resolve().parent == weights.resolve().parent and weights.parent.name == "checkpoints"
    if own_run or weights_digest(judge) == weights_digest(model):
        raise UsageError(f"judge {run}: is the sampled model itself; name another run, or leave it out")
    return _named(judge, splits, device)


def own_judge(
    folder: Path,
    recipe: Recipe,
    splits: Splits,
    *,
    device: torch.device,
    progress: Progress | None = None,
) -> Judge:
    """The run's own judge, kept in `folder` as judge-HASH.safetensors; where there is none, one is trained.

    A WRN-10-2 with batch norm, on cross-entropy and the run's own training images and augmentation, for at most 600
    steps of 64: half a minute on a core for 8x8 digits, and a weak judge of CIFAR, which its accuracy shows. The hash
    is of what decides it, recipe and training images, and the file is written at the end: it is never out of date, and
    training that is interrupted leaves nothing.

    Arguments:
        folder: a cache; made where it is absent.
        recipe: of the sampled run.
        progress: progress(steps, text) -> steps, to show a bar.

    Raises:
        EbmhybridError: something else in the file's place, a folder that cannot be written, or training that fails.
    """
    wanted = judge_recipe(recipe, splits)
    made_of = {"recipe": wanted.to_yaml(), "train_images": splits.train.digest()}
    name = hashlib.sha256(" ".join(made_of.values()).encode()).hexdigest()[:16]
    path = folder / f"judge-{name}.safetensors"
    judge = _kept(path, made_of, device)
    if judge is None:
        check_writable(path, "the judge")
        parts = _trained(wanted, splits, device, progress)
        folder.mkdir(parents=True, exist_ok=True)
        save_weights(path, parts.deployed, parts.metadata | made_of)
        judge = load_model(path, device)
    return _named(judge.to(memory_format=torch.channels_last), splits, device)


def judge_recipe(recipe: Recipe, splits: Splits) -> Recipe:
    """What the judge of a run is trained by: the run's data, and a small network of our own."""
    data = recipe.data.model_dump() | {"channels": splits.train.shape[0]}
    epochs = -(-STEPS * BATCH // len(splits.train))
    return Recipe.model_validate(
        {
            "name": "judge",
            "data": data,
            "model": {"depth": 10, "width": 2, "norm": "batch"},
            "objective": {"ce": {}},
            "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4},
            "schedule": {"name": "cosine", "warmup_steps": 20},
            "training": {"epochs": epochs, "batch_size": BATCH, "max_steps": STEPS},
        }
    )


def _kept(path: Path, made_of: dict[str, str], device: torch.device) -> nn.Module | None:
    """The judge in the file; None where there is none, or one that cannot be read.

    Raises:
        CheckpointError: anything else there, which is not ours to replace.
    """
    if path.is_symlink() or path.is_dir():
        raise CheckpointError(f"{path}: the run's judge goes there and it is no file; move it, or name another judge")
    try:
        judge = load_model(path, device)
    except CheckpointError:
        return None
    found: dict[str, str] = judge.metadata  # type: ignore[assignment]
    if any(found.get(key) != value for key, value in made_of.items()):
        raise CheckpointError(f"{path}: holds other weights than the run's judge; move it, or name another judge")
    return judge


def _trained(recipe: Recipe, splits: Splits, device: torch.device, progress: Progress | None) -> Parts:
    """The steps of the recipe, one after the other: nothing is kept or validated on the way."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        parts = build_parts(recipe, splits, device)
        parts.model.train()
        images, steps = splits.train.to(device), range(parts.total_steps)
        epochs = (
            images.fetch(batch_indices(len(images), BATCH, generator=epoch_generator(recipe.seed, epoch)))
            for epoch in count()
        )
        endless = (batch for epoch in epochs for batch in epoch)
        for _, batch in zip(progress(steps, "training the judge") if progress else steps, endless, strict=False):
            loss, *_ = train_step(parts, parts.model, *batch)
    if not torch.isfinite(loss):
        raise TrainingError("the judge's training loss is not finite; name another judge, or none")
    return parts


def _named(judge: nn.Module, splits: Splits, device: torch.device) -> Judge:
    metadata: dict = judge.metadata  # type: ignore[assignment]
    architecture = metadata["architecture"]
    network = architecture["name"]
    if network == "wide_resnet":
        network = f"WRN-{architecture['depth']}-{architecture['width']}"
    terms = parse_recipe(metadata["recipe"], "the recipe of the judge").objective
    trained = " + ".join(name for term, name in _TERMS.items() if getattr(terms, term) is not None)
    accuracy = validate(judge, splits.test, device)["accuracy"]
    return Judge(judge, f"{network}, {trained}, {100 * accuracy:.1f} % on the test split")
