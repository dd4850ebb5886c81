"""A step of an encoder-decoder's training: its views and its forward passes; and what validation measures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ebmhybrid.data import augment
from ebmhybrid.training.randomness import derived_seed
from ebmhybrid.training.setup import Parts

Forward = Callable[..., Any]

# Best are the weights of the lowest loss on the validation images.
RANKED = {"loss": -1.0}

LARGEST = 256  # images of a validation batch, within which codes are compared


@dataclass(frozen=True)
class Views:
    """A step's images or tokens, or None where the objective asks for none.

    `view` is what is encoded, `other` a second augmentation, and `target` what is predicted where that is not `view`.
    """

    view: Tensor
    other: Tensor | None = None
    target: Tensor | None = None


def prepare(parts: Parts, forward: Forward, images: Tensor, labels: Tensor) -> Views:
    """The batch as the network sees it."""
    return _views(parts, images, parts.generator)


def _views(parts: Parts, images: Tensor, generator: torch.Generator) -> Views:
    kinds, terms = parts.recipe.data.augment, parts.recipe.objective

    def augmented() -> Tensor:
        if not images.is_floating_point():  # tokens
            return images
        view = augment(images, pad=kinds.pad, flip=kinds.flip, noise_std=kinds.noise_std, generator=generator)
        return parts.laid_out(view)

    if terms.gcrl is not None:
        contrasts, generates = terms.gcrl.weight > 0, terms.gcrl.generative_weight > 0
        return Views(augmented(), augmented() if contrasts else None, parts.laid_out(images) if generates else None)
    assert terms.latent is not None
    return Views(augmented(), augmented() if terms.latent.views == 2 else None)


def losses(parts: Parts, forward: Forward, batch: Views) -> tuple[Tensor, dict[str, Tensor], None]:
    """The loss and its parts; there are no logits."""
    with parts.autocast():
        outputs = _outputs(parts, parts.model, forward, batch)
    loss, terms = parts.objective(*outputs)
    return loss, terms, None


def _outputs(parts: Parts, model: Any, forward: Forward, batch: Views) -> tuple[Any, Tensor | None]:
    """What the network makes of the views, and the codes of the second ones where they are positives."""
    latent = parts.recipe.objective.latent
    if latent is None:
        return forward(batch.view, batch.other, batch.target), None
    positives = None if batch.other is None else model.encode(batch.other).sample()
    if latent.generative != "none":
        return forward(batch.view), positives
    posterior = model.encode(batch.view)  # nothing is decoded
    return (None, *posterior, posterior.sample()), positives


@torch.no_grad()
def figures(parts: Parts) -> dict[str, float]:
    """The loss and its parts on the validation images, in float32: the same views and codes are drawn each time."""
    model, images = parts.deployed, parts.splits.validation.to(parts.device)
    was_training = model.training
    sums: dict[str, Tensor] = {}
    model.eval()
    parts.objective.eval()
    generator = torch.Generator(parts.device)
    chunks = torch.arange(len(images)).split(min(parts.recipe.training.batch_size, LARGEST))
    own = range(parts.world.rank, len(chunks), parts.world.size)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        for number, (some, _) in zip(own, images.fetch([chunks[number] for number in own]), strict=True):
            seed = derived_seed(parts.recipe.seed, number)  # of the batch, whichever process has it
            torch.manual_seed(seed)
            outputs = _outputs(parts, model, model, _views(parts, some, generator.manual_seed(seed)))
            loss, terms = parts.objective(*outputs)
            for name, value in {"loss": loss, **terms}.items():
                sums[name] = sums.get(name, 0) + len(some) * value
    model.train(was_training)
    found = parts.world.of_each({name: value.item() for name, value in sums.items()})  # of some it may be empty
    names = dict.fromkeys(name for some in found for name in some)
    return {name: sum(some.get(name, 0.0) for some in found) / len(images) for name in names}


def said(trained: dict[str, float], found: dict[str, float]) -> str:
    """The figures of an epoch's line."""
    return f"validation loss {found['loss']:.4f}"
