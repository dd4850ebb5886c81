"""The chains of a JEM term: drawn from the replay buffer, moved on by Langevin dynamics, put back."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ebmhybrid.data import ImageSet
from ebmhybrid.data.augment import draw_device
from ebmhybrid.errors import RecipeError
from ebmhybrid.losses.jem import jem_log_density
from ebmhybrid.sampling import GaussianStart, ReplayBuffer, UniformStart, proximal_sgld, sgld
from ebmhybrid.terms import JEMTerm
from ebmhybrid.training.distributed import World

LARGEST = 64 * 2**30  # bytes of a buffer, or of the factors of Gaussian starts


class Sampler(nn.Module):
    """Samples for a training step, by the recipe's settings; the buffer of its chains is its state.

    Arguments:
        term: the recipe's.
        buffer: pooled for chains without class.
        layout: the memory format of the model's weights, in which convolutions are fast.
    """

    def __init__(
        self, term: JEMTerm, buffer: ReplayBuffer, layout: torch.memory_format = torch.contiguous_format
    ) -> None:
        super().__init__()
        self.term, self.buffer, self.layout = term, buffer, layout

    def check_buffer(self) -> None:
        """A ValueError unless the buffer holds images that chains can go on from."""
        images = self.buffer.images
        if not images.isfinite().all() or (self.term.clamp and not 0 <= images.min() <= images.max() <= 1):
            raise ValueError(f"its replay buffer holds values {images.min():g}..{images.max():g}")

    def chains_of_all(self, world: World) -> dict[str, Tensor]:
        """The buffers of all processes as one, class by class, on the main process; nothing on the others."""
        of_class = self.buffer.images.view(self.buffer.num_classes, self.buffer.share, *self.buffer.images.shape[1:])
        shards = world.gathered_tensors(of_class)
        return {"buffer.images": torch.cat(shards, dim=1).flatten(0, 1)} if shards else {}

    def take_chains(self, state: dict[str, Tensor], world: World) -> str | None:
        """This process's share of what `chains_of_all` gave, and a note where there are more or fewer slots now."""
        images, buffer = state["buffer.images"], self.buffer
        classes, share = buffer.num_classes, buffer.share
        if images.dtype != buffer.images.dtype or images.shape[1:] != buffer.images.shape[1:] or len(images) % classes:
            raise ValueError(f"its replay buffer is {images.dtype} {tuple(images.shape)}")
        own = images.view(classes, -1, *images.shape[1:])[:, world.rank * share : (world.rank + 1) * share]
        slots = buffer.images.view(classes, share, *images.shape[1:])
        slots[:, : own.shape[1]] = own.to(slots.device)
        had, has = len(images) // classes, share * world.size
        self.check_buffer()
        if had == has:
            return None
        change = f"{has - had} start afresh" if has > had else f"{had - has} are dropped"
        return f"the replay buffer held {had} chains a class and now holds {has}: {change}"

    def labels_for(self, labels: Tensor, generator: torch.Generator | None) -> Tensor:
        """The classes of a step's chains: the batch's own for log p(x|y), else drawn uniformly, one a chain."""
        if self.term.target == "conditional":
            return labels
        where = draw_device(labels, generator)
        return torch.randint(self.buffer.num_classes, labels.shape, generator=generator, device=where).to(labels.device)

    def forward(
        self,
        model: nn.Module,
        forward: Callable[[Tensor], Tensor],
        labels: Tensor,
        generator: torch.Generator | None,
        scale: float = 1.0,
    ) -> Tensor:
        """Chains of these classes after the recipe's steps, (N, C, H, W), detached; kept in the buffer too.

        The model is in evaluation mode meanwhile: with batch statistics or dropout an image's density would depend on
        the other images or on chance. `forward` is the model, or its compiled form; `scale` shrinks the steps.
        """
        term = self.term
        start, slots = self.buffer.draw(labels, generator)
        was_training = model.training
        model.eval()
        try:
            start = start.contiguous(memory_format=self.layout)
            samples = self._walk(model, forward, start, labels if term.by_class else None, generator, scale)
        finally:
            model.train(was_training)
        self.buffer.put(slots, samples)
        return samples

    def _walk(
        self,
        model: nn.Module,
        forward: Callable[[Tensor], Tensor],
        start: Tensor,
        classes: Tensor | None,
        generator: torch.Generator | None,
        scale: float,
    ) -> Tensor:
        term = self.term
        settings: dict[str, Any] = {
            "steps": term.steps,
            "step_size": scale * term.step_size,
            "noise_std": term.noise_std,
            "generator": generator,
            "clip": term.clip,
            "clamp": (0.0, 1.0) if term.clamp else None,
        }
        if not term.inner_steps:
            return sgld(lambda images: jem_log_density(forward(images), classes), start, **settings)
        settings |= {"inner_steps": term.inner_steps, "inner_step_size": scale * term.inner_step_size}
        stem: Callable[[Tensor], Tensor] = model.stem  # type: ignore[assignment]
        after: Callable[[Tensor], Tensor] = model.after_stem  # type: ignore[assignment]
        return proximal_sgld(stem, lambda u: jem_log_density(after(u), classes), start, **settings)


def build_sampler(
    term: JEMTerm,
    train: ImageSet,
    device: torch.device,
    generator: torch.Generator,
    layout: torch.memory_format = torch.contiguous_format,
    processes: int = 1,
) -> Sampler:
    """The sampler of a recipe, its buffer filled with fresh starts; of several processes each has its share of it.

    Raises:
        EbmhybridError: a buffer with less than one slot a class, more memory than a machine has, or a class without
            images to start from.
    """
    _check_size(term, train, processes)
    start: nn.Module = UniformStart(train.shape)
    if term.start == "gaussian":
        start = GaussianStart.fit(train.images, train.labels, train.num_classes)
    start = start.to(device)
    buffer = ReplayBuffer(
        term.buffer_size // processes,
        start,
        num_classes=train.num_classes,
        pooled=not term.by_class,
        reinit=term.reinit,
        generator=generator,
    )
    return Sampler(term, buffer, layout)


def _check_size(term: JEMTerm, train: ImageSet, processes: int) -> None:
    """What would not fit is refused before anything is allocated."""
    values, classes = math.prod(train.shape), train.num_classes
    if term.buffer_size < classes * processes:
        by = f" on each of {processes} processes" if processes > 1 else ""
        raise RecipeError(f"objective.jem.buffer_size = {term.buffer_size}: must be at least the {classes} classes{by}")
    needs = {f"buffer_size = {term.buffer_size}": 4 * term.buffer_size // processes * values}
    if term.start == "gaussian":
        needs["start = gaussian"] = 4 * classes * values**2
    for what, size in needs.items():
        if size > LARGEST:
            raise RecipeError(
                f"objective.jem.{what}: takes {size / 2**30:,.0f} GiB for {classes} classes of {train.shape} images, "
                f"more than {LARGEST / 2**30:.0f}"
            )
