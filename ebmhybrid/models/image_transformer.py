r"""A transformer encoder-decoder of images, for generative and contrastive training together.

GCRL (Kim, Kim & Lee 2021, arXiv 2106.06162) trains a transformer encoder-decoder with a contrastive and a generative
loss. Its abstract is what is known here: the parts below and their sizes are this project's design.

    tokens     t_1 ... t_T, the nearest of `levels` colours for each of the T = H W pixels, in raster order
    encoder    patches of the image as it is, not quantised -> memory e(x), a vector a patch; features are their mean
    decoder    log p(t | m) = sum_i log p(t_i | t_1 ... t_{i-1}, m), with cross-attention to a memory m

With m = e(x) the decoder has been shown what it predicts, and p(x | e(x)) is no likelihood of x. So there is a learned
empty memory as well, which replaces e(x) in training with probability `empty`: with it the decoder is a plain
autoregressive model, and log p(x) exact for the quantised image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ebmhybrid.errors import EbmhybridError
from ebmhybrid.models.attention import Block
from ebmhybrid.models.checks import check_number, check_sizes, check_whole
from ebmhybrid.models.dropout import Dropout
from ebmhybrid.models.normalize import Normalize
from ebmhybrid.models.palette import default_palette, dequantize, fit_palette, quantize
from ebmhybrid.models.pixel_decoder import PixelDecoder


class GCRLOutput(NamedTuple):
    """A training step's parts: log p(t | m) (N,) in nats, and two views' projections (N, P); None where not asked."""

    log_likelihood: Tensor | None
    anchors: Tensor | None
    positives: Tensor | None


class ImageTransformer(nn.Module):
    """Images in [0, 1] to features, exact log-likelihoods of their quantised selves, and samples.

    Arguments:
        in_channels: 1, or 3 with a palette that :meth:`fit_palette` takes from the training images.
        image_size: H = W, a multiple of `patch`.
        levels: colours of the palette, at least 2; grey ones are k / (levels - 1).
        dim, heads: width and attention heads, which divide it. layers: of the encoder, and as many of the decoder.
        projection: numbers that the contrastive loss compares.
        empty: chance in [0, 1] that an image's memory is the empty one in training. At 0 it stays untrained, and there
            are no likelihoods without a memory.
        dropout: probability in [0, 1) on embeddings and on what a layer adds.
        mean, std: input statistics, one number or one a channel.

    Shapes:
        M = (image_size / patch)^2 and T = image_size^2. See the methods.

    Raises:
        ValueError: options that do not fit. Methods raise EbmhybridError for images or a memory that do not.

    >>> model = ImageTransformer(image_size=8, levels=4, dim=16, layers=1, heads=2, projection=8)
    >>> out = model(*torch.rand(3, 5, 1, 8, 8))
    >>> out.log_likelihood.shape, out.anchors.shape
    (torch.Size([5]), torch.Size([5, 8]))
    """

    palette: Tensor

    def __init__(
        self,
        in_channels: int = 1,
        image_size: int = 8,
        levels: int = 16,
        patch: int = 2,
        dim: int = 64,
        layers: int = 2,
        heads: int = 4,
        projection: int = 64,
        empty: float = 0.5,
        dropout: float = 0.0,
        mean: float | Sequence[float] = 0.5,
        std: float | Sequence[float] = 0.5,
    ) -> None:
        super().__init__()
        counts = {"image_size": image_size, "patch": patch, "dim": dim, "layers": layers, "heads": heads}
        _check(in_channels, levels, counts | {"projection": projection}, empty, dropout)
        self.image_shape = (in_channels, image_size, image_size)
        self.num_tokens = image_size**2
        self.levels, self.empty = levels, empty
        memory_shape = ((image_size // patch) ** 2, dim)
        self.normalize = Normalize(in_channels, mean, std)
        self.register_buffer("palette", default_palette(levels, in_channels))
        self.patches = nn.Conv2d(in_channels, dim, patch, stride=patch)
        self.positions = nn.Parameter(torch.empty(memory_shape).normal_(std=0.02))
        self.dropout = Dropout(dropout)
        self.encoder = nn.ModuleList(Block(dim, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        self.projector = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, projection))
        self.decoder = PixelDecoder(levels, self.num_tokens, memory_shape, layers, heads, dropout)

    def fit_palette(self, images: Tensor, seed: int = 0) -> None:
        """Take the colours of the training images, (N, C, H, W) uint8 or in [0, 1]; grey levels stay as they are."""
        self._check_images(images)
        if self.image_shape[0] > 1:
            self.palette.copy_(fit_palette(images, self.levels, seed))

    def tokens(self, images: Tensor) -> Tensor:
        """The nearest colour of each pixel, in raster order: images (N, C, H, W) -> int64 (N, T) in [0, levels)."""
        self._check_images(images)
        return quantize(images, self.palette)

    def images(self, tokens: Tensor) -> Tensor:
        """The quantised images that tokens stand for: int64 (N, T) -> (N, C, H, W) in [0, 1]."""
        return dequantize(tokens, self.palette, *self.image_shape[1:])

    def encode(self, images: Tensor) -> Tensor:
        """The memory e(x): images (N, C, H, W) -> (N, M, dim)."""
        self._check_images(images)
        patches = self.patches(self.normalize(images)).flatten(2).transpose(1, 2)
        x = self.dropout(patches + self.positions)
        for block in self.encoder:
            x = block(x)
        return self.norm(x)

    def features(self, images: Tensor) -> Tensor:
        """The representation, the mean of e(x) over its patches: images (N, C, H, W) -> (N, dim)."""
        return self.encode(images).mean(1)

    def project(self, features: Tensor) -> Tensor:
        """What the contrastive loss compares; of no use after training: features (N, dim) -> (N, projection)."""
        return self.projector(features)

    def hidden(self, tokens: Tensor, memory: Tensor | None = None) -> Tensor:
        """The decoder's last layer before the logits, teacher-forced: tokens (N, T) -> (N, T, dim)."""
        return self.decoder.hidden(tokens, memory)

    def logits(self, tokens: Tensor, memory: Tensor | None = None) -> Tensor:
        """log p(t_i = k | t_1 ... t_{i-1}, m) up to a constant for each i: tokens (N, T) -> (N, T, levels)."""
        return self.decoder.logits(tokens, memory)

    def log_likelihood(self, images: Tensor, memory: Tensor | None = None) -> Tensor:
        """log p of the quantised images, summed over pixels, in nats and at most 0: images (N, C, H, W) -> (N,).

        Without a memory an exact log p(x); with a memory (N, M, dim) it is conditional on it, and with the images' own
        e(x) no likelihood. It has no gradient with respect to the images.
        """
        return self.decoder.log_likelihood(self.tokens(images), memory)

    def bits_per_dimension(self, log_likelihood: Tensor) -> Tensor:
        """-log p / (C T ln 2): bits a pixel, and in colour a third of that, as one token holds a pixel's channels.

        The uniform distribution has log2(levels) / C. Likelihoods are the quantised image's: figures of other palettes,
        and those of images with 256 levels a channel, are not to be compared with them.

        >>> model = ImageTransformer(image_size=2, levels=4)
        >>> model.bits_per_dimension(torch.tensor([-4 * math.log(4)]))
        tensor([2.])
        """
        return -log_likelihood / (self.image_shape[0] * self.num_tokens * math.log(2))

    def forward(self, view: Tensor, other: Tensor | None = None, target: Tensor | None = None) -> GCRLOutput:
        """A training step's parts: two views (augmented images) to compare, and the image that `view` is a view of.

        Without `other` there are no projections, without `target` no likelihood, and nothing is computed for them. In
        training each memory e(view) is replaced by the empty one with probability `empty`, drawn from torch's global
        generator; in evaluation all are, and the likelihood is the target's exact one. With `empty` = 0 none ever is.
        """
        for name, images in (("other", other), ("target", target)):
            if images is not None and images.shape != view.shape:
                raise EbmhybridError(f"{name} must be {tuple(view.shape)} as view, got {tuple(images.shape)}")
        memory = anchors = positives = log_likelihood = None
        if other is not None:
            memory, second = self.encode(torch.cat([view, other])).chunk(2)
            anchors, positives = self.project(memory.mean(1)), self.project(second.mean(1))
        if target is not None:
            if self.training or not self.empty:
                memory = self._some_empty(self.encode(view) if memory is None else memory)
            else:
                memory = None
            log_likelihood = self.log_likelihood(target, memory)
        return GCRLOutput(log_likelihood, anchors, positives)

    @torch.no_grad()
    def sample(
        self, n: int, generator: torch.Generator | None = None, memory: Tensor | None = None, temperature: float = 1.0
    ) -> Tensor:
        """Draw n images pixel by pixel; the decoder keeps keys and values, so that a step costs one token.

        Arguments:
            generator: the source of all draws; torch's default one if None.
            memory: (n, M, dim) to condition on, such as e(x) to reconstruct x; the empty one if None.
            temperature: divides the logits, 1e-6 to 1e6; at 1 the samples are the model's.

        Returns:
            (n, C, H, W), each pixel a colour of the palette. Call `eval()` first where there is dropout.
        """
        return self.images(self.decoder.sample(n, generator, memory, temperature))

    def _some_empty(self, memory: Tensor) -> Tensor:
        emptied = torch.rand(len(memory), 1, 1, device=memory.device) < self.empty
        return torch.where(emptied, self.decoder.empty_memory.to(memory.dtype), memory)

    def _check_images(self, images: Tensor) -> None:
        if images.dim() != 4 or images.shape[1:] != self.image_shape:
            channels, size, _ = self.image_shape
            raise EbmhybridError(f"images must be (N, {channels}, {size}, {size}), got {tuple(images.shape)}")


def _check(in_channels: int, levels: int, counts: dict[str, int], empty: float, dropout: float) -> None:
    if in_channels not in (1, 3):
        raise ValueError(f"in_channels must be 1 or 3, got {in_channels}")
    check_whole("levels", levels, 2, 2**16)
    check_sizes(**counts)
    for name, divisor in (("image_size", "patch"), ("dim", "heads")):
        if counts[name] % counts[divisor]:
            raise ValueError(f"{name} must be a multiple of {divisor} = {counts[divisor]}, got {counts[name]}")
    check_number("empty", empty, 0, 1)
    check_number("dropout", dropout, 0, 1, below=True)
