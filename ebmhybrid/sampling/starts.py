"""Where chains start: uniform noise (Grathwohl et al. 2020) or a Gaussian for each class (Yang & Ji 2021, JEM++)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ebmhybrid.errors import EbmhybridError


def check_labels(labels: Tensor, num_classes: int) -> None:
    """int64 (N,); their range where looking costs nothing: on an accelerator it would wait for the device."""
    if labels.dim() != 1 or labels.dtype != torch.int64:
        raise EbmhybridError(f"labels must be int64 of shape (N,), got {labels.dtype} {tuple(labels.shape)}")
    if labels.device.type == "cpu" and len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
        raise EbmhybridError(f"labels must lie in 0..{num_classes - 1}, got {labels.min()}..{labels.max()}")


class UniformStart(nn.Module):
    """Every pixel uniform in [0, 1], whatever the class.

    Shapes:
        labels (N,) -> images (N, *shape).

    >>> UniformStart((1, 8, 8))(torch.zeros(3, dtype=torch.int64), torch.Generator().manual_seed(0)).shape
    torch.Size([3, 1, 8, 8])
    """

    anchor: Tensor

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.register_buffer("anchor", torch.zeros(()), persistent=False)  # knows the device and the dtype

    def forward(self, labels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        where = self.anchor.device if generator is None else generator.device
        drawn = torch.rand(len(labels), *self.shape, generator=generator, device=where, dtype=self.anchor.dtype)
        return drawn.to(self.anchor.device)


class GaussianStart(nn.Module):
    """A Gaussian a class with the mean and covariance of its training images, clamped to [0, 1].

        x = clamp(mu_y + L_y z),   L_y L_y^T = cov_y + ridge I,   z ~ N(0, I)

    Source: Yang & Ji 2021 (informative initialisation); their covariance has 1e-4 on the diagonal for pixels in
    [-1, 1], which is ridge = 2.5e-5 here. Memory is C D^2 numbers for D = channels x height x width: 378 MB for
    CIFAR-10, 3.8 GB for CIFAR-100; N starts take N C D^2 multiplications.

    Arguments:
        means: (C, *shape). factors: (C, D, D), lower triangular.

    Shapes:
        labels (N,) -> images (N, *shape).
    """

    means: Tensor
    factors: Tensor

    def __init__(self, means: Tensor, factors: Tensor) -> None:
        super().__init__()
        self.register_buffer("means", means, persistent=False)  # both follow from the training images
        self.register_buffer("factors", factors, persistent=False)

    @classmethod
    def fit(cls, images: Tensor, labels: Tensor, num_classes: int, ridge: float = 2.5e-5) -> GaussianStart:
        """From training images (N, C, H, W), uint8 or in [0, 1], every class of which occurs.

        Raises:
            EbmhybridError: a class without images, or a ridge that is not above 0.

        >>> start = GaussianStart.fit(torch.rand(20, 1, 2, 2), torch.arange(20) % 2, 2)
        >>> start(torch.tensor([0, 1, 1])).shape
        torch.Size([3, 1, 2, 2])
        """
        if not 0 < ridge < math.inf:
            raise EbmhybridError(f"ridge must be above 0 and finite, or constant pixels have no Gaussian, got {ridge}")
        if images.is_floating_point() and len(images) and not 0 <= images.min() <= images.max() <= 1:  # NaN neither
            raise EbmhybridError(f"images must lie in [0, 1] or be uint8, got {images.min():g}..{images.max():g}")
        size = images.shape[1:].numel()
        means = torch.zeros(num_classes, *images.shape[1:])
        factors = torch.zeros(num_classes, size, size)
        for label in range(num_classes):
            of_class = images[labels == label]
            if not len(of_class):
                raise EbmhybridError(f"class {label} has no training image to start its chains from")
            rows = of_class.flatten(1).double() / (1 if images.is_floating_point() else 255)
            means[label] = rows.mean(0).view(images.shape[1:])
            centred = rows - rows.mean(0)
            cov = centred.T @ centred / len(rows)
            cov.diagonal().add_(ridge)
            factors[label] = torch.linalg.cholesky(cov)
        return cls(means, factors)

    def forward(self, labels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        check_labels(labels, len(self.means))
        size, device = self.factors.shape[-1], self.means.device
        where = device if generator is None else generator.device
        z = torch.randn(len(labels), size, generator=generator, device=where, dtype=self.means.dtype).to(device)
        labels = labels.to(device)
        images = self.means[labels]
        flat = images.view(len(labels), size)
        for label, factor in enumerate(self.factors):  # of all rows: to pick a class's, a value would be read back
            flat.addmm_(z * (labels == label)[:, None], factor.T)
        return images.clamp(0, 1)
