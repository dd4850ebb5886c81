"""A space of twelve images and three classes, on which every optimum of docs/theory.md can be written down.

A network is a free table of logits, f[x, y], and a batch holds the space in its exact proportions, so that the mean of
a loss over it is an expectation. Images 0 to 9 are data, 10 is reference alone and 11 neither; the references lie on 0
to 10. Images 0 and 1 have the same p(y|x), and 1 has four times the probability: a model of p(x) tells them apart.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

DATA, REFERENCE_ONLY, NOWHERE = slice(0, 10), 10, 11
TWINS, TWIN_RATIO = (0, 1), 4
COUNTS = torch.tensor(
    [
        [1, 2, 1],
        [4, 8, 4],
        [9, 1, 1],
        [5, 2, 1],
        [1, 6, 2],
        [1, 9, 1],
        [2, 1, 3],
        [8, 3, 1],
        [1, 1, 2],
        [3, 5, 2],
        [0, 0, 0],
        [0, 0, 0],
    ]
)
REFERENCE_COUNTS = torch.tensor([5, 2, 1, 3, 4, 2, 6, 1, 8, 3, 9, 0])
STATES, CLASSES = COUNTS.shape
IMAGES, LABELS = (
    index.repeat_interleave(COUNTS.flatten()) for index in torch.ones(STATES, CLASSES).nonzero().unbind(1)
)
REFERENCES = torch.arange(STATES).repeat_interleave(REFERENCE_COUNTS)

JOINT = COUNTS.double() / COUNTS.sum()
P_X, P_Y = JOINT.sum(1), JOINT.sum(0)
P_Y_GIVEN_X = JOINT[DATA] / P_X[DATA, None]
P_X_GIVEN_Y = JOINT / P_Y
Q0 = REFERENCE_COUNTS.double() / REFERENCE_COUNTS.sum()
RATIO = len(REFERENCES) / len(IMAGES)  # R / N of a batch that holds both


def table(seed: int = 0, states: int = STATES) -> Tensor:
    """Logits to begin with."""
    return torch.randn(states, CLASSES, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def minimise(loss: Callable[[Tensor], Tensor], start: Tensor, flat: float = 1e-8) -> Tensor:
    """The table at which the loss is least, from `start` on: L-BFGS, then Newton's method; no gradient above `flat`."""
    f = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([f], max_iter=2000, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(f)
        value.backward()
        return value

    optimizer.step(closure)
    at = f.detach()
    slope = gradient(loss, at)
    for _ in range(5):
        if slope.abs().max() < flat / 1000:
            break
        # the pseudo-inverse, since most losses leave some direction free
        inverse = torch.linalg.pinv(hessian(loss, at), rtol=1e-9, hermitian=True)
        at = at - (inverse @ slope.flatten()).view_as(at)
        slope = gradient(loss, at)
    steepest = slope.abs().max().item()
    assert steepest < flat, f"the optimum was not found: a gradient of {steepest:.1e} is left"
    return at


def gradient(loss: Callable[[Tensor], Tensor], f: Tensor) -> Tensor:
    f = f.detach().requires_grad_()
    return torch.autograd.grad(loss(f), f)[0]


def hessian(loss: Callable[[Tensor], Tensor], f: Tensor) -> Tensor:
    """(n, n) for the n entries of the table."""
    rows = torch.autograd.functional.hessian(loss, f.detach())
    assert isinstance(rows, Tensor)
    return rows.view(f.numel(), f.numel())


def differences(f: Tensor) -> Tensor:
    """What a softmax along the rows sees of logits: each less the mean of its row."""
    return f - f.mean(1, keepdim=True)


def up_to_columns(f: Tensor) -> Tensor:
    """What a softmax down the columns sees of them: each less the mean of its column."""
    return f - f.mean(0)


def up_to_a_constant(values: Tensor) -> Tensor:
    return values - values.mean()
