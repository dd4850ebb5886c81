"""Image autoencoders with Gaussian codes: an encoder q(z|x) and a decoder p(x|z), for the VAE and MIM losses.

The encoder gives the parameters of :mod:`ebmhybrid.codes`, the decoder those of :mod:`ebmhybrid.models.likelihoods`.
There is no batch norm anywhere: what an image's code is does not depend on the batch it comes in.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ebmhybrid.codes import FLOOR, Codes, Posterior, floor_log_std
from ebmhybrid.models.checks import MOST_SAMPLES, check_number, check_sizes, check_whole
from ebmhybrid.models.likelihoods import likelihood_named
from ebmhybrid.models.normalize import Normalize
from ebmhybrid.models.wide_resnet import WideResNet

Encoder = Literal["conv", "wide_resnet"]
CodeNorm = Literal["none", "layer"]
SMALLEST = 7  # maps of at most this side are not halved any more


class Autoencoder(nn.Module):
    """Images in [0, 1] to codes and back: q(z|x) = N(mu, diag sigma^2), p(x|z) of a named likelihood.

    Arguments:
        image_size: side of the square images, 8 to 64.
        latent: dimensions of z, at most 2^16.
        encoder: `conv` (3x3 convolutions of stride 2 down to a side of at most 7) or `wide_resnet`
            (:class:`ebmhybrid.models.WideResNet`, pooled over the image).
        width: channels at full resolution, so of the last hidden layer, at most 1,024; twice as many on smaller maps.
            For `wide_resnet` a multiple of 16: the network is WRN-depth-(width / 16).
        depth: of `wide_resnet` alone, 6 n + 4; 10 by default.
        norm: `none`, or `layer` (over channels and pixels of one image) in encoder and decoder.
        likelihood: `bernoulli`, `logistic` or `gaussian`, see :mod:`ebmhybrid.models.likelihoods`.
        min_log_std: floor of log sigma, -20 to 0, below which the MIM losses would drive it.
        mean, std: input statistics, one number or one a channel.

    Shapes:
        images (N, in_channels, image_size, image_size), z (N, latent).

    Attributes:
        latent, image_shape (C, H, W), normalize, likelihood.

    Raises:
        ValueError: options, images or codes that do not fit.

    >>> model = Autoencoder(image_size=8, latent=4, width=16)
    >>> codes = model(torch.rand(2, 1, 8, 8))
    >>> codes.z.shape, codes.log_likelihood.shape
    (torch.Size([2, 4]), torch.Size([2]))
    >>> model.sample(3).shape
    torch.Size([3, 1, 8, 8])
    """

    def __init__(
        self,
        in_channels: int = 1,
        image_size: int = 8,
        latent: int = 32,
        encoder: Encoder = "conv",
        width: int = 16,
        depth: int | None = None,
        norm: CodeNorm = "none",
        likelihood: str = "bernoulli",
        min_log_std: float = FLOOR,
        mean: float | Sequence[float] = 0.5,
        std: float | Sequence[float] = 0.5,
    ) -> None:
        super().__init__()
        _check(in_channels, image_size, latent, encoder, width, depth, norm, min_log_std)
        self.latent, self.image_shape = latent, (in_channels, image_size, image_size)
        self.likelihood, self.min_log_std = likelihood_named(likelihood), float(min_log_std)
        self.encoder: WideResNet | ConvEncoder
        if encoder == "wide_resnet":
            depth, k = 10 if depth is None else depth, width // 16
            self.encoder = WideResNet(depth, k, 2 * latent, in_channels, norm, "leaky_relu", mean=mean, std=std)
        else:
            self.encoder = ConvEncoder(in_channels, image_size, width, 2 * latent, norm, mean, std)
        self.decoder = ConvDecoder(latent, image_size, width, norm)
        shared = self.likelihood.shared(in_channels)
        self.output = nn.Conv2d(width, self.likelihood.channels(in_channels) - len(shared), 1)
        self.shared = nn.Parameter(shared) if len(shared) else None

    @property
    def normalize(self) -> Normalize:
        return self.encoder.normalize

    def encode(self, images: Tensor) -> Posterior:
        """q(z|x): mean and floored log standard deviation, each (N, latent), in float32 or wider."""
        if tuple(images.shape[1:]) != self.image_shape:
            raise ValueError(f"images must be (N, {', '.join(map(str, self.image_shape))}), got {tuple(images.shape)}")
        both = self.encoder(images)
        mean, raw = both.to(torch.promote_types(both.dtype, torch.float32)).chunk(2, dim=1)
        return Posterior(mean, floor_log_std(raw, self.min_log_std))

    def hidden(self, z: Tensor) -> Tensor:
        """The decoder's last hidden layer, (N, width, H, W)."""
        if z.dim() != 2 or z.shape[1] != self.latent:
            raise ValueError(f"z must be (N, {self.latent}), got {tuple(z.shape)}")
        return self.decoder(z)

    def decode(self, z: Tensor) -> Tensor:
        """The likelihood's parameters, (N, likelihood.channels(C), H, W)."""
        parameters = self.output(self.hidden(z))
        if self.shared is None:
            return parameters
        shared = self.shared.view(1, -1, 1, 1).expand(len(z), -1, *self.image_shape[1:])
        return torch.cat([parameters, shared], dim=1)  # in the wider dtype of the two

    def log_likelihood(self, images: Tensor, z: Tensor) -> Tensor:
        """log p(x|z), (N,), summed over an image's dimensions, in nats."""
        return self.likelihood.log_prob(self.decode(z), images)

    def mean_image(self, z: Tensor) -> Tensor:
        """The image that p(x|z) is centred on, (N, C, H, W) in [0, 1]."""
        return self.likelihood.mean(self.decode(z))

    def forward(self, images: Tensor) -> Codes:
        """A code z ~ q(z|x) for each image, drawn from torch's global generator, and log p(x|z)."""
        posterior = self.encode(images)
        z = posterior.sample()
        return Codes(self.log_likelihood(images, z), posterior.mean, posterior.log_std, z)

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None, noise: bool = False) -> Tensor:
        """Images of z ~ N(0, I), (n, C, H, W) in [0, 1], decoded as one batch.

        Arguments:
            generator: draws on its own device, so that one of the CPU gives the same z on any; None: torch's of the
                CPU.
            noise: draw from p(x|z) instead of showing its mean.
        """
        check_whole("n", n, 1, MOST_SAMPLES)
        device = torch.device("cpu") if generator is None else generator.device
        z = torch.randn(n, self.latent, generator=generator, device=device).to(self.output.weight)
        return self.likelihood.sample(self.decode(z), generator) if noise else self.mean_image(z)


class ConvEncoder(nn.Module):
    """Convolutions of stride 2, one more at the smallest side, then a linear layer: images to (N, out)."""

    def __init__(
        self,
        in_channels: int,
        image_size: int,
        width: int,
        out: int,
        norm: str,
        mean: float | Sequence[float],
        std: float | Sequence[float],
    ) -> None:
        super().__init__()
        self.normalize = Normalize(in_channels, mean, std)
        sizes, widths = _levels(image_size, width)
        ends = [in_channels, *widths[1:]]
        halvings = [_conv(a, b, norm, stride=2) for a, b in pairwise(ends)]
        self.layers = nn.Sequential(*halvings, _conv(widths[-1], widths[-1], norm))
        self.head = nn.Linear(widths[-1] * sizes[-1] ** 2, out)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.layers(self.normalize(images)).flatten(1))


class ConvDecoder(nn.Module):
    """The encoder backwards, z (N, latent) to (N, width, H, W): before each doubling a convolution, and one at the end.

    A doubling repeats pixels, so that no pixel has more weights than its neighbour: no checkerboards.
    """

    def __init__(self, latent: int, image_size: int, width: int, norm: str) -> None:
        super().__init__()
        sizes, widths = _levels(image_size, width)
        self.sizes, self.first = sizes[-2::-1], (widths[-1], sizes[-1], sizes[-1])
        self.head = nn.Sequential(nn.Linear(latent, widths[-1] * sizes[-1] ** 2), nn.LeakyReLU(0.2))
        ends = widths[::-1]
        self.layers = nn.ModuleList(_conv(a, b, norm) for a, b in pairwise(ends))
        self.last = _conv(width, width, norm)

    def forward(self, z: Tensor) -> Tensor:
        x = self.head(z).unflatten(1, self.first)
        for size, layer in zip(self.sizes, self.layers, strict=True):
            x = F.interpolate(layer(x), scale_factor=2, mode="nearest")[..., :size, :size]
        return self.last(x)


def _levels(image_size: int, width: int) -> tuple[list[int], list[int]]:
    """The sides of the maps from the image's down, and the channels at each."""
    sizes = [image_size]
    while sizes[-1] > SMALLEST:
        sizes.append((sizes[-1] + 1) // 2)
    return sizes, [width * min(2**level, 2) for level in range(len(sizes))]


def _conv(channels: int, out_channels: int, norm: str, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(channels, out_channels, 3, stride=stride, padding=1)
    layers = [conv, nn.GroupNorm(1, out_channels)] if norm == "layer" else [conv]
    return nn.Sequential(*layers, nn.LeakyReLU(0.2))


def _check(
    in_channels: int,
    image_size: int,
    latent: int,
    encoder: str,
    width: int,
    depth: int | None,
    norm: str,
    min_log_std: float,
) -> None:
    if in_channels not in (1, 3):
        raise ValueError(f"in_channels must be 1 or 3, got {in_channels}")
    check_whole("image_size", image_size, 8, 64)
    check_sizes(latent=latent, width=width)
    if depth is not None:
        check_whole("depth", depth, 10, 1000)
    for name, value, choices in (("encoder", encoder, get_args(Encoder)), ("norm", norm, get_args(CodeNorm))):
        if value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    if encoder == "wide_resnet" and width % 16:
        raise ValueError(f"width must be a multiple of 16 for encoder wide_resnet, got {width}")
    if encoder == "conv" and depth is not None:
        raise ValueError(f"depth is an option of encoder wide_resnet alone, got {depth} for conv")
    check_number("min_log_std", min_log_std, -20, 0)
