"""A step of a classifier's training: what the network sees and its forward passes; and what validation measures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ebmhybrid.data import ImageSet, augment, mixup, random_images, reference_images
from ebmhybrid.losses.jem import jem_log_density
from ebmhybrid.sampling.langevin import moved, slope_of
from ebmhybrid.schema import Reference
from ebmhybrid.training.distributed import ALONE, World
from ebmhybrid.training.guard import SLOWER
from ebmhybrid.training.linear import linear_losses, only_logit
from ebmhybrid.training.objective import Contrast
from ebmhybrid.training.setup import Parts

Forward = Callable[[Tensor], Tensor]

# Best are the weights of the highest accuracy on the validation images, among equals of the lowest nll.
RANKED = {"accuracy": 1.0, "nll": -1.0}


@dataclass(frozen=True)
class Batch:
    """A step's images, each kind (N, C, H, W) or None where the objective asks for none.

    `images` are augmented and mixed, with `reference` images behind them; `plain` are the same as they were; `view` is
    a second augmentation; `samples` are the model's own, of the classes `sample_labels`.
    """

    images: Tensor
    targets: Tensor
    labels: Tensor
    plain: Tensor | None = None
    view: Tensor | None = None
    samples: Tensor | None = None
    sample_labels: Tensor | None = None


def prepare(parts: Parts, forward: Forward, images: Tensor, labels: Tensor) -> Batch:
    """The batch as the network and the loss see it: augmented, mixed, with reference images and samples."""
    recipe, kinds, generator = parts.recipe, parts.recipe.data.augment, parts.generator
    terms, plain = recipe.objective, images
    view = samples = sample_labels = None

    def augmented() -> Tensor:
        return augment(plain, pad=kinds.pad, flip=kinds.flip, noise_std=kinds.noise_std, generator=generator)

    images, targets = augmented(), labels
    if terms.supcon is not None:
        view = parts.laid_out(augmented())
    if kinds.mixup_alpha:
        images, targets = mixup(images, labels, parts.splits.train.num_classes, kinds.mixup_alpha, generator)
    climbed = partial(only_logit, parts.model) if recipe.training.linear_energy else forward
    if recipe.reference is not None:
        images = torch.cat([images, _references(parts, recipe.reference, climbed, images)])
    if parts.sampler is not None:
        sample_labels = parts.sampler.labels_for(labels, generator)
        with parts.autocast():  # one region for all steps: weights are cast once
            scale = SLOWER**parts.progress.rollbacks
            samples = parts.sampler(parts.model, climbed, sample_labels, generator, scale)
    wanted = terms.jem is not None and not terms.jem.augment
    return Batch(
        images=parts.laid_out(images),
        targets=targets,
        labels=labels,
        plain=parts.laid_out(plain) if wanted else None,
        view=view,
        samples=None if samples is None else parts.laid_out(samples),
        sample_labels=sample_labels,
    )


def _references(parts: Parts, settings: Reference, forward: Forward, images: Tensor) -> Tensor:
    """The reference images that go with these images, drawn from a set or made of them, and moved uphill if asked."""
    extra = settings.count_for(len(images))
    if parts.outliers is None:
        others = reference_images(images, extra, settings.families, parts.generator)
    else:
        others = random_images(parts.outliers.images, extra, parts.generator)
    if not settings.ascent_steps:
        return others
    was_training = parts.model.training
    parts.model.eval()  # as for the chains of JEM: an image's density depends on no other image
    try:
        with parts.autocast():
            return uphill(forward, parts.laid_out(others), settings.ascent_steps, settings.ascent_step_size)
    finally:
        parts.model.train(was_training)


def uphill(forward: Forward, images: Tensor, steps: int, step_size: float) -> Tensor:
    r"""Images moved to where the model's log density is higher: references that it takes for data, for now.

        x_{k+1} = clamp( x_k + a sign(d logsumexp_y f(x_k)_y / dx), 0, 1 )

    Source: the steps of Madry et al. 2018, without a ball around the start.

    Arguments:
        forward: images to logits (N, C), a row depending on no other; in evaluation mode.
        images: (N, C, H, W) in [0, 1].
        steps: each is a forward and a backward pass of these images. No parameter's gradient changes.
        step_size: a, in units of [0, 1].

    Returns:
        Of the shape of images, detached.

    >>> import torch
    >>> uphill(lambda x: x.flatten(1), torch.zeros(1, 1, 1, 2), steps=3, step_size=0.25)
    tensor([[[[0.7500, 0.7500]]]])
    """
    for _ in range(steps):
        slope = slope_of(lambda x: jem_log_density(forward(x)), images)
        images = moved(images, slope.sign(), step_size, 0.0, clamp=(0.0, 1.0))
    return images


def losses(parts: Parts, forward: Forward, batch: Batch) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
    """The loss, its parts, and the logits of the batch's own images, None where they are never whole.

    Data and samples go through the network one after the other: BatchNorm must not mix them.
    """
    n, contrast, views = len(batch.labels), None, None
    if parts.recipe.training.linear_energy:
        with parts.autocast():
            terms = parts.recipe.objective
            return *linear_losses(terms, parts.model, batch.images, batch.targets, batch.plain, batch.samples), None
    with parts.autocast():
        if batch.view is not None:
            logits, views = _through_features(parts, batch)
        else:
            logits = forward(batch.images)
        if batch.samples is not None and batch.sample_labels is not None:
            data = logits[:n] if batch.plain is None else forward(batch.plain)
            contrast = Contrast(data, forward(batch.samples), batch.labels, batch.sample_labels)
    reference = logits[n:] if len(logits) > n else None
    loss, terms = parts.objective(logits[:n], batch.targets, reference, contrast=contrast, views=views)
    return loss, terms, logits[:n].detach()


def _through_features(parts: Parts, batch: Batch) -> tuple[Tensor, Tensor | None]:
    """Logits of the first view from detached features, and while the encoder trains both views' features, (N, 2, D)."""
    assert batch.view is not None
    n, model = len(batch.labels), parts.model
    if parts.head_only:
        with torch.no_grad():
            features = model.features(batch.images)  # type: ignore[operator]
        return model.head(features), None  # type: ignore[operator]
    features = model.features(torch.cat([batch.images, batch.view]))  # type: ignore[operator]
    logits: Tensor = model.head(features[:n].detach())  # type: ignore[operator]
    return logits, torch.stack([features[:n], features[n:]], dim=1)


@torch.no_grad()
def validate(model: nn.Module, images: ImageSet, device: torch.device, world: World = ALONE) -> dict[str, float]:
    """Accuracy and negative log-likelihood (nats) over a set, in float32 and evaluation mode.

    Each process of `world` sees its share of the images, and all get the figures of the whole set.
    """
    was_training = model.training
    model.eval()
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    chunks = torch.arange(*world.share(len(images))).split(images.batch_size)
    for batch, labels in images.to(device).fetch([chunk for chunk in chunks if len(chunk)]):
        logits = model(batch).float()
        sums[0] += (logits.argmax(1) == labels).sum()
        sums[1] += F.cross_entropy(logits, labels, reduction="sum")
    model.train(was_training)
    accuracy, nll = (world.sum(sums) / len(images)).tolist()
    return {"accuracy": accuracy, "nll": nll}


def figures(parts: Parts) -> dict[str, float]:
    """What the kept weights reach on the validation images."""
    return validate(parts.deployed, parts.splits.validation, parts.device, parts.world)


def said(trained: dict[str, float], found: dict[str, float]) -> str:
    """The figures of an epoch's line."""
    seen = f"train {100 * trained['accuracy']:.2f} %  " if "accuracy" in trained else ""
    return f"{seen}validation {100 * found['accuracy']:.2f} %  nll {found['nll']:.4f}"
