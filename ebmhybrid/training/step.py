"""One training step: what the task makes of a batch, and the update of the weights."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn

from ebmhybrid.training import classify, encode
from ebmhybrid.training.objective import CombinedLoss
from ebmhybrid.training.sam import perturbed
from ebmhybrid.training.setup import Parts


class Task(Protocol):
    """What a run learns, as the functions of a module: to classify, or to encode."""

    RANKED: dict[str, float]  # the validation figures that decide which weights are best, times 1 or -1

    def prepare(self, parts: Parts, forward: Any, images: Tensor, labels: Tensor) -> Any:
        """The batch as network and loss see it."""

    def losses(self, parts: Parts, forward: Any, batch: Any) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
        """The loss, its parts, and the logits where there are any."""

    def figures(self, parts: Parts) -> dict[str, float]:
        """Of the validation images."""

    def said(self, trained: dict[str, float], found: dict[str, float]) -> str:
        """The figures of an epoch's line."""


def task_of(parts: Parts) -> Task:
    """Encoder-decoders learn codes, everything else is a classifier."""
    return encode if parts.recipe.objective.learns_codes else classify


def train_step(
    parts: Parts, forward: Any, images: Tensor, labels: Tensor
) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
    """Augment, sample, a forward pass for each kind of images, loss, backward, update. No value is read back.

    Returns the loss, its parts, and how many images were classified right, where any were.
    """
    settings, optimizer, task = parts.recipe.training, parts.recipe.optimizer, task_of(parts)
    batch = task.prepare(parts, forward, images, labels)
    if optimizer.sam_rho:
        parts.objective.eval()  # both gradients are of one loss: the bank takes the batch after them
    loss, terms, logits = task.losses(parts, forward, batch)
    parts.optimizer.zero_grad(set_to_none=True)
    parts.scaler.scale(loss).backward()
    if optimizer.sam_rho:
        _sharpness_aware(parts, forward, batch)
        parts.objective.train()
        assert isinstance(parts.objective, CombinedLoss)
        assert logits is not None
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
    correct = None if logits is None else (logits.argmax(1) == labels).sum()
    return loss.detach(), {key: value.detach() for key, value in terms.items()}, correct


def _sharpness_aware(parts: Parts, forward: Any, batch: Any) -> None:
    """Replace the gradients by those at the weights where the loss is highest nearby; state stays as it is."""
    settings, modules = parts.recipe.optimizer, nn.ModuleList([parts.model, parts.objective])
    with perturbed(modules, settings.sam_rho, settings.sam_adaptive):
        parts.optimizer.zero_grad(set_to_none=True)
        task_of(parts).losses(parts, forward, batch)[0].backward()
