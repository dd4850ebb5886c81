"""Predictions kept on disk by what they are made of, so that a second evaluation of the same weights is quick.

A file's name is the sha256 of everything that decides its content: weights, images and labels, what was done to the
images, precision, limit, and the versions of the code. Nothing is ever out of date: what has changed has another name.
The folder can be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sized
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from torch import nn

from ebmhybrid.array_files import check_npz
from ebmhybrid.errors import EbmhybridError

from .predictions import (
    ImageSet,
    Model,
    Predictions,
    Progress,
    _digest,
    _notes,
    model_device,
    predict,
    set_name,
    taken,
)

CACHE_VERSION = 1  # goes up when predict() computes something else than before


class PredictionCache:
    """:func:`ebmhybrid.evaluate.predict` for one model, with a folder of what it computed before.

    Arguments:
        folder: made if it is absent.
        weights: what identifies the model, such as the digest of its weights. Two models that differ in anything else
            (architecture, normalisation) must differ here too.

    Raises:
        EbmhybridError: a folder that cannot be made.

    >>> import tempfile
    >>> cache = PredictionCache(tempfile.mkdtemp(), "sha256 of the weights")
    >>> data = [(torch.zeros(2, 1, 1, 2), torch.tensor([0, 1]))]
    >>> cache.predict(lambda images: images.flatten(1), data).logits.shape
    (2, 2)
    """

    def __init__(self, folder: str | Path, weights: str) -> None:
        self.folder = Path(folder)
        self.weights = weights
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EbmhybridError(
                f"cannot keep predictions in {self.folder}: {error.strerror or error}; --no-cache does without"
            ) from error

    def predict(
        self,
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
        """What `predict` returns for these arguments, read from the folder where it is there, else computed and kept.

        A set without `.digest()` is predicted anew each time. A file that is damaged, or holds anything that `predict`
        would not return, counts as absent, and where nothing can be written nothing is kept.
        """
        data = taken(data, limit)
        options: dict[str, Any] = {"name": name, "limit": limit, "labelled": labelled, "features": features}
        digest = _digest(data)
        if digest is None:
            return predict(model, data, device, progress, **options)
        where = torch.device(device or model_device(model) or "cpu").type
        content = {"data": digest, "device": where, "limit": limit, "features": features}
        path = self.folder / f"{self._key(model, data, content)}.npz"
        found = _read(path, name or set_name(data), digest, features)
        if found is None or not _is_of(found, data, limit, labelled):
            found = predict(model, data, device, progress, **options)
            _write(path, found)
        return found

    def _key(self, model: Model, data: ImageSet, content: dict[str, Any]) -> str:
        """sha256 over `content` and all else that decides the predictions; kinds of devices differ in rounding."""
        parameter = next(model.parameters(), None) if isinstance(model, nn.Module) else None
        content = content | {
            "weights": self.weights,
            "shape": list(getattr(data, "shape", None) or ()),
            "notes": _notes(data),
            "dtype": str(None if parameter is None else parameter.dtype),
            "matmul": torch.get_float32_matmul_precision(),
            "versions": [CACHE_VERSION, _installed("ebmhybrid"), torch.__version__],
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _read(path: Path, name: str, digest: str | None, features: bool) -> Predictions | None:
    """The predictions of a file, None where it is absent or is not what `_write` wrote."""
    try:
        with path.open("rb") as opened:
            check_npz(opened)
            content = np.load(opened, allow_pickle=False)
            logits, labels, kept = content["logits"], content["labels"], content["features"] if features else None
            notes, shape = (json.loads(str(content[key])) for key in ("notes", "image_shape"))
            right = _is_matrix(logits, len(labels), np.float64) and labels.ndim == 1 and labels.dtype == np.int64
            right &= not features or _is_matrix(kept, len(labels), np.float32, np.float64)
    except Exception:  # a damaged file raises whatever its parser happens to stumble on
        return None
    right &= isinstance(notes, list) and all(isinstance(note, str) for note in notes)
    right &= isinstance(shape, list) and len(shape) == 3 and all(type(size) is int and size > 0 for size in shape)
    return Predictions(logits, labels, name, tuple(notes), digest, tuple(shape), kept) if right else None


def _is_matrix(array: Any, rows: int, *dtypes: type) -> bool:
    """Whether it is (rows, K) of finite numbers of one of the dtypes, and not empty."""
    fits = array.dtype in dtypes and array.ndim == 2 and len(array) == rows and array.size > 0
    return fits and bool(np.isfinite(array).all())


def _is_of(found: Predictions, data: ImageSet, limit: int | None, labelled: bool) -> bool:
    """Whether they are of as many images as the set has, where it tells, and their labels are classes where needed."""
    expected = len(data) if isinstance(data, Sized) else len(found)
    if len(found) != (expected if limit is None else min(expected, limit)):
        return False
    classes = found.logits.shape[1]
    return not labelled or bool(((found.labels >= 0) & (found.labels < classes)).all())


def _write(path: Path, predictions: Predictions) -> None:
    """Write a file under another name and rename it, so that no reader and no crash ever sees half of it."""
    content: dict[str, Any] = {"logits": predictions.logits, "labels": predictions.labels}
    if predictions.features is not None:
        content["features"] = predictions.features
    for key in ("notes", "image_shape"):
        content[key] = np.array(json.dumps(getattr(predictions, key)))
    fresh = path.with_name(f".{path.stem}.{uuid4().hex[:8]}.npz")
    try:
        with suppress(OSError):  # a full disk costs the next evaluation its head start, not this one its figures
            np.savez(fresh, **content)
            os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)
