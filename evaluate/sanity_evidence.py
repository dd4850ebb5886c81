"""What the sanity panel looks at: short, long, wide and black-box attacks on one batch, its logits and gradients."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ebmhybrid.errors import EbmhybridError

from .attacked_model import gaps
from .attacks import AttackedModel, attack_batch, project
from .predictions import Model, check_labels, check_logits

FEW = 20  # steps of the short attack
_NOISES = 20


def evidence_of(
    model: Model, images: Tensor, labels: Tensor, budget: dict[str, Any], seed: int, name: str
) -> dict[str, np.ndarray]:
    """What the verdicts need to know of the images of one batch that are right without an attack, {} where none is.

    half, few, double, many, wide, square, noise tell whether an image stands (is still right) under that attack;
    vanished, gap, drift and sums_to_one describe its gradient and logits.
    """
    target = AttackedModel(model, images.device, budget["eot"])
    first, second = _logits(model, images, name), _logits(model, images, name)
    check_labels(labels.numpy(), first.shape[1], name)
    labels = labels.to(images.device)
    right = _decisions(target, images, name) == labels
    seen = _of_logits(first, second)
    seen = {key: values[right] for key, values in seen.items()}
    images, labels = images[right], labels[right]
    if not len(images):
        return {}
    norm, eps = budget["norm"], budget["eps"]
    widest = 1.0 if norm == "linf" else math.sqrt(images[0].numel())
    if eps > widest:
        raise EbmhybridError(f"eps must be at most sqrt(C H W) = {widest:.4g} for l2, got {eps}")

    def stands(attack: str, radius: float, length: int) -> Tensor:
        spec = {"attack": attack, "norm": norm, "eps": radius, "steps": length}
        return _decisions(target, attack_batch(target, images, labels, spec, seed)[0], name) == labels

    seen["half"], seen["few"] = stands("pgd", eps / 2, FEW), stands("pgd", eps, FEW)
    seen["double"] = stands("pgd", min(2 * eps, widest), FEW)
    seen["many"], seen["wide"] = stands("pgd", eps, budget["steps"]), stands("pgd", widest, budget["steps"])
    seen["noise"] = _stands_noise(target, images, labels, norm, eps, name)
    if norm == "linf" or images.shape[2] == images.shape[3] >= 5:  # Square's squares do not fit others
        seen["square"] = stands("square", eps, budget["queries"])
    seen["vanished"] = target.vanished(images, labels)
    return {key: values.cpu().numpy() for key, values in seen.items()}


def _of_logits(first: Tensor, second: Tensor) -> dict[str, Tensor]:
    """gap of the two largest logits, drift between two passes relative to the largest logit, whether a distribution."""
    drift = (first - second).abs().amax(dim=1) / first.abs().amax(dim=1).clamp_min(1e-12)
    one = (first.sum(dim=1) - 1).abs() < 1e-4
    return {"gap": gaps(first), "drift": drift, "sums_to_one": one & (first >= 0).all(dim=1)}


def _logits(model: Model, images: Tensor, name: str) -> Tensor:
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        return check_logits(model(images), images, name, 0).double()


def _decisions(target: AttackedModel, images: Tensor, name: str) -> Tensor:
    """The class of the largest logit, of the mean of so many calls as the target makes."""
    return _logits(target.logits, images, name).argmax(dim=1)


def _stands_noise(target: AttackedModel, images: Tensor, labels: Tensor, norm: str, eps: float, name: str) -> Tensor:
    """Which images stay right under 20 draws of noise from the ball's surface: corners for linf, the sphere for l2."""
    standing = torch.ones_like(labels, dtype=torch.bool)
    for _ in range(_NOISES):
        noise = torch.randn(images.shape, dtype=torch.float64).to(images.device)
        if norm == "linf":
            noise = eps * noise.sign()
        else:
            noise = eps * noise / noise.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
        moved, _ = project(images.double() + noise, images, norm, eps)
        standing &= _decisions(target, moved, name) == labels
    return standing
