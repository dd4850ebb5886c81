"""A file of what has been attacked already, so that an evaluation goes on where it was killed.

One JSON object a line: a header that says of what, then one line for each finished batch, attack and radius with a
checksum of its own. A line is on the disk before the next attack starts. A last line that was cut off is dropped and
its attack made again; any other damage is refused, since it would change the figures.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ebmhybrid.errors import EbmhybridError

from .attack_guards import _DELTA_SLACK
from .predictions import Model

_KIND = "ebmhybrid robustness journal"
FORMAT = f"{_KIND} 2"


@dataclass(frozen=True)
class Cell:
    """One attack at one radius on the images of one batch that were right without it.

    Attributes:
        survivors: "1" for each image that stayed right and "0" for the others, in their order.
        max_delta: largest |delta|_p.
        rechecked, recheck_fell: images attacked again in float64, and how many of them fell.
        seconds: what it took.
        notes: what the attack said about the model.
        source: the file and line that it was read from, for messages; empty where it has just been made.
    """

    survivors: str
    max_delta: float
    rechecked: int
    recheck_fell: int
    seconds: float
    notes: tuple[str, ...] = ()
    source: str = field(default="", compare=False)

    @property
    def mask(self) -> np.ndarray:
        """The survivors as bool (N,).

        >>> Cell("101", 0.1, 0, 0, 1.0).mask
        array([ True, False,  True])
        """
        return np.array([sign == "1" for sign in self.survivors], dtype=bool)


class Journal:
    """Cells by (batch, attack, eps), read from a file where there is one; without a path it remembers nothing.

    Arguments:
        path: the file; made where it is missing.
        about: JSON-able facts that two runs must share for their cells to be the same.

    Raises:
        EbmhybridError: a file that is no journal, is damaged, or is about something else; the message names the first
            fact that differs.
    """

    def __init__(self, path: Path | None, about: Mapping[str, Any]) -> None:
        self.path = path
        self._cells: dict[tuple[int, str, float], tuple[str, Cell]] = {}
        if path is None:
            return
        header = json.loads(json.dumps({"format": FORMAT, **about}))
        content = path.read_bytes() if path.exists() else b""
        if _line(header).startswith(content):
            # nothing yet, or a header that was cut off
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, "wb", _line(header))
            return
        *lines, torn = content.split(b"\n")
        _same(path, header, lines[0] if lines else b"")
        for number, line in enumerate(lines[1:], start=2):
            self._read(number, line)
        if torn:
            os.truncate(path, len(content) - len(torn))

    def _read(self, number: int, line: bytes) -> None:
        source = f"journal {self.path}: line {number}"
        try:
            entry = json.loads(line)
            whole = entry.pop("checksum") == _checksum(entry) and _fits(entry)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            whole = False
        if not whole:
            raise EbmhybridError(f"{source} is damaged; delete the file to attack anew")
        key = entry.pop("batch"), entry.pop("attack"), entry.pop("eps")
        digest = entry.pop("images")
        self._cells[key] = digest, Cell(**{**entry, "notes": tuple(entry["notes"]), "source": source})

    def get(self, batch: int, attack: str, eps: float, images: str) -> Cell | None:
        """The cell, or None where that attack is still to be made.

        Raises:
            EbmhybridError: the cell is of other images, or of others of them being right without an attack.
        """
        digest, cell = self._cells.get((batch, attack, eps), (images, None))
        if digest != images:
            raise EbmhybridError(
                f"journal {self.path}: batch {batch} was made of other images, labels or predictions than these"
            )
        return cell

    def add(self, batch: int, attack: str, eps: float, images: str, cell: Cell) -> None:
        """Put a finished cell on the disk."""
        if self.path is not None:
            entry = {"batch": batch, "attack": attack, "eps": eps, "images": images, **asdict(cell)}
            del entry["source"]
            _write(self.path, "ab", _line(entry | {"checksum": _checksum(entry)}))


_ENTRY = {"batch", "attack", "eps", "images", *(part.name for part in fields(Cell))} - {"source"}


def _checksum(entry: Mapping[str, Any]) -> str:
    """Of a line without its checksum; an edit of a value shows, unless it is meant to deceive."""
    return hashlib.sha256(_line(entry)).hexdigest()[:16]


def _fits(entry: dict[str, Any]) -> bool:
    """Whether every field has a type and a value that an attack may have had."""
    numbers = [entry[key] for key in ("eps", "max_delta", "seconds")]
    counts = [entry[key] for key in ("batch", "rechecked", "recheck_fell")]
    texts = [entry[key] for key in ("attack", "images", "survivors")]
    return (
        entry.keys() == _ENTRY
        and all(type(number) in (int, float) and 0 <= number <= sys.float_info.max for number in numbers)
        and entry["max_delta"] <= entry["eps"] + _DELTA_SLACK
        and all(type(count) is int and count >= 0 for count in counts)
        and all(type(text) is str for text in texts)
        and set(entry["survivors"]) <= {"0", "1"}
        and entry["rechecked"] <= len(entry["survivors"])
        and entry["recheck_fell"] <= min(entry["rechecked"], entry["survivors"].count("0"))
        and type(entry["notes"]) is list
        and all(type(note) is str for note in entry["notes"])
    )


def _line(entry: Mapping[str, Any]) -> bytes:
    return json.dumps(entry).encode() + b"\n"


def _write(path: Path, mode: str, content: bytes) -> None:
    with path.open(mode) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _same(path: Path, header: Mapping[str, Any], first: bytes) -> None:
    """Refuse a file whose first line is not this header."""
    try:
        found = json.loads(first)
        is_journal = str(found.get("format")).startswith(_KIND)
    except (ValueError, AttributeError, RecursionError):
        is_journal = False
    if not is_journal:
        raise EbmhybridError(f"{path} is not a journal of a robustness evaluation; give another path")
    for key in (*header, *found):
        if header.get(key) != found.get(key):
            raise EbmhybridError(
                f"journal {path} is of another evaluation: {key} is {found.get(key)!r} there and {header.get(key)!r}"
                " here; give another path or remove it"
            )


def digest_of(*tensors: Tensor) -> str:
    """SHA-256 of dtypes, shapes and values.

    >>> digest_of(torch.zeros(2)) == digest_of(torch.zeros(2)), digest_of(torch.zeros(2)) == digest_of(torch.zeros(1))
    (True, False)
    """
    found = hashlib.sha256()
    for tensor in tensors:
        values = tensor.detach().cpu().contiguous()
        found.update(f"{values.dtype} {tuple(values.shape)}".encode())
        found.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def weights_digest(model: Model) -> str | None:
    """A hash of a Module's parameters and buffers; None for any other callable, which shows none."""
    if not isinstance(model, nn.Module):
        return None
    names = hashlib.sha256(" ".join(model.state_dict()).encode()).hexdigest()
    return hashlib.sha256((names + digest_of(*model.state_dict().values())).encode()).hexdigest()
