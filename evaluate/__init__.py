"""Evaluation of anything that maps images in [0, 1] to logits: accuracy, calibration, OOD detection, robustness ...

A *model* is any callable from a batch of images, float (N, C, H, W) in [0, 1], to logits (N, K). A *set* is any
iterable of (images, labels) batches that can be iterated more than once; it may carry `.name`, `.notes` and
`.digest()`, which then stand in the results.

Each `evaluate_*` function returns a frozen result with `.rows` and `.as_dict()`, those with something to draw also
`.plot()`. The plain metrics stand alone: `ood.auroc(id_scores, ood_scores)`, `calibration.ece(probabilities, labels)`.
Everything is imported when first used, so that the package is light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import (
        accuracy,
        calibration,
        corruptions,
        detectors,
        generation,
        ood,
        predictions,
        representation,
        robustness,
        scores,
        selective,
        suite,
    )
    from .accuracy import evaluate_accuracy
    from .calibration import evaluate_calibration
    from .corruptions import evaluate_corruptions
    from .detector_robustness import evaluate_detector_robustness
    from .from_logits import predictions_of
    from .generation import evaluate_generation
    from .on_predictions import evaluate_predictions
    from .ood import evaluate_ood
    from .predictions import predict
    from .refine import Refined
    from .refine_attacks import evaluate_refined
    from .representation import evaluate_representation, of_representation
    from .robustness import evaluate_robustness
    from .sanity import sanity_panel
    from .selective import evaluate_selective
    from .suite import evaluate

_HOME = {
    "Refined": "refine",
    "evaluate": "suite",
    "evaluate_accuracy": "accuracy",
    "evaluate_calibration": "calibration",
    "evaluate_corruptions": "corruptions",
    "evaluate_detector_robustness": "detector_robustness",
    "evaluate_generation": "generation",
    "evaluate_ood": "ood",
    "evaluate_predictions": "on_predictions",
    "evaluate_refined": "refine_attacks",
    "evaluate_representation": "representation",
    "evaluate_robustness": "robustness",
    "evaluate_selective": "selective",
    "of_representation": "representation",
    "predict": "predictions",
    "predictions_of": "from_logits",
    "sanity_panel": "sanity",
}
_MODULES = (
    "accuracy",
    "calibration",
    "corruptions",
    "detectors",
    "generation",
    "ood",
    "predictions",
    "representation",
    "robustness",
    "scores",
    "selective",
    "suite",
)

__all__ = [
    "Refined",
    "accuracy",
    "calibration",
    "corruptions",
    "detectors",
    "evaluate",
    "evaluate_accuracy",
    "evaluate_calibration",
    "evaluate_corruptions",
    "evaluate_detector_robustness",
    "evaluate_generation",
    "evaluate_ood",
    "evaluate_predictions",
    "evaluate_refined",
    "evaluate_representation",
    "evaluate_robustness",
    "evaluate_selective",
    "generation",
    "of_representation",
    "ood",
    "predict",
    "predictions",
    "predictions_of",
    "representation",
    "robustness",
    "sanity_panel",
    "scores",
    "selective",
    "suite",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
