"""One forward pass of a model over a set, with every check that a figure computed later relies on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ebmhybrid.energies import at_least_float32
from ebmhybrid.errors import EbmhybridError

from .features import captured

Model = Callable[[Tensor], Tensor]
ImageSet = Iterable[tuple[Tensor, Tensor]]
# Wraps the batches of one pass to show how far it is: progress(batches, text) yields the same batches.
Progress = Callable[[Iterable[Any], str], Iterable[Any]]

# Bilinear resizing in float32 may leave [0, 1] by a rounding error, a forgotten normalisation by far more.
_RANGE_SLACK = 1e-6


@dataclass(frozen=True)
class Predictions:
    """Logits (N, C) in float64 and labels (N,) in int64 of one set, with what identifies the set.

    `features` (N, D), float32 or float64 as the model makes them, are the inputs of its last linear layer, None where
    they were not asked for.
    """

    logits: np.ndarray
    labels: np.ndarray
    name: str = "set"
    notes: tuple[str, ...] = ()
    digest: str | None = None
    image_shape: tuple[int, ...] = ()
    features: np.ndarray | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def probabilities(self) -> np.ndarray:
        """softmax(logits), float64 (N, C)."""
        return softmax(self.logits)

    @property
    def correct(self) -> np.ndarray:
        """Whether the largest logit (the first of several equal ones) is the label's, bool (N,)."""
        return self.logits.argmax(axis=1) == self.labels


def softmax(logits: np.ndarray) -> np.ndarray:
    """exp(f) / sum exp(f) over the last axis, stable, in float64.

    >>> softmax(np.array([[1e4, 1e4]]))
    array([[0.5, 0.5]])
    """
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True), dtype=np.float64)
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def set_name(data: ImageSet, default: str = "test") -> str:
    """The set's own `.name`, or `default`."""
    return str(getattr(data, "name", None) or default)


def taken(data: ImageSet, limit: int | None) -> ImageSet:
    """The set's own subset of `limit` images where it has `.take(limit)`, as ours do with all classes in their shares.

    A set without it is cut to its first `limit` images by :func:`batches`.
    """
    if limit is not None and (not isinstance(limit, Integral) or limit < 1):
        raise EbmhybridError(f"limit must be a whole number of at least 1, got {limit!r}")
    take = getattr(data, "take", None)
    return take(limit) if limit is not None and callable(take) else data


def check_repeatable(data: ImageSet, default: str = "test") -> None:
    """An error for an iterator, such as a generator: after one pass it is empty, and the second would say so."""
    if isinstance(data, Iterator):
        name = set_name(data, default)
        raise EbmhybridError(
            f"set {name!r}: can be read only once, and more passes are needed: pass a list of its batches"
        )


def model_device(model: Model) -> torch.device | None:
    """The device of the first parameter or buffer, None for a callable that shows none."""
    if not isinstance(model, nn.Module):
        return None
    tensor = next(chain(model.parameters(), model.buffers()), None)
    return None if tensor is None else tensor.device


@contextmanager
def evaluating(model: Model) -> Iterator[None]:
    """Every sub-module in eval mode inside; afterwards, also after an error, each in the mode it had.

    Modes are restored one by one: `model.train()` would wake a frozen BatchNorm that stood in eval mode.
    """
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    modes = [module.training for module in modules]
    try:
        for module in modules:
            module.training = False
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


def check_images(images: Tensor, name: str) -> None:
    """Raise ValueError unless images are floating (N, C, H, W), finite and in [0, 1]."""
    if not isinstance(images, Tensor) or not images.is_floating_point() or images.dim() != 4:
        what = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise EbmhybridError(f"set {name!r}: images must be floating point of shape (N, C, H, W), got {what}")
    if images.numel() == 0:
        return
    if not torch.isfinite(images).all():
        raise EbmhybridError(
            f"set {name!r}: images must be finite, got {int((~torch.isfinite(images)).sum())} NaN or inf"
        )
    low, high = images.min().item(), images.max().item()
    if low < -_RANGE_SLACK or high > 1 + _RANGE_SLACK:
        raise EbmhybridError(
            f"set {name!r}: images must lie in [0, 1], got [{low:.4g}, {high:.4g}]; the model normalises, not the set"
        )


def check_logits(logits: Any, images: Tensor, name: str, start: int) -> Tensor:
    """The logits of one batch as at least float32, or a ValueError that names the set, the image and the value."""
    if not isinstance(logits, Tensor) or not logits.is_floating_point() or logits.dim() != 2:
        what = f"{logits.dtype} {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise EbmhybridError(f"set {name!r}: the model must return floating point logits of shape (N, C), got {what}")
    if len(logits) != len(images) or logits.shape[1] == 0:
        raise EbmhybridError(f"set {name!r}: the model made logits {tuple(logits.shape)} of {len(images)} images")
    bad = (~torch.isfinite(logits)).nonzero()
    if len(bad):
        row, column = bad[0].tolist()
        raise EbmhybridError(
            f"set {name!r}: logits must be finite, got {logits[row, column].item()}"
            f" at image {start + row}, class {column}"
        )
    return at_least_float32(logits)


def check_labels(labels: np.ndarray, classes: int, name: str) -> None:
    """Raise ValueError unless every label is in [0, classes)."""
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise EbmhybridError(
            f"set {name!r}: labels must lie in [0, {classes}), got {labels[wrong[0]]} at image {wrong[0]}"
            f" ({len(wrong)} of {len(labels)})"
        )


def batches(
    data: ImageSet, name: str, limit: int | None = None, device: torch.device | str | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Checked (images, labels) batches of the first `limit` images; images on the device, labels on the CPU."""
    seen = 0
    for batch in _batches_of(data, name, limit):
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise EbmhybridError(f"set {name!r}: must yield batches (images, labels), got {type(batch).__name__}")
        images, labels = batch
        check_images(images, name)
        labels = torch.as_tensor(labels).cpu()
        if labels.shape != images.shape[:1] or labels.is_floating_point():
            raise EbmhybridError(
                f"set {name!r}: labels must be integers of shape ({len(images)},),"
                f" got {labels.dtype} {tuple(labels.shape)}"
            )
        if limit is not None:
            images, labels = images[: limit - seen], labels[: limit - seen]
        if len(images):
            yield images.to(device) if device is not None else images, labels.long()
        seen += len(images)
        if limit is not None and seen >= limit:
            return


def _batches_of(data: ImageSet, name: str, limit: int | None) -> Iterator[Any]:
    try:
        return iter(taken(data, limit))
    except TypeError:
        what = type(data).__name__
        raise EbmhybridError(f"set {name!r}: must be an iterable of (images, labels) batches, got {what}") from None


def recut(source: Iterable[tuple[Tensor, Tensor]], size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The same images and labels in batches of `size`, the last one smaller, whatever batches they came in."""
    images: list[Tensor] = []
    labels: list[Tensor] = []
    for some_images, some_labels in source:
        images.append(some_images)
        labels.append(some_labels)
        while sum(map(len, images)) >= size:
            all_images, all_labels = torch.cat(images), torch.cat(labels)
            yield all_images[:size], all_labels[:size]
            images, labels = [all_images[size:]], [all_labels[size:]]
    if sum(map(len, images)):
        yield torch.cat(images), torch.cat(labels)


def predict(
    model: Model,
    data: ImageSet,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
    *,
    name: str | None = None,
    limit: int | None = None,
    labelled: bool = False,
    features: bool = False,
) -> Predictions:
    """Logits of every image of a set: one forward pass in eval mode, without gradients and without autocast.

    Arguments:
        model: images in [0, 1] -> logits (N, C). Modes of sub-modules are restored afterwards. Logits in float16 or
            bfloat16 are raised to float32, and the notes say so: their ties cost AUROC.
        data: iterable of (images, labels); the last, smaller batch counts.
        device: where the images go; None is the model's device.
        progress: progress(batches, text) -> batches, to show a bar.
        name: stands in results and messages instead of the set's own name.
        limit: at most so many images, chosen by the set's own `.take`, else the first ones.
        labelled: require labels in [0, C). OOD sets have labels of other classes.
        features: keep what the model's last linear layer is given too; see :mod:`ebmhybrid.evaluate.features`.

    Returns:
        Predictions, logits in float64 in the order of the set.

    Raises:
        ValueError: an empty set, images outside [0, 1], unusable logits or labels; the message names the set.

    >>> data = [(torch.zeros(2, 1, 1, 2), torch.tensor([0, 1]))]
    >>> predict(lambda images: images.flatten(1), data).logits.shape
    (2, 2)
    """
    name, data = name or set_name(data), taken(data, limit)
    device = model_device(model) if device is None else device
    logits: list[Tensor] = []
    labels: list[Tensor] = []
    half = False
    source: Iterable[Any] = batches(data, name, limit, device)
    with evaluating(model), torch.inference_mode(), captured(model, features) as kept:
        for images, targets in progress(source, name) if progress else source:
            version = _version(images)
            with torch.autocast(images.device.type, enabled=False):
                output = model(images)
            if _version(images) != version:
                raise EbmhybridError(
                    "the model changes its images in place, which the next pass would see: let it copy"
                )
            checked = check_logits(output, images, name, start=sum(map(len, labels)))
            half |= checked.dtype != output.dtype
            logits.append(checked.cpu().double())
            labels.append(targets)
            shape = tuple(images.shape[1:])
    if not logits:
        raise EbmhybridError(f"set {name!r} is empty")
    if len({batch.shape[1] for batch in logits}) > 1:
        raise EbmhybridError(f"set {name!r}: the number of logits changes between batches")
    merged = Predictions(
        torch.cat(logits).numpy(),
        torch.cat(labels).numpy(),
        name,
        (*_notes(data), *(["logits came in half precision"] if half else [])),
        _digest(data),
        shape,
        torch.cat(kept).numpy() if features else None,
    )
    if labelled:
        check_labels(merged.labels, merged.logits.shape[1], name)
    return merged


def _version(images: Tensor) -> int:
    """Counts changes in place; a tensor made in inference mode, which nobody else holds, does not."""
    return 0 if images.is_inference() else images._version


def _notes(data: ImageSet) -> tuple[str, ...]:
    """The set's own remarks, such as 'resized from 28 to 32', one string each."""
    notes = getattr(data, "notes", None) or ()
    found = tuple(getattr(data, "findings", ()))  # of the pass that has just been made
    return ((notes,) if isinstance(notes, str) else tuple(map(str, notes))) + found


def _digest(data: ImageSet) -> str | None:
    """The hash of the set's content, when it can tell it."""
    digest = getattr(data, "digest", None)
    value = digest() if callable(digest) else digest
    return None if value is None else str(value)
