r"""Informative embeddings: features from the decoder of a trained encoder-decoder, without further training.

Livne 2025 (arXiv 2502.19642) proposes to take features from the decoder's hidden states rather than from the code. How
is our reading: the decoder runs on z, the mean of q(z|x), and where it is autoregressive it is given x itself (teacher
forcing); its last hidden layer before the output projection is averaged over positions; z may be put beside it.

    h(x) = mean_t hidden(z, x)_t,    z = mean of q(z|x)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ebmhybrid.energies import at_least_float32
from ebmhybrid.errors import EbmhybridError, nearest
from ebmhybrid.evaluate.predictions import evaluating
from ebmhybrid.teaching import Call, Given, batch_first, call_of, owner, taught

Pool: TypeAlias = str | Callable[[Tensor, Tensor], Tensor]
POOLS = ("mean", "max", "last", "none")


def informative_embedding(
    encoder: Callable[..., Any],
    decoder: Callable[..., Any],
    x: Given,
    layer: str | nn.Module | None = None,
    pool: Pool = "mean",
    concat_latent: bool = False,
    *,
    mask: Tensor | None = None,
    target: Given | None = None,
) -> Tensor:
    """Features h(x) = pool over t of hidden(z, x)_t, the decoder's hidden states on z, the mean of q(z|x).

    The decoder is called by the names of what it takes:

    - `encoder_hidden_states` (Hugging Face's T5, BART and their like): x, token ids, teaches it, shifted right;
    - `tgt` and `memory` (torch.nn.TransformerDecoder): x, embedded, teaches it as it stands, under a causal mask;
    - `tokens` and `memory` (our ImageTransformer): the tokens of x teach it;
    - anything else: decoder(z), or decoder(z, x) where it needs two arguments.

    Arguments:
        encoder: x -> a tensor, something with a tensor `.mean` or `.last_hidden_state`, or a tuple that begins with one
            of these.
        decoder: a module, a bound method or a function. The bound `decode` or `logits` of a model that has a method
            `hidden` stands for that method, which ends before the output projection.
        x: what the encoder takes: a tensor of N rows, or all its arguments by name or in order, masks included.
        layer: None takes what the decoder returns; a module of the decoder, or its dotted name, takes the output of its
            last call.
        pool: mean, max or last over positions, which of maps are pixels; none for all of them; or a function of states
            (N, P, D) and mask (N, P).
        concat_latent: puts z behind the features; a sequence of codes is pooled likewise.
        mask: bool (N, L), which positions of x count. None takes the mask among x, else the ids that are not the
            model's padding, else all.
        target: teaches the decoder in place of x: one tensor, shifted already, or all its arguments.

    Returns:
        (N, D) features, or (N, P, D) unpooled; at least float32, no gradients. Modules run in eval mode, and each
        sub-module is afterwards in the mode it had.

    Raises:
        EbmhybridError: a layer or a pool that there is none of, states that are whole numbers, states or a mask of a
            shape that does not fit, padding that a causal decoder would see, a row without a position.

    >>> decoder = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 5))
    >>> informative_embedding(nn.Linear(5, 2), decoder, torch.rand(3, 5), layer="1", concat_latent=True).shape
    torch.Size([3, 10])
    """
    if not callable(pool) and pool not in POOLS:
        raise EbmhybridError(f"pool = {pool!r}: {nearest(str(pool), POOLS)}, or a function")
    if concat_latent and pool == "none":
        raise EbmhybridError("concat_latent needs pooled features, got pool = 'none'")
    if not (layer is None or isinstance(layer, (str, nn.Module))):
        raise EbmhybridError(f"layer must be a module, its dotted name or None, got {layer!r}")
    if not (mask is None or isinstance(mask, Tensor)):
        raise EbmhybridError(f"mask must be a tensor (N, L) or None, got {type(mask).__name__}")
    if layer is None and getattr(decoder, "__name__", None) in ("decode", "logits"):
        decoder = _before_projection(decoder)
    with torch.no_grad(), ExitStack() as modes:
        for function in (encoder, decoder):
            modes.enter_context(evaluating(owner(function) or function))
        source = call_of(encoder, x, mask)
        latent = tensor_of(source.run(encoder), "encoder")
        lesson = taught(decoder, latent, source, target)
        states = hidden_states(decoder, lesson, layer)
        if not states.is_floating_point():
            raise EbmhybridError(f"hidden states must be floating point, got {states.dtype}")
        features = pooled(_rows_first(states, decoder), lesson.mask, pool)
        if concat_latent:
            code = _rows_first(latent, decoder)
            fits = source.mask is not None and source.mask.shape == code.shape[:2]
            features = torch.cat([features, pooled(code, source.mask if fits else None, pool).to(features)], dim=1)
    return at_least_float32(features)


def _before_projection(decoder: Callable[..., Any]) -> Callable[..., Any]:
    """The method `hidden` of the model that `decode` belongs to; a layer or a number of that name is none."""
    model = owner(decoder)
    is_method = callable(getattr(type(model), "hidden", None))
    return model.hidden if is_method else decoder  # type: ignore[union-attr, return-value]


def hidden_states(decoder: Callable[..., Any], call: Call, layer: str | nn.Module | None) -> Tensor:
    """What the decoder returns, or what one of its layers does while it is called.

    Raises:
        EbmhybridError: a layer that there is none of, or that the decoder does not call.
    """
    if layer is None:
        return tensor_of(call.run(decoder), "decoder")
    module, seen = _module(decoder, layer), []
    hook = module.register_forward_hook(lambda module, inputs, output: seen.append(output))
    try:
        call.run(decoder)
    finally:
        hook.remove()
    name = layer if isinstance(layer, str) else type(layer).__name__
    if not seen:
        raise EbmhybridError(f"layer {name!r} is not called by the decoder")
    return tensor_of(seen[-1], f"layer {name!r}")


def pooled(states: Tensor, mask: Tensor | None, pool: Pool) -> Tensor:
    """Hidden states as features: (N, D) as they are; (N, P, D), and the pixels of (N, D, H, W), pooled.

    Raises:
        EbmhybridError: another shape, a mask of another shape, a row that it leaves nothing of, a function that gives
            anything but floating point rows.

    >>> pooled(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[True, True, False]]), "mean")
    tensor([[2.]])
    """
    if states.dim() == 2:
        return states
    if states.dim() == 4:
        states = states.flatten(2).transpose(1, 2)
    if states.dim() != 3:
        raise EbmhybridError(f"hidden states must be (N, D), (N, P, D) or (N, D, H, W), got {tuple(states.shape)}")
    if mask is None:
        mask = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
    if mask.shape != states.shape[:2]:
        raise EbmhybridError(f"mask must be {tuple(states.shape[:2])} as the hidden states, got {tuple(mask.shape)}")
    if not mask.any(1).all():
        raise EbmhybridError(f"row {int((~mask.any(1)).nonzero()[0])} has no position that is not padding")
    if callable(pool):
        features = pool(states, mask)
        if not (isinstance(features, Tensor) and features.is_floating_point() and len(features) == len(states)):
            raise EbmhybridError(f"pool must return floating point ({len(states)}, D), got {_described(features)}")
        return features
    if pool == "none":
        return states
    if pool == "max":
        return states.masked_fill(~mask[..., None], -torch.inf).amax(1)
    if pool == "last":
        last = mask.shape[1] - 1 - mask.flip(1).int().argmax(1)
        return states[torch.arange(len(states), device=states.device), last]
    return states.masked_fill(~mask[..., None], 0).sum(1) / mask.sum(1, keepdim=True)


def tensor_of(output: Any, what: str) -> Tensor:
    """The tensor that a model's output stands for: itself, its mean, its last hidden state, or its first part's.

    >>> tensor_of((torch.distributions.Normal(torch.zeros(2), 1.0), None), "encoder")
    tensor([0., 0.])
    """
    if isinstance(output, Tensor):
        return output
    for name in ("mean", "last_hidden_state"):
        if isinstance(getattr(output, name, None), Tensor):
            return getattr(output, name)
    parts = tuple(
        output.values() if isinstance(output, Mapping) else output if isinstance(output, (tuple, list)) else ()
    )
    if parts:
        return tensor_of(parts[0], what)
    raise EbmhybridError(f"{what} must return a tensor or something that holds one, got {type(output).__name__}")


def _described(value: object) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _module(decoder: Callable[..., Any], layer: str | nn.Module) -> nn.Module:
    if isinstance(layer, nn.Module):
        return layer
    model = owner(decoder)
    if model is None:
        raise EbmhybridError(f"layer = {layer!r}: the decoder is a plain function, so give the module itself")
    modules = dict(model.named_modules())
    if layer in modules:
        return modules[layer]
    # The dotted names of large models are hundreds: only those as deep as the one asked for are of help.
    near = [name for name in modules if name and name.count(".") <= layer.count(".")]
    raise EbmhybridError(f"layer = {layer!r}: no such module in the decoder, {nearest(layer, near)}")


def _rows_first(states: Tensor, decoder: Callable[..., Any]) -> Tensor:
    """(N, L, D) where torch's attention has (L, N, D)."""
    return states if states.dim() != 3 or batch_first(decoder) else states.transpose(0, 1)
