"""A classifier that judges samples: trained by us on the same images, without the model that is sampled.

Its features stand in for those of a network that would have to be downloaded, and it says whether a sample shows the
class that was asked for. The sampled model cannot say so itself: its chains climb its own logits.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import torch
import yaml
from torch import nn

from ebmhybrid.data import Splits
from ebmhybrid.errors import CheckpointError, UsageError
from ebmhybrid.recipe import parse_recipe
from ebmhybrid.schema import Recipe
from ebmhybrid.training import load_model, train
from ebmhybrid.training.checkpoint import find_weights, weights_digest
from ebmhybrid.training.meter import validate

STEPS, BATCH = 600, 64
_TERMS = {"ce": "cross-entropy", "hdge": "HDGE", "jem": "JEM", "logit_norm": "LogitNorm", "supcon": "SupCon"}


@dataclass(frozen=True, eq=False)
class Judge:
    """A judge in evaluation mode, and its name with its accuracy, for every figure that rests on it."""

    model: nn.Module
    name: str


def given_judge(run: str | Path, model: nn.Module, splits: Splits, device: torch.device) -> Judge:
    """The judge that a user names.

    Arguments:
        run: a run directory or a weight file.
        model: the sampled model, as `load_model` gives it.
        splits: its data.

    Raises:
        CheckpointError: no run there, or one of other classes or another shape.
        UsageError: the sampled model itself.
    """
    judge = load_model(run, device).to(memory_format=torch.channels_last)
    for what in ("classes", "image_shape"):
        own, other = (one.metadata[what] for one in (judge, model))  # type: ignore[index]
        if own != other:
            raise CheckpointError(f"{run}: cannot judge, its {what} are {own}, and those of the samples {other}")
    if weights_digest(judge) == weights_digest(model):
        raise UsageError(f"judge {run}: is the sampled model itself; name another run, or leave it out")
    return _named(judge, splits, device)


def own_judge(
    folder: Path,
    recipe: Recipe,
    splits: Splits,
    *,
    data_dir: str | Path = "data",
    download: bool = True,
    device: torch.device,
    progress: bool = False,
) -> Judge:
    """The judge in `folder`; where there is none of these training images, one is trained, all of it or nothing.

    A WRN-10-2 with batch norm, on cross-entropy and the run's own training images and augmentation, for at most 600
    steps of 64: half a minute on a core for 8x8 digits, and a weak judge of CIFAR, which its accuracy shows.

    Arguments:
        recipe: of the sampled run.

    Raises:
        EbmhybridError: training that fails or a folder that cannot be written.
        KeyboardInterrupt: training was interrupted.
    """
    wanted = judge_recipe(recipe, splits)
    if not _is_of(folder, wanted, splits):
        _train(folder, wanted, data_dir, download, device, progress)
        if not _is_of(folder, wanted, splits):
            raise CheckpointError(f"{folder}: was trained on other images than the run; has its data changed just now?")
    judge = load_model(folder, device).to(memory_format=torch.channels_last)
    return _named(judge, splits, device)


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


def _is_of(folder: Path, wanted: Recipe, splits: Splits) -> bool:
    """Whether the folder holds a judge of this recipe and these training images."""
    try:
        record = json.loads((folder / "env.json").read_text(encoding="utf-8"))
        recipe = parse_recipe((folder / "config.yaml").read_text(encoding="utf-8"), str(folder))
        find_weights(folder)
        return recipe == wanted and bool(record["data"]["train"]["sha256"] == splits.train.digest())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _train(
    folder: Path, recipe: Recipe, data_dir: str | Path, download: bool, device: torch.device, progress: bool
) -> None:
    """Train beside `folder` and take its place at the end; whatever ends it before that leaves nothing."""
    fresh = folder.with_name(f".{folder.name}.{uuid4().hex[:8]}.new")
    try:
        run = train(recipe, fresh, data_dir=data_dir, download=download, device=str(device), progress=progress)
        if run.signal:
            raise KeyboardInterrupt
        for path in (fresh / "checkpoints").glob("last.*"):
            path.unlink()  # nobody goes on from them, and the newest run is told by its last weights
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _named(judge: nn.Module, splits: Splits, device: torch.device) -> Judge:
    metadata: dict = judge.metadata  # type: ignore[assignment]
    architecture = metadata["architecture"]
    network = architecture["name"]
    if network == "wide_resnet":
        network = f"WRN-{architecture['depth']}-{architecture['width']}"
    terms = yaml.safe_load(metadata["recipe"]).get("objective", {})
    trained = " + ".join(name for term, name in _TERMS.items() if term in terms)
    accuracy = validate(judge, splits.test, device)["accuracy"]
    return Judge(judge, f"{network}, {trained}, {100 * accuracy:.1f} % on the test split")
