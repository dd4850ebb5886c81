"""From a loaded run and settings to samples with their figures: start, chains, judge, quality."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ebmhybrid.data import ImageSet, Splits
from ebmhybrid.errors import DataError
from ebmhybrid.evaluate.generation import evaluate_generation
from ebmhybrid.generation.chains import Progress, draw
from ebmhybrid.generation.files import SampleResult
from ebmhybrid.generation.judge import Judge, given_judge, own_judge
from ebmhybrid.generation.settings import Settings
from ebmhybrid.generation.starts import start_chains
from ebmhybrid.schema import Recipe

UNTRAINED = (
    "the run was not trained with samples: its chains show what its logits prefer, which no loss made a density of "
    "images"
)


@dataclass(frozen=True, eq=False)
class Subject:
    """What is sampled: a model as `load_model` gives it, its weight file, recipe and splits, and where it computes."""

    model: nn.Module
    weights: Path
    recipe: Recipe
    splits: Splits
    device: torch.device


def judge_of(
    subject: Subject,
    choice: str | Path | None,
    folder: Path,
    progress: Progress | None = None,
) -> Judge | None:
    """The judge of a run's samples: the one that `choice` names, none for "none", and for None our own in `folder`."""
    if choice == "none":
        return None
    if choice is not None:
        return given_judge(choice, subject.model, subject.weights, subject.splits, subject.device)
    return own_judge(folder, subject.recipe, subject.splits, device=subject.device, progress=progress)


def generate(
    subject: Subject,
    settings: Settings,
    find_judge: Callable[[], Judge | None],
    load: Callable[[str], ImageSet],
    *,
    inception: str | Path | None = None,
    limit: int | None = None,
    context: dict[str, Any] | None = None,
    progress: Progress | None = None,
) -> SampleResult:
    """Draw samples and measure them against the run's test and training images, of the classes asked for.

    Arguments:
        find_judge: gives the judge once the start is known to be there, for it may have to be trained; None leaves
            out the figures that need one.
        load: a set by name in the model's shape, for chains that start from a file.
        inception: a file of the Inception network's weights, for FID, KID and Inception score.
        limit: at most so many test images.
        context: facts for results.json.

    Raises:
        EbmhybridError: a start that cannot be used, too few test images, or chains that leave the finite.
    """
    recipe, splits, device = subject.recipe, subject.splits, subject.device
    reference = _compared(splits.test, settings, limit)
    train = _compared(splits.train, settings, None)  # whole: of a part's copies alone nothing could be said
    if len(reference) < 2:
        limited = "" if limit is None else f", and the limit is {limit}"
        raise DataError(f"{reference.name}: samples are measured against at least 2 test images, got 1{limited}")
    generator = torch.Generator().manual_seed(settings.seed)
    start = start_chains(settings, recipe, splits.train, subject.weights, load, generator)
    judge, batch_size = find_judge(), recipe.evaluation.batch_size
    drawn = draw(
        subject.model,
        settings,
        start.images,
        start.labels,
        generator,
        batch_size=batch_size,
        device=device,
        progress=progress,
    )
    figures = evaluate_generation(
        drawn.images,
        drawn.labels,
        reference=reference,
        train=train,
        model=subject.model,
        judge=None if judge is None else judge.model,
        judge_name="" if judge is None else judge.name,
        inception=inception,
        chains=(drawn.moments, drawn.chains),
        progress=progress,
        device=device,
    )
    notes = () if recipe.objective.jem is not None else (UNTRAINED,)
    return SampleResult(
        drawn,
        drawn.labels if drawn.labels is not None else _predicted(subject, drawn.images, batch_size),
        splits.train.classes,
        settings,
        figures,
        {**(context or {}), "judge": None if judge is None else judge.name},
        (*notes, *start.notes),
    )


def _compared(images: ImageSet, settings: Settings, limit: int | None) -> ImageSet:
    """The real images that samples are compared with: of the classes asked for, lest two classes lack the others."""
    asked = settings.classes
    if asked is not None and len(asked) < images.num_classes:
        places = torch.isin(images.labels, torch.tensor(asked)).nonzero().squeeze(1)
        names = ", ".join(images.classes[label] for label in asked)
        images = images.select(places).noted(f"of the classes asked for alone: {names}")
    return images if limit is None else images.take(limit)


@torch.no_grad()
def _predicted(subject: Subject, images: torch.Tensor, batch_size: int) -> torch.Tensor:
    """What the model itself takes its samples for."""
    return torch.cat([subject.model(x.to(subject.device)).argmax(1).cpu() for x in images.split(batch_size)])
