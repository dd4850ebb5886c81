"""Metrics of OOD detection, from the scores of two sets: in-distribution (ID) and out-of-distribution (OOD).

Metrics take (id_scores, ood_scores) with higher = more in-distribution, so no label convention exists. The literature
takes either side as positive, and AUPR and FPR95 change with it, so both are computed and named:

    auroc             P(id > ood) + P(id = ood) / 2; the same for either side
    aupr_in, aupr_out average precision with ID, with OOD as the positive class
    fpr95_id_positive share of OOD accepted at the threshold that accepts 95 % of ID (JEM, energy score)
    fpr95_ood_positive share of ID rejected at the threshold that rejects 95 % of OOD (OpenOOD)

All of them depend on the order of the scores alone: on how many of each side lie at each distinct score. Counting
that first makes +-inf and large offsets harmless, and serves resampled scores as well (see `bootstrap`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from ebmhybrid.errors import EbmhybridError

Scores = np.ndarray | Tensor


class Side(NamedTuple):
    """How many scores of one side lie at each place of an ascending grid, and how many lie there or below."""

    at: np.ndarray
    upto: np.ndarray

    @classmethod
    def of(cls, places: np.ndarray, size: int) -> Side:
        """Counts of the places (N,) that scores have on a grid of `size` places."""
        at = np.bincount(places, minlength=size)
        return cls(at, at.cumsum())

    @property
    def total(self) -> int:
        return int(self.upto[-1])


def checked(scores: Scores, side: str) -> np.ndarray:
    """Scores of one side as float64 (N,), or a ValueError that names the side."""
    if str(scores.dtype).removeprefix("torch.") in ("float16", "bfloat16"):
        raise EbmhybridError(f"{side} are in half precision, whose ties change the ranking; compute them in float32")
    values = np.asarray(scores.detach().cpu() if isinstance(scores, Tensor) else scores)
    if values.ndim != 1 or values.size == 0:
        raise EbmhybridError(f"{side} must be a non-empty vector, got shape {values.shape}")
    values = values.astype(np.float64)
    if missing := int(np.isnan(values).sum()):
        raise EbmhybridError(f"{side} hold {missing} NaN of {values.size}")
    return values


def ranked(id_scores: Scores, ood_scores: Scores) -> tuple[np.ndarray, np.ndarray]:
    """(is_id, rank) over both sides; equal scores share a rank, +-inf are the last ones."""
    inside, outside = checked(id_scores, "id_scores"), checked(ood_scores, "ood_scores")
    _, ranks = np.unique(np.concatenate([inside, outside]), return_inverse=True)
    return np.arange(len(ranks)) < len(inside), ranks.astype(np.float64)


def counted(id_scores: Scores, ood_scores: Scores) -> tuple[Side, Side]:
    """Both sides counted on the grid of their distinct scores."""
    is_id, ranks = ranked(id_scores, ood_scores)
    places = ranks.astype(np.int64)
    size = int(places.max()) + 1
    return Side.of(places[is_id], size), Side.of(places[~is_id], size)


def area(inside: Side, outside: Side) -> float:
    """AUROC: for each ID score the OOD scores below it and half of those equal to it, over all pairs."""
    return int(inside.at @ (2 * outside.upto - outside.at)) / (2 * inside.total * outside.total)


def _of_95_percent(count: int) -> int:
    """The smallest number of `count` that is at least 95 % of them."""
    return -(-19 * count // 20)


def ood_accepted(inside: Side, outside: Side) -> float:
    """Share of OOD at or above the highest threshold that keeps at least 95 % of ID."""
    lost = inside.total - _of_95_percent(inside.total)
    threshold = int(np.searchsorted(inside.upto, lost, side="right"))
    return int(outside.total - outside.upto[threshold] + outside.at[threshold]) / outside.total


def id_rejected(inside: Side, outside: Side) -> float:
    """Share of ID at or below the lowest threshold that catches at least 95 % of OOD."""
    threshold = int(np.searchsorted(outside.upto, _of_95_percent(outside.total)))
    return int(inside.upto[threshold]) / inside.total


def auroc(id_scores: Scores, ood_scores: Scores) -> float:
    """Area under the ROC curve, P(id > ood) + P(id = ood) / 2, in [0, 1]; 0.5 is chance.

    Arguments:
        id_scores: (N,), higher = more in-distribution; float32 or float64, +-inf allowed.
        ood_scores: (M,), likewise.

    Raises:
        ValueError: an empty side, NaN, or half precision; the message names the side.

    >>> auroc(np.array([2.0, 3.0]), np.array([1.0, 2.0]))
    0.875
    """
    return area(*counted(id_scores, ood_scores))


def aupr_in(id_scores: Scores, ood_scores: Scores) -> float:
    """Average precision with ID as the positive class: sum over thresholds of (recall step) x precision, in (0, 1].

    Chance is N / (N + M), so the figure depends on the sizes of the sets.

    >>> aupr_in(np.array([2.0, 3.0]), np.array([1.0]))
    1.0
    """
    inside, outside = counted(id_scores, ood_scores)
    hits = inside.total - inside.upto + inside.at  # at or above each score
    alarms = outside.total - outside.upto + outside.at
    return float((inside.at * (hits / (hits + alarms))).sum()) / inside.total


def aupr_out(id_scores: Scores, ood_scores: Scores) -> float:
    """Average precision with OOD as the positive class, found by low scores; chance is M / (N + M).

    >>> aupr_out(np.array([2.0, 3.0]), np.array([1.0]))
    1.0
    """
    inside, outside = counted(id_scores, ood_scores)
    return float((outside.at * (outside.upto / (outside.upto + inside.upto))).sum()) / outside.total


def fpr95_id_positive(id_scores: Scores, ood_scores: Scores) -> float:
    """Share of OOD with a score at or above the highest threshold that keeps at least 95 % of ID, in [0, 1].

    >>> fpr95_id_positive(np.array([2.0, 3.0]), np.array([1.0, 2.5]))
    0.5
    """
    return ood_accepted(*counted(id_scores, ood_scores))


def fpr95_ood_positive(id_scores: Scores, ood_scores: Scores) -> float:
    """Share of ID with a score at or below the lowest threshold that catches at least 95 % of OOD, in [0, 1].

    >>> fpr95_ood_positive(np.array([2.0, 3.0]), np.array([1.0, 2.5]))
    0.5
    """
    return id_rejected(*counted(id_scores, ood_scores))


METRICS: dict[str, Callable[[Scores, Scores], float]] = {
    "auroc": auroc,
    "aupr_in": aupr_in,
    "aupr_out": aupr_out,
    "fpr95_id_positive": fpr95_id_positive,
    "fpr95_ood_positive": fpr95_ood_positive,
}


@dataclass(frozen=True)
class Curve:
    """The points of a ROC curve and of both precision-recall curves, from accepting nothing to accepting everything.

    An image is accepted when its score is at or above the threshold; the first threshold is above every score.

    Attributes:
        threshold: (K,), descending; inf first, which accepts nothing.
        id_accepted, ood_accepted: (K,) shares in [0, 1]: the ROC curve with ID as the positive class, and the recall
            of `precision_in`. OOD is caught where it is not accepted: 1 - ood_accepted is the recall of
            `precision_out`.
        precision_in: (K,) share of ID among the accepted; 1 where nothing is accepted.
        precision_out: (K,) share of OOD among the rejected; 1 where nothing is rejected.
    """

    threshold: np.ndarray
    id_accepted: np.ndarray
    ood_accepted: np.ndarray
    precision_in: np.ndarray
    precision_out: np.ndarray

    @property
    def rows(self) -> tuple[dict[str, Any], ...]:
        """One point a row, as plain numbers; the first threshold is None."""
        columns = {name: values.tolist() for name, values in vars(self).items()}
        columns["threshold"][0] = None
        return tuple(dict(zip(columns, point, strict=True)) for point in zip(*columns.values(), strict=True))


def curve(id_scores: Scores, ood_scores: Scores, points: int = 300) -> Curve:
    """The ROC and precision-recall curves at no more than `points` thresholds, spread evenly along the ROC curve.

    From one point to the next both axes together advance by at most 2 / (points - 1) and one distinct score.

    Raises:
        ValueError: scores that a metric refuses, or fewer than 2 points.

    >>> curve(np.array([2.0, 3.0]), np.array([1.0])).id_accepted
    array([0. , 0.5, 1. , 1. ])
    """
    if points < 2:
        raise EbmhybridError(f"points must be at least 2, got {points}")
    inside, outside = counted(id_scores, ood_scores)
    values = np.unique(np.concatenate([checked(id_scores, "id_scores"), checked(ood_scores, "ood_scores")]))
    hits, alarms = (np.append(side.total - side.upto + side.at, 0)[::-1] for side in (inside, outside))
    walked = hits / inside.total + alarms / outside.total  # from 0 to 2
    keep = np.unique(np.searchsorted(walked, np.linspace(0, 2, points)))
    hits, alarms, threshold = hits[keep], alarms[keep], np.append(values, np.inf)[::-1][keep]
    misses, caught = inside.total - hits, outside.total - alarms
    return Curve(
        threshold,
        hits / inside.total,
        alarms / outside.total,
        np.where(hits + alarms > 0, hits / np.maximum(hits + alarms, 1), 1.0),
        np.where(misses + caught > 0, caught / np.maximum(misses + caught, 1), 1.0),
    )
