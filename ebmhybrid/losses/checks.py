"""What a loss is given, checked before anything is computed: each mistake is a ValueError that names it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ebmhybrid.energies import require_logits


def check_options(
    num_classes: int, bank_size: int, weight: float, ce_weight: float, temperature: float, label_smoothing: float
) -> None:
    """The numbers of an objective of two weighted parts."""
    for name, count in (("num_classes", num_classes), ("bank_size", bank_size)):
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ValueError(f"{name} must be an integer >= 1, got {count!r}")
    numbers = {"weight": weight, "ce_weight": ce_weight, "temperature": temperature, "label_smoothing": label_smoothing}
    for name, number in numbers.items():
        if not isinstance(number, (int, float)):
            raise ValueError(f"{name} must be a number, got {number!r}")
    for name, value in (("weight", weight), ("ce_weight", ce_weight)):
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be a number >= 0, got {value}")
    if not weight and not ce_weight:
        raise ValueError("weight and ce_weight are both 0: nothing would be trained")
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature must be a number > 0, got {temperature}")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must lie in [0, 1), got {label_smoothing}")


def check_reference_weight(weight: float, live: bool = True) -> None:
    """How often a reference image counts, where an image counts once; `live`: whether there are live negatives."""
    if not (isinstance(weight, (int, float)) and 0 < weight < math.inf):
        raise ValueError(f"reference_weight must be a number > 0, got {weight!r}")
    if weight != 1 and not live:
        raise ValueError(f"reference_weight = {weight} needs live negatives ('batch' or 'bank+batch'), got 'bank'")


def check_reference(reference: Tensor, num_classes: int, negatives: str) -> None:
    """Logits of reference images, for columns of those negatives."""
    if negatives == "bank" or reference.dim() != 2 or reference.shape[1] != num_classes:
        raise ValueError(
            f"reference must be logits (R, {num_classes}) and needs live negatives ('batch' or 'bank+batch'), got "
            f"{tuple(reference.shape)} with negatives={negatives!r}"
        )


def check_device(bank: Tensor, logits: Tensor) -> None:
    """A loss keeps its bank where the logits are."""
    if bank.device != logits.device:
        raise ValueError(
            f"the bank is on {bank.device} and the logits on {logits.device}: call loss_fn.to({str(logits.device)!r})"
        )


def check_targets(logits: Tensor, y: Tensor, num_classes: int) -> bool:
    """Whether the targets are labels, int64 (N,), and not probabilities (N, C); an error if they are neither.

    Labels' values are left to :func:`check_labels`.
    """
    require_logits(logits)
    n, c = logits.shape
    if not isinstance(y, Tensor):
        raise ValueError(f"y must be a tensor, got {type(y).__name__}")
    if n == 0 or c != num_classes:
        raise ValueError(f"logits must be (N, {num_classes}) with N >= 1, got {(n, c)}")
    hard = y.dtype == torch.int64 and y.shape == (n,)
    if not hard and not (y.is_floating_point() and y.shape == (n, c)):
        raise ValueError(f"y must be int64 ({n},) or probabilities ({n}, {c}), got {y.dtype} {tuple(y.shape)}")
    if hard or not _readable(y):
        return hard
    if not (bool((y >= 0).all()) and bool(((y.float().sum(1) - 1).abs() < 1e-3).all())):
        raise ValueError("probability targets must be >= 0 and sum to 1 in each row")
    return hard


def check_labels(y: Tensor, num_classes: int) -> None:
    """An error unless every label lies in [0, C), where it can be read for free."""
    if _readable(y):
        low, high = map(int, y.aminmax())
        if low < 0 or high >= num_classes:
            raise ValueError(f"labels must lie in [0, {num_classes - 1}], got [{low}, {high}]")


def _readable(y: Tensor) -> bool:
    """On an accelerator reading a label would wait for the device; torch's own assert catches it there."""
    return y.device.type == "cpu" and not torch.compiler.is_compiling()
