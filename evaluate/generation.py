"""Quality of samples: do they look as asked, are they near the data, are they copies, does the model know them?

Nothing needs a download: distances are taken in the features of a classifier trained on the same data, the *judge*,
and are named after it. FID, KID and Inception score they are called in the features of the network that defines these
alone, whose weight file the user gives. Every figure stands beside the same one of real images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ebmhybrid.errors import EbmhybridError

from .features import ends_in_head
from .generation_features import InceptionWeights, inception_features
from .generation_metrics import nearest
from .generation_result import GenerationResult, Shown
from .generation_rows import (
    INCEPTION,
    OTHERS,
    SAMPLES,
    TEST,
    TRAIN,
    Row,
    density_rows,
    distance_row,
    diversity_row,
    label_rows,
    neighbour_rows,
)
from .generation_sets import Chains, Images, check_sets, checked_chains, checked_samples, class_names, named
from .generation_shown import closest, first, known_of, shown
from .predictions import ImageSet, Model, Predictions, Progress, check_repeatable, evaluating, model_device, predict
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
    judge_name: str = "the judge",
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
        chains: (T steps, images (T, M, C, H, W)) of M chains on their way, for a figure.
        progress: progress(batches, text) -> batches, to show a bar.
        device: where images go; None is each model's own device.

    Raises:
        EbmhybridError: samples, labels, sets or a weight file that cannot be used; the message names them.

    >>> real = [(torch.rand(20, 1, 1, 3), torch.arange(20) % 3)]
    >>> result = evaluate_generation(torch.rand(9, 1, 1, 3), reference=real, model=lambda x: x.flatten(1))
    >>> [(row["group"], row["of"], row["n"]) for row in result.rows]
    [('diversity', 'samples', 9), ('diversity', 'test', 9), ('log_density', 'samples', 9), ('log_density', 'test', 20)]
    """
    for data in (reference, () if train is None else train):
        check_repeatable(data)
    shown_chains, classes = checked_chains(chains), class_names(reference)
    weights = InceptionWeights.read(inception) if inception is not None else None
    shared: dict[str, Any] = {"device": device, "progress": progress}
    real = Images.read(reference, TEST)
    drawn = checked_samples(samples, labels, len(classes) or int(real.labels.max()) + 1)
    pool, floor = (None, None) if train is None else (Images.read(train, TRAIN, n) for n in (None, len(drawn)))
    check_sets(drawn, real, pool)
    asked = None if labels is None else drawn.labels.numpy()
    names, judged, found = classes, None, None
    rows: list[Row] = []
    if judge is not None:
        seen = _seen_by(judge, drawn, real, floor, asked is not None, shared)
        judged = seen[SAMPLES]
        if classes and judged.logits.shape[1] != len(classes):
            raise EbmhybridError(
                f"the judge tells {judged.logits.shape[1]} classes apart, and set {real.name!r} has {len(classes)}"
            )
        names = named(classes, judged.logits.shape[1])
        rows += _by_judge(judge_name, seen, asked, names)
    if weights is not None:
        where = device or next((model_device(one) for one in (model, judge) if one is not None), None)
        rows += _by_inception(weights, drawn, real, floor, where, progress)
    if pool is not None:
        found = nearest(drawn.flat, pool.flat)
        of = {SAMPLES: found[0], TEST: nearest(real.flat, pool.flat)[0]}
        rows += neighbour_rows(of, drawn.flat.shape[1], len(pool))
    rows += _diversity(drawn, Images.read(reference, TEST, len(drawn)))
    densities = {} if model is None else _densities(model, [drawn, real, floor], shared)
    rows += density_rows(densities) if densities else []
    known = known_of(drawn, asked, names, judged, found, densities)
    return GenerationResult(
        tuple(rows),
        _about(drawn, real, pool, judge_name if judge is not None else None, weights),
        shown(first(asked, len(drawn)), drawn, pool, found, known),
        closest(drawn, pool, found, known),
        densities,
        shown_chains,
    )


def _seen_by(
    judge: Model, drawn: Images, real: Images, floor: Images | None, labelled: bool, shared: Mapping[str, Any]
) -> dict[str, Predictions]:
    """Role -> what the judge says of these images, with features where its logits come of a last linear layer."""
    with evaluating(judge):
        features = ends_in_head(judge, drawn.images[:1].to(shared["device"] or model_device(judge)))
    wanted = {SAMPLES: labelled, TEST: True, TRAIN: False}  # whose labels are used
    return {
        data.role: predict(judge, data, name=data.name, labelled=wanted[data.role], features=features, **shared)
        for data in (drawn, real, floor)
        if data is not None
    }


def _by_judge(
    name: str, judged: Mapping[str, Predictions], asked: np.ndarray | None, classes: Sequence[str]
) -> list[Row]:
    """Labels of the samples and of test images, then distances to test images in the judge's features."""
    test = judged[TEST]
    rows = label_rows(SAMPLES, judged[SAMPLES], asked, classes)
    rows += label_rows(TEST, test, None if asked is None else test.labels, classes)
    return rows + [
        distance_row(role, name, one.features, test.features, one.probabilities)
        for role, one in judged.items()
        if role != TEST and len(one) > 1
    ]


def _by_inception(
    weights: InceptionWeights,
    drawn: Images,
    real: Images,
    floor: Images | None,
    device: torch.device | str | None,
    progress: Progress | None,
) -> list[Row]:
    """FID, KID and Inception score, or with other weights the same by other names."""
    space = "Inception v3" if weights.published else f"Inception v3 with other weights, {weights.sha256[:8]}"
    keys = INCEPTION if weights.published else OTHERS
    test, _ = inception_features(real.images, weights, device, progress)
    rows = []
    for data in (drawn, floor):
        if data is not None and len(data) > 1:
            features, probabilities = inception_features(data.images, weights, device, progress)
            rows.append(distance_row(data.role, space, features, test, probabilities, min(10, len(data)), keys))
    return rows


def _diversity(drawn: Images, real: Images) -> list[Row]:
    """Of the samples, and of as many real images: the more there are, the nearer the next one is."""
    return [
        diversity_row(data.role, nearest(data.flat, data.flat, others=True)[0], data.flat.shape[1])
        for data in (drawn, real)
        if len(data) > 1
    ]


def _densities(model: Model, sets: Sequence[Images | None], shared: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Role -> log density (N,) of each set that there is."""
    return {
        data.role: energy(predict(model, data, name=data.name, **shared).logits) for data in sets if data is not None
    }


def _about(
    drawn: Images, real: Images, pool: Images | None, judge: str | None, weights: InceptionWeights | None
) -> dict[str, Any]:
    """The sets, the judge and the weight file that the figures come of."""
    about: dict[str, Any] = {"sets": [data.described() for data in (drawn, real, pool) if data is not None]}
    about |= {"judge": judge}
    if weights is not None:
        about["inception"] = {"file": weights.name, "sha256": weights.sha256, "published": weights.published}
        about["inception"]["torch-fidelity"] = version("torch-fidelity")
    return about
