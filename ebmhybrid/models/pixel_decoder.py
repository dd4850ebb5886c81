r"""A causal transformer over the tokens of an image, conditioned on a memory: likelihoods, and samples token by token.

log p(t | m) = sum_i log p(t_i | t_1 ... t_{i-1}, m)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ebmhybrid.errors import EbmhybridError
from ebmhybrid.models.attention import Block, Cache, KeysValues
from ebmhybrid.models.checks import MOST_SAMPLES, TEMPERATURES, check_number, check_whole
from ebmhybrid.models.dropout import Dropout


class PixelDecoder(nn.Module):
    """p(t | m) of T tokens out of `levels`, given a memory of M vectors; without one, given the learned empty memory.

    Arguments:
        levels, length: the tokens' range and number T. memory_shape: (M, dim); dim is the decoder's width too.
        layers, heads, dropout: of its blocks.

    Shapes:
        tokens int64 (N, T), memory (N, M, dim) or None.

    >>> decoder = PixelDecoder(levels=3, length=4, memory_shape=(2, 8), layers=1, heads=2)
    >>> tokens = decoder.sample(5, torch.Generator().manual_seed(0))
    >>> tokens.shape, decoder.log_likelihood(tokens).shape
    (torch.Size([5, 4]), torch.Size([5]))
    """

    def __init__(
        self, levels: int, length: int, memory_shape: tuple[int, int], layers: int, heads: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        dim = memory_shape[1]
        self.levels, self.length, self.memory_shape = levels, length, memory_shape
        self.embedding = nn.Embedding(levels + 1, dim)  # the last is the start token
        self.positions = nn.Parameter(torch.empty(length, dim))
        self.empty_memory = nn.Parameter(torch.empty(memory_shape))
        self.dropout = Dropout(dropout)
        self.blocks = nn.ModuleList(Block(dim, heads, dropout, cross=True) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, levels)
        for table in (self.embedding.weight, self.positions, self.empty_memory):
            nn.init.normal_(table, std=0.02)

    def hidden(self, tokens: Tensor, memory: Tensor | None = None) -> Tensor:
        """The last layer before the logits, teacher-forced, (N, T, dim): row i has seen m and t_1 ... t_{i-1}."""
        start = tokens.new_full((len(tokens), 1), self.levels)
        before = torch.cat([start, tokens[:, :-1]], dim=1)
        x = self.dropout(self.embedding(before) + self.positions)
        for block, context in zip(self.blocks, self.contexts(memory, len(tokens)), strict=True):
            x = block(x, context, causal=True)
        return self.norm(x)

    def logits(self, tokens: Tensor, memory: Tensor | None = None) -> Tensor:
        """log p(t_i = k | t_1 ... t_{i-1}, m) up to a constant for each i, (N, T, levels)."""
        return self.head(self.hidden(tokens, memory))

    def log_likelihood(self, tokens: Tensor, memory: Tensor | None = None) -> Tensor:
        """log p(t | m), summed over tokens, in nats and at most 0: (N,), in float32 or wider."""
        logits = _wide(self.logits(tokens, memory))
        return -F.cross_entropy(logits.transpose(1, 2), tokens, reduction="none").sum(1)

    @torch.no_grad()
    def sample(
        self, n: int, generator: torch.Generator | None = None, memory: Tensor | None = None, temperature: float = 1.0
    ) -> Tensor:
        """Draw n times T tokens, one after the other; the keys and values of those before are kept, not computed anew.

        Raises:
            EbmhybridError: n, a temperature or a memory that do not fit.
        """
        check_whole("n", n, 1, MOST_SAMPLES)
        check_number("temperature", temperature, *TEMPERATURES)
        contexts, caches = self.contexts(memory, n), [Cache(self.length) for _ in self.blocks]
        tokens = torch.full((n, 1), self.levels, device=self.positions.device)
        for _ in range(self.length):
            logits = _wide(self.step(tokens[:, -1:], contexts, caches))
            chances = (logits / temperature).softmax(1)
            where = chances.device if generator is None else generator.device
            drawn = chances.to(where).multinomial(1, generator=generator)
            tokens = torch.cat([tokens, drawn.to(tokens.device)], dim=1)
        return tokens[:, 1:]

    def step(self, token: Tensor, contexts: list[KeysValues], caches: list[Cache]) -> Tensor:
        """The next token's logits (N, levels) from the one before it (N, 1) and what the caches hold of the others."""
        x = self.dropout(self.embedding(token) + self.positions[caches[0].used])
        for block, context, cache in zip(self.blocks, contexts, caches, strict=True):
            x = block(x, context, cache=cache)
        return self.head(self.norm(x))[:, 0]

    def contexts(self, memory: Tensor | None, count: int) -> list[KeysValues]:
        """What each block's cross-attention reads of the memory; the empty one's is computed once for all rows."""
        if memory is not None and memory.shape != (count, *self.memory_shape):
            raise EbmhybridError(f"memory must be {(count, *self.memory_shape)}, got {tuple(memory.shape)}")
        source = self.empty_memory[None] if memory is None else memory
        contexts = []
        for block in self.blocks:
            keys, values = block.cross.keys_values(source)  # type: ignore[union-attr, operator]
            contexts.append((keys.expand(count, -1, -1, -1), values.expand(count, -1, -1, -1)))
        return contexts


def _wide(logits: Tensor) -> Tensor:
    """Half precision in float32: eight bits of a probability are too few to add up."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
