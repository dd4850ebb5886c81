"""Running means of a training epoch, and the figures of a validation set."""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ebmhybrid.data import ImageSet


class Meter:
    """Sums over an epoch that stay on the device until they are read."""

    def __init__(self) -> None:
        self.sums, self.names = torch.zeros(0), ["loss"]
        self.images, self.steps, self.started = 0, 0, time.monotonic()

    def add(self, loss: Tensor, terms: dict[str, Tensor], correct: Tensor, n: int) -> None:
        row = n * torch.stack([loss, *terms.values()]).float()
        row = torch.cat([row, correct[None].float()])
        self.sums = row if not self.images else self.sums + row
        self.names = ["loss", *terms, "accuracy"]
        self.images += n
        self.steps += 1

    def read(self) -> dict[str, float]:
        """Means over the images so far, and the speed."""
        means = dict(zip(self.names, (self.sums / self.images).tolist(), strict=True))
        return {**means, "images_per_second": self.images / max(1e-9, time.monotonic() - self.started)}


@torch.no_grad()
def validate(model: nn.Module, images: ImageSet, device: torch.device) -> dict[str, float]:
    """Accuracy and negative log-likelihood (nats) over a set, in float32 and evaluation mode."""
    was_training = model.training
    model.eval()
    losses, correct = [], []
    for batch, labels in images.to(device):
        logits = model(batch).float()
        losses.append(F.cross_entropy(logits, labels, reduction="sum"))
        correct.append((logits.argmax(1) == labels).sum())
    model.train(was_training)
    return {
        "accuracy": (torch.stack(correct).sum() / len(images)).item(),
        "nll": (torch.stack(losses).sum() / len(images)).item(),
    }
