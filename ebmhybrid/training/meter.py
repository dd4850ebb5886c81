"""Running means of a training epoch."""

from __future__ import annotations

import time

import torch
from torch import Tensor


class Meter:
    """Sums over an epoch that stay on the device until they are read."""

    def __init__(self) -> None:
        self.sums, self.names, self.terms = torch.zeros(0), ["loss"], list[str]()
        self.images, self.steps, self.started = 0, 0, time.monotonic()

    def add(self, loss: Tensor, terms: dict[str, Tensor], correct: Tensor | None, n: int) -> None:
        """A step's loss, its parts, and how many of its n images were classified right, where any were."""
        row = n * torch.stack([loss, *terms.values()]).float()
        self.names, self.terms = ["loss", *terms], [*terms]
        if correct is not None:
            row = torch.cat([row, correct[None].float()])
            self.names.append("accuracy")
        self.sums = row if not self.images else self.sums + row
        self.images += n
        self.steps += 1

    def read(self) -> dict[str, float]:
        """Means over the images so far, and the speed."""
        means = dict(zip(self.names, (self.sums / self.images).tolist(), strict=True))
        return {**means, "images_per_second": self.images / max(1e-9, time.monotonic() - self.started)}
