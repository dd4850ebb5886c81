"""Accuracy and calibration under corruptions: clean images, then every (corruption, severity), then the means.

The mean over all cells is unweighted, as the mean accuracy of CIFAR-10-C is: there over 15 corruptions x 5 severities,
read from files; for images corrupted on the fly over 14 x 5, without frost. The two are not the same figure, and every
row says in `source` which it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ebmhybrid.errors import EbmhybridError, UsageError

from .accuracy import wilson_interval
from .calibration_metrics import ece, nll_of_logits
from .corruption_kinds import CORRUPTIONS, FAMILIES, SEVERITIES, check_kinds, check_severities
from .corruption_sets import Corrupted, corrupted
from .predictions import ImageSet, Model, Predictions, Progress, check_labels, check_repeatable, predict, softmax

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "CORRUPTIONS",
    "Corrupted",
    "CorruptionResult",
    "corrupted",
    "evaluate_corruptions",
    "means",
]

EXTRA = "extra"  # the family of kinds that no mean over all counts: CIFAR-10-C has four of them, meant for validation
_FAMILY = {"frost": "weather", **{name: corruption.family for name, corruption in CORRUPTIONS.items()}}
_AVERAGED = ("accuracy", "nll", "ece_15", "ece_15_scaled")
Sets = Mapping[str, Mapping[int, ImageSet]]
Row = dict[str, Any]


@dataclass(frozen=True)
class CorruptionResult:
    """Clean images first, then every (corruption, severity), the mean of each severity and family, the mean over all.

    Attributes:
        rows: set, source ("clean", "generated", "files"), corruption ("none" for clean images; "mean", "noise mean" and
            so on for means), family, severity (0 for clean images, None for a mean over severities), cells (how many
            a mean is over), n (images a cell, of the smallest in a mean), accuracy with its Wilson interval
            (accuracy_low, accuracy_high; None for means), nll, ece_15 and, with a temperature, ece_15_scaled.
        temperature: what ece_15_scaled divides the logits by.
        seed: of the generated corruptions, None with files.
    """

    rows: tuple[Row, ...]
    temperature: float | None = None
    seed: int | None = 0

    def as_dict(self) -> dict[str, Any]:
        """Rows, temperature and seed, ready for JSON."""
        return {"rows": [dict(row) for row in self.rows], "temperature": self.temperature, "seed": self.seed}

    def plot(self) -> Figure:
        """Accuracy and ECE over severity, a line for each family and one for the mean over all."""
        from .plots_corruptions import corruption_overview

        return corruption_overview(self.rows)


def evaluate_corruptions(
    model: Model,
    data: ImageSet,
    kinds: str | Iterable[str] | None = None,
    severities: int | Iterable[int] = SEVERITIES,
    *,
    temperature: float | None = None,
    sets: Sets | None = None,
    clean: Predictions | None = None,
    seed: int = 0,
    limit: int | None = None,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> CorruptionResult:
    """Accuracy, NLL and ECE of a model on corrupted images (Hendrycks & Dietterich 2019).

    Arguments:
        model: images in [0, 1] -> logits.
        data: labelled clean images.
        kinds: corruptions, by default all of `corruption_kinds.CORRUPTIONS`, or all of `sets`.
        severities: from 1 to 5.
        temperature: fitted on clean held-out images; adds the ECE of softmax(logits / temperature).
        sets: corruption -> severity -> set, such as the files of CIFAR-10-C; then nothing is generated.
        clean: predictions on `data` already at hand.
        seed: of the generated corruptions.
        limit: at most so many images of each set.
        device, progress: see :func:`ebmhybrid.evaluate.predict`; progress counts the cells.

    Raises:
        ValueError: an unknown kind or severity, a temperature that is not positive, or a set that
            :func:`ebmhybrid.evaluate.predict` refuses.

    >>> data = [(torch.rand(20, 1, 8, 8), torch.arange(20) % 2)]
    >>> result = evaluate_corruptions(lambda images: images.flatten(1)[:, :2], data, ["fog", "contrast"], [1, 5])
    >>> [(row["corruption"], row["severity"], row["cells"]) for row in result.rows][-3:]
    [('weather mean', None, 2), ('digital mean', None, 2), ('mean', None, 4)]
    """
    if temperature is not None and not (temperature > 0 and math.isfinite(temperature)):
        raise EbmhybridError(f"temperature must be positive and finite, got {temperature}")
    check_repeatable(data)
    cells = _cells(kinds, severities, sets)
    if clean is None:
        clean = predict(model, data, device, progress, limit=limit)
    rows = [_row(clean, clean.name, "none", 0, "clean", temperature)]
    source = "generated" if sets is None else "files"
    for kind, severity in progress(cells, f"{clean.name}: corruptions") if progress else cells:
        shifted = corrupted(data, kind, severity, seed) if sets is None else sets[kind][severity]
        found = predict(model, shifted, device, limit=limit)
        rows.append(_row(found, clean.name, kind, severity, source, temperature))
    return CorruptionResult(tuple(rows + means(rows[1:])), temperature, seed if sets is None else None)


def _cells(
    kinds: str | Iterable[str] | None, severities: int | Iterable[int], sets: Sets | None
) -> list[tuple[str, int]]:
    """The (corruption, severity) pairs that are asked for, known to exist before any work."""
    known = CORRUPTIONS if sets is None else sets
    names, levels = check_kinds(known if kinds is None else kinds, known), check_severities(severities)
    for name, members in (sets or {}).items():
        # by iteration: `in` may read a whole set of a mapping that reads sets when asked for them
        if name in names and (absent := sorted(set(levels) - set(members))):
            raise UsageError(f"corruption {name!r} has no severity {absent[0]}, it has {sorted(members)}")
    return [(name, level) for name in names for level in levels]


def _row(found: Predictions, name: str, kind: str, severity: int, source: str, temperature: float | None) -> Row:
    """The figures of one cell."""
    check_labels(found.labels, found.logits.shape[1], found.name)
    n, right = len(found), int(found.correct.sum())
    low, high = wilson_interval(right, n)
    row: Row = {
        "set": name,
        "source": source,
        "corruption": kind,
        "family": None if source == "clean" else _FAMILY.get(kind, EXTRA),
        "severity": severity,
        "cells": 1,
        "n": n,
        "accuracy": right / n,
        "accuracy_low": low,
        "accuracy_high": high,
        "nll": nll_of_logits(found.logits, found.labels),
        "ece_15": ece(found.probabilities, found.labels),
    }
    if temperature is not None:
        row["ece_15_scaled"] = ece(softmax(found.logits / temperature), found.labels)
    return row


def means(cells: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Unweighted means over cells: of each severity, of each family, and of all; "extra" kinds only in their family's.

    >>> cell = {"set": "a", "source": "files", "n": 9, "accuracy": 0.5, "nll": 1.0, "ece_15": 0.1}
    >>> fog = [cell | {"corruption": "fog", "family": "weather", "severity": level} for level in (1, 2)]
    >>> [(row["corruption"], row["severity"], row["cells"]) for row in means(fog)]
    [('mean', 1, 1), ('mean', 2, 1), ('weather mean', None, 2), ('mean', None, 2)]
    """
    cells = list(cells)
    counted = [cell for cell in cells if cell["family"] != EXTRA]
    rows = []
    for severity in sorted({cell["severity"] for cell in counted}):
        rows.append(_mean([cell for cell in counted if cell["severity"] == severity], "mean", "all", severity))
    for family in (*FAMILIES, EXTRA):
        if members := [cell for cell in cells if cell["family"] == family]:
            rows.append(_mean(members, f"{family} mean", family, None))
    return rows + ([_mean(counted, "mean", "all", None)] if counted else [])


def _mean(cells: list[Mapping[str, Any]], name: str, family: str, severity: int | None) -> Row:
    """One mean row; an average of proportions over the same images has no Wilson interval."""
    row: Row = {
        "set": cells[0]["set"],
        "source": cells[0]["source"],
        "corruption": name,
        "family": family,
        "severity": severity,
        "cells": len(cells),
        "n": min(cell["n"] for cell in cells),
        "accuracy_low": None,
        "accuracy_high": None,
    }
    return row | {key: float(np.mean([cell[key] for cell in cells])) for key in _AVERAGED if key in cells[0]}
