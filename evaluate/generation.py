"""Quality of samples: do they look as asked, are they near the data, are they copies, does the model know them?

Nothing needs a download: distances are taken in the features of a classifier trained on the same data, the *judge*, and
are named after it. They are called FID, KID and Inception score in the features of the network that defines these, whose
weight file the user gives, and nowhere else. Every figure stands beside the same one of real images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .features import ends_in_head
from .generation_features import InceptionWeights, inception_features
from .generation_metrics import nearest
from .generation_result import GenerationResult, Shown
from .generation_rows import (
    INCEPTION,
    OTHERS,
    SAMPLES,
    Row,
    density_rows,
    distance_row,
    diversity_row,
    label_rows,
    neighbour_rows,
)
from .generation_sets import Chains, Images, check_sets, checked_chains, checked_samples, class_names, named
from .generation_shown import closest, first, known_of, shown
from .predictions import ImageSet, Model, Predictions, Progress, evaluating, model_device, predict
from .scores import energy

__all__ = ["Chains", "GenerationResult", "Shown", "evaluate_generation"]


def evaluate_generation(
    samples: Tensor,
    labels: Tensor | None = None,
    *,
    reference: ImageSet,
    train: ImageSet | None = None,
    model: Model | None = None,
    judge: Model | None = None,
    judge_name: str = "",
    inception: str | Path | None = None,
    chains: Chains | None = None,
    progress: Progress | None = None,
    device: torch.device | str | None = None,
) -> GenerationResult:
    """How good samples are, by whatever is given to measure them with; see :class:`GenerationResult` for the figures.

    Arguments:
        samples: (N, C, H, W) in [0, 1], N >= 2.
        labels: (N,) integers, the classes asked for; None for samples without class.
        reference: real images that the model was not trained on, with labels: the test split.
        train: the images it was trained on. Their first N (by the set's own `.take`) are the yardstick of distances,
            all of them the pool of nearest neighbours.
        model: what the samples were drawn from, for log densities.
        judge: a classifier of the same classes that was trained without the model: labels, distances, label score.
        judge_name: what it is called in the rows.
        inception: weight file of the Inception network, see :func:`.generation_features.inception_features`.
        chains: (steps, images (T, M, C, H, W)) of some chains on their way, for a figure.
        progress: progress(batches, text) -> batches, to show a bar.
        device: where images go; None is each model's own device.

    Raises:
        EbmhybridError: samples, labels, sets or a weight file that cannot be used; the message names them.

    >>> real = [(torch.rand(20, 1, 1, 3), torch.arange(20) % 3)]
    >>> result = evaluate_generation(torch.rand(9, 1, 1, 3), reference=real, model=lambda x: x.flatten(1))
    >>> [(row["group"], row["of"], row["n"]) for row in result.rows]
    [('diversity', 'samples', 9), ('diversity', 'test', 9), ('log density', 'samples', 9), ('log density', 'test', 20)]
    """
    drawn = _checked(samples, labels)
    weights = InceptionWeights.read(inception) if inception is not None else None
    real = _Images.read(reference, "test")
    pool = _Images.read(train, "train") if train is not None else None
    floor = _Images.read(train, "train", len(drawn)) if train is not None else None
    _check_sets(drawn, real, pool)
    asked = None if labels is None else drawn.labels.numpy()
    shared: dict[str, Any] = {"device": device, "progress": progress}
    rows: list[Row] = []
    judged = densities = found = None
    if judge is not None:
        judged, more = _judged(judge, judge_name or "the judge", drawn, asked, real, floor, _classes(reference), shared)
        rows += more
    if weights is not None:
        rows += _by_inception(weights, drawn, real, floor, device or model_device(model), progress)
    if pool is not None:
        found = nearest(drawn.flat, pool.flat)
        of = {SAMPLES: found[0], real.name: nearest(real.flat, pool.flat)[0]}
        rows += neighbour_rows(of, real.name, drawn.flat.shape[1], len(pool))
    rows += _diversity(drawn, _Images.read(reference, "test", len(drawn)))
    if model is not None:
        sets = [drawn, real, *([floor] if floor is not None else [])]
        densities = {data.name: energy(predict(model, data, name=data.name, **shared).logits) for data in sets}
        rows += density_rows(densities, real.name)
    known = _known(drawn, asked, judged, found, densities, _classes(reference))
    return GenerationResult(
        tuple(rows),
        _about(drawn, real, pool, judge_name if judge is not None else None, weights),
        _shown(_first(asked, len(drawn)), drawn, pool, found, known),
        None if found is None else _shown(np.argsort(found[0], kind="stable")[:CLOSEST], drawn, pool, found, known),
        densities or {},
        _checked_chains(chains),
    )


def _judged(
    judge: Model,
    name: str,
    drawn: Images,
    asked: np.ndarray | None,
    real: Images,
    floor: Images | None,
    classes: Sequence[str],
    shared: Mapping[str, Any],
) -> tuple[Predictions, list[Row]]:
    """What the judge says of the samples, and the rows that follow: labels, then distances in its features."""
    with evaluating(judge):
        features = ends_in_head(judge, drawn.images[:1].to(shared["device"] or model_device(judge)))

    def seen(data: Images, labelled: bool = False) -> Predictions:
        return predict(judge, data, name=data.name, labelled=labelled, features=features, **shared)

    judged, test = seen(drawn, labelled=asked is not None), seen(real, labelled=True)
    names = named(classes, judged.logits.shape[1])
    rows = label_rows(SAMPLES, judged, asked, names)
    rows += label_rows(real.name, test, None if asked is None else test.labels, names)
    for one in (judged, *([seen(floor)] if floor is not None and len(floor) > 1 else [])):
        rows.append(distance_row(one.name, name, one.features, test.features, one.probabilities))
    return judged, rows


def _by_inception(
    weights: InceptionWeights,
    drawn: Images,
    real: Images,
    floor: Images | None,
    device: torch.device | str | None,
    progress: Progress | None,
) -> list[Row]:
    """FID, KID and Inception score, or the same by other weights under another name."""
    space = "Inception v3" if weights.published else f"Inception v3 with other weights, {weights.sha256[:8]}"
    test, _ = inception_features(real.images, weights, device, progress)
    rows = []
    for data in (drawn, *([floor] if floor is not None and len(floor) > 1 else [])):
        features, probabilities = inception_features(data.images, weights, device, progress)
        keys = INCEPTION if weights.published else OTHERS
        rows.append(distance_row(data.name, space, features, test, probabilities, min(10, len(data)), keys))
    return rows


def _diversity(drawn: Images, real: Images) -> list[Row]:
    """Of the samples, and of as many real images: the more there are, the nearer the next one is."""
    sets = [data for data in (drawn, real) if len(data) > 1]
    return [
        diversity_row(data.name, nearest(data.flat, data.flat, others=True)[0], data.flat.shape[1]) for data in sets
    ]


def _about(
    drawn: _Images, real: _Images, pool: _Images | None, judge: str | None, weights: InceptionWeights | None
) -> dict[str, Any]:
    sets = [drawn.described(SAMPLES), real.described("test")]
    about: dict[str, Any] = {"sets": [*sets, *([pool.described("train")] if pool is not None else [])]}
    about |= {"reference": real.name, "train": None if pool is None else pool.name, "judge": judge}
    if weights is not None:
        about["inception"] = {"file": weights.name, "sha256": weights.sha256, "published": weights.published}
    return about
