"""OOD detection: how well a score separates images of the training distribution (ID) from others (OOD).

Metrics take (id_scores, ood_scores) with higher = more in-distribution, so no label convention exists. The literature
takes either side as positive, and AUPR and FPR95 change with it, so both are computed and named:

    auroc             P(id > ood) + P(id = ood) / 2; the same for either side
    aupr_in, aupr_out average precision with ID, with OOD as the positive class
    fpr95_id_positive share of OOD accepted at the threshold that accepts 95 % of ID (JEM, energy score)
    fpr95_ood_positive share of ID rejected at the threshold that rejects 95 % of OOD (OpenOOD)

Scores are replaced by their ranks first, which leaves every metric as it is and makes +-inf and large offsets harmless.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ebmhybrid.errors import EbmhybridError

from .predictions import ImageSet, Model, Predictions, Progress, predict, set_name
from .scores import SCORES, check_scores, model_score

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Scores = np.ndarray | Tensor
MACRO_MEAN = "macro mean"


def _side(scores: Scores, side: str) -> np.ndarray:
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
    inside, outside = _side(id_scores, "id_scores"), _side(ood_scores, "ood_scores")
    _, ranks = np.unique(np.concatenate([inside, outside]), return_inverse=True)
    return np.arange(len(ranks)) < len(inside), ranks.astype(np.float64)


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
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(*ranked(id_scores, ood_scores)))


def aupr_in(id_scores: Scores, ood_scores: Scores) -> float:
    """Average precision with ID as the positive class: sum over thresholds of (recall step) x precision, in (0, 1].

    Chance is N / (N + M), so the figure depends on the sizes of the sets.

    >>> aupr_in(np.array([2.0, 3.0]), np.array([1.0]))
    1.0
    """
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(*ranked(id_scores, ood_scores)))


def aupr_out(id_scores: Scores, ood_scores: Scores) -> float:
    """Average precision with OOD as the positive class, found by low scores; chance is M / (N + M).

    >>> aupr_out(np.array([2.0, 3.0]), np.array([1.0]))
    1.0
    """
    from sklearn.metrics import average_precision_score

    is_id, ranks = ranked(id_scores, ood_scores)
    return float(average_precision_score(~is_id, -ranks))


def _fpr_at_95(positive: np.ndarray, scores: np.ndarray) -> float:
    from sklearn.metrics import roc_curve

    false_positive, true_positive, _ = roc_curve(positive, scores, drop_intermediate=False)
    return float(false_positive[np.argmax(true_positive >= 0.95)])


def fpr95_id_positive(id_scores: Scores, ood_scores: Scores) -> float:
    """Share of OOD with a score at or above the highest threshold that keeps at least 95 % of ID, in [0, 1].

    >>> fpr95_id_positive(np.array([2.0, 3.0]), np.array([1.0, 2.5]))
    0.5
    """
    return _fpr_at_95(*ranked(id_scores, ood_scores))


def fpr95_ood_positive(id_scores: Scores, ood_scores: Scores) -> float:
    """Share of ID with a score at or below the lowest threshold that catches at least 95 % of OOD, in [0, 1].

    >>> fpr95_ood_positive(np.array([2.0, 3.0]), np.array([1.0, 2.5]))
    0.5
    """
    is_id, ranks = ranked(id_scores, ood_scores)
    return _fpr_at_95(~is_id, -ranks)


METRICS: dict[str, Callable[[Scores, Scores], float]] = {
    "auroc": auroc,
    "aupr_in": aupr_in,
    "aupr_out": aupr_out,
    "fpr95_id_positive": fpr95_id_positive,
    "fpr95_ood_positive": fpr95_ood_positive,
}


@dataclass(frozen=True)
class OODResult:
    """One row for each OOD set and score; with several sets, one more a score with the macro mean.

    Attributes:
        rows: ood_set, score, id_set, n_id, n_ood and the five metrics. Sets are averaged, never pooled.
        id_set: name of the ID set.
        id_scores: score -> float64 (N,).
        ood_scores: set -> score -> float64 (M,).
    """

    rows: tuple[dict[str, Any], ...]
    id_set: str
    id_scores: Mapping[str, np.ndarray] = field(repr=False)
    ood_scores: Mapping[str, Mapping[str, np.ndarray]] = field(repr=False)

    def as_dict(self) -> dict[str, Any]:
        """The rows, ready for JSON; the raw scores are not in it."""
        return {"id_set": self.id_set, "rows": [dict(row) for row in self.rows]}

    def mean(self, score: str, metric: str = "auroc") -> float:
        """Unweighted mean of a metric over the OOD sets."""
        return float(np.mean([row[metric] for row in self.rows if row["score"] == score and "n_sets" not in row]))

    def plot(self) -> Figure:
        """A line of panels for each OOD set: a histogram of each score, then the ROC curves."""
        from .plots import ood_overview

        return ood_overview(self)


def compare(
    id_set: str, id_scores: Mapping[str, np.ndarray], ood_scores: Mapping[str, Mapping[str, np.ndarray]]
) -> OODResult:
    """Every metric for every OOD set and score, from scores already at hand: score -> (N,) and set -> score -> (M,)."""
    rows: list[dict[str, Any]] = []
    for score, inside in id_scores.items():
        of_score: list[dict[str, Any]] = []
        for name, scores in ood_scores.items():
            row = {"ood_set": name, "score": score, "id_set": id_set, "n_id": len(inside), "n_ood": len(scores[score])}
            of_score.append(row | {metric: compute(inside, scores[score]) for metric, compute in METRICS.items()})
        rows += of_score
        if len(of_score) > 1:
            total = {"n_id": len(inside), "n_ood": sum(row["n_ood"] for row in of_score), "n_sets": len(of_score)}
            means = {metric: float(np.mean([row[metric] for row in of_score])) for metric in METRICS}
            rows.append({"ood_set": MACRO_MEAN, "score": score, "id_set": id_set} | total | means)
    return OODResult(tuple(rows), id_set, dict(id_scores), {name: dict(scores) for name, scores in ood_scores.items()})


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
) -> OODResult:
    """How well scores of a model separate its own test set from other sets.

    Arguments:
        model: images in [0, 1] -> logits.
        id_set: test set of the distribution trained on; its labels are not used.
        ood_sets: name -> set. No detector may have been tuned on them.
        scores: names of `scores.SCORES` and `scores.MODEL_SCORES`.
        device, progress: see :func:`ebmhybrid.evaluate.predict`.

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
    return compare(set_name(id_set, "test"), inside, {str(name): values for name, values in found.items()})
