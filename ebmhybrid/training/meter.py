"""Running means of a training epoch."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor


class Meter:
    """Sums over an epoch that stay on the device until they are read. All but the speed is in `state_dict`."""

    def __init__(self) -> None:
        self.sums, self.names, self.terms = torch.zeros(0), ["loss"], list[str]()
        self.images = 0
        self.timed, self.started = 0, time.monotonic()

    def add(self, loss: Tensor, terms: dict[str, Tensor], correct: Tensor | None, n: int) -> None:
        """A step's loss, its parts, and how many of its n images were classified right, where any were."""
        row = n * torch.stack([loss, *terms.values()]).float()
        self.names, self.terms = ["loss", *terms], [*terms]
        if correct is not None:
            row = torch.cat([row, correct[None].float()])
            self.names.append("accuracy")
        self.sums = row if not self.images else self.sums.to(row.device) + row
        self.images += n
        self.timed += n

    def read(self) -> dict[str, float]:
        """Means over the images so far, and the speed."""
        means = dict(zip(self.names, (self.sums / self.images).tolist(), strict=True))
        return {**means, "images_per_second": self.timed / max(1e-9, time.monotonic() - self.started)}

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self.sums, "names": self.names, "terms": self.terms, "images": self.images}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sums, self.images = state["sums"], state["images"]
        self.names, self.terms = list(state["names"]), list(state["terms"])
        if not (isinstance(self.sums, Tensor) and isinstance(self.images, int) and self.images >= 0):
            raise ValueError("its running means are no numbers")
