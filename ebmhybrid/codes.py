r"""Codes: Gaussian posteriors q(z|x) of an encoder, and their log densities. The one place with their signs.

    q(z|x) = N(mu(x), diag sigma(x)^2),    P(z) = N(0, I),    z = mu + sigma eps

Log densities are summed over the D dimensions of z, in nats.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LOG_2PI = math.log(2 * math.pi)
FLOOR = -6.0


class Posterior(NamedTuple):
    """q(z|x) of a batch: mean and log standard deviation, each (N, D)."""

    mean: Tensor
    log_std: Tensor

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """One z ~ q(z|x) for each row, by reparameterisation: gradients reach both parameters."""
        device = self.mean.device if generator is None else generator.device
        noise = torch.randn(self.mean.shape, generator=generator, device=device).to(self.mean)
        return self.mean + self.log_std.exp() * noise


class Codes(NamedTuple):
    """What an encoder-decoder makes of a batch: log p(x|z) (N,) summed over x, and q(z|x) with its sample z, (N, D)."""

    log_likelihood: Tensor
    mean: Tensor
    log_std: Tensor
    z: Tensor


def floor_log_std(raw: Tensor, floor: float = FLOOR) -> Tensor:
    """A log standard deviation that stays above `floor`, smoothly: floor + softplus(raw - floor).

    The MIM losses reward certainty without end: without a floor sigma shrinks until its logarithm overflows.

    >>> floor_log_std(torch.tensor([-1e4, 0.0, 3.0])).round(decimals=2)
    tensor([-6.,  0.,  3.])
    """
    return floor + F.softplus(raw - floor)


def log_posterior(z: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """log q(z|x) = -1/2 sum_d [ ((z - mu)/sigma)^2 + log 2 pi ] - sum_d log sigma; all (N, D) -> (N,).

    >>> log_posterior(torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1, 2))
    tensor([-1.8379])
    """
    standard = (z - mean) * (-log_std).exp()
    return -0.5 * (standard.square() + LOG_2PI).sum(1) - log_std.sum(1)


def log_prior(z: Tensor) -> Tensor:
    """log P(z) of the standard normal prior; (N, D) -> (N,)."""
    return -0.5 * (z.square() + LOG_2PI).sum(1)


def kl_to_prior(mean: Tensor, log_std: Tensor) -> Tensor:
    """KL(q(z|x) || P(z)) = 1/2 sum_d ( mu^2 + sigma^2 - 1 - 2 log sigma ); (N, D) -> (N,), at least 0.

    >>> kl_to_prior(torch.ones(1, 3), torch.zeros(1, 3))
    tensor([1.5000])
    """
    return 0.5 * (mean.square() + (2 * log_std).exp() - 1 - 2 * log_std).sum(1)
