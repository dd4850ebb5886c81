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

from .detectors import check_scores, fit_detectors, needs_of
from .features import given_by, head_of
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
from .predictions import ImageSet, Model, Predictions, Progress, check_repeatable, predict, set_name
from .scores import MODEL_SCORES, model_score

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
]


def evaluate_ood(
    model: Model,
    id_set: ImageSet,
    ood_sets: Mapping[str, ImageSet],
    scores: str | Iterable[str] = ("energy", "msp"),
    device: torch.device | str | None = None,
    progress: Progress | None = None,
    groups: Mapping[str, str] | None = None,
    resamples: int = 1000,
    level: float = 0.95,
    *,
    train_set: ImageSet | None = None,
    validation: ImageSet | None = None,
) -> OODResult:
    """How well scores of a model separate its own test set from other sets.

    Arguments:
        model: images in [0, 1] -> logits.
        id_set: test set of the distribution trained on; its labels are not used.
        ood_sets: name -> set. No detector may have been tuned on them.
        scores: names, see :func:`ebmhybrid.evaluate.detectors.check_scores`, or "all" that the rest suffices for.
        device, progress: see :func:`ebmhybrid.evaluate.predict`.
        groups, resamples, level: see :func:`ebmhybrid.evaluate.ood.compare`.
        train_set, validation: labelled images trained on and held out, for the detectors that are fitted on them.

    Raises:
        ValueError: an unknown score or one that needs what was not given, no OOD set, or a set that
            :func:`ebmhybrid.evaluate.predict` refuses.

    >>> bright, dark = [(torch.ones(3, 1, 1, 2), torch.zeros(3))], [(torch.zeros(2, 1, 1, 2), torch.zeros(2))]
    >>> bright, dark = ([(images, labels.long()) for images, labels in data] for data in (bright, dark))
    >>> evaluate_ood(lambda images: images.flatten(1), bright, {"dark": dark}, ["energy"]).rows[0]["auroc"]
    1.0
    """
    if not ood_sets:
        raise EbmhybridError("no OOD set was given: ood_sets maps a name to a set of images")
    scores = (scores,) if isinstance(scores, str) else tuple(scores)
    for name, data in {"test": id_set, **ood_sets}.items():
        check_repeatable(data, str(name))
    held = {"train": train_set, "validation": validation}
    names = check_scores(
        scores, ["images", *given_by(model), *(part for part, data in held.items() if data is not None)]
    )
    needs = needs_of(names)

    def seen(data: ImageSet | None, name: str | None = None) -> Predictions:
        assert data is not None
        labelled = data is train_set or data is validation
        return predict(model, data, device, progress, name=name, features="features" in needs, labelled=labelled)

    fitting: dict[str, Any] = {part: seen(data) for part, data in held.items() if part in needs}
    fitted = fit_detectors(scores, head=head_of(model) if "head" in needs else None, **fitting)

    def scored(data: ImageSet, name: str) -> dict[str, np.ndarray]:
        predictions = seen(data, name)
        found = {score: of(predictions) for score, of in fitted.items()}
        of_images = [score for score in names if score in MODEL_SCORES]
        return found | {score: model_score(model, data, score, device, progress, name=name) for score in of_images}

    inside = scored(id_set, set_name(id_set, "test"))
    outside = {str(name): scored(data, str(name)) for name, data in ood_sets.items()}
    return compare(set_name(id_set, "test"), inside, outside, groups, resamples, level)
