r"""Attacks on the detector: within an eps-ball, raise the score of OOD images and lower that of ID images.

A detector that separates clean sets may do so by features that a small perturbation rewrites. The threat model is that
of robust accuracy, |delta|_p <= eps and x + delta in [0, 1], white-box; the attack is :func:`.ascent.ascend` on
the score itself, higher = more in-distribution:

    OOD attacked    max_delta  s(x + delta)     a stranger made to look familiar
    ID attacked     max_delta -s(x + delta)     a test image made to look strange
    both            each side against the other

Sources: Bitterwolf et al. 2020 (GOOD: OOD detection in the worst case over a ball around OOD images), Chen et al. 2020
(ALOE: both sides attacked). A gradient attack gives an upper bound of the AUROC in the worst case.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ebmhybrid.energies import log_density
from ebmhybrid.errors import EbmhybridError, UsageError, nearest

from .ascent import Objective, ascend
from .attack_guards import drawn_seed
from .attacks import forked_rng, guarded
from .predictions import Model, check_logits
from .robustness import check_attacks

Score = Callable[[Tensor], Tensor]


def _log_odds(logits: Tensor) -> Tensor:
    """`scores.msp` with a gradient: log p_max - log(1 - p_max)."""
    top, index = logits.max(dim=1, keepdim=True)
    return top.squeeze(1) - logits.scatter(1, index, -torch.inf).logsumexp(dim=1)


def _negative_entropy(logits: Tensor) -> Tensor:
    """`scores.entropy` with a gradient: sum_y p_y log p_y."""
    logs = torch.log_softmax(logits, dim=1)
    return (logs.exp() * logs).sum(dim=1)


# logits (N, C) in float64 -> (N,), differentiable; the same numbers as `scores.SCORES`
DIFFERENTIABLE_SCORES: dict[str, Score] = {
    "energy": log_density,
    "msp": _log_odds,
    "max_logit": partial(torch.amax, dim=1),
    "entropy": _negative_entropy,
}
DIRECTIONS = {"raise": 1.0, "lower": -1.0}


def attack_detector(
    model: Model,
    images: Tensor,
    score: str | Score = "energy",
    direction: str = "raise",
    norm: str = "linf",
    eps: float = 8 / 255,
    steps: int = 20,
    restarts: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Images in the eps-ball and in [0, 1] whose score is as high ("raise") or low ("lower") as could be found.

    Arguments:
        model: images in [0, 1] -> logits (N, C), differentiable. Modes, flags, gradients and the global random state
            stay as they are.
        images: (N, C, H, W) in [0, 1].
        score: a name of `DIFFERENTIABLE_SCORES`, or a function of logits (N, C) in float64, higher = more
            in-distribution.
        norm, eps, steps, restarts: see :func:`.ascent.ascend`; the first restart starts at the image itself.
        generator: where the seed of the random starts comes from; None is a fixed seed.

    Raises:
        ValueError: an unknown score, direction or norm, or a radius out of range.

    >>> attack_detector(lambda images: images.flatten(1), torch.full((1, 1, 1, 2), 0.5), eps=0.25)
    tensor([[[[0.7500, 0.7500]]]])
    """
    if direction not in DIRECTIONS:
        raise UsageError(f"unknown direction {direction!r}: {nearest(direction, DIRECTIONS)}")
    check_attacks(["pgd"], norm, eps, steps, restarts)
    check_ball(norm, eps, images)
    objective = score_objective(model, score_of(score)[1], DIRECTIONS[direction], "images")
    seed = drawn_seed(generator)
    with guarded(model), forked_rng(seed, images.device):
        return ascend(objective, images, norm, eps, steps, restarts, torch.Generator().manual_seed(seed))


def score_of(score: str | Score) -> tuple[str, Score]:
    """(its name, the function of logits)."""
    if callable(score):
        return getattr(score, "__name__", "score"), score
    if score not in DIFFERENTIABLE_SCORES:
        raise UsageError(f"unknown score {score!r}: {nearest(score, DIFFERENTIABLE_SCORES)}; or a function of logits")
    return score, DIFFERENTIABLE_SCORES[score]


def score_objective(model: Model, score: Score, sign: float, name: str) -> Objective:
    """images -> sign x score, (N,) in float64, without autocast."""

    def objective(images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            logits = check_logits(model(images), images, name, 0)
        values = score(logits.double())
        if values.shape != images.shape[:1]:
            raise EbmhybridError(f"a score must be of shape ({len(images)},), got {tuple(values.shape)}")
        return sign * values

    return objective


def check_ball(norm: str, eps: float, images: Tensor) -> None:
    """An L2 radius beyond the diagonal of [0, 1]^d is a unit mistaken."""
    if norm == "l2" and eps > (diagonal := math.sqrt(images[0].numel())):
        raise EbmhybridError(f"eps must be at most sqrt(C H W) = {diagonal:.4g} for l2, got {eps}")
