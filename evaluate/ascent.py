r"""Projected gradient ascent on any objective, for attacks that no library has: on a detector, through a sampler.

    x_0     = x in the first restart, a random point of the ball in the others
    x_{t+1} = P(x_t + a_t s(g_t)),   g_t = mean over draws of d objective(x_t) / d x_t

s(g) is sign(g) for linf and g / ||g||_2 for l2, P the projection onto the ball around x and the box [0, 1], and the
step a_t falls linearly from `attacks.step_size(eps, steps)` to a share 1 / steps of it (Madry et al. 2018 have a
constant step; a falling one also settles on an optimum inside the ball). The point of the highest objective seen is
kept, the image as it was included, so an attack never does worse than none.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ebmhybrid.errors import EbmhybridError

from .attacks import project, step_size

# images (N, C, H, W) -> (N,), an image's value depending on no other image; may draw anew with every call
Objective = Callable[[Tensor], Tensor]


def ascend(
    objective: Objective,
    images: Tensor,
    norm: str,
    eps: float,
    steps: int,
    restarts: int = 1,
    generator: torch.Generator | None = None,
    draws: int = 1,
) -> Tensor:
    """Images in the eps-ball and in [0, 1] whose objective is as high as could be found; detached.

    Arguments:
        objective: differentiable, images (N, C, H, W) -> (N,).
        images: (N, C, H, W) in [0, 1].
        norm, eps: the ball, "linf" or "l2".
        steps: of each restart; each costs `draws` forward and backward passes, and there is one evaluation more.
        restarts: the first starts at the image itself, further ones at a random point of the ball.
        generator: of the random starts, on the CPU; needed for more than one restart.
        draws: calls whose gradients are averaged in a step, for an objective that draws (expectation over
            transformation, Athalye et al. 2018). Points are compared by the mean of as many draws.

    Raises:
        EbmhybridError: an objective without a gradient, or one that is not finite.

    >>> ascend(lambda images: images.sum((1, 2, 3)), torch.zeros(1, 1, 1, 2), "linf", 0.25, steps=3)
    tensor([[[[0.2500, 0.2500]]]])
    """
    best = images.detach().clone()
    highest = torch.full((len(images),), -torch.inf, dtype=torch.float64, device=images.device)
    for restart in range(restarts):
        here = images.detach() if restart == 0 else _random_start(images, norm, eps, generator)
        for step in range(steps):
            values, gradient = value_and_gradient(objective, here, draws)
            best, highest = _better(best, highest, here, values)
            length = step_size(eps, steps) * (1 - step / steps)
            here, _ = project(here.double() + length * _direction(gradient, norm), images, norm, eps)
        values, _ = value_and_gradient(objective, here, draws)
        best, highest = _better(best, highest, here, values)
    return best


def value_and_gradient(objective: Objective, images: Tensor, draws: int = 1) -> tuple[Tensor, Tensor]:
    """(mean value (N,), mean gradient (N, C, H, W)) over so many calls of the objective, in float64 and detached."""
    total, slope = (
        torch.zeros(len(images), device=images.device, dtype=torch.float64),
        torch.zeros_like(images).double(),
    )
    for _ in range(draws):
        with torch.enable_grad():
            inputs = images.detach().clone().requires_grad_(True)
            values = objective(inputs)
            if not values.requires_grad:
                raise EbmhybridError("attacks need a model whose logits can be differentiated by the image")
            (gradient,) = torch.autograd.grad(values.sum(), inputs)
        total += values.detach()
        slope += gradient
    for name, tensor in (("value", total), ("gradient", slope)):
        if not torch.isfinite(tensor).all():
            raise EbmhybridError(f"attacks need a finite objective, and its {name} is NaN or inf")
    return total / draws, slope / draws


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """max_{c != y} f_c - f_y, (N,) in float64: above 0 where a decision is wrong (Carlini & Wagner 2017, f_6).

    Unlike the cross-entropy it does not saturate, and its gradient never fades.

    >>> margin(torch.tensor([[5.0, 2.0]]), torch.tensor([0]))
    tensor([-3.], dtype=torch.float64)
    """
    logits = logits.double()
    others = logits.scatter(1, labels[:, None], -torch.inf).amax(dim=1)
    return others - logits.gather(1, labels[:, None]).squeeze(1)


def _better(best: Tensor, highest: Tensor, here: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Of each image the point with the higher value."""
    return torch.where((values > highest).reshape(-1, 1, 1, 1), here, best), torch.maximum(values, highest)


def _direction(gradient: Tensor, norm: str) -> Tensor:
    """The steepest step of length 1 in the norm; 0 where the gradient is."""
    if norm == "linf":
        return gradient.sign()
    # dividing by the largest entry first keeps tiny gradients from vanishing in the squares
    scaled = gradient / gradient.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-300)
    return scaled / scaled.flatten(1).norm(dim=1).clamp_min(1e-300).reshape(-1, 1, 1, 1)


def _random_start(images: Tensor, norm: str, eps: float, generator: torch.Generator | None) -> Tensor:
    """A uniform point of the ball, moved into the box."""
    size = images.shape
    if norm == "linf":
        delta = eps * (2 * torch.rand(size, generator=generator, dtype=torch.float64) - 1)
    else:
        direction = _direction(torch.randn(size, generator=generator, dtype=torch.float64), norm)
        radius = torch.rand(size[0], 1, 1, 1, generator=generator, dtype=torch.float64) ** (1 / size[1:].numel())
        delta = eps * radius * direction
    return project(images.double() + delta.to(images.device), images, norm, eps)[0]
