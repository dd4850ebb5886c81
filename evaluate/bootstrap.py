"""Bootstrap of OOD metrics: what they would be on other test images of the same kind (Efron 1979).

One resample draws N ID images and, for each OOD set, M of its images, with replacement. The ID images drawn are the
same for every set and every score, the OOD images of a set the same for every score: means over sets keep the
correlation that their common ID side gives them. What the interval does not cover is another training run.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ebmhybrid.errors import EbmhybridError

from .ood_metrics import Side, area, checked, id_rejected, ood_accepted

# The metrics that get an interval, each of two counted sides.
RESAMPLED = {"auroc": area, "fpr95_id_positive": ood_accepted, "fpr95_ood_positive": id_rejected}

Draws = dict[str, dict[str, np.ndarray]]


def places(id_scores: np.ndarray, ood_scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Where both sides lie on a grid of the D distinct ID scores and the D + 1 gaps around them, and its size 2 D + 1.

    OOD scores in one gap compare alike with every ID score, so they need no places of their own: a grid of the ID side
    alone loses nothing, however large the OOD set is.

    >>> inside, outside, size = places(np.array([1.0, 3.0]), np.array([0.0, 1.0, 2.0]))
    >>> inside.tolist(), outside.tolist(), size
    ([1, 3], [0, 1, 2], 5)
    """
    distinct, index = np.unique(id_scores, return_inverse=True)
    below = np.searchsorted(distinct, ood_scores)
    equal = np.append(distinct, np.nan)[below] == ood_scores
    # int32: looking places up in random order is what a resample costs, and half the bytes stay in the cache
    return (2 * index + 1).astype(np.int32), (2 * below + equal).astype(np.int32), 2 * len(distinct) + 1


def bootstrap_draws(
    id_scores: Mapping[str, np.ndarray],
    ood_scores: Mapping[str, Mapping[str, np.ndarray]],
    resamples: int = 1000,
) -> Draws:
    """The metrics of `RESAMPLED` on resampled images: set -> score -> float64 (resamples, 3).

    Draws come from fixed seeds: those of a set do not depend on which other sets and scores are there.

    Arguments:
        id_scores: score -> (N,).
        ood_scores: set -> score -> (M,), M being the set's own.
        resamples: at least 1.

    Raises:
        ValueError: no resample, scores that a metric refuses, or a set whose scores differ in number.

    >>> draws = bootstrap_draws({"energy": np.arange(4.0)}, {"svhn": {"energy": np.arange(3.0) - 9}}, 10)
    >>> draws["svhn"]["energy"].mean(axis=0)
    array([1., 0., 0.])
    """
    if resamples < 1:
        raise EbmhybridError(f"resamples must be at least 1, got {resamples}")
    count = _common_length("id_scores", id_scores)
    counts = {name: _common_length(f"ood_scores of {name!r}", scores) for name, scores in ood_scores.items()}
    grids = {
        name: {score: places(id_scores[score], values) for score, values in scores.items()}
        for name, scores in ood_scores.items()
    }
    draws = {name: {score: np.empty((resamples, len(RESAMPLED))) for score in id_scores} for name in ood_scores}
    of_id = np.random.default_rng(0)
    of_set = {name: np.random.default_rng([1, *name.encode()]) for name in ood_scores}
    for number in range(resamples):
        chosen = of_id.integers(count, size=count)
        inside: dict[str, Side] = {}
        for name, scores in grids.items():
            others = of_set[name].integers(counts[name], size=counts[name])
            for score, (id_places, ood_places, size) in scores.items():
                if score not in inside:
                    inside[score] = Side.of(id_places.take(chosen), size)
                outside = Side.of(ood_places.take(others), size)
                draws[name][score][number] = [metric(inside[score], outside) for metric in RESAMPLED.values()]
    return draws


def percentiles(draws: np.ndarray, level: float = 0.95) -> dict[str, float]:
    """The percentile interval of each metric of `RESAMPLED`, as <metric>_low and <metric>_high, from draws (R, 3)."""
    if not 0 < level < 1:
        raise EbmhybridError(f"level must lie in (0, 1), got {level}")
    bounds = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
    named = zip(RESAMPLED, *bounds.tolist(), strict=True)
    return {key: value for name, low, high in named for key, value in ((f"{name}_low", low), (f"{name}_high", high))}


def _common_length(side: str, scores: Mapping[str, np.ndarray]) -> int:
    """The number of images, which every score must have."""
    lengths = {score: len(checked(values, f"{side}: {score!r}")) for score, values in scores.items()}
    if len(set(lengths.values())) != 1:
        raise EbmhybridError(f"{side} must be of the same images for every score, got lengths {lengths}")
    return next(iter(lengths.values()))
