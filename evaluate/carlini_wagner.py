"""Carlini and Wagner's L2 attack, with a search for its constant and for each image by itself.

torchattacks' CW has no such search, stops a whole batch when its summed cost rises once, takes a logit of 0 for a
class, and moves through tanh, which cannot leave a pixel of exactly 0 or 1. Here pixels are moved directly and clamped
to [0, 1] after each step, the paper's projected variant, so that no pixel is stuck.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

SEARCHES = 6
_FIRST_STEP = 2.0  # of the pixels' share of eps, eps / sqrt(C H W)


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """f_y - max_{c != y} f_c, (N,): positive where the label wins.

    >>> margins(torch.tensor([[3.0, 1.0], [0.0, 5.0]]), torch.tensor([0, 0]))
    tensor([ 2., -5.])
    """
    own = nn.functional.one_hot(labels, logits.shape[1]).bool()
    return logits.gather(1, labels[:, None])[:, 0] - logits.masked_fill(own, -torch.inf).amax(dim=1)


def carlini_wagner(target: nn.Module, images: Tensor, labels: Tensor, eps: float, steps: int) -> Tensor:
    """The nearest misclassified images found, the images themselves where none was.

    Minimises |delta|_2^2 + c max(m(x + delta), 0) / m(x) over x + delta in [0, 1], where m is the margin of
    :func:`margins`: `steps` steps of Adam from delta = 0, with a step that falls from 2 eps / sqrt(C H W) to 0. That
    six times, with c from 4 eps^2 on, ten times larger after a failure and halfway to the largest failure after a
    success. Dividing by m(x) makes c a squared distance: a linear model needs twice that of its boundary.

    Source: Carlini and Wagner 2017, sections V.B (projected gradient) and VI.A.

    Arguments:
        target: images -> logits (N, C), C >= 2, right on all images.
        images: (N, C, H, W) in [0, 1].
        eps: the radius of interest; images may lie farther.

    >>> light = torch.tensor([[[[0.6, 0.4]]]])
    >>> (carlini_wagner(nn.Flatten(), light, torch.tensor([0]), 0.2, 50) - light).norm() < 1.01 * 0.1 * 2**0.5
    tensor(True)
    """
    with torch.no_grad():
        start = margins(target(images), labels).clamp_min(1e-300)
    constant, first_step = torch.full_like(start, 4 * eps**2), _FIRST_STEP * eps / math.sqrt(images[0].numel())
    failed, worked = torch.zeros_like(start), torch.full_like(start, torch.inf)
    best, best_length = images.clone(), torch.full_like(start, torch.inf)
    for _ in range(SEARCHES):
        found, length = _descend(target, images, labels, constant / start, first_step, steps)
        closer = length < best_length
        best[closer], best_length = found[closer], torch.minimum(length, best_length)
        fell = torch.isfinite(length)
        worked, failed = torch.where(fell, constant, worked), torch.where(fell, failed, constant)
        constant = torch.where(torch.isinf(worked), 10 * constant, (worked + failed) / 2)
    return best


def _descend(
    target: nn.Module, images: Tensor, labels: Tensor, weight: Tensor, first_step: float, steps: int
) -> tuple[Tensor, Tensor]:
    """(nearest misclassified images on one descent, their squared distances: inf where there is none)."""
    best, best_length = images.clone(), torch.full_like(weight, torch.inf)
    moved = images.detach().clone().requires_grad_(True)
    optimizer = torch.optim.Adam([moved], lr=first_step)
    for step in range(steps + 1):
        margin = margins(target(moved), labels)
        length = (moved - images).double().square().flatten(1).sum(dim=1)
        closer = (margin < 0) & (length < best_length)
        best[closer] = moved.detach()[closer]
        best_length = torch.where(closer, length.detach(), best_length)
        if step == steps:
            break
        (moved.grad,) = torch.autograd.grad((length + weight * margin.clamp_min(0)).sum(), moved)
        optimizer.param_groups[0]["lr"] = first_step * (1 - step / steps)
        optimizer.step()
        with torch.no_grad():
            moved.clamp_(0, 1)
    return best, best_length
