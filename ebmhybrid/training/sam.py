"""Sharpness-aware minimisation (Foret et al. 2021), and its adaptive form (Kwon et al. 2021)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

EPS = 1e-12


def ascent_direction(weights: list[Tensor], gradients: list[Tensor], rho: float, adaptive: bool) -> list[Tensor]:
    """Where within radius rho the loss rises fastest to first order, one tensor a weight.

        SAM     e = rho g / ||g||_2
        ASAM    e = rho w^2 g / || |w| g ||_2     (elementwise products: the radius is relative to each weight)

    Norms are over all weights together; a gradient of 0 gives 0. The eta that the paper of ASAM adds to |w| is 0 here,
    as in the release of SADA-JEM.

    >>> [e.tolist() for e in ascent_direction([torch.tensor([2.0, 0.0])], [torch.tensor([3.0, 4.0])], 0.5, False)]
    [[0.30000001192092896, 0.4000000059604645]]
    >>> [e.tolist() for e in ascent_direction([torch.tensor([2.0, 0.0])], [torch.tensor([3.0, 4.0])], 0.5, True)]
    [[1.0, 0.0]]
    """
    scaled = gradients
    if adaptive:
        scaled = [weight.abs() * gradient for weight, gradient in zip(weights, gradients, strict=True)]
    factor = rho / (torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(part) for part in scaled])) + EPS)
    if not adaptive:
        return [factor * part for part in scaled]
    return [factor * weight.abs() * part for weight, part in zip(weights, scaled, strict=True)]


@contextmanager
def perturbed(modules: nn.Module, rho: float, adaptive: bool) -> Iterator[None]:
    """Inside, the weights stand at the ascent direction from where they were; after it, exactly there again.

    Weights without gradient stay. Running means and variances of BatchNorm do not move inside: they belong to the true
    weights. Its count of batches does, which matters to none of its uses here.
    """
    weights = [weight for weight in modules.parameters() if weight.grad is not None]
    kept = [weight.detach().clone() for weight in weights]
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    with torch.no_grad():
        for weight, step in zip(weights, ascent_direction(kept, gradients, rho, adaptive), strict=True):
            weight.add_(step)
    norms = [(module, module.momentum) for module in _normalizers(modules.modules())]
    for module, _ in norms:
        module.momentum = 0.0
    try:
        yield
    finally:
        for module, momentum in norms:
            module.momentum = momentum
        with torch.no_grad():
            for weight, value in zip(weights, kept, strict=True):
                weight.copy_(value)


def _normalizers(modules: Iterable[nn.Module]) -> list[nn.modules.batchnorm._BatchNorm]:
    return [module for module in modules if isinstance(module, nn.modules.batchnorm._BatchNorm)]
