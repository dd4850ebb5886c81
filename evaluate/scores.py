r"""Scores of how much an image looks like the training data. Every score is higher = more in-distribution.

    energy     logsumexp_y f_y = log p(x) + const (Grathwohl et al. 2020; Liu et al. 2020)
    msp        log-odds of the top class, f_max - logsumexp of the others: ranks exactly as max_y p(y|x)
               (Hendrycks & Gimpel 2017), without the ties that p = 1.0 makes by rounding
    max_logit  max_y f_y (Hendrycks et al. 2022)
    joint_energy  the same number read as -min_y E(x, y), the joint model's energy at its best class
    entropy    sum_y p_y log p_y, the negative entropy of p(y|x)
    gen        -sum over the top classes of (p_y (1 - p_y))^0.1, a generalised entropy (Liu et al. 2023)
    grad_norm  -||d log p(x) / dx||_2, the approximate mass of Grathwohl et al. 2020; needs the model, not only logits
    odin       log-odds of the top class at T = 1000, after a small step of the image towards it (Liang et al. 2018)

A score sees the image or its logits, never a label, and has nothing to fit; those that have are in `detectors`, where
every name is looked up. `SCORES` and `MODEL_SCORES` are where a new one is added.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ebmhybrid.energies import log_density
from ebmhybrid.errors import EbmhybridError

from .predictions import ImageSet, Model, Progress, batches, evaluating, model_device, set_name


def as_double(logits: np.ndarray | Tensor) -> Tensor:
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
    return log_density(as_double(logits)).numpy()


def msp(logits: np.ndarray | Tensor) -> np.ndarray:
    """log(p_max / (1 - p_max)) = f_max - logsumexp of the other logits, float64 (N,).

    Strictly increasing in the maximal softmax probability. With a single class p_max is always 1: the score is 0.

    >>> msp(np.array([[0.0, 0.0], [50.0, 0.0]]))
    array([ 0., 50.])
    """
    values = as_double(logits)
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
    return as_double(logits).amax(dim=1).numpy()


def entropy(logits: np.ndarray | Tensor) -> np.ndarray:
    """sum_y p_y log p_y in [-log C, 0], float64 (N,): the negative entropy, 0 for a certain model.

    >>> entropy(np.zeros((1, 2))).round(4)
    array([-0.6931])
    """
    logs = torch.log_softmax(as_double(logits), dim=1)
    return torch.special.entr(logs.exp()).sum(dim=1).neg().numpy()


def gen(logits: np.ndarray | Tensor, gamma: float = 0.1, top: int = 100) -> np.ndarray:
    """-sum of (p_y (1 - p_y))^gamma over the `top` most probable classes, float64 (N,), at most 0: GEN.

    Source: Liu, Lochman & Zach, CVPR 2023, whose gamma and number of classes are the defaults; all classes where there
    are fewer. 1 - p of the top class is taken from the other logits, so that p = 1.0 by rounding makes no ties.

    Raises:
        ValueError: gamma outside (0, 1), top < 1, or unusable logits.

    >>> gen(np.log([[0.75, 0.25]]), gamma=0.5).round(4)
    array([-0.866])
    """
    if not 0 < gamma < 1 or top < 1:
        raise EbmhybridError(f"need 0 < gamma < 1 and top >= 1, got gamma={gamma}, top={top}")
    values = as_double(logits)
    values, _ = values.sort(dim=1, descending=True)
    logs = torch.log_softmax(values, dim=1)
    complements = torch.log1p(-logs.exp().clamp(max=0.5))  # every class but the first has p <= 1/2
    complements[:, 0] = values[:, 1:].logsumexp(dim=1) - values.logsumexp(dim=1)
    return (gamma * (logs + complements))[:, :top].exp().sum(dim=1).neg().numpy()


def grad_norm(model: Model, images: Tensor) -> np.ndarray:
    """-||d log p(x) / dx||_2 of each image, float64 (N,).

    One backward pass of the summed log densities gives every image's gradient, since in eval mode no image's logits
    depend on another image. Parameters' `.grad` stay untouched.

    Raises:
        ValueError: a model through which no gradient reaches the images.

    >>> grad_norm(lambda images: images.flatten(1), torch.zeros(1, 1, 1, 1))
    array([-1.])
    """
    gradient = _image_gradient(model, images, log_density, "grad_norm")
    return -gradient.cpu().double().flatten(1).norm(dim=1).numpy()


def odin(model: Model, images: Tensor, temperature: float = 1000.0, eps: float = 0.0014) -> np.ndarray:
    """Log-odds of the top class at a high temperature after a step that raises it, float64 (N,): ODIN.

    x' = x + eps sign(d log p_T(c|x) / dx) with c = argmax f(x) and p_T = softmax(f / T); the score is :func:`msp` of
    f(x') / T, which ranks as max_y p_T(y|x'). Source: Liang, Li & Srikant, ICLR 2018. eps is in units of a pixel in
    [0, 1]: the original divides a step on normalised images by their standard deviation, which is the same. As there,
    x' is not cut to [0, 1]. Parameters' `.grad` stay untouched.

    Raises:
        ValueError: a model through which no gradient reaches the images; temperature <= 0 or eps < 0.

    >>> odin(lambda images: images.flatten(1), torch.tensor([[[[0.5, 0.25]]]]), temperature=1, eps=0.125)
    array([0.5])
    """
    if not (temperature > 0 and eps >= 0):
        raise EbmhybridError(f"need temperature > 0 and eps >= 0, got temperature={temperature}, eps={eps}")

    def top(logits: Tensor) -> Tensor:
        return torch.log_softmax(logits.double() / temperature, dim=1).amax(dim=1)

    step = _image_gradient(model, images, top, "odin").sign()
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        logits = model(images + eps * step)
    return msp(logits.double() / temperature)


def _image_gradient(model: Model, images: Tensor, value: Callable[[Tensor], Tensor], score: str) -> Tensor:
    """d value(f(x)) / dx for each image x, value mapping logits (N, C) to (N,)."""
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(images.device.type, enabled=False):
        inputs = images.detach().clone().requires_grad_(True)
        logits = model(inputs)
        if not (isinstance(logits, Tensor) and logits.requires_grad):
            raise EbmhybridError(f"score {score!r} needs a model whose logits can be differentiated by the image")
        (gradient,) = torch.autograd.grad(value(logits).sum(), inputs)
    return gradient.detach()


# of logits
SCORES: dict[str, Callable[[np.ndarray | Tensor], np.ndarray]] = {
    "energy": energy,
    "msp": msp,
    "max_logit": max_logit,
    "joint_energy": max_logit,
    "entropy": entropy,
    "gen": gen,
}
# of the model and a batch of images
MODEL_SCORES: dict[str, Callable[[Model, Tensor], np.ndarray]] = {"grad_norm": grad_norm, "odin": odin}


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
