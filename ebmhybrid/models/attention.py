r"""Transformer blocks with the normalisation first, and the cache that decoding token by token reads.

    x <- x + SelfAttention(LN(x)),    x <- x + CrossAttention(LN(x), memory),    x <- x + MLP(LN(x))

with the middle one in decoders alone. Attention is softmax(Q K^T / sqrt(d)) V in each head (Vaswani et al. 2017), by
torch's scaled_dot_product_attention.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ebmhybrid.models.dropout import Dropout

KeysValues = tuple[Tensor, Tensor]  # each (N, heads, tokens, dim / heads)


class Cache:
    """Keys and values of the tokens that one block has seen so far, in tensors made once for all `length` tokens."""

    def __init__(self, length: int) -> None:
        self.length, self.used = length, 0
        self._stored: KeysValues | None = None

    def append(self, keys: Tensor, values: Tensor) -> KeysValues:
        """Add those of the next tokens, and return all there are."""
        if self._stored is None:
            n, heads, _, width = keys.shape
            self._stored = keys.new_empty(n, heads, self.length, width), values.new_empty(n, heads, self.length, width)
        start, self.used = self.used, self.used + keys.shape[2]
        for stored, new in zip(self._stored, (keys, values), strict=True):
            stored[:, :, start : self.used] = new
        return self._stored[0][:, :, : self.used], self._stored[1][:, :, : self.used]


class Attention(nn.Module):
    """Multi-head attention in two steps, so that the keys and values of a context can be kept.

    Shapes:
        x (N, T, dim), context (N, S, dim) -> (N, T, dim).

    >>> attention = Attention(dim=8, heads=2)
    >>> x = torch.rand(3, 5, 8)
    >>> attention.attend(x, *attention.keys_values(torch.rand(3, 7, 8))).shape
    torch.Size([3, 5, 8])
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, dim)

    def _split(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu":  # torch's kernel takes two to four times as long there in bfloat16
            x = x.to(torch.promote_types(x.dtype, torch.float32))
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def keys_values(self, context: Tensor) -> KeysValues:
        keys, values = self.key_value(context).chunk(2, dim=2)
        return self._split(keys), self._split(values)

    def attend(self, x: Tensor, keys: Tensor, values: Tensor, causal: bool = False) -> Tensor:
        queries = self._split(self.query(x))
        with torch.autocast(x.device.type, enabled=False):
            mixed = F.scaled_dot_product_attention(queries, keys, values, is_causal=causal)
        return self.out(mixed.transpose(1, 2).flatten(2).to(x.dtype))


class Block(nn.Module):
    """One layer of an encoder or, with `cross`, of a decoder; its MLP is four times as wide as `dim`.

    Shapes:
        x (N, T, dim) -> the same; memory: the keys and values of `self.cross` for what a decoder attends to.

    >>> block = Block(dim=8, heads=2)
    >>> x = torch.rand(3, 5, 8)
    >>> whole, cache = block(x, causal=True), Cache(length=5)
    >>> parts = [block(x[:, t : t + 1], cache=cache) for t in range(5)]
    >>> torch.allclose(torch.cat(parts, dim=1), whole, atol=1e-6)
    True
    """

    def __init__(self, dim: int, heads: int, dropout: float = 0.0, cross: bool = False) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(dim), Attention(dim, heads)
        if cross:
            self.cross_norm, self.cross = nn.LayerNorm(dim), Attention(dim, heads)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.dropout = Dropout(dropout)

    def forward(
        self, x: Tensor, memory: KeysValues | None = None, causal: bool = False, cache: Cache | None = None
    ) -> Tensor:
        """`causal`: a token sees itself and those before it. With a cache, x is what follows on what it holds."""
        h = self.norm(x)
        keys, values = self.attention.keys_values(h)
        if cache is not None:
            keys, values = cache.append(keys, values)
        x = x + self.dropout(self.attention.attend(h, keys, values, causal))
        if memory is not None:
            x = x + self.dropout(self.cross.attend(self.cross_norm(x), *memory))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))
