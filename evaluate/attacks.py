"""One batch under attack by torchattacks, with its traps closed.

torchattacks 3.5.1 clamps any input into [0, 1] without a word, draws from the global random state, puts a frozen
BatchNorm back into train mode, prints when a model has no parameter, leaves an L2 step near zero when gradients are
small, and has cross-entropy only, which saturates. Hence: images are checked by the caller, the random state is forked
and seeded, modes and flags are restored, the model is wrapped, its logits are kept from saturating, and the result is
projected again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ebmhybrid.errors import EbmhybridError

from .predictions import Model, evaluating

NORMS = ("linf", "l2")

# torchattacks adds this to a gradient's L2 norm; its own 1e-10 shortens the steps on confident images
_TINY = 1e-30
_WIDEST_GAP = 30.0
_DELTA_SLACK = 1e-6


@dataclass(frozen=True)
class Attack:
    """How to build an attack: build(target, norm, eps, steps) -> callable (images, labels) -> adversarial images."""

    build: Callable[[nn.Module, str, float, int], Any]
    iterative: bool


def step_size(eps: float, steps: int) -> float:
    """max(eps / 4, 2.5 eps / steps): 2/255 for 20 steps of 8/255, and enough to cross the ball with few steps.

    >>> step_size(8 / 255, 20) == 2 / 255
    True
    """
    return max(eps / 4, 2.5 * eps / steps)


def _fgsm(target: nn.Module, norm: str, eps: float, steps: int) -> Any:
    """One step of length eps along the gradient's sign (Goodfellow et al. 2015), in L2 along the gradient itself."""
    import torchattacks

    if norm == "linf":
        return torchattacks.FGSM(target, eps=eps)
    return torchattacks.PGDL2(target, eps=eps, alpha=eps, steps=1, random_start=False, eps_for_division=_TINY)


def _pgd(target: nn.Module, norm: str, eps: float, steps: int) -> Any:
    """Projected gradient ascent from a random start in the ball (Madry et al. 2018)."""
    import torchattacks

    alpha = step_size(eps, steps)
    if norm == "linf":
        return torchattacks.PGD(target, eps=eps, alpha=alpha, steps=steps, random_start=True)
    return torchattacks.PGDL2(target, eps=eps, alpha=alpha, steps=steps, random_start=True, eps_for_division=_TINY)


ATTACKS: dict[str, Attack] = {"fgsm": Attack(_fgsm, iterative=False), "pgd": Attack(_pgd, iterative=True)}


def unsaturated(logits: Tensor) -> Tensor:
    """Logits in float64 whose two largest are at most 30 apart, an image's logits being scaled where they are not.

    The gradient of the cross-entropy at the label's logit is p - 1: exactly 0 in float32 beyond a gap of 17, in float64
    beyond 37. An attack that cannot see the slope reports robustness that is not there. The scale is a constant of the
    image: decisions stay, and below a gap of 30 so does the loss.

    >>> unsaturated(torch.tensor([[300.0, 0.0], [9.0, 0.0]]))
    tensor([[30.,  0.],
            [ 9.,  0.]], dtype=torch.float64)
    """
    logits = logits.double()
    if logits.shape[1] < 2:
        return logits
    top = logits.detach().topk(2, dim=1).values
    return logits / ((top[:, :1] - top[:, 1:]) / _WIDEST_GAP).clamp_min(1)


class AttackedModel(nn.Module):
    """A model as torchattacks wants it: a Module with a parameter, logits that do not saturate, no autocast."""

    def __init__(self, model: Model, device: torch.device | str | None) -> None:
        super().__init__()
        # torchattacks reads the device off the first parameter
        self.device_marker = nn.Parameter(torch.empty(0, device=device), requires_grad=False)
        # in a list, so that torchattacks' eval() and train() do not reach the model's modules
        self._model: list[Model] = [model]
        self.training = False

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            logits = self._model[0](images)
        return unsaturated(logits) if isinstance(logits, Tensor) and logits.dim() == 2 else logits

    def zero_gradients(self, images: Tensor, labels: Tensor) -> int:
        """How many images have a cross-entropy gradient of exactly 0, or a ValueError where there is no gradient."""
        with torch.enable_grad():
            inputs = images.detach().clone().requires_grad_(True)
            logits = self(inputs)
            if not logits.requires_grad:
                raise EbmhybridError("attacks need a model whose logits can be differentiated by the image")
            (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(logits, labels, reduction="sum"), inputs)
        return int((gradient.flatten(1) == 0).all(dim=1).sum())


@contextmanager
def guarded(model: Model) -> Iterator[None]:
    """Eval mode and grad enabled inside; modes and requires_grad flags as before afterwards, also after an error."""
    parameters = list(model.parameters()) if isinstance(model, nn.Module) else []
    flags = [parameter.requires_grad for parameter in parameters]
    try:
        with evaluating(model), torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for parameter, flag in zip(parameters, flags, strict=True):
            parameter.requires_grad_(flag)


def seed_of(*parts: int) -> int:
    """One seed of several numbers, so that each batch and restart draws its own and no other row matters."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


@contextmanager
def forked_rng(seed: int, device: torch.device) -> Iterator[None]:
    """The global random state of the CPU and of the device seeded inside, and as before afterwards.

    torch.manual_seed is not used: it seeds every CUDA device, of which only one is restored.
    """
    cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if cuda else []):
        torch.default_generator.manual_seed(seed)
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def project(adversarial: Tensor, images: Tensor, norm: str, eps: float) -> tuple[Tensor, float]:
    """(adversarial images inside the ball and the box, largest |delta|_p), computed in float64.

    Raises:
        RuntimeError: the result still breaks |delta|_p <= eps + 1e-6 or leaves [0, 1], NaN included.
    """
    centre = images.double()
    delta = adversarial.detach().double() - centre
    if norm == "linf":
        delta = delta.clamp(-eps, eps)
    else:
        length = delta.flatten(1).norm(dim=1).clamp_min(1e-300).reshape(-1, 1, 1, 1)
        delta = delta * (eps / length).clamp_max(1)
    moved = (centre + delta).clamp(0, 1).to(images.dtype)
    order = torch.inf if norm == "linf" else 2
    size = (moved.double() - centre).flatten(1).norm(p=order, dim=1).max().item()
    inside = bool(((moved >= 0) & (moved <= 1)).all())
    if not (inside and size <= eps + _DELTA_SLACK):
        raise RuntimeError(f"attack left its limits: |delta|_{norm} = {size}, eps = {eps}, pixels in [0, 1]: {inside}")
    return moved, size


def attack_batch(
    target: AttackedModel, images: Tensor, labels: Tensor, spec: dict[str, Any], seed: int
) -> tuple[Tensor, float]:
    """Adversarial images of one batch and the largest |delta|_p; spec has attack, norm, eps and steps."""
    attack = ATTACKS[spec["attack"]].build(target, spec["norm"], spec["eps"], spec["steps"])
    attack.set_device(images.device)
    with forked_rng(seed, images.device):
        adversarial = attack(images, labels)
    return project(adversarial, images, spec["norm"], spec["eps"])
