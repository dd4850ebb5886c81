"""Logits from a file of arrays: the figures that need no model, for models that torch cannot run."""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.lib.npyio import NpzFile

from ebmhybrid.array_files import check_npz
from ebmhybrid.energies import log_density
from ebmhybrid.errors import EbmhybridError, nearest

from .features import Head
from .predictions import Predictions, check_labels

LABELLED = ("test", "validation", "train")
_NAMES = tuple(f"{role}_{part}" for role in LABELLED for part in ("logits", "labels", "features"))
_EXAMPLES = (*_NAMES, "ood_NAME_logits", "ood_NAME_features", "head_weight", "head_bias")
_OOD = re.compile(r"ood_(.+)_(logits|features)")

# Features saved in half precision give the logits again to about 1e-3 of the largest one.
_HEAD_SLACK = 1e-2
_SUM_SLACK = 1e-3

# Squares and sums over a set of anything smaller stay finite in float64.
_LARGEST = 1e100


@dataclass(frozen=True)
class LogitSets:
    """What a file of logits holds, checked; `ood` maps the names of OOD sets, in the file's order, to their logits."""

    test: Predictions
    validation: Predictions | None = None
    train: Predictions | None = None
    ood: Mapping[str, Predictions] = field(default_factory=dict)
    head: Head | None = None


def predictions_of(logits: Any, labels: Any = None, name: str = "test", features: Any = None) -> Predictions:
    """Checked logits and labels as what every `*_of` function of the suite takes.

    Arrays may be numpy arrays, torch tensors on any device, or nested lists.

    Arguments:
        logits: (N, C), N, C >= 1, finite, at most 1e100 in magnitude, floating point; float16 and bfloat16 are raised
            to float64 and the notes say so, for their ties cost AUROC. Log-probabilities are logits too, but their
            energy is 0 whatever the image.
        labels: (N,) integers in [0, C). None for OOD sets; the labels are then -1.
        name: stands in results and messages.
        features: (N, D), what the last linear layer was given, for detectors of features.

    Raises:
        EbmhybridError: arrays of another form, NaN, inf or above 1e100, or probabilities in place of logits.

    >>> predictions_of(np.array([[2.0, 1.0], [0.0, 3.0]]), np.array([0, 0])).correct
    array([ True, False])
    """
    notes = []
    if getattr(logits, "dtype", None) in (np.float16, torch.float16, torch.bfloat16):
        notes.append("logits came in half precision")
    values = _matrix(logits, f"{name} logits")
    if values.shape[1] > 1 and (values >= 0).all() and np.abs(values.sum(axis=1) - 1).max() <= _SUM_SLACK:
        raise EbmhybridError(
            f"{name} logits are probabilities (no value is negative and every row sums to 1): save the model's outputs"
            " before the softmax"
        )
    if values.shape[1] > 1 and log_density(torch.from_numpy(values)).abs().max() <= _SUM_SLACK:
        notes.append("log-probabilities: the energy score is 0 for every image")
    if labels is None:
        targets = np.full(len(values), -1, dtype=np.int64)
    else:
        labels = _array(labels, f"{name} labels")
        if labels.dtype.kind not in "iu" or labels.shape != values.shape[:1]:
            raise EbmhybridError(
                f"{name} labels must be integers of shape ({len(values)},), got {labels.dtype} {labels.shape}"
            )
        check_labels(labels, values.shape[1], name)
        targets = labels.astype(np.int64)
    inner = None if features is None else _matrix(features, f"{name} features")
    if inner is not None and len(inner) != len(values):
        raise EbmhybridError(f"{name} features are of {len(inner)} images, its logits of {len(values)}")
    return Predictions(values, targets, name, tuple(notes), _digest(values, targets, inner), (), inner)


def read_logits(path: str | Path) -> LogitSets:
    """The sets of an .npz file, read without running anything in it.

    Arrays, of which only the first two must be there (`logits` and `labels` may stand for them):

        test_logits (N, C), test_labels (N,)                what is evaluated
        validation_logits, validation_labels                for the temperature and the other calibrators
        train_logits, train_labels                          for detectors that are fitted on the training set
        ood_NAME_logits (M, C)                              any number of OOD sets; NAME stands in the results
        test_features (N, D), train_features, ood_NAME_features, head_weight (C, D), head_bias (C,)
                                                            for detectors of features

    Raises:
        EbmhybridError: a file that cannot be read, an unknown or a missing array, or arrays that do not fit.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise EbmhybridError(f"{file}: there is no such file of logits")
    try:
        with file.open("rb") as opened:
            arrays = _members(opened)
        return sets_of(arrays)
    except OSError as error:
        raise EbmhybridError(f"{file}: cannot be read: {error.strerror or error}") from error
    except EbmhybridError as error:
        raise EbmhybridError(f"{file}: {error}") from error


def _members(opened: IO[bytes]) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by name. Errors are ours: numpy's advise to unpickle, which would run the file."""
    form = "it must be a zip archive of arrays, as numpy.savez(path, logits=..., labels=...) writes it"
    if not zipfile.is_zipfile(opened):
        raise EbmhybridError(f"cannot be read as .npz, it is of another format or damaged: {form}")
    try:
        check_npz(opened)
        content = NpzFile(opened, allow_pickle=False)
    except ValueError as error:
        raise EbmhybridError(f"cannot be read as .npz: {error}") from None
    except Exception:  # a damaged or hostile file raises whatever its parser happens to stumble on
        raise EbmhybridError(f"cannot be read as .npz, it is damaged: {form}") from None
    arrays: dict[str, np.ndarray] = {}
    for name in content.files:
        if name in arrays:
            raise EbmhybridError(f"array {name!r} is there twice: keep one")
        try:
            arrays[name] = content[name]
        except Exception:
            raise EbmhybridError(f"array {name!r} cannot be read, it is damaged or holds Python objects") from None
        if not isinstance(arrays[name], np.ndarray):
            raise EbmhybridError(f"{name!r} is no array: {form}")
    return arrays


def sets_of(arrays: Mapping[str, Any]) -> LogitSets:
    """:func:`read_logits` of arrays at hand, by the same names, of the kinds that :func:`predictions_of` takes.

    >>> sets = sets_of({"logits": np.eye(2) + 1, "labels": np.array([0, 1]), "ood_noise_logits": np.zeros((3, 2))})
    >>> len(sets.test), {name: len(ood) for name, ood in sets.ood.items()}
    (2, {'noise': 3})
    """
    arrays = _full_names(arrays)
    for needed in ("test_logits", "test_labels"):
        if needed not in arrays:
            raise EbmhybridError(f"array {needed!r} is missing; there are: {', '.join(arrays) or 'none'}")
    sets: dict[str, Predictions] = {}
    for role in [name.removesuffix("_logits") for name in arrays if name.endswith("_logits")]:
        labels = arrays.get(f"{role}_labels")
        if role in LABELLED and labels is None:
            raise EbmhybridError(f"array '{role}_labels' is missing: {role}_logits need labels")
        name = role if role in LABELLED else role.removeprefix("ood_")
        sets[role] = predictions_of(arrays[f"{role}_logits"], labels, name, arrays.get(f"{role}_features"))
    for name in arrays:
        role, _, part = name.rpartition("_")
        if part in ("labels", "features") and role not in sets:
            raise EbmhybridError(f"array '{role}_logits' is missing: {name} alone says nothing")
    head = _head(arrays)
    _check_sizes(sets, head)
    ood = {of.name: of for role, of in sets.items() if role not in LABELLED}
    return LogitSets(sets["test"], sets.get("validation"), sets.get("train"), ood, head)


def _full_names(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """`logits` is short for `test_logits`; a name that means nothing is refused, for it may be a slip."""
    full: dict[str, Any] = {}
    for name, array in arrays.items():
        whole = f"test_{name}" if name in ("logits", "labels", "features") else name
        if whole in full:
            raise EbmhybridError(f"arrays {whole.removeprefix('test_')!r} and {whole!r} are the same thing: keep one")
        if whole not in (*_NAMES, "head_weight", "head_bias") and not _OOD.fullmatch(whole):
            raise EbmhybridError(f"unknown array {name!r}: {nearest(name, _EXAMPLES)}")
        full[whole] = array
    return full


def _array(values: Any, what: str) -> np.ndarray:
    """Whatever numpy takes for an array, and tensors wherever they are, as an array."""
    try:
        if isinstance(values, torch.Tensor):
            values = values.detach().cpu()
            values = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
        return np.asarray(values)
    except Exception:  # ragged lists, sparse tensors, objects whose own conversion fails
        raise EbmhybridError(f"{what} must be an array, got {type(values).__name__} that is none") from None


def _float64(array: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # what float64 cannot hold becomes inf, which the callers refuse
        return array.astype(np.float64)


def _matrix(values: Any, what: str) -> np.ndarray:
    """The values as float64 (N, K), or an error that names them and the first value that cannot be used."""
    array = _array(values, what)
    if array.dtype.kind != "f" or array.ndim != 2 or not array.size:
        raise EbmhybridError(
            f"{what} must be floating point of shape (N, K), not empty, got {array.dtype} {array.shape}"
        )
    found = _float64(array)
    bad = np.argwhere(~(np.abs(found) <= _LARGEST))
    if len(bad):
        row, column = bad[0]
        limit = f"at most {_LARGEST:g} in magnitude" if np.isfinite(array[row, column]) else "finite"
        raise EbmhybridError(f"{what} must be {limit}, got {array[row, column]!s} in row {row}, column {column}")
    return found


def _head(arrays: Mapping[str, Any]) -> Head | None:
    if "head_weight" not in arrays:
        if "head_bias" in arrays:
            raise EbmhybridError("array 'head_weight' is missing: head_bias alone says nothing")
        return None
    weight = _matrix(arrays["head_weight"], "head_weight")
    bias = _array(arrays.get("head_bias", np.zeros(len(weight))), "head_bias")
    if bias.dtype.kind != "f" or bias.shape != weight.shape[:1] or not (np.abs(_float64(bias)) <= _LARGEST).all():
        raise EbmhybridError(
            f"head_bias must be ({len(weight)},) finite numbers of at most {_LARGEST:g}, got {bias.dtype} {bias.shape}"
        )
    return Head(weight, _float64(bias))


def _check_sizes(sets: Mapping[str, Predictions], head: Head | None) -> None:
    """Every set has the test set's classes; features, where there are any, are in every set and of the head's width."""
    test = sets["test"]
    classes = test.logits.shape[1]
    wanted = {role for role in sets if role != "validation"}  # calibration needs no features
    having = {role for role, of in sets.items() if of.features is not None}
    if having and wanted - having:
        raise EbmhybridError(
            f"array '{min(wanted - having)}_features' is missing: features are for all sets or for none"
        )
    for role, of in sets.items():
        if of.logits.shape[1] != classes:
            raise EbmhybridError(f"{role}_logits are of {of.logits.shape[1]} classes, test_logits of {classes}")
        width = None if test.features is None else test.features.shape[1]
        if of.features is not None and of.features.shape[1] != width:
            raise EbmhybridError(f"{role}_features are {of.features.shape[1]} wide, test_features {width}")
    if head is None:
        return
    if test.features is None:
        raise EbmhybridError("head_weight is for detectors of features, and test_features is missing")
    if head.weight.shape != (classes, test.features.shape[1]):
        expected = (classes, test.features.shape[1])
        raise EbmhybridError(f"head_weight must be (C, D) = {expected}, got {head.weight.shape}")
    gap = np.abs(head(test.features) - test.logits).max() / max(1.0, np.abs(test.logits).max())
    if gap > _HEAD_SLACK:
        raise EbmhybridError(
            "test_features @ head_weight.T + head_bias are not test_logits (they differ by up to"
            f" {gap:.2g} of the largest): the features must be what the last linear layer was given"
        )


def _digest(*arrays: np.ndarray | None) -> str:
    """sha256 of the shapes and values of the arrays that are there, in hexadecimal."""
    sha = hashlib.sha256()
    for array in arrays:
        if array is not None:
            sha.update(f"{array.dtype.str} {array.shape}".encode())
            sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()
