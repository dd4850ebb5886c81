r"""An encoder-decoder of token sequences: a bidirectional transformer to q(z|x), a causal one for p(x|z).

    q(z|x) = N(mu(x), diag sigma(x)^2)
    log p(x|z) = sum_{t <= T} log p(x_t | x_1, ..., x_{t-1}, z),    x_T the end token

A sequence x is a row of ids of :mod:`ebmhybrid.vocabulary`: tokens, the end token, padding. The sizes and the way in
which z enters, as a few vectors that the decoder attends to, are this project's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ebmhybrid.codes import FLOOR, Codes, Posterior, floor_log_std
from ebmhybrid.models.checks import MOST_SAMPLES, TEMPERATURES, check_number, check_sizes, check_whole
from ebmhybrid.vocabulary import END, PADDING, START, Vocabulary, content


class SequenceAutoencoder(nn.Module):
    """Sequences of tokens to Gaussian codes and back.

    Both parts are pre-norm transformers of `layers` layers. The encoder pools its outputs over a sequence's tokens by
    their mean; the decoder predicts each token from those before it and attends to `memory` vectors, linear in z.

    Arguments:
        vocabulary: the tokens, a list of strings; kept as `vocabulary`, a :class:`ebmhybrid.vocabulary.Vocabulary`.
        max_length: the longest row of tokens, its end token counted.
        latent: dimensions of z.
        dim: width of the transformers, a multiple of `heads`; the inner layers have 4 dim.
        layers: of the encoder, and of the decoder.
        heads: of each attention.
        memory: vectors made of z.
        dropout: probability in [0, 1) in both transformers.
        min_log_std: the floor of log sigma, -20 to 0, see :func:`ebmhybrid.codes.floor_log_std`.

    Shapes:
        tokens int64 (N, L), L <= max_length, 0 the padding -> Codes of (N,) and (N, latent). What follows a row's first
        end token has no influence on it.

    Raises:
        ValueError: options, tokens or codes that do not fit.

    >>> model = SequenceAutoencoder(["C", "N", "O"], max_length=8, latent=4, dim=16, layers=1, heads=2)
    >>> tokens = model.tokens(["CCO", "CN"])
    >>> model(tokens).z.shape, model.decode(torch.zeros(2, 4), tokens).shape
    (torch.Size([2, 4]), torch.Size([2, 4, 7]))
    """

    def __init__(
        self,
        vocabulary: Sequence[str],
        max_length: int,
        latent: int = 64,
        dim: int = 128,
        layers: int = 2,
        heads: int = 4,
        memory: int = 4,
        dropout: float = 0.0,
        min_log_std: float = FLOOR,
    ) -> None:
        super().__init__()
        _check(max_length, latent, dim, layers, heads, memory, dropout)
        check_number("min_log_std", min_log_std, -20, 0)
        self.vocabulary = Vocabulary(vocabulary)
        self.max_length, self.latent, self.min_log_std = max_length, latent, float(min_log_std)
        self.token_embedding = nn.Embedding(len(self.vocabulary), dim)
        self.position_embedding = nn.Embedding(max_length, dim)
        for embedding in (self.token_embedding, self.position_embedding):
            nn.init.normal_(embedding.weight, std=0.02)
        options: dict[str, Any] = {"dropout": dropout, "activation": "gelu", "batch_first": True, "norm_first": True}
        # Not nn.TransformerEncoder: its layers are copies, which begin with the same weights.
        self.encoder_layers = nn.ModuleList(
            nn.TransformerEncoderLayer(dim, heads, 4 * dim, **options) for _ in range(layers)
        )
        self.encoder_norm = nn.LayerNorm(dim)
        self.posterior = nn.Linear(dim, 2 * latent)
        self.memory = nn.Sequential(nn.Linear(latent, memory * dim), nn.Unflatten(1, (memory, dim)))
        self.decoder_layers = nn.ModuleList(
            nn.TransformerDecoderLayer(dim, heads, 4 * dim, **options) for _ in range(layers)
        )
        self.decoder_norm = nn.LayerNorm(dim)
        self.output = nn.Linear(dim, len(self.vocabulary) - END)  # padding and start are never predicted

    def encode(self, tokens: Tensor) -> Posterior:
        """q(z|x) of each row; padding has no influence."""
        said = content(self._checked(tokens))
        x = self._embedded(tokens)
        for layer in self.encoder_layers if len(x) else ():  # torch's do not take a mask of no rows
            x = layer(x, src_key_padding_mask=~said)
        x = self.encoder_norm(x).masked_fill(~said[..., None], 0.0)  # a row of padding alone is NaN here
        mean, raw = _wide(self.posterior(x.sum(1) / said.sum(1, keepdim=True).clamp(min=1))).chunk(2, dim=1)
        return Posterior(mean, floor_log_std(raw, self.min_log_std))

    def hidden(self, z: Tensor, tokens: Tensor) -> Tensor:
        """The decoder's last hidden layer before the output projection, (N, L, dim): at t from z and the tokens < t."""
        tokens = self._checked(tokens)
        if z.shape != (len(tokens), self.latent):
            raise ValueError(f"z must be ({len(tokens)}, {self.latent}) for these tokens, got {tuple(z.shape)}")
        # Teacher forcing: each position sees the true token before it, the first one the start token.
        x = self._embedded(torch.cat([torch.full_like(tokens[:, :1], START), tokens[:, :-1]], dim=1))
        memory = self.memory(z)
        future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        for layer in self.decoder_layers:
            x = layer(x, memory, tgt_mask=future, tgt_is_causal=True)
        return self.decoder_norm(x)

    def decode(self, z: Tensor, tokens: Tensor) -> Tensor:
        """Logits (N, L, V) of each token given z and the tokens before it; -inf for padding and start."""
        return F.pad(self.output(self.hidden(z, tokens)), (END, 0), value=-torch.inf)

    def log_likelihood(self, tokens: Tensor, z: Tensor) -> Tensor:
        """log p(x|z) (N,) in nats, summed over the tokens up to and including the end token.

        A row without an end token has the probability of all sequences that begin so.
        """
        logits = self.decode(z, tokens)  # of which autocast takes the cross-entropy in float32
        targets = tokens.masked_fill(~content(tokens), PADDING)
        nll = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=PADDING, reduction="none")
        return -nll.view(tokens.shape).sum(1)

    def forward(self, tokens: Tensor) -> Codes:
        posterior = self.encode(tokens)
        z = posterior.sample()
        return Codes(self.log_likelihood(tokens, z), *posterior, z)

    @torch.no_grad()
    def generate(
        self,
        z: Tensor,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
        max_length: int | None = None,
    ) -> Tensor:
        """Sequences drawn from p(x|z), token by token: int64 (N, L), each with its end token and padding behind it.

        Every step runs the decoder on the whole prefix, so that the cost grows with the square of the length.

        Arguments:
            z: (N, latent), finite.
            generator: of all draws; one on the CPU gives the same draws whatever device z is on.
            temperature: the logits are divided by it, 1e-6 to 1e6; 0 takes the likeliest token of each step.
            max_length: of a row, at most the model's, which is the default; rows it cuts off have no end token.
        """
        most = self.max_length if max_length is None else max_length
        check_whole("max_length", most, 1, self.max_length)
        if temperature != 0:
            check_number("temperature, unless 0,", temperature, *TEMPERATURES)
        if not z.isfinite().all():
            raise ValueError("z must be finite, got NaN or infinity")
        tokens = torch.zeros(len(z), 0, dtype=torch.int64, device=z.device)
        ended = torch.zeros(len(z), dtype=torch.bool, device=z.device)
        while tokens.shape[1] < most and not ended.all():
            next_one = F.pad(tokens, (0, 1), value=PADDING)
            logits = _wide(self.output(self.hidden(z, next_one)[:, -1]))
            next_one[:, -1] = (END + _draw(logits, temperature, generator)).masked_fill(ended, PADDING)
            tokens, ended = next_one, ended | (next_one[:, -1] == END)
        return tokens

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n sequences of z ~ N(0, I), as :meth:`generate` gives them."""
        check_whole("n", n, 1, MOST_SAMPLES)
        weight = self.output.weight
        device = weight.device if generator is None else generator.device
        z = torch.randn(n, self.latent, generator=generator, device=device)
        return self.generate(z.to(weight), generator)

    def tokens(self, lines: Sequence[str]) -> Tensor:
        """Lines of text as rows of tokens, on the model's device."""
        return self.vocabulary.encode(lines, self.max_length).to(self.output.weight.device)

    def strings(self, tokens: Tensor) -> list[str]:
        """Rows of tokens as lines of text, each up to its end token."""
        return self.vocabulary.decode(tokens)

    def _embedded(self, tokens: Tensor) -> Tensor:
        return self.token_embedding(tokens) + self.position_embedding.weight[: tokens.shape[1]]

    def _checked(self, tokens: Tensor) -> Tensor:
        if tokens.dtype != torch.int64 or tokens.dim() != 2 or not 1 <= tokens.shape[1] <= self.max_length:
            raise ValueError(
                f"tokens must be int64 (N, L) with L in 1..{self.max_length}, got {tokens.dtype} {tuple(tokens.shape)}"
            )
        # On an accelerator reading an id would wait for the device.
        if tokens.device.type == "cpu" and len(tokens):
            low, high = int(tokens.min()), int(tokens.max())
            if low < 0 or high >= len(self.vocabulary):
                raise ValueError(f"tokens must lie in 0..{len(self.vocabulary) - 1}, got {low}..{high}")
        return tokens


def _draw(logits: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    """One index (N,) a row of softmax(logits / temperature), by the Gumbel-max trick; the largest logit's at 0."""
    if temperature == 0:
        return logits.argmax(1)
    device = logits.device if generator is None else generator.device
    waits = torch.empty(logits.shape, dtype=logits.dtype, device=device).exponential_(generator=generator)
    return (logits / temperature - waits.to(logits.device).log()).argmax(1)


def _wide(x: Tensor) -> Tensor:
    """Half precision as float32: what follows is summed up over a sequence or over codes."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _check(max_length: int, latent: int, dim: int, layers: int, heads: int, memory: int, dropout: float) -> None:
    check_sizes(max_length=max_length, latent=latent, dim=dim, layers=layers, heads=heads, memory=memory)
    if dim % heads:
        raise ValueError(f"dim must be a multiple of heads, got {dim} and {heads}")
    check_number("dropout", dropout, 0, 1, below=True)
