"""GCRL one pixel, one head and one pair of views at a time, in float64, from the papers' equations.

The transformer is that of Vaswani et al. 2017 with the normalisation before each part. It is written for the weights of
a state dict, whose names are all it knows of the package.
"""

from __future__ import annotations

import math
from itertools import product

import torch
from torch import Tensor

Weights = dict[str, Tensor]


def nt_xent(anchors: Tensor, positives: Tensor, temperature: float) -> Tensor:
    """Chen et al. 2020, equation 1, over the 2N views: l(i, j) = -log( e^{s_ij / T} / sum_{k != i} e^{s_ik / T} )."""
    views = [view / view.square().sum().sqrt() for view in [*anchors, *positives]]
    n = len(anchors)
    total = anchors.new_zeros(())
    for i, view in enumerate(views):
        pair = (i + n) % (2 * n)
        others = [((view * views[k]).sum() / temperature).exp() for k in range(2 * n) if k != i]
        total = total - (((view * views[pair]).sum() / temperature).exp() / torch.stack(others).sum()).log()
    return total / (2 * n)


def gcrl(
    log_likelihood: Tensor,
    num_tokens: int,
    anchors: Tensor,
    positives: Tensor,
    weight: float,
    generative_weight: float,
    temperature: float,
) -> Tensor:
    """The weighted sum of nats a token and NT-Xent."""
    nats = log_likelihood.new_zeros(())
    for value in log_likelihood:
        nats = nats - value / (len(log_likelihood) * num_tokens)
    return generative_weight * nats + weight * nt_xent(anchors, positives, temperature)


def tokens(images: Tensor, palette: Tensor) -> list[list[int]]:
    """The index of the colour at the least distance from the clamped pixel, row by row; the first of several."""
    result = []
    for image in images:
        row = []
        for y, x in product(range(image.shape[1]), range(image.shape[2])):
            distances = [
                sum((float(image[c, y, x] - colour[c])) ** 2 for c in range(len(colour))) for colour in palette
            ]
            row.append(distances.index(min(distances)))
        result.append(row)
    return result


def every_sequence(levels: int, length: int) -> Tensor:
    """All of the levels^length token sequences."""
    return torch.tensor(list(product(range(levels), repeat=length)))


def _linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return w[f"{name}.weight"] @ x + w[f"{name}.bias"]


def _layer_norm(w: Weights, name: str, x: Tensor) -> Tensor:
    variance = (x - x.mean()).square().mean()
    return (x - x.mean()) / (variance + 1e-5).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]


def _attention(w: Weights, name: str, x: Tensor, context: list[Tensor], heads: int) -> Tensor:
    """One query against a list of vectors, head by head."""
    query = _linear(w, f"{name}.query", x)
    pairs = [_linear(w, f"{name}.key_value", c) for c in context]
    dim, width = len(x), len(x) // heads
    parts = []
    for head in range(heads):
        of_head = slice(head * width, (head + 1) * width)
        scores = [(query[of_head] * pair[:dim][of_head]).sum() / math.sqrt(width) for pair in pairs]
        powers = [score.exp() for score in scores]
        parts.append(sum(p / sum(powers) * pair[dim:][of_head] for p, pair in zip(powers, pairs, strict=True)))
    return _linear(w, f"{name}.out", torch.cat(parts))


def _block(w: Weights, name: str, xs: list[Tensor], heads: int, memory: list[Tensor] | None) -> list[Tensor]:
    """A layer; with a memory it is a decoder's, and position i sees positions 0 ... i alone."""
    normed = [_layer_norm(w, f"{name}.norm", x) for x in xs]
    out = []
    for i, x in enumerate(xs):
        seen = normed if memory is None else normed[: i + 1]
        x = x + _attention(w, f"{name}.attention", normed[i], seen, heads)
        if memory is not None:
            x = x + _attention(w, f"{name}.cross", _layer_norm(w, f"{name}.cross_norm", x), memory, heads)
        inner = _linear(w, f"{name}.mlp.0", _layer_norm(w, f"{name}.mlp_norm", x))
        gelu = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
        out.append(x + _linear(w, f"{name}.mlp.2", gelu))
    return out


def encode(w: Weights, image: Tensor, patch: int, layers: int, heads: int, mean: float, std: float) -> Tensor:
    """The memory (M, dim) of one image (C, H, W): patches in raster order through the encoder."""
    xs = []
    for row, column in product(range(0, image.shape[1], patch), range(0, image.shape[2], patch)):
        values = (image[:, row : row + patch, column : column + patch] - mean) / std
        embedded = torch.stack([(kernel * values).sum() for kernel in w["patches.weight"]]) + w["patches.bias"]
        xs.append(embedded + w["positions"][len(xs)])
    for layer in range(layers):
        xs = _block(w, f"encoder.{layer}", xs, heads, None)
    return torch.stack([_layer_norm(w, "norm", x) for x in xs])


def logits(w: Weights, sequence: list[int], layers: int, heads: int, memory: Tensor | None = None) -> Tensor:
    """The logits (T, levels) of one token sequence: row i of the start token and the tokens before i."""
    memory = w["decoder.empty_memory"] if memory is None else memory
    start = len(w["decoder.embedding.weight"]) - 1
    before = [start, *sequence[:-1]]
    xs = [w["decoder.embedding.weight"][t] + w["decoder.positions"][i] for i, t in enumerate(before)]
    for layer in range(layers):
        xs = _block(w, f"decoder.blocks.{layer}", xs, heads, list(memory))
    return torch.stack([_linear(w, "decoder.head", _layer_norm(w, "decoder.norm", x)) for x in xs])


def log_likelihood(logits: Tensor, sequence: list[int]) -> Tensor:
    """sum_i log( exp(f_i[t_i]) / sum_k exp(f_i[k]) )."""
    return sum((row[t].exp() / row.exp().sum()).log() for row, t in zip(logits, sequence, strict=True))
