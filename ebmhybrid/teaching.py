"""How encoders and decoders of several libraries are called: arguments by name, masks, teacher forcing.

A mask is bool (N, L), True where a position counts; each library has its own name and sign for it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ebmhybrid.errors import EbmhybridError
from ebmhybrid.vocabulary import PADDING, Vocabulary

Given: TypeAlias = Tensor | Mapping[str, Any] | tuple[Any, ...]

_MARKS_PADDING = {"attention_mask": False, "src_key_padding_mask": True, "tgt_key_padding_mask": True}
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True)
class Call:
    """The arguments of a model, and the mask of what it works on, None where every position counts."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    mask: Tensor | None = None

    @property
    def main(self) -> Any:
        """What the model works on: its first argument that is no mask."""
        named = (value for name, value in self.kwargs.items() if "mask" not in name)
        return next(chain(self.args, named), None)

    def run(self, function: Callable[..., Any]) -> Any:
        """What the model returns."""
        return function(*self.args, **self.kwargs)


def call_of(function: Callable[..., Any], given: Given, mask: Tensor | None = None) -> Call:
    """A model's call with a tensor, or with all its arguments in order or by name.

    The mask is the one given, else the one among the arguments, else the ids that are not the model's padding. A model
    that takes a mask and has none among its arguments is given it.

    Raises:
        EbmhybridError: arguments without a tensor to work on.

    >>> call = call_of(nn.TransformerEncoderLayer(4, 1), torch.rand(1, 2, 4), torch.tensor([[True, False]]))
    >>> call.kwargs
    {'src_key_padding_mask': tensor([[False,  True]])}
    """
    names = tuple(parameters(function))
    # Named tuples among them would be outputs of another model, not arguments.
    args = given if type(given) is tuple else (given,)
    call = Call((), dict(given)) if isinstance(given, Mapping) else Call(args)
    if not isinstance(call.main, Tensor):
        raise EbmhybridError(f"x must be a tensor, or arguments that begin with one, got {type(call.main).__name__}")
    there = {**dict(zip(names, call.args, strict=False)), **call.kwargs}
    known = {name: there[name] for name in _MARKS_PADDING if there.get(name) is not None}
    padding = _padding_id(function)
    if mask is None and known:
        name, value = next(iter(known.items()))
        mask = (value == 0) if _MARKS_PADDING[name] else (value != 0)
    elif mask is None and padding is not None and not call.main.is_floating_point():
        mask = call.main != padding
    if mask is None:
        return call
    mask = mask.bool()
    signed = {name: ~mask if marks else mask.long() for name, marks in _MARKS_PADDING.items() if name in names}
    return Call(call.args, call.kwargs if known else call.kwargs | signed, mask)


def taught(decoder: Callable[..., Any], latent: Tensor, source: Call, target: Given | None) -> Call:
    """The decoder's call: the code under the name that it has there, and what teaches it.

    Arguments:
        source: the encoder's call, whose x teaches the decoder unless there is a target.

    Raises:
        EbmhybridError: an x that cannot teach this decoder.
    """
    names = parameters(decoder)
    own = None if target is None else call_of(decoder, target)
    if "encoder_hidden_states" in names:
        own = own or Call((_shifted(decoder, source.main),), {}, _padded_behind(source.mask))
        seen = None if source.mask is None else source.mask.long()
        code = {"encoder_hidden_states": latent, "encoder_attention_mask": seen, "use_cache": False}
    elif {"tgt", "memory"} <= set(names):
        own = own or Call((source.main,), {}, _padded_behind(source.mask))
        length = own.main.shape[1 if batch_first(decoder) else 0]
        ahead = torch.ones(length, length, dtype=torch.bool, device=own.main.device).triu(1)
        code = {"memory": latent, "tgt_mask": ahead}
        if source.mask is not None:
            code["memory_key_padding_mask"] = ~source.mask
    elif {"tokens", "memory"} <= set(names):
        own = own or Call((_tokens(decoder, source.main),), {}, source.mask)
        code = {"memory": latent}
    else:
        own = own or source
        needed = [name for name, p in names.items() if p.default is p.empty and p.kind in _POSITIONAL]
        if len(needed) > 2:
            raise EbmhybridError(f"decoder must take z, or z and x, got one that takes {', '.join(needed)}")
        return Call((latent, own.main)[: max(1, len(needed))], {}, own.mask)
    return Call(own.args, code | own.kwargs, own.mask)


def parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """The parameters of a function, or of a module's `forward`, by name; none where Python cannot tell.

    >>> list(parameters(nn.Linear(2, 3)))
    ['input']
    """
    try:
        return inspect.signature(function.forward if isinstance(function, nn.Module) else function).parameters
    except (TypeError, ValueError):  # a function that is not written in Python
        return {}


def owner(function: Callable[..., Any]) -> nn.Module | None:
    """The module that a function is, or a bound method's; None for any other function."""
    if isinstance(function, nn.Module):
        return function
    bound = getattr(function, "__self__", None)
    return bound if isinstance(bound, nn.Module) else None


def batch_first(function: Callable[..., Any]) -> bool:
    """Whether sequences are (N, L, D): what torch's attention says if there is any, else yes."""
    module = owner(function)
    layers = (layer for layer in module.modules() if isinstance(layer, nn.MultiheadAttention)) if module else iter(())
    return next((bool(layer.batch_first) for layer in layers), True)


def _padding_id(function: Callable[..., Any]) -> int | None:
    """The token id that is padding: of a Hugging Face model by its config, of ours by its vocabulary."""
    module = owner(function)
    if isinstance(getattr(module, "vocabulary", None), Vocabulary):
        return PADDING
    return getattr(getattr(module, "config", None), "pad_token_id", None)


def _shifted(decoder: Callable[..., Any], ids: Tensor) -> Tensor:
    """Token ids behind the decoder's start token, without the last: what is at t predicts token t."""
    start = getattr(getattr(owner(decoder), "config", None), "decoder_start_token_id", None)
    if start is None or ids.is_floating_point():
        raise EbmhybridError(
            "x cannot teach the decoder, which takes token ids and a config with decoder_start_token_id, got "
            f"{ids.dtype} and {start}: give it a target"
        )
    return torch.cat([ids.new_full((len(ids), 1), start), ids[:, :-1]], dim=1)


def _tokens(decoder: Callable[..., Any], x: Tensor) -> Tensor:
    """Tokens as they are, and those that the decoder's model makes of images by a method `tokens`."""
    if not x.is_floating_point():
        return x
    model = owner(decoder)
    if not callable(getattr(type(model), "tokens", None)):
        raise EbmhybridError(f"x cannot teach the decoder, which takes tokens, got {x.dtype}: give it a target")
    return model.tokens(x)  # type: ignore[union-attr, operator]


def _padded_behind(mask: Tensor | None) -> Tensor | None:
    """The mask, if padding only follows on tokens: there a causal decoder does not see it."""
    if mask is not None and (mask[:, 1:] > mask[:, :-1]).any():
        raise EbmhybridError("padding before or among the tokens would be seen by the decoder: pad rows behind them")
    return mask
