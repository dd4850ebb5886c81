"""The rows of an evaluation of representations, from features already at hand: a function for each question."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ebmhybrid.errors import EbmhybridError

from .accuracy import wilson_interval
from .calibration_metrics import as_numpy, ece, nll_of_logits
from .corruptions import _row as corruption_row
from .corruptions import means
from .feature_detectors import knn, mahalanobis
from .ood_compare import OODResult, compare
from .predictions import Predictions
from .probes import LinearProbe, linear_probe
from .probes_few_labels import few_label_curve
from .probes_neighbours import NEIGHBOURS, knn_probe
from .probes_ridge import ridge_probe
from .representation_features import Encoded
from .representation_result import Row

LIKELIHOOD = "log_likelihood"
_Z = 1.959963984540054  # 97.5 % quantile of the standard normal distribution
Bits = Callable[[Tensor], Any]  # log-likelihoods (N,) -> bits per dimension (N,), None where there are none


def accuracy_row(right: np.ndarray) -> Row:
    """A share with its 95 % Wilson interval and n."""
    low, high = wilson_interval(int(right.sum()), len(right))
    return {"n": len(right), "accuracy": float(right.mean()), "accuracy_low": low, "accuracy_high": high}


def probe_rows(
    name: str, train: Encoded, test: Encoded, validation: Encoded | None, classes: int
) -> tuple[list[Row], LinearProbe]:
    """The linear probe and kNN on one representation, and the linear probe itself."""
    z, labels = train.features[name], train.labels
    held = None if validation is None else (validation.features[name], validation.labels)
    probe = linear_probe(z, labels, test.features[name], held, num_classes=classes)
    about: Row = {"group": "probe", "representation": name, "set": test.name, "n_train": len(z)}
    linear = about | {"probe": "linear", "dimension": z.shape[1]} | accuracy_row(probe.predictions == test.labels)
    linear |= {"nll": nll_of_logits(probe.logits, test.labels), "ece_15": ece(probe.probabilities, test.labels)}
    rows = [linear | {"C": probe.C, "converged": probe.converged}]
    counts = [k for k in NEIGHBOURS if k <= len(z)]
    for k, found in knn_probe(z, labels, test.features[name], counts).items():
        rows.append(about | {"probe": "knn", "k": k} | accuracy_row(found == test.labels))
    return rows, probe


def few_label_rows(name: str, train: Encoded, test: Encoded, seed: int) -> list[Row]:
    """The linear probe on few labels."""
    about: Row = {"group": "few_labels", "representation": name, "set": test.name}
    found = few_label_curve(train.features[name], train.labels, test.features[name], test.labels, seed=seed)
    return [about | row for row in found]


def ridge_row(name: str, train: Encoded, test: Encoded, train_t: Any, test_t: Any) -> Row:
    """The ridge probe."""
    found = ridge_probe(train.features[name], as_numpy(train_t), test.features[name], as_numpy(test_t))
    row: Row = {"group": "ridge", "representation": name, "set": test.name, "n": len(test), "n_train": len(train)}
    r2 = None if np.isnan(found.r2) else found.r2
    return row | {"r2": r2, "mae": found.mae, "rmse": found.rmse, "alpha": found.alpha}


def ood_scores(train: Encoded, test: Encoded, strangers: Mapping[str, Encoded]) -> OODResult:
    """Every score of every set: distances to the training features, and the log-likelihood where there is one."""
    inside, outside = _likelihoods(test), {name: _likelihoods(one) for name, one in strangers.items()}
    for name, z in train.features.items():
        fitted = {"knn": knn(z), "mahalanobis": mahalanobis(z, np.zeros(len(z), dtype=np.int64))}
        for score, of in fitted.items():
            inside[f"{name} {score}"] = of(test.features[name])
            for other, stranger in strangers.items():
                outside[other][f"{name} {score}"] = of(stranger.features[name])
    return compare(test.name, inside, outside)


def _likelihoods(data: Encoded) -> dict[str, np.ndarray]:
    return {} if data.log_likelihood is None else {LIKELIHOOD: data.log_likelihood}


def ood_rows(result: OODResult) -> list[Row]:
    """The rows of OOD detection, each under its representation."""
    rows = []
    for row in result.rows:
        name, _, score = str(row["score"]).rpartition(" ")
        about: Row = {"group": "ood", "representation": name or None, "set": row["ood_set"], "n": row["n_id"]}
        rows.append(about | row | {"score": score, "group": "ood", "ood_group": row["group"]})
    return rows


def corruption_rows(
    probes: Mapping[str, LinearProbe], clean: Encoded, cells: Iterable[tuple[str, int, Encoded]]
) -> list[Row]:
    """The linear probes, fitted on clean images, on corrupted ones: each cell, then the means."""
    found: dict[str, list[Row]] = {name: [_cell(name, probes[name], clean, clean, "none", 0)] for name in probes}
    for kind, severity, data in cells:
        for name, probe in probes.items():
            found[name].append(_cell(name, probe, data, clean, kind, severity))
    about = {"group": "corruptions"}
    return [about | {"representation": name} | row for name, rows in found.items() for row in (*rows, *means(rows[1:]))]


def _cell(name: str, probe: LinearProbe, data: Encoded, clean: Encoded, kind: str, severity: int) -> Row:
    predictions = Predictions(probe(data.features[name]), data.labels, data.name)
    return corruption_row(predictions, clean.name, kind, severity, "clean" if kind == "none" else "generated", None)


def reconstruction_row(test: Encoded, bits: Bits | None, likelihood: str, reconstruction: str) -> Row:
    """Log-likelihood, bits per dimension and squared error of the test set, and of what kinds they are."""
    row: Row = {"group": "reconstruction", "representation": None, "set": test.name, "n": len(test)}
    if test.log_likelihood is not None:
        row |= {"likelihood": likelihood} | _mean("log_likelihood", test.log_likelihood)
        each = None if bits is None else bits(torch.from_numpy(test.log_likelihood))
        if each is not None and not np.isnan(values := _numbers(each, len(test))).any():
            row |= _mean("bits_per_dimension", values)
    if test.squared_error is not None:
        row |= {"reconstruction": reconstruction} | _mean("mse", test.squared_error)
    return row


def _numbers(values: Any, n: int) -> np.ndarray:
    found = as_numpy(values).astype(np.float64)
    if found.shape != (n,):
        raise EbmhybridError(f"bits must return ({n},) numbers or None, got shape {found.shape}")
    return found


def _mean(key: str, values: np.ndarray) -> Row:
    """A mean with its standard error and 95 % interval by the normal approximation, None for a single value."""
    mean = float(values.mean())
    if len(values) < 2 or not np.isfinite(values).all():
        return {key: mean, f"{key}_error": None, f"{key}_low": None, f"{key}_high": None}
    error = float(values.std(ddof=1) / np.sqrt(len(values)))
    return {key: mean, f"{key}_error": error, f"{key}_low": mean - _Z * error, f"{key}_high": mean + _Z * error}
