r"""Inference after SGLD refinement on the model's own density (Grathwohl et al. 2020, the adversarial experiments).

A hybrid can move an image towards where its own density is higher before it decides:

    x_0     = clip(x + s_0 z_0)
    x_{k+1} = clip(x_k + a d log p(x_k) / dx + s z_k),   z ~ N(0, I),   clip to [0, 1]
    f(x)    = mean over chains of f(x_K)

The expectation over the noise and the way through the steps are what an attack on such a defence needs; see
`refine_attacks`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ebmhybrid.energies import log_density
from ebmhybrid.errors import EbmhybridError
from ebmhybrid.sampling import langevin_step

from .predictions import Model


class Refined(nn.Module):
    """A model that refines its images by SGLD on its own log density first: images (N, C, H, W) -> logits (N, C).

    Its noise has a seed of its own and leaves the global random state alone: two wrappers with one seed, called alike,
    agree. It is drawn anew with every call. The defaults are those of the released code for images in [-1, 1] (step 1,
    noise 0.01 and 0.03, 5 chains), turned to images in [0, 1], where a gradient is twice and a step half as long.

    Arguments:
        model: images in [0, 1] -> logits, twice differentiable.
        steps: K; 0 leaves the noise of the start and the chains.
        step_size: a, in [0, 1] pixels.
        noise_std: s, standard deviation of each step's noise.
        start_noise: s_0, that of the noise added to the image.
        chains: logits are averaged over so many chains of an image.
        seed: of the noise.
        bpda: take the refinement for the identity in the backward pass (backward pass differentiable approximation,
            Athalye et al. 2018) instead of differentiating through its steps. The forward pass is the same.

    >>> net = Refined(lambda x: x.flatten(1), steps=2, step_size=0.1, noise_std=0.0, start_noise=0.0, chains=1)
    >>> net(torch.full((1, 1, 1, 1), 0.5))
    tensor([[0.7000]])
    """

    def __init__(
        self,
        model: Model,
        steps: int = 10,
        step_size: float = 0.25,
        noise_std: float = 0.005,
        *,
        start_noise: float = 0.015,
        chains: int = 5,
        seed: int = 0,
        bpda: bool = False,
    ) -> None:
        super().__init__()
        if steps < 0 or chains < 1:
            raise EbmhybridError(f"steps must be at least 0 and chains at least 1, got {steps} and {chains}")
        sizes = {"step_size": step_size, "noise_std": noise_std, "start_noise": start_noise}
        for name, value in sizes.items():
            if not 0 <= value < math.inf:
                raise EbmhybridError(f"{name} must be at least 0 and finite, got {value}")
        self.model = model
        self.settings: dict[str, Any] = {"steps": steps, **sizes, "chains": chains}
        self.bpda = bpda
        self._generator = torch.Generator().manual_seed(seed)

    @property
    def stochastic(self) -> bool:
        """Whether two calls differ."""
        return self.settings["start_noise"] > 0 or (self.settings["noise_std"] > 0 and self.settings["steps"] > 0)

    def again(self, seed: int, bpda: bool = False) -> Refined:
        """The same refinement of the same model with noise of its own."""
        return Refined(self.model, **self.settings, seed=seed, bpda=bpda)

    def refine(self, images: Tensor) -> Tensor:
        """x_K of every chain, (N chains, C, H, W), an image's chains in succession; in the dtype of the images."""
        through = torch.is_grad_enabled() and images.requires_grad and not self.bpda
        settings, start = self.settings, images.repeat_interleave(self.settings["chains"], dim=0)
        here = (start if through else start.detach()) + self._noise(start, settings["start_noise"])
        here = here.clamp(0, 1)
        for _ in range(settings["steps"]):
            noise = self._noise(start, settings["noise_std"])
            here = langevin_step(self._density, here, settings["step_size"], noise, clamp=(0.0, 1.0), through=through)
        # x - x.detach() is exactly 0 and has the identity for its derivative
        return here + (start - start.detach()) if self.bpda else here

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, C), the mean over the chains."""
        wanted = torch.is_grad_enabled()  # leaving inference mode would turn it on
        with (
            torch.inference_mode(False),
            torch.set_grad_enabled(wanted),
            torch.autocast(images.device.type, enabled=False),
        ):
            usable = images.clone() if images.is_inference() else images
            logits = self.model(self.refine(usable))
            return logits.reshape(len(images), self.settings["chains"], -1).mean(dim=1)

    def _density(self, images: Tensor) -> Tensor:
        return log_density(self.model(images))

    def _noise(self, like: Tensor, std: float) -> Tensor | float:
        """Drawn on the CPU, so that a seed means the same on every device."""
        if std == 0:
            return 0.0
        return (std * torch.randn(like.shape, generator=self._generator, dtype=like.dtype)).to(like.device)
