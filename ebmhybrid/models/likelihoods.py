r"""Likelihoods p(x|z) of an image given a decoder's output: independent over pixels and channels.

    bernoulli    sum x log p + (1 - x) log(1 - p)             probabilities of images of zeros and ones
    logistic     sum log [ F(x + 1/2 level) - F(x - 1/2 level) ]     probabilities of 8-bit images
    gaussian     sum log N(x; m, s^2)                         a density on real numbers

A likelihood turns parameters (N, `channels(C)`, H, W) and images (N, C, H, W) in [0, 1] into log p (N,): summed over
the image's C H W dimensions, in nats, in float32 or wider whatever the parameters come in. It is given z, so no
likelihood of x itself. Figures of different likelihoods are not comparable: `exact_for` names the images whose
probability each gives.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ebmhybrid.codes import LOG_2PI, floor_log_std
from ebmhybrid.errors import nearest

__all__ = ["LIKELIHOODS", "Bernoulli", "Gaussian", "Likelihood", "Logistic", "likelihood_named"]

LEVELS = 256
MIN_LOG_SCALE, MAX_LOG_SCALE = -7.0, 7.0
MIN_LOG_STD = -6.0  # about half of one of 256 levels
FIRST_LOG_STD = -1.5  # about the spread of the pixels of an image before anything is learned


class Likelihood(Protocol):
    """p(x|z) of images, from a decoder's output.

    Attributes:
        exact_for: the images whose probability exp(log_prob) is; empty where it is a density.
    """

    @property
    def exact_for(self) -> str: ...

    def channels(self, channels: int) -> int:
        """The number of parameters of a pixel of `channels` channels; in `parameters` they are the second axis."""
        ...

    def shared(self, channels: int) -> Tensor:
        """First values of those (the last) parameters that all pixels and images share: one learned number each."""
        ...

    def log_prob(self, parameters: Tensor, images: Tensor) -> Tensor:
        """log p(x|z), (N,), summed over the image's dimensions, in nats."""
        ...

    def mean(self, parameters: Tensor) -> Tensor:
        """The image to show, (N, C, H, W) in [0, 1]."""
        ...

    def sample(self, parameters: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """An image for each row, in [0, 1], with noise drawn on the generator's device (without one, the CPU)."""
        ...

    def bits_per_dimension(self, log_prob: Tensor, dims: int) -> Tensor:
        """Bits for each of an image's `dims` = C H W dimensions at 256 levels; NaN where there is no such figure."""
        ...


@dataclass(frozen=True)
class Bernoulli:
    """x log p + (1 - x) log(1 - p) for each pixel, p by its logit.

    Exact for images of zeros and ones. Of grey images it is a cross-entropy and no likelihood: it is no density of
    [0, 1] that integrates to 1, and has no bits per dimension.

    >>> Bernoulli().log_prob(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)) / math.log(2)
    tensor([-4.])
    """

    exact_for: ClassVar[str] = "binary images"

    def channels(self, channels: int) -> int:
        return channels

    def shared(self, channels: int) -> Tensor:
        return torch.zeros(0)

    def log_prob(self, parameters: Tensor, images: Tensor) -> Tensor:
        (logits,), images = _checked(parameters, images, 1)
        return -F.binary_cross_entropy_with_logits(logits, images, reduction="none").flatten(1).sum(1)

    def mean(self, parameters: Tensor) -> Tensor:
        return _wide(parameters).sigmoid()

    def sample(self, parameters: Tensor, generator: torch.Generator | None = None) -> Tensor:
        p = self.mean(parameters)
        return (_drawn(torch.rand, p, generator) < p).to(p)

    def bits_per_dimension(self, log_prob: Tensor, dims: int) -> Tensor:
        """NaN: there is none of grey images. Of images of zeros and ones it is -log p / (dims log 2)."""
        return torch.full_like(log_prob, math.nan)


@dataclass(frozen=True)
class Logistic:
    r"""The logistic distribution, rounded to 256 levels with open ends: its probabilities sum to 1.

    P(x) = F((x + 1/255 - m) / s) - F((x - 1/255 - m) / s) with x on [-1, 1] and F the logistic function; the lowest
    level has all that is below it, the highest all above. m and log s for each pixel and channel; log s >= -7.

    Images are rounded to the nearest of the 256 levels: log_prob has no gradient in them.

    Source: Salimans et al. 2017 (PixelCNN++), section 2.1, with a single component.

    >>> levels = torch.linspace(0, 1, 256).view(-1, 1, 1, 1)
    >>> parameters = torch.tensor([0.3, -2.0]).view(1, 2, 1, 1).expand(256, -1, -1, -1)
    >>> round(Logistic().log_prob(parameters, levels).exp().sum().item(), 5)
    1.0
    """

    exact_for: ClassVar[str] = "8-bit images"

    def channels(self, channels: int) -> int:
        return 2 * channels

    def shared(self, channels: int) -> Tensor:
        return torch.zeros(0)

    def log_prob(self, parameters: Tensor, images: Tensor) -> Tensor:
        (location, raw), images = _checked(parameters, images, 2)
        log_scale = _log_scale(raw)
        level = (images * (LEVELS - 1)).round()
        half = 1 / (LEVELS - 1)
        centred, precision = 2 * half * level - 1 - location, (-log_scale).exp()
        below_upper = F.logsigmoid((centred + half) * precision)
        above_lower = F.logsigmoid((half - centred) * precision)
        # F(b) - F(a) = F(b) F(-a) (1 - exp(a - b)): a product, so that its logarithm never sees a difference of 0.
        between = torch.log(-torch.expm1(-2 * half * precision))
        lowest, highest = level <= 0, level >= LEVELS - 1
        inner = below_upper + above_lower + between
        return torch.where(lowest, below_upper, torch.where(highest, above_lower, inner)).flatten(1).sum(1)

    def mean(self, parameters: Tensor) -> Tensor:
        """The location m as an image, clipped to [0, 1]: the distribution's median."""
        location, _ = _wide(parameters).chunk(2, dim=1)
        return ((location + 1) / 2).clamp(0, 1)

    def sample(self, parameters: Tensor, generator: torch.Generator | None = None) -> Tensor:
        location, raw = _wide(parameters).chunk(2, dim=1)
        x = location + _log_scale(raw).exp() * torch.logit(_drawn(torch.rand, location, generator), eps=1e-7)
        return ((x + 1) / 2 * (LEVELS - 1)).round().clamp(0, LEVELS - 1) / (LEVELS - 1)

    def bits_per_dimension(self, log_prob: Tensor, dims: int) -> Tensor:
        """-log p / (dims log 2): 8 where each level is given 1/256."""
        return -log_prob / (dims * math.log(2))


@dataclass(frozen=True)
class Gaussian:
    r"""log N(x; m, s^2) = -1/2 [ ((x - m)/s)^2 + log 2 pi ] - log s, with m of each pixel and channel, s of a channel.

    log s is one learned number for each channel, >= -6, shared by all pixels and images. This is a density, of real
    numbers; images are rounded to levels, and a model that finds the levels has a density as high as the floor of s
    allows. Its bits per dimension compare with those of other Gaussians, and with care.

    >>> parameters = torch.zeros(1, 2, 1, 1)  # m = 0, s = 1
    >>> Gaussian().log_prob(parameters, torch.ones(1, 1, 1, 1)).round(decimals=2)
    tensor([-1.4200])
    """

    exact_for: ClassVar[str] = ""

    def channels(self, channels: int) -> int:
        return 2 * channels

    def shared(self, channels: int) -> Tensor:
        return torch.full((channels,), FIRST_LOG_STD)

    def log_prob(self, parameters: Tensor, images: Tensor) -> Tensor:
        (mean, raw), images = _checked(parameters, images, 2)
        log_std = floor_log_std(raw, MIN_LOG_STD)
        standard = (images - mean) * (-log_std).exp()
        return (-0.5 * (standard.square() + LOG_2PI) - log_std).flatten(1).sum(1)

    def mean(self, parameters: Tensor) -> Tensor:
        """m, clipped to [0, 1]."""
        return _wide(parameters).chunk(2, dim=1)[0].clamp(0, 1)

    def sample(self, parameters: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A draw, clipped to [0, 1]."""
        mean, raw = _wide(parameters).chunk(2, dim=1)
        noise = _drawn(torch.randn, mean, generator)
        return (mean + floor_log_std(raw, MIN_LOG_STD).exp() * noise).clamp(0, 1)

    def bits_per_dimension(self, log_prob: Tensor, dims: int) -> Tensor:
        """-log p / (dims log 2) + 8: as if the density were even over each of 256 levels of width 1/256."""
        return -log_prob / (dims * math.log(2)) + math.log2(LEVELS)


LIKELIHOODS: dict[str, Likelihood] = {"bernoulli": Bernoulli(), "logistic": Logistic(), "gaussian": Gaussian()}


def likelihood_named(name: str) -> Likelihood:
    """A likelihood by name.

    Raises:
        ValueError: a name that there is none of.

    >>> likelihood_named("logistic").exact_for
    '8-bit images'
    """
    if name not in list(LIKELIHOODS):  # a list may ask for what has no hash
        raise ValueError(f"likelihood = {name!r}: {nearest(str(name), LIKELIHOODS)}")
    return LIKELIHOODS[name]


def _wide(values: Tensor) -> Tensor:
    """In float32 at least: sums over an image in half precision would lose whole nats."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _log_scale(raw: Tensor) -> Tensor:
    """Floored smoothly; capped where the distribution has long been flat and exp(-log s) would run to 0."""
    return floor_log_std(raw, MIN_LOG_SCALE).clamp(max=MAX_LOG_SCALE)


def _drawn(draw: Callable[..., Tensor], like: Tensor, generator: torch.Generator | None) -> Tensor:
    device = torch.device("cpu") if generator is None else generator.device
    return draw(like.shape, generator=generator, device=device).to(like)


def _checked(parameters: Tensor, images: Tensor, parts: int) -> tuple[tuple[Tensor, ...], Tensor]:
    """The parameters by kind, each of the images' shape, and the images, in one dtype."""
    expected = (images.shape[0], parts * images.shape[1], *images.shape[2:]) if images.dim() == 4 else None
    if tuple(parameters.shape) != expected:
        raise ValueError(
            f"parameters must be (N, {parts} C, H, W) for images (N, C, H, W), "
            f"got {tuple(parameters.shape)} and {tuple(images.shape)}"
        )
    wide = _wide(parameters)
    return wide.chunk(parts, dim=1), images.to(wide)
