"""What encoders make of a set: one pass over it, in eval mode and without gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ebmhybrid.energies import at_least_float32
from ebmhybrid.errors import EbmhybridError

from .predictions import (
    ImageSet,
    Progress,
    _batches_of,
    _digest,
    _notes,
    _version,
    check_images,
    evaluating,
    model_device,
    taken,
)

Encoder = Callable[[Tensor], Tensor]
SHOWN = 16


@dataclass(frozen=True)
class Models:
    """The callables that look at a batch: encoders by name, and what else a model offers.

    Attributes:
        log_likelihood: inputs -> (N,), nats.
        reconstruct: images -> images.
    """

    encoders: Mapping[str, Encoder]
    log_likelihood: Encoder | None = None
    reconstruct: Encoder | None = None

    def modules(self) -> list[nn.Module]:
        """The modules behind the callables, as far as they show."""
        every = [*self.encoders.values(), self.log_likelihood, self.reconstruct]
        return [module for module in map(module_of, every) if module is not None]


@dataclass(frozen=True)
class Encoded:
    """A set as the encoders see it.

    Attributes:
        shape: of an example, (C, H, W) of images and (L,) of tokens.
        labels: int64 (N,).
        features: representation -> (N, D).
        log_likelihood: float64 (N,), None where nothing tells it.
        squared_error: float64 (N,), of the reconstruction, a mean over an image's values; None likewise.
        pairs: (2, K, C, H, W), the first images and their reconstructions.
    """

    name: str
    labels: np.ndarray = field(repr=False)
    features: Mapping[str, np.ndarray] = field(repr=False)
    notes: tuple[str, ...] = ()
    digest: str | None = None
    shape: tuple[int, ...] = ()
    log_likelihood: np.ndarray | None = field(default=None, repr=False)
    squared_error: np.ndarray | None = field(default=None, repr=False)
    pairs: np.ndarray | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    def described(self, role: str) -> dict[str, Any]:
        """What identifies the set in a report."""
        return {"role": role, "name": self.name, "n": len(self), "notes": list(self.notes), "digest": self.digest}


def module_of(function: Any) -> nn.Module | None:
    """The module that a callable is or is bound to, None for any other function.

    >>> layer = nn.Linear(2, 3)
    >>> module_of(layer) is module_of(layer.forward) is module_of(partial(layer.forward)) is layer
    True
    """
    while isinstance(function, partial):
        function = function.func
    owner = function if isinstance(function, nn.Module) else getattr(function, "__self__", None)
    return owner if isinstance(owner, nn.Module) else None


def encoded(
    models: Models,
    data: ImageSet,
    *,
    name: str = "test",
    limit: int | None = None,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> Encoded:
    """One pass over a set with all callables.

    Arguments:
        data: iterable of (images, labels), or of (tokens int64 (N, L), labels).
        name: of the set, in results and messages.
        limit: at most so many examples, by the set's own `.take`, else the first ones.
        device: where inputs go; None is the device of the first module behind a callable.

    Raises:
        EbmhybridError: an empty set, or features that are not finite float (N, D); the message names set and encoder.
    """
    data = taken(data, limit)
    modules = models.modules()
    where = device if device is not None else next(filter(None, map(model_device, modules)), None)
    labels: list[Tensor] = []
    kept: dict[str, list[Tensor]] = {}
    with ExitStack() as modes, torch.no_grad():
        for module in modules:
            modes.enter_context(evaluating(module))
        source: Iterable[Any] = inputs(data, name, limit)
        for x, targets in progress(source, name) if progress else source:
            found = _seen(models, x if where is None else x.to(where), name, sum(map(len, labels)))
            labels.append(targets)
            shape = tuple(x.shape[1:])
            for key, values in found.items():
                kept.setdefault(key, []).append(values.cpu())
    if not labels:
        raise EbmhybridError(f"set {name!r} is empty")
    whole = {key: _joined(parts, key, name) for key, parts in kept.items()}
    likelihood, error, pairs = (whole.pop(key, None) for key in (_LIKELIHOOD, _ERROR, _PAIRS))
    pairs = None if pairs is None else pairs[:SHOWN].swapaxes(0, 1)
    return Encoded(name, torch.cat(labels).numpy(), whole, _notes(data), _digest(data), shape, likelihood, error, pairs)


_LIKELIHOOD, _ERROR, _PAIRS = "\0log_likelihood", "\0squared_error", "\0pairs"


def inputs(data: ImageSet, name: str, limit: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """Checked (images or tokens, labels) batches of the first `limit` examples."""
    seen = 0
    for batch in _batches_of(data, name, limit):
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise EbmhybridError(f"set {name!r}: must yield batches (inputs, labels), got {type(batch).__name__}")
        x, labels = batch[0], torch.as_tensor(batch[1]).cpu()
        if not (isinstance(x, Tensor) and x.dtype == torch.int64 and x.dim() == 2):  # no tokens
            check_images(x, name)
        if labels.shape != x.shape[:1] or labels.is_floating_point():
            raise EbmhybridError(
                f"set {name!r}: labels must be integers of shape ({len(x)},), got {labels.dtype} {tuple(labels.shape)}"
            )
        end = len(x) if limit is None else limit - seen
        if len(x[:end]):
            yield x[:end], labels[:end].long()
        seen += len(x)
        if limit is not None and seen >= limit:
            return


def _seen(models: Models, x: Tensor, name: str, start: int) -> dict[str, Tensor]:
    """What the callables say of one batch."""
    version, found = _version(x), {}
    with torch.autocast(x.device.type, enabled=False):
        for key, encoder in models.encoders.items():
            found[key] = _features(encoder(x), len(x), f"set {name!r}: representation {key!r}", start)
        if models.log_likelihood is not None:
            found[_LIKELIHOOD] = _likelihood(models.log_likelihood(x), len(x), name)
        if models.reconstruct is not None:
            found |= _reconstructed(models.reconstruct(x), x, name, start)
    if _version(x) != version:
        raise EbmhybridError("an encoder changes its inputs in place, which the next one would see: let it copy")
    return found


def _features(values: Any, n: int, what: str, start: int) -> Tensor:
    """Features as (N, D), float32 at least."""
    if not isinstance(values, Tensor) or not values.is_floating_point() or values.dim() < 2 or len(values) != n:
        got = f"{values.dtype} {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise EbmhybridError(f"{what} must be floating point of shape ({n}, D), got {got}")
    flat = at_least_float32(values.flatten(1))
    if len(bad := (~torch.isfinite(flat)).nonzero()):
        row, column = bad[0].tolist()
        raise EbmhybridError(f"{what} must be finite, got {flat[row, column].item()} at example {start + row}")
    return flat


def _likelihood(values: Any, n: int, name: str) -> Tensor:
    if not isinstance(values, Tensor) or values.shape != (n,) or bool(values.isnan().any()):
        got = f"{values.dtype} {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise EbmhybridError(f"set {name!r}: log_likelihood must return ({n},) numbers without NaN, got {got}")
    return values.double()


def _reconstructed(images: Any, x: Tensor, name: str, start: int) -> dict[str, Tensor]:
    """The mean squared error of each image, and pairs for a picture."""
    if not isinstance(images, Tensor) or images.shape != x.shape or not x.is_floating_point():
        got = f"{tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise EbmhybridError(f"set {name!r}: reconstruct must return images of shape {tuple(x.shape)}, got {got}")
    found = {_ERROR: (images.double() - x.double()).square().flatten(1).mean(1)}
    if start < SHOWN:
        found[_PAIRS] = torch.stack([x, images], dim=1).float()
    return found


def _joined(parts: list[Tensor], key: str, name: str) -> np.ndarray:
    if len({part.shape[1:] for part in parts}) > 1:
        widths = sorted({part.shape[1] for part in parts})
        raise EbmhybridError(f"set {name!r}: representation {key!r} changes its width between batches: {widths}")
    return torch.cat(parts).numpy()
