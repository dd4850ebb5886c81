"""One training step: what the network sees, its forward passes, the loss, and the update of the weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ebmhybrid.data import augment, mixup, random_images, reference_images
from ebmhybrid.training.guard import SLOWER
from ebmhybrid.training.objective import Contrast
from ebmhybrid.training.sam import perturbed
from ebmhybrid.training.setup import Parts

Forward = Callable[[Tensor], Tensor]


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


def train_step(
    parts: Parts, forward: Forward, images: Tensor, labels: Tensor
) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Augment, sample, a forward pass for each kind of images, loss, backward, update. No value is read back."""
    settings, optimizer = parts.recipe.training, parts.recipe.optimizer
    batch = prepare(parts, forward, images, labels)
    if optimizer.sam_rho:
        parts.objective.eval()  # both gradients are of one loss: the bank takes the batch after them
    loss, terms, logits = losses(parts, forward, batch)
    parts.optimizer.zero_grad(set_to_none=True)
    parts.scaler.scale(loss).backward()
    if optimizer.sam_rho:
        _sharpness_aware(parts, forward, batch)
        parts.objective.train()
        parts.objective.push(logits)
    weights = [*parts.model.parameters(), *parts.objective.parameters()]
    if parts.sampler is not None:
        terms["grad_norm"] = nn.utils.get_total_norm([w.grad for w in weights if w.grad is not None])
    if settings.grad_clip is not None:
        parts.scaler.unscale_(parts.optimizer)
        nn.utils.clip_grad_norm_(weights, settings.grad_clip)
    parts.scaler.step(parts.optimizer)
    parts.scaler.update()
    parts.scheduler.step()
    if parts.average is not None:
        parts.average.update_parameters(parts.model)
    correct = (logits.argmax(1) == labels).sum()
    return loss.detach(), {key: value.detach() for key, value in terms.items()}, correct


def prepare(parts: Parts, forward: Forward, images: Tensor, labels: Tensor) -> Batch:
    """The batch as the network and the loss see it: augmented, mixed, with reference images and samples."""
    recipe, kinds, generator = parts.recipe, parts.recipe.data.augment, parts.generator
    terms, plain = recipe.objective, images
    view = samples = sample_labels = None

    def augmented() -> Tensor:
        return augment(plain, pad=kinds.pad, flip=kinds.flip, noise_std=kinds.noise_std, generator=generator)

    images, targets = augmented(), labels
    if terms.supcon is not None:
        view = _laid_out(parts, augmented())
    if kinds.mixup_alpha:
        images, targets = mixup(images, labels, parts.splits.train.num_classes, kinds.mixup_alpha, generator)
    if recipe.reference is not None:
        extra = max(1, round(recipe.reference.fraction * len(labels)))
        if parts.outliers is None:
            others = reference_images(images, extra, recipe.reference.families, generator)
        else:
            others = random_images(parts.outliers.images, extra, generator)
        images = torch.cat([images, others])
    if parts.sampler is not None:
        sample_labels = parts.sampler.labels_for(labels, generator)
        with _autocast(parts):  # one region for all steps: weights are cast once
            scale = SLOWER**parts.progress.rollbacks
            samples = parts.sampler(parts.model, forward, sample_labels, generator, scale)
    wanted = terms.jem is not None and not terms.jem.augment
    return Batch(
        images=_laid_out(parts, images),
        targets=targets,
        labels=labels,
        plain=_laid_out(parts, plain) if wanted else None,
        view=view,
        samples=None if samples is None else _laid_out(parts, samples),
        sample_labels=sample_labels,
    )


def losses(parts: Parts, forward: Forward, batch: Batch) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """The loss, its parts, and the logits of the batch's own images.

    Data and samples go through the network one after the other: BatchNorm must not mix them.
    """
    n, contrast, views = len(batch.labels), None, None
    with _autocast(parts):
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


def _sharpness_aware(parts: Parts, forward: Forward, batch: Batch) -> None:
    """Replace the gradients by those at the weights where the loss is highest nearby; state stays as it is."""
    settings, modules = parts.recipe.optimizer, nn.ModuleList([parts.model, parts.objective])
    with perturbed(modules, settings.sam_rho, settings.sam_adaptive):
        parts.optimizer.zero_grad(set_to_none=True)
        losses(parts, forward, batch)[0].backward()


def _autocast(parts: Parts) -> torch.autocast:
    return torch.autocast(parts.device.type, dtype=parts.precision, enabled=parts.precision != torch.float32)


def _laid_out(parts: Parts, images: Tensor) -> Tensor:
    channels_last = parts.recipe.training.channels_last
    return images.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
