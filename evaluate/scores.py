r"""Scores of how much an image looks like the training data. Every score is higher = more in-distribution.

    energy     logsumexp_y f_y = log p(x) + const (Grathwohl et al. 2020; Liu et al. 2020)
    msp        log-odds of the top class, f_max - logsumexp of the others: ranks exactly as max_y p(y|x)
               (Hendrycks & Gimpel 2017), without the ties that p = 1.0 makes by rounding
    max_logit  max_y f_y (Hendrycks et al. 2022)
    entropy    sum_y p_y log p_y, the negative entropy of p(y|x)
    grad_norm  -||d log p(x) / dx||_2, the approximate mass of Grathwohl et al. 2020; needs the model, not only logits

A score sees the image or its logits, never a label. `SCORES` and `MODEL_SCORES` are where a new one is added.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ebmhybrid.energies import log_density
from ebmhybrid.errors import EbmhybridError, UsageError, nearest

from .predictions import ImageSet, Model, Progress, batches, evaluating, model_device, set_name


def _as_double(logits: np.ndarray | Tensor) -> Tensor:
    """Logits (N, C) as a float64 tensor; half precision is refused, because its ties cannot be undone."""
    tensor = torch.as_tensor(logits).detach()
    if tensor.dtype not in (torch.float32, torch.float64) or tensor.dim() != 2 or tensor.shape[1] == 0:
        raise EbmhybridError(
            f"logits must be float32 or float64 of shape (N, C) with C >= 1, got {tensor.dtype} {tuple(tensor.shape)}"
        )
    return tensor.cpu().double()


def energy(logits: np.ndarray | Tensor) -> np.ndarray:
    """logsumexp_y f_y, float64 (N,): the log density up to a constant, hence minus the energy.

    >>> energy(np.zeros((1, 1)))
    array([0.])
    """
    return log_density(_as_double(logits)).numpy()


def msp(logits: np.ndarray | Tensor) -> np.ndarray:
    """log(p_max / (1 - p_max)) = f_max - logsumexp of the other logits, float64 (N,).

    Strictly increasing in the maximal softmax probability. With a single class p_max is always 1: the score is 0.

    >>> msp(np.array([[0.0, 0.0], [50.0, 0.0]]))
    array([ 0., 50.])
    """
    values = _as_double(logits)
    if values.shape[1] == 1:
        return np.zeros(len(values))
    top, index = values.max(dim=1, keepdim=True)
    others = values.scatter(1, index, -torch.inf).logsumexp(dim=1)
    return (top.squeeze(1) - others).numpy()


def max_logit(logits: np.ndarray | Tensor) -> np.ndarray:
    """max_y f_y, float64 (N,).

    >>> max_logit(np.array([[1.0, 3.0]]))
    array([3.])
    """
    return _as_double(logits).amax(dim=1).numpy()


def entropy(logits: np.ndarray | Tensor) -> np.ndarray:
    """sum_y p_y log p_y in [-log C, 0], float64 (N,): the negative entropy, 0 for a certain model.

    >>> entropy(np.zeros((1, 2))).round(4)
    array([-0.6931])
    """
    logs = torch.log_softmax(_as_double(logits), dim=1)
    return torch.special.entr(logs.exp()).sum(dim=1).neg().numpy()


def grad_norm(model: Model, images: Tensor) -> np.ndarray:
    """-||d log p(x) / dx||_2 of each image, float64 (N,).

    One backward pass of the summed log densities gives every image's gradient, since in eval mode no image's logits
    depend on another image. Parameters' `.grad` stay untouched.

    Raises:
        ValueError: a model through which no gradient reaches the images.

    >>> grad_norm(lambda images: images.flatten(1), torch.zeros(1, 1, 1, 1))
    array([-1.])
    """
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(images.device.type, enabled=False):
        inputs = images.detach().clone().requires_grad_(True)
        logits = model(inputs)
        if not (isinstance(logits, Tensor) and logits.requires_grad):
            raise EbmhybridError("score 'grad_norm' needs a model whose logits can be differentiated by the image")
        (gradient,) = torch.autograd.grad(log_density(logits).sum(), inputs)
    return -gradient.detach().cpu().double().flatten(1).norm(dim=1).numpy()


# of logits
SCORES: dict[str, Callable[[np.ndarray | Tensor], np.ndarray]] = {
    "energy": energy,
    "msp": msp,
    "max_logit": max_logit,
    "entropy": entropy,
}
# of the model and a batch of images
MODEL_SCORES: dict[str, Callable[[Model, Tensor], np.ndarray]] = {"grad_norm": grad_norm}


def check_scores(names: Iterable[str]) -> tuple[str, ...]:
    """The names without repetition, or an error that names the unknown one and its nearest neighbour."""
    names = (names,) if isinstance(names, str) else tuple(dict.fromkeys(names))
    if not names:
        raise UsageError(f"no score was asked for; valid: {', '.join(sorted({*SCORES, *MODEL_SCORES}))}")
    for name in names:
        if name not in SCORES and name not in MODEL_SCORES:
            raise UsageError(f"unknown score {name!r}: {nearest(name, {*SCORES, *MODEL_SCORES})}")
    return names


def model_score(
    model: Model,
    data: ImageSet,
    score: str,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
    *,
    name: str | None = None,
    limit: int | None = None,
) -> np.ndarray:
    """A score of `MODEL_SCORES` for every image of a set, float64 (N,): a pass of its own, in eval mode."""
    name = name or set_name(data)
    device = model_device(model) if device is None else device
    source: Iterable[Any] = batches(data, name, limit, device)
    parts: list[np.ndarray] = []
    with evaluating(model):
        for images, _ in progress(source, f"{name}: {score}") if progress else source:
            parts.append(MODEL_SCORES[score](model, images))
    if not parts:
        raise EbmhybridError(f"set {name!r} is empty")
    return np.concatenate(parts)
