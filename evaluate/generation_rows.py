"""The rows of an evaluation of samples, from arrays already at hand: one function for each question asked of them.

Every row says of which images it speaks under `of`: "samples", or real ones as the yardstick, "test" and "train".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .accuracy import wilson_interval
from .generation_metrics import Estimate, frechet_distance, inception_score, kernel_distance
from .ood_compare import compare
from .predictions import Predictions

Row = dict[str, Any]
SAMPLES, TEST, TRAIN = "samples", "test", "train"
NAMES = {SAMPLES: "samples", TEST: "test images", TRAIN: "training images"}
# Root mean square difference a value below which two images count as one: two grey levels of 255. Langevin dynamics
# ends with a step of noise, 0.005 or 1.3 grey levels in JEM's settings, which a copy of an image carries too.
COPY = 2 / 255
_Z = 1.959963984540054  # 97.5 % quantile of the standard normal distribution
# What the figures are called in Inception's features with the published weights, and in any other network's.
INCEPTION = ("fid", "kid", "inception_score")
OTHERS = ("frechet_distance", "kernel_distance", "label_score")


def share(key: str, hits: np.ndarray) -> Row:
    """A share with its 95 % Wilson interval and n.

    >>> share("right", np.array([True, True, False, True]))["right"]
    0.75
    """
    low, high = wilson_interval(int(hits.sum()), len(hits))
    return {key: float(hits.mean()), f"{key}_low": low, f"{key}_high": high, "n": len(hits)}


def label_rows(of: str, judged: Predictions, labels: np.ndarray | None, classes: Sequence[str]) -> list[Row]:
    """Share of images that the judge calls by their label, of all and of each class; without labels what it calls them.

    Arguments:
        labels: (N,) asked for, or of real images; None for samples without class.
        classes: names, one for each logit of the judge.
    """
    calls = judged.logits.argmax(axis=1)
    about: Row = {"group": "labels", "of": of}
    if labels is None:
        return [about | {"class": name} | share("judged_share", calls == c) for c, name in enumerate(classes)]
    right = calls == labels
    rows = [about | {"class": None} | share("label_agreement", right)]
    for c, name in enumerate(classes):
        if (labels == c).any():
            rows.append(about | {"class": name} | share("label_agreement", right[labels == c]))
    return rows


def distance_row(
    of: str,
    space: str,
    features: np.ndarray | None,
    reference: np.ndarray | None,
    probabilities: np.ndarray,
    splits: int = 1,
    keys: Sequence[str] = OTHERS,
) -> Row:
    """Distances of features to a reference's, where there are features, and the score of the class probabilities.

    Arguments:
        space: whose features and classes these are.
        splits: of the class score.
        keys: what the three figures are called.
    """
    frechet, kernel, score = keys
    row: Row = {"group": "distances", "of": of, "features": space, "n": len(probabilities)}
    if features is not None and reference is not None:
        found = kernel_distance(features, reference)
        row |= {"n_reference": len(reference), frechet: frechet_distance(features, reference)}
        row |= {kernel: found.value, f"{kernel}_error": found.error} | _bounds(kernel, found)
    return row | {score: inception_score(probabilities, splits).value}


def _bounds(key: str, found: Estimate) -> Row:
    """95 % by the normal approximation, None where the error is not known."""
    if not np.isfinite(found.error):
        return {f"{key}_low": None, f"{key}_high": None}
    return {f"{key}_low": found.value - _Z * found.error, f"{key}_high": found.value + _Z * found.error}


def neighbour_rows(of: Mapping[str, np.ndarray], values: int, n_reference: int) -> list[Row]:
    """How far images are from their nearest training image: the samples, and real ones as the yardstick.

    Arguments:
        of: "samples" and "test" -> distances (N,); the 1st percentile of the test images' is the mark.
        values: numbers in an image, C x H x W.
        n_reference: training images.
    """
    mark = float(np.quantile(of[TEST], 0.01))
    rows = []
    for name, distances in of.items():
        row: Row = {"group": "neighbours", "of": name, "n_reference": n_reference, "mark": mark}
        row |= {"nearest_mean": float(distances.mean()), "nearest_median": float(np.median(distances))}
        row |= {"copies": int((distances < COPY * np.sqrt(values)).sum())}
        rows.append(row | share("share_nearer", distances < mark))
    return rows


def diversity_row(of: str, distances: np.ndarray, values: int) -> Row:
    """How far images are from the nearest other one of them, and the share that has one as near as a copy."""
    row: Row = {"group": "diversity", "of": of, "other_mean": float(distances.mean())}
    return row | share("near_duplicates", distances < COPY * np.sqrt(values))


def density_rows(of: Mapping[str, np.ndarray], resamples: int = 1000) -> list[Row]:
    """The model's log density of images, and how well it tells them from test images: AUROC, 0.5 where it cannot.

    Arguments:
        of: "samples", "test" and maybe "train" -> log densities (N,). Above 0.5 the test images have the higher one.
        resamples: of the bootstrap behind the AUROC's interval.
    """
    outside = {name: {"energy": values} for name, values in of.items() if name != TEST}
    found = {row["ood_set"]: row for row in compare(TEST, {"energy": of[TEST]}, outside, None, resamples).rows}
    rows = []
    for name, values in of.items():
        low, middle, high = np.quantile(values, [0.05, 0.5, 0.95]).tolist()
        row: Row = {"group": "log_density", "of": name, "n": len(values), "log_density_mean": float(values.mean())}
        row |= {"log_density_5": low, "log_density_50": middle, "log_density_95": high}
        if name in found:
            row |= {key: found[name][key] for key in ("auroc", "auroc_low", "auroc_high")}
            row |= {"n_reference": len(of[TEST])}
        rows.append(row)
    return rows
