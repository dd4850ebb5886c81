"""Whether weights are of a network, found without making it: a small file may name a network of many gigabytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ebmhybrid.models import build_model

_MORE = 4  # layers of a WideResNet's depth that have no number of their own


def check_fits(architecture: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """An error unless the weights have the names and the shapes of the network that an architecture describes.

    Arguments:
        architecture: the arguments of :func:`ebmhybrid.models.build_model`.
        tensors: its state dict, as read from a file.

    Raises:
        ValueError: they are of another network; the message names the first weight that differs.
        Exception: what `build_model` raises for an architecture that is none.

    >>> network = build_model("wide_resnet", depth=10, width=1, num_classes=3)
    >>> check_fits({"name": "wide_resnet", "depth": 10, "width": 1, "num_classes": 4}, network.state_dict())
    Traceback (most recent call last):
    ValueError: head.weight is (4, 64) in the network and (3, 64) in the file
    """
    for name, value in architecture.items():
        counts = value if isinstance(value, (list, tuple)) else [value]
        if ("depth" in name or "layers" in name) and any(
            isinstance(n, int) and n > len(tensors) + _MORE for n in counts
        ):
            raise ValueError(f"{name} is {value}, and the file has {len(tensors)} weights")
    with torch.device("meta"):  # shapes alone: no memory is taken
        own = build_model(**architecture).state_dict()
    for name in dict.fromkeys([*own, *tensors]):
        ours, theirs = (tuple(some[name].shape) if name in some else "absent" for some in (own, tensors))
        if ours != theirs:
            raise ValueError(f"{name} is {ours} in the network and {theirs} in the file")
