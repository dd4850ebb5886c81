"""Checksums of weights and states, so that damage is noticed before anything goes on from it.

sha256 throughout: processors have instructions for it, with which it takes less time than writing the same bytes. It
guards against damage. Whoever can write a file can write its checksum too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from types import NoneType
from typing import Any

import torch
from torch import Tensor

PLAIN = (bool, int, float, str, bytes, NoneType, torch.dtype, torch.device)
MOST = 2**20  # values in a state; a small file can refer to its own lists again and again


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, dtypes, shapes and values, whatever the order and the memory layout.

    >>> tensors_digest({"a": torch.zeros(2)}) == tensors_digest({"a": torch.zeros(2).half()})
    False
    """
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(_values(value))
    return digest.hexdigest()


def tree_digest(tree: Any) -> str:
    """sha256 over tensors and plain values in dicts, lists and tuples, however deep.

    Raises:
        ValueError: a tree of more than 2^20 values.
        TypeError: anything else in the tree.

    >>> tree_digest({"a": [1, 2]}) == tree_digest({"a": (1, 2)})
    False
    """
    digest, waiting, count = hashlib.sha256(), [tree], 0
    while waiting:  # no recursion: a file may nest deeper than Python's stack
        value = waiting.pop()
        count += 1
        if count + len(waiting) > MOST:
            raise ValueError(f"it holds more than {MOST} values")
        if isinstance(value, Tensor):
            _update(digest, f"tensor {value.dtype} {tuple(value.shape)}")
            digest.update(_values(value))
        elif isinstance(value, dict):
            _update(digest, f"dict {len(value)}")
            waiting += [part for pair in value.items() for part in pair]
        elif isinstance(value, (list, tuple)):
            _update(digest, f"{'list' if isinstance(value, list) else 'tuple'} {len(value)}")
            waiting += value
        elif isinstance(value, PLAIN):
            _update(digest, f"{type(value).__name__} {value!r}")
        else:
            raise TypeError(f"it holds a {type(value).__name__}")
    return digest.hexdigest()


def _update(digest: Any, text: str) -> None:
    """A text with its length before it, so that two texts never read as one."""
    data = text.encode("utf-8", "surrogatepass")
    digest.update(len(data).to_bytes(8, "little"))
    digest.update(data)


def _values(value: Tensor) -> memoryview:
    """A tensor's bytes in the order of its indices."""
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
