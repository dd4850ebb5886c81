"""One training step: what the task makes of a batch, and the update of the weights."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from torch import Tensor, nn

from ebmhybrid.data.order import LEAST, share_of
from ebmhybrid.losses.gathered import known_shares
from ebmhybrid.training import classify, encode
from ebmhybrid.training.distributed import running_statistics
from ebmhybrid.training.objective import CombinedLoss
from ebmhybrid.training.replica import gradients_wait, step_losses
from ebmhybrid.training.sam import perturbed
from ebmhybrid.training.setup import Parts

Losses = tuple[Tensor, dict[str, Tensor], Tensor | None]


class Task(Protocol):
    """What a run learns, as the functions of a module: to classify, or to encode."""

    RANKED: dict[str, float]  # the validation figures that decide which weights are best, times 1 or -1

    def prepare(self, parts: Parts, forward: Any, images: Tensor, labels: Tensor) -> Any:
        """The batch as network and loss see it."""

    def losses(self, parts: Parts, forward: Any, batch: Any) -> Losses:
        """The loss, its parts, and the logits where there are any."""

    def figures(self, parts: Parts) -> dict[str, float]:
        """Of the validation images."""

    def said(self, trained: dict[str, float], found: dict[str, float]) -> str:
        """The figures of an epoch's line."""


def task_of(parts: Parts) -> Task:
    """Encoder-decoders learn codes, everything else is a classifier."""
    return encode if parts.recipe.objective.learns_codes else classify


def train_step(parts: Parts, forward: Any, images: Tensor, labels: Tensor, total: int | None = None) -> Losses:
    """Augment, sample, a forward pass for each kind of images, loss, backward, update. No value is read back.

    Arguments:
        images, labels: this process's share of the batch.
        total: images of the batch on all processes; by default as many on each.

    Returns:
        The loss, its parts, and how many images were classified right, where any were: of the whole batch. Of several
        processes on CPUs the parts say too how many are `asked` to stop.
    """
    task, world = task_of(parts), parts.world
    total = total or len(labels) * world.size
    # As many on every process: they talk within each, and wait for each other.
    pieces = max(1, min(parts.recipe.training.accumulate, total // (LEAST * world.size)))
    parts.optimizer.zero_grad(set_to_none=True)
    sums: dict[str, Tensor] = {}
    for number, (some, their) in enumerate(zip(images.tensor_split(pieces), labels.tensor_split(pieces), strict=True)):
        with gradients_wait(parts, number + 1 < pieces), _shares(parts, total, pieces, number):
            found = _backward(parts, task, forward, some, their, len(their) / total)
        sums = {name: sums.get(name, 0) + value for name, value in found.items()}
    if world.size > 1 and parts.device.type == "cpu":
        sums["asked"] = sums["loss"].new_tensor(parts.asked())
    # The message is under way while the weights are updated.
    told = world.sum_begun(sums, running_statistics(parts.model) if world.size > 1 else ())
    norm = _update(parts)
    terms = told()
    if parts.average is not None:
        parts.average.update_parameters(parts.model)
    loss, correct = terms.pop("loss"), terms.pop("correct", None)
    return loss, terms if norm is None else {**terms, "grad_norm": norm}, correct


def _shares(parts: Parts, total: int, pieces: int, number: int) -> AbstractContextManager[None]:
    """The images and reference images of each process in a piece of a batch, which follow from the batch's size."""
    if parts.world.size == 1:
        return nullcontext()
    reference = parts.recipe.reference
    shares = [
        end - begin for begin, end in (share_of(total, rank, parts.world.size) for rank in range(parts.world.size))
    ]
    images = [share // pieces + (number < share % pieces) for share in shares]
    return known_shares(images, [0 if reference is None else reference.count_for(count) for count in images])


def _backward(
    parts: Parts, task: Task, forward: Any, images: Tensor, labels: Tensor, share: float
) -> dict[str, Tensor]:
    """The gradients of so large a share of a batch are added to those that are there.

    Returns the share's part of the batch's loss and of the terms, and how many images were classified right.
    """
    batch = task.prepare(parts, forward, images, labels)
    weight = share * parts.world.size  # gradients are averaged over processes, not added up

    def backward() -> Losses:
        loss, terms, logits = step_losses(parts, task, forward, batch)
        parts.scaler.scale(loss if weight == 1 else weight * loss).backward()
        return loss, terms, logits

    if parts.recipe.optimizer.sam_rho:
        loss, terms, logits = _sharpness_aware(parts, backward)
    else:
        loss, terms, logits = backward()
    found = {name: share * value.detach() for name, value in {"loss": loss, **terms}.items()}
    if logits is not None:
        found["correct"] = (logits.argmax(1) == labels).sum()
    return found


def _sharpness_aware(parts: Parts, backward: Callable[[], Losses]) -> Losses:
    """Gradients at the weights where the loss is highest nearby, and the losses at those where they are.

    Both gradients are of one loss: the bank stays as it is between them, and takes the batch afterwards.
    """
    settings, objective = parts.recipe.optimizer, parts.objective
    assert isinstance(objective, CombinedLoss)
    with objective.bank_held():
        found = backward()
        with perturbed(nn.ModuleList([parts.model, objective]), settings.sam_rho, settings.sam_adaptive):
            parts.optimizer.zero_grad(set_to_none=True)
            backward()
    return found


def _update(parts: Parts) -> Tensor | None:
    """The optimiser's step; of a sampled run it returns the gradient's norm."""
    clip, norm = parts.recipe.training.grad_clip, None
    weights = [*parts.model.parameters(), *parts.objective.parameters()]
    if parts.sampler is not None:
        norm = nn.utils.get_total_norm([w.grad for w in weights if w.grad is not None])
    if clip is not None:
        parts.scaler.unscale_(parts.optimizer)
        nn.utils.clip_grad_norm_(weights, clip)
    parts.scaler.step(parts.optimizer)
    parts.scaler.update()
    parts.scheduler.step()
    return norm
