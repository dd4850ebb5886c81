"""From the scores of an ID set and of several OOD sets to one table: metrics, intervals, and means over sets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ebmhybrid.errors import EbmhybridError, nearest

from .bootstrap import bootstrap_draws, percentiles
from .ood_metrics import METRICS, Curve, curve

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MACRO_MEAN = "macro mean"
GROUP_MEANS = {"near": "near mean", "far": "far mean"}


@dataclass(frozen=True)
class OODResult:
    """One row for each OOD set and score; then, for each score, the means over near, far and all sets.

    Attributes:
        rows: ood_set, score, id_set, group, n_id, n_ood, the five metrics, and percentile bootstrap bounds
            `<metric>_low` and `<metric>_high` of AUROC and both FPR95 (absent without resamples). A mean's row has
            n_sets as well, and n_ood of all its sets together.
        id_set: name of the ID set.
        id_scores: score -> float64 (N,).
        ood_scores: set -> score -> float64 (M,).
        resamples, level: of the intervals.
    """

    rows: tuple[dict[str, Any], ...]
    id_set: str
    id_scores: Mapping[str, np.ndarray] = field(repr=False)
    ood_scores: Mapping[str, Mapping[str, np.ndarray]] = field(repr=False)
    resamples: int = 0
    level: float = 0.95

    def as_dict(self) -> dict[str, Any]:
        """The rows, ready for JSON; the raw scores are not in it."""
        interval = {"method": "percentile bootstrap", "resamples": self.resamples, "level": self.level}
        return {"id_set": self.id_set, "interval": interval, "rows": [dict(row) for row in self.rows]}

    def mean(self, score: str, metric: str = "auroc", group: str | None = None) -> float:
        """Unweighted mean of a metric over the OOD sets, or over those of one group."""
        rows = [row for row in self.rows if row["score"] == score and "n_sets" not in row]
        return float(np.mean([row[metric] for row in rows if group in (None, row["group"])]))

    def curves(self, points: int = 300) -> dict[str, dict[str, Curve]]:
        """set -> score -> points of the ROC and precision-recall curves, no more than `points`; each has `.rows`."""
        return {
            name: {score: curve(self.id_scores[score], values, points) for score, values in scores.items()}
            for name, scores in self.ood_scores.items()
        }

    def plot(self) -> Figure:
        """A line of panels for each OOD set: a histogram of each score, then the ROC curves."""
        from .plots import ood_overview

        return ood_overview(self)


def compare(
    id_set: str,
    id_scores: Mapping[str, np.ndarray],
    ood_scores: Mapping[str, Mapping[str, np.ndarray]],
    groups: Mapping[str, str] | None = None,
    resamples: int = 1000,
    level: float = 0.95,
) -> OODResult:
    """Every metric for every OOD set and score, from scores already at hand.

    Arguments:
        id_set: the ID set's name.
        id_scores: score -> (N,).
        ood_scores: set -> score -> (M,).
        groups: set -> "near" or "far"; a set that is not in it belongs to neither.
        resamples: of the bootstrap, over the images of both sides; 0 leaves the intervals out.
        level: coverage of the intervals, in (0, 1).

    Raises:
        ValueError: scores that a metric refuses, sets with other scores than the ID set, an unknown group or set.

    >>> result = compare("digits", {"energy": np.array([2.0, 3.0])}, {"noise": {"energy": np.array([1.0, 2.0])}})
    >>> result.rows[0]["auroc"]
    0.875
    """
    groups = dict(groups or {})
    _check(id_scores, ood_scores, groups)
    draws = bootstrap_draws(id_scores, ood_scores, resamples) if resamples else {}
    rows: list[dict[str, Any]] = []
    for score, inside in id_scores.items():
        of_set: dict[str, dict[str, Any]] = {}
        for name, scores in ood_scores.items():
            row: dict[str, Any] = {"ood_set": name, "score": score, "id_set": id_set, "group": groups.get(name)}
            row |= {"n_id": len(inside), "n_ood": len(scores[score])}
            row |= {metric: compute(inside, scores[score]) for metric, compute in METRICS.items()}
            of_set[name] = row | (percentiles(draws[name][score], level) if resamples else {})
        rows += of_set.values()
        for label, group, members in _means(list(of_set), groups):
            row = {"ood_set": label, "score": score, "id_set": id_set, "group": group, "n_id": len(inside)}
            row |= {"n_ood": sum(of_set[name]["n_ood"] for name in members), "n_sets": len(members)}
            row |= {metric: float(np.mean([of_set[name][metric] for name in members])) for metric in METRICS}
            common = np.mean([draws[name][score] for name in members], axis=0) if resamples else None
            rows.append(row | (percentiles(common, level) if common is not None else {}))
    kept = {name: dict(scores) for name, scores in ood_scores.items()}
    return OODResult(tuple(rows), id_set, dict(id_scores), kept, resamples, level)


def _check(
    id_scores: Mapping[str, np.ndarray], ood_scores: Mapping[str, Mapping[str, np.ndarray]], groups: Mapping[str, str]
) -> None:
    for name, scores in ood_scores.items():
        if name in (MACRO_MEAN, *GROUP_MEANS.values()):
            raise EbmhybridError(f"an OOD set cannot be called {name!r}, which is the name of a mean: rename it")
        if scores.keys() != id_scores.keys():
            raise EbmhybridError(f"set {name!r}: has scores {sorted(scores)}, the ID set {sorted(id_scores)}")
    for name, group in groups.items():
        if group not in GROUP_MEANS:
            raise EbmhybridError(f"set {name!r}: unknown group {group!r}, {nearest(group, GROUP_MEANS)}")
        if name not in ood_scores:
            raise EbmhybridError(f"groups name the set {name!r}, {nearest(name, ood_scores)}")


def _means(names: list[str], groups: Mapping[str, str]) -> list[tuple[str, str | None, list[str]]]:
    """(label, group, members): each group that has a set, and all sets together where there are several."""
    found: list[tuple[str, str | None, list[str]]] = []
    for group, label in GROUP_MEANS.items():
        if members := [name for name in names if groups.get(name) == group]:
            found.append((label, group, members))
    return [*found, (MACRO_MEAN, None, names)] if len(names) > 1 else found
