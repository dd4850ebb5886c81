"""OOD detection: how well a score separates images of the training distribution (ID) from others (OOD).

The metrics live in `ood_metrics` and stand here too: `auroc`, `aupr_in`, `aupr_out`, `fpr95_id_positive`,
`fpr95_ood_positive`, `curve`; so does `compare`, of `ood_compare`, which applies them to scores already at hand.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from ebmhybrid.errors import EbmhybridError

from .ood_compare import GROUP_MEANS, MACRO_MEAN, OODResult, compare
from .ood_metrics import (
    METRICS,
    Curve,
    Scores,
    aupr_in,
    aupr_out,
    auroc,
    curve,
    fpr95_id_positive,
    fpr95_ood_positive,
    ranked,
)
from .predictions import ImageSet, Model, Predictions, Progress, predict, set_name
from .scores import SCORES, check_scores, model_score

__all__ = [
    "GROUP_MEANS",
    "MACRO_MEAN",
    "METRICS",
    "Curve",
    "OODResult",
    "Scores",
    "aupr_in",
    "aupr_out",
    "auroc",
    "compare",
    "curve",
    "evaluate_ood",
    "fpr95_id_positive",
    "fpr95_ood_positive",
    "ranked",
    "scores_of",
]


def scores_of(
    predictions: Predictions,
    scores: Iterable[str],
    model: Model | None = None,
    data: ImageSet | None = None,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> dict[str, np.ndarray]:
    """score -> float64 (N,): from the logits where they suffice, else by a pass of the model over the set's images."""
    found: dict[str, np.ndarray] = {}
    for score in check_scores(scores):
        if score in SCORES:
            found[score] = SCORES[score](predictions.logits)
        elif model is None or data is None:
            raise EbmhybridError(f"score {score!r} needs the model and the images, not only their logits")
        else:
            kwargs: dict[str, Any] = {"name": predictions.name, "limit": len(predictions)}
            found[score] = model_score(model, data, score, device, progress, **kwargs)
    return found


def evaluate_ood(
    model: Model,
    id_set: ImageSet,
    ood_sets: Mapping[str, ImageSet],
    scores: Iterable[str] = ("energy", "msp"),
    device: torch.device | str | None = None,
    progress: Progress | None = None,
    groups: Mapping[str, str] | None = None,
    resamples: int = 1000,
    level: float = 0.95,
) -> OODResult:
    """How well scores of a model separate its own test set from other sets.

    Arguments:
        model: images in [0, 1] -> logits.
        id_set: test set of the distribution trained on; its labels are not used.
        ood_sets: name -> set. No detector may have been tuned on them.
        scores: names of `scores.SCORES` and `scores.MODEL_SCORES`.
        device, progress: see :func:`ebmhybrid.evaluate.predict`.
        groups, resamples, level: see :func:`ebmhybrid.evaluate.ood.compare`.

    Raises:
        ValueError: an unknown score, no OOD set, or a set that :func:`ebmhybrid.evaluate.predict` refuses.

    >>> bright, dark = [(torch.ones(3, 1, 1, 2), torch.zeros(3))], [(torch.zeros(2, 1, 1, 2), torch.zeros(2))]
    >>> bright, dark = ([(images, labels.long()) for images, labels in data] for data in (bright, dark))
    >>> evaluate_ood(lambda images: images.flatten(1), bright, {"dark": dark}, ["energy"]).rows[0]["auroc"]
    1.0
    """
    names = check_scores(scores)
    if not ood_sets:
        raise EbmhybridError("no OOD set was given: ood_sets maps a name to a set of images")
    found = {}
    for name, data in [(None, id_set), *ood_sets.items()]:
        predictions = predict(model, data, device, progress, name=name or set_name(id_set, "test"))
        found[name] = scores_of(predictions, names, model, data, device, progress)
    inside = found.pop(None)
    outside = {str(name): values for name, values in found.items()}
    return compare(set_name(id_set, "test"), inside, outside, groups, resamples, level)
