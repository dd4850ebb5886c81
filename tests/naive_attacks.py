"""Models whose nearest decision boundary is known in closed form, and attacks' parts written out slowly."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn


class LinearClasses(nn.Module):
    """f(x) = scale W x + b with f(1/2) = shift: the boundary to class c is (f_y - f_c) / |W_y - W_c| away."""

    def __init__(self, classes: int, scale: float = 1.0, shift: float = 0.0, pixels: int = 25) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.w = nn.Parameter(scale * torch.randn(classes, pixels, generator=generator))
        self.b = nn.Parameter(shift - 0.5 * self.w.detach().sum(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1) @ self.w.T + self.b


class RowClasses(LinearClasses):
    """Class c is scale times the sum of the image's row c: every two classes have the same |W_y - W_c|.

    The nearest boundary is then that of the second largest logit, which losses look at.
    """

    def __init__(self, classes: int = 5, scale: float = 1.0) -> None:
        super().__init__(classes, pixels=classes * classes)
        self.w = nn.Parameter(scale * torch.eye(classes).repeat_interleave(classes, dim=1))
        self.b = nn.Parameter(torch.zeros(classes))


def distances(model: LinearClasses, images: torch.Tensor, norm: str) -> np.ndarray:
    """The distance of each image to its nearest boundary, one class at a time, in float64."""
    weight, bias = (p.detach().double().numpy() for p in (model.w, model.b))
    found = []
    for image in images.flatten(1).double().numpy():
        logits = weight @ image + bias
        own = logits.argmax()
        nearest = np.inf
        for other in range(len(logits)):
            if other != own:
                slope = weight[own] - weight[other]
                length = np.abs(slope).sum() if norm == "linf" else np.sqrt((slope**2).sum())
                nearest = min(nearest, (logits[own] - logits[other]) / length)
        found.append(nearest)
    return np.array(found)


def grey(n: int = 24, side: int = 5, channels: int = 1) -> torch.Tensor:
    """Images far from 0 and 1, so that the box never binds at the radii used."""
    return 0.4 + 0.2 * torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(2))


def labelled(model: nn.Module, images: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """A set of one batch that the model is right on."""
    with torch.no_grad():
        return [(images, model(images).argmax(1))]


def around(values: np.ndarray, share: float, slack: float) -> tuple[float, float]:
    """Two radii, slack below and slack above the distance that this share of images is nearer than."""
    distance = float(np.sort(values)[int(share * len(values))])
    return distance * (1 - slack), distance * (1 + slack)
