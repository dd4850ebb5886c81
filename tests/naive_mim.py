"""The losses of encoder-decoders one row and one pair at a time, from the papers' equations, in float64.

And, for linear Gaussian models, the expectations of the losses over data and codes, by algebra.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


def normal_log_density(value: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """log of prod_d 1 / (std_d sqrt(2 pi)) exp( -(v_d - m_d)^2 / (2 std_d^2) ), one row."""
    total = value.new_zeros(())
    for v, m, s in zip(value, mean, std, strict=True):
        total = total + ((-((v - m) ** 2) / (2 * s**2)).exp() / (s * math.sqrt(2 * math.pi))).log()
    return total


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return sum(x * y for x, y in zip(a, b, strict=True)) / (a.square().sum().sqrt() * b.square().sum().sqrt())


def cmim_log_prob(z: Tensor, temperature: float) -> Tensor:
    """Livne 2025: log[ e^{1/t} / ( e^{1/t} + mean_{j != i} e^{s_ij/t} ) ], a double loop."""
    values = []
    for i, anchor in enumerate(z):
        negatives = [(cosine(anchor, other) / temperature).exp() for j, other in enumerate(z) if j != i]
        mean = sum(negatives) / len(negatives) if negatives else 0.0
        own = math.exp(1 / temperature)
        values.append((own / (own + mean + 0 * anchor.sum())).log())
    return torch.stack(values)


def infonce_log_prob(z: Tensor, positives: Tensor | None, temperature: float) -> Tensor:
    """van den Oord et al. 2018, equation 4: log[ f(z_i, p_i) / sum_j f(z_i, p_j) ], f = e^{cos/t}, a double loop."""
    columns = z if positives is None else positives
    values = []
    for i, anchor in enumerate(z):
        powers = [(cosine(anchor, other) / temperature).exp() for other in columns]
        values.append((powers[i] / sum(powers)).log())
    return torch.stack(values)


def mim(log_px: Tensor, mean: Tensor, log_std: Tensor, z: Tensor) -> Tensor:
    """A-MIM: the mean over rows of -( log p(x|z) + 1/2 log q(z|x) + 1/2 log P(z) )."""
    total = log_px.new_zeros(())
    for row in range(len(z)):
        posterior = normal_log_density(z[row], mean[row], log_std[row].exp())
        prior = normal_log_density(z[row], torch.zeros_like(z[row]), torch.ones_like(z[row]))
        total = total - (log_px[row] + posterior / 2 + prior / 2)
    return total / len(z)


def vae(log_px: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """VAE: the mean over rows of -log p(x|z) + KL, with Kingma & Welling's sum (appendix B), one latent at a time."""
    total = log_px.new_zeros(())
    for row in range(len(mean)):
        total = total - log_px[row]
        for m, s in zip(mean[row], log_std[row].exp(), strict=True):
            total = total - (1 + (s**2).log() - m**2 - s**2) / 2
    return total / len(mean)


class LinearGaussian(NamedTuple):
    """x of mean m (d,) and covariance S (d, d); p(x|z) = N(W z, s^2 I); q(z|x) = N(A x + a, diag sigma^2)."""

    m: Tensor
    S: Tensor
    W: Tensor
    s: float
    A: Tensor
    a: Tensor
    sigma: Tensor

    def expected(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """E log p(x|z), E log q(z|x), E log P(z) and E KL(q || P), over x and z ~ q(z|x)."""
        d, latent = self.W.shape
        rest = torch.eye(d, dtype=self.S.dtype) - self.W @ self.A
        missed = (rest @ self.S @ rest.T).trace() + (rest @ self.m - self.W @ self.a).square().sum()
        size = (self.A @ self.S @ self.A.T).trace() + (self.A @ self.m + self.a).square().sum()
        spread = self.sigma.square()
        noise = (spread * self.W.square().sum(0)).sum()
        log_p = -d / 2 * math.log(2 * math.pi * self.s**2) - (missed + noise) / (2 * self.s**2)
        log_q = -latent / 2 * (math.log(2 * math.pi) + 1) - self.sigma.log().sum()
        log_prior = -latent / 2 * math.log(2 * math.pi) - (size + spread.sum()) / 2
        kl = (size + spread.sum() - latent) / 2 - self.sigma.log().sum()
        return log_p, log_q, log_prior, kl

    def mim(self) -> Tensor:
        log_p, log_q, log_prior, _ = self.expected()
        return -(log_p + log_q / 2 + log_prior / 2)

    def vae(self) -> Tensor:
        log_p, _, _, kl = self.expected()
        return kl - log_p
