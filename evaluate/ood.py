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
from .scores import MODEL_SCORES, SCORES, check_scores, model_score

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Scores = np.ndarray | Tensor
MACRO_MEAN = "macro mean"


def _side(scores: Scores, side: str) -> np.ndarray:
    """Scores of one side as float64 (N,), or a ValueError that names the side."""
    if isinstance(scores, Tensor):
        scores = scores.detach().cpu()
        # numpy has no bfloat16; its dtype is refused below like float16
        scores = scores.half().numpy() if scores.dtype == torch.bfloat16 else scores.numpy()
    values = np.asarray(scores)
    if values.dtype == np.float16:
        raise ValueError(f"{side} are in half precision, whose ties change the ranking; compute them in float32 or more")
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"{side} must be a non-empty vector, got shape {values.shape}")
    values = values.astype(np.float64)
    if missing := int(np.isnan(values).sum()):
        raise ValueError(f"{side} hold {missing} NaN of {values.size}")
    return values


def _ranked(id_scores: Scores, ood_scores: Scores) -> tuple[np.ndarray, np.ndarray]:
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

    return float(roc_auc_score(*_ranked(id_scores, ood_scores)))


def aupr_in(id_scores: Scores, ood_scores: Scores) -> float:
    """Average precision with ID as the positive class: sum over thresholds of (recall step) x precision, in (0, 1].

    Chance is N / (N + M), so the figure depends on the sizes of the sets.

    >>> aupr_in(np.array([2.0, 3.0]), np.array([1.0]))
    1.0
    """
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(*_ranked(id_scores, ood_scores)))


def aupr_out(id_scores: Scores, ood_scores: Scores) -> float:
    """Average precision with OOD as the positive class, found by low scores; chance is M / (N + M).

    >>> aupr_out(np.array([2.0, 3.0]), np.array([1.0]))
    1.0
    """
    from sklearn.metrics import average_precision_score

    is_id, ranks = _ranked(id_scores, ood_scores)
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
    return _fpr_at_95(*_ranked(id_scores, ood_scores))


def fpr95_ood_positive(id_scores: Scores, ood_scores: Scores) -> float:
    """Share of ID with a score at or below the lowest threshold that catches at least 95 % of OOD, in [0, 1].

    >>> fpr95_ood_positive(np.array([2.0, 3.0]), np.array([1.0, 2.5]))
    0.5
    """
    is_id, ranks = _ranked(id_scores, ood_scores)
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
    """A row for each OOD set and score, then for several sets a macro mean a score; with the raw scores.

    Attributes:
        rows: ood_set, score, id_set, n_id, n_ood and the five metrics. Sets are averaged, never pooled.
        scores: scores[set][score] -> float64 (N,); the ID set stands under `id_set`.
        id_set: the name of the ID set.
    """

    rows: tuple[dict[str, Any], ...]
    scores: dict[str, dict[str, np.ndarray]] = field(repr=False)
    ood_scores: dict[str, dict[str, np.ndarray]] = field(repr=False)

    def as_dict(self) -> dict[str, Any]:
        """The rows, ready for JSON; the raw scores are not in it."""
        return {"rows": [dict(row) for row in self.rows]}

    def mean(self, metric: str = "auroc") -> dict[str, float]:
        """score -> the metric's unweighted mean over the OOD sets."""
        return {
            score: float(np.mean([row[metric] for row in self.rows if row["score"] == score and not is_mean(row)]))
            for score in dict.fromkeys(row["score"] for row in self.rows)
        }

    def plot(self) -> Figure:
        """A row of panels for each OOD set: a histogram of each score, and the ROC curves."""
        from .plots import ood_overview

        return ood_overview(self)


def is_mean(row: Mapping[str, Any]) -> bool:
    """Whether an OOD row is the mean over the sets."""
    return "n_sets" in row
