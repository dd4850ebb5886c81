r"""The proximal sampler of JEM++ (Yang & Ji 2021, their PYLD): many moves of the image for one pass of the network.

With log p(x) = rest(u), u = first(x), an outer step keeps the co-state p = d rest(u_k) / du, and the inner steps need
the first layer alone:

    y_0     = x_k + a J(x_k)^T p                            J = d first / dx, so that this is x_k + a d log p(x_k) / dx
    y_{i+1} = clamp( y_i + b clip(J(y_i)^T p) )             i = 0 .. M - 1
    x_{k+1} = clamp( y_M + s z_k ),   z_k ~ N(0, I)

Where first is affine, such as a convolution after a fixed normalisation, J does not depend on x: all inner steps have
the slope of the outer one, and together they are one step of size M b with clipped slope and a clamp at every stage.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ebmhybrid.sampling.langevin import (
    Bounds,
    LogDensity,
    check_count,
    check_number,
    check_settings,
    gradients,
    moved,
    normal,
    start_of,
)

Layer = Callable[[Tensor], Tensor]


def proximal_sgld(
    first: Layer,
    rest: LogDensity,
    x0: Tensor,
    steps: int = 5,
    step_size: float = 0.25,
    noise_std: float = 0.0,
    *,
    inner_steps: int = 5,
    inner_step_size: float = 0.05,
    clip: float | None = 2.0,
    generator: torch.Generator | None = None,
    clamp: Bounds | None = (0.0, 1.0),
) -> Tensor:
    """Samples by proximal Langevin dynamics: K outer steps of one network pass each, M inner ones of the first layer.

        p = d rest(first(x_k)) / d first(x_k),   y_0 = x_k + a J(x_k)^T p,   J = d first / dx
        y_{i+1} = clamp( y_i + b clip(J(y_i)^T p) ),  i < M,   x_{k+1} = clamp( y_M + s z_k )

    Source: Yang & Ji 2021 (JEM++). The defaults are those of their released script for images in [-1, 1] (5 and 5
    steps, a = 1, b = 0.2, clip 1, no noise) turned to [0, 1], where g is twice as large and lengths are half as long:
    a / 4, b / 4, 2 clip, s / 2. Two things differ from their code. It leaves noise unclamped, which matters only for
    s > 0. And it samples in training mode, where BatchNorm mixes the chains; here the mode is the caller's.

    Arguments:
        first: x (N, ...) -> u (N, ...), such as `WideResNet.stem`.
        rest: u -> (N,), the log density, such as `lambda u: log_density(model.after_stem(u))`.
        x0: (N, ...) floating point, one chain a row; it is left as it is. N may be 0.
        steps: K >= 0, the outer steps.
        step_size: a >= 0, of the plain step that comes before the inner ones and is not clipped. 0: none.
        noise_std: s >= 0, of the noise that ends an outer step.
        inner_steps: M >= 0. With 0 this is :func:`sgld` without clip.
        inner_step_size: b >= 0.
        clip: largest absolute value of an element of an inner step's slope, > 0; None for no bound.
        generator, clamp: as in :func:`sgld`.

    Returns:
        x_K, of the shape, dtype and device of x0, detached.

    Raises:
        EbmhybridError: arguments out of range, or a log density of another shape or without derivative.

    >>> first, rest = lambda x: 2 * x, lambda u: u.sum(1)
    >>> proximal_sgld(first, rest, torch.zeros(1, 1), 1, 0.25, inner_steps=2, inner_step_size=0.05, clip=1.0)
    tensor([[0.6000]])
    """
    check_settings(steps, step_size, noise_std, clamp=clamp, clip=clip)
    check_count("inner_steps", inner_steps)
    check_number("inner_step_size", inner_step_size, "be at least 0 and finite", lambda v: 0 <= v < math.inf)
    with torch.inference_mode(False):
        x = start_of(x0)
        for _ in range(steps if len(x) else 0):
            costate, slope = _outer(first, rest, x)
            x = x + step_size * slope
            for _ in range(inner_steps):
                x = moved(x, _pulled_back(first, x, costate), inner_step_size, 0.0, clamp, clip)
            x = x + normal(x, noise_std, generator)
            x = x if clamp is None else x.clamp(*clamp)
    return x


def _outer(first: Layer, rest: LogDensity, x: Tensor) -> tuple[Tensor, Tensor]:
    """d log p / du and d log p / dx in one backward pass."""
    with torch.enable_grad():
        inputs = x.detach().requires_grad_()
        u = first(inputs)
        slope, costate = gradients(rest(u), [inputs, u])
    return costate, slope


def _pulled_back(first: Layer, x: Tensor, costate: Tensor) -> Tensor:
    """J(x)^T p, the slope of first(x) . p."""
    with torch.enable_grad():
        inputs = x.detach().requires_grad_()
        return torch.autograd.grad(first(inputs), inputs, costate)[0]
