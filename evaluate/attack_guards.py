"""What every attack is run behind: modes and random states put back, a projected result.

Attack libraries clamp any input into [0, 1] without a word, draw from the global random state and reseed it, put a
frozen BatchNorm back into train mode, and return images that may leave the ball by a rounding error. Hence: images are
checked by the caller, the random state is forked and seeded, modes and flags are restored, and the result is projected.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from .predictions import Model, evaluating

_DELTA_SLACK = 1e-6


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


def drawn_seed(generator: torch.Generator | None) -> int:
    """A seed from the generator, which moves on; 0 without one."""
    if generator is None:
        return 0
    return int(torch.randint(2**62, (), generator=generator, device=generator.device).item())


def seed_of(*parts: int) -> int:
    """One seed of several numbers, so that each batch and restart draws its own and no other row matters."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


@contextmanager
def forked_rng(seed: int, device: torch.device) -> Iterator[None]:
    """The global random state of the CPU and of the GPUs seeded inside, and as before afterwards.

    All GPUs in use are forked, because attacks call torch.manual_seed, which seeds every one of them.
    """
    cuda = device.type == "cuda"
    started = cuda or torch.cuda.is_initialized()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if started else []):
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
