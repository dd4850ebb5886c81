"""What a classifier's last linear layer is given, and that layer's weights: detectors of features need both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ebmhybrid.energies import at_least_float32
from ebmhybrid.errors import EbmhybridError


@dataclass(frozen=True)
class Head:
    """The last layer of a classifier, logits = features @ weight.T + bias: weight (C, D) and bias (C,) in float64."""

    weight: np.ndarray
    bias: np.ndarray

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Logits (N, C) in float64 of features (N, D)."""
        return features.astype(np.float64) @ self.weight.T + self.bias


def last_linear(model: Callable[[Tensor], Any]) -> nn.Linear:
    """The linear layer that a model defines last, as torchvision's and timm's classifiers and ours end in one.

    Raises:
        EbmhybridError: a callable that is no Module, or has no linear layer.

    >>> last_linear(nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))).out_features
    3
    """
    modules = model.modules() if isinstance(model, nn.Module) else ()
    layers = [module for module in modules if isinstance(module, nn.Linear)]
    if not layers:
        raise EbmhybridError("features need a torch module that ends in a linear layer, and this model shows none")
    return layers[-1]


def given_by(model: Callable[[Tensor], Any]) -> tuple[str, ...]:
    """What a model offers beside its logits: "features" and "head" where it has a linear layer."""
    linear = isinstance(model, nn.Module) and any(isinstance(module, nn.Linear) for module in model.modules())
    return ("features", "head") if linear else ()


def ends_in_head(model: Callable[[Tensor], Any], images: Tensor) -> bool:
    """Whether the model's logits of these images are what its last linear layer returns.

    >>> ends_in_head(nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU()), torch.zeros(1, 1, 2, 2))
    False
    """
    try:
        with torch.inference_mode(), captured(model):
            model(images)
    except Exception:  # whatever else is wrong with the model is said by the pass itself, in its own words
        return False
    return True


def head_of(model: Callable[[Tensor], Any]) -> Head:
    """The weights of :func:`last_linear`.

    >>> head_of(nn.Linear(4, 3)).weight.shape
    (3, 4)
    """
    layer = last_linear(model)
    weight = layer.weight.detach().cpu().double().numpy()
    bias = np.zeros(len(weight)) if layer.bias is None else layer.bias.detach().cpu().double().numpy()
    return Head(weight, bias)


@contextmanager
def captured(model: Callable[[Tensor], Any], wanted: bool = True) -> Iterator[list[Tensor]]:
    """A list that grows by the head's input (N, D), on the CPU, with each batch that the model is called on.

    Raises:
        EbmhybridError: no linear layer, or one whose outputs are not the model's logits.
    """
    kept: list[Tensor] = []
    if not wanted:
        yield kept
        return

    def keep(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if inputs[0].dim() != 2:
            raise EbmhybridError(f"features must be (N, D), got {tuple(inputs[0].shape)} before the last linear layer")
        seen.append(output)
        kept.append(at_least_float32(inputs[0].detach()).cpu())

    def check(module: nn.Module, inputs: Any, output: Tensor) -> None:
        if len(seen) != 1 or seen[0] is not output:
            raise EbmhybridError(
                "features need a model whose logits are what its last linear layer returns, called once an image"
            )
        seen.clear()

    seen: list[Tensor] = []
    layer = last_linear(model)
    hooks = [layer.register_forward_hook(keep)]
    if isinstance(model, nn.Module) and model is not layer:
        hooks.append(model.register_forward_hook(check))
    try:
        yield kept
    finally:
        for hook in hooks:
            hook.remove()
