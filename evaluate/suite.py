"""The whole evaluation in one call: one forward pass over each set serves every figure that logits give."""

from __future__ import annotations

import math
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .accuracy import AccuracyResult, accuracy_of
from .calibration import CalibrationResult, calibration_of
from .ood import OODResult, compare, scores_of
from .predictions import ImageSet, Model, Predictions, Progress, predict
from .robustness import RobustnessResult, check_attacks, evaluate_robustness
from .scores import check_scores
from .tables import long_rows, text_table

SCHEMA_VERSION = "1"
CURVE = (0.25, 0.5, 1.0, 2.0)  # of eps
_PACKAGES = ("ebmhybrid", "torch", "numpy", "scipy", "scikit-learn", "torchattacks", "netcal")


@dataclass(frozen=True)
class SuiteResult:
    """All results of one model, the parts that were not asked for being None.

    Attributes:
        sets: role ("test", "validation", "ood"), name, n, notes and digest of each set.
        settings: what was asked for: scores, attacks, norm, eps, steps, restarts, limit.
        context: what the caller knows: the recipe under "config", the model's name, the weights' hash.
        test_scores: score -> float64 (N,) on the test set, also without OOD sets.
    """

    accuracy: AccuracyResult
    calibration: CalibrationResult | None
    ood: OODResult | None
    robustness: RobustnessResult | None
    sets: tuple[dict[str, Any], ...]
    settings: Mapping[str, Any]
    context: Mapping[str, Any]
    versions: Mapping[str, str | None]
    test_scores: Mapping[str, np.ndarray] = field(repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Everything but raw scores, as `results.json` holds it."""
        parts = {
            "accuracy": self.accuracy,
            "calibration": self.calibration,
            "ood": self.ood,
            "robustness": self.robustness,
        }
        return {
            "schema_version": SCHEMA_VERSION,
            "context": dict(self.context),
            "settings": dict(self.settings),
            "sets": [dict(row) for row in self.sets],
            "versions": dict(self.versions),
            **{name: None if part is None else part.as_dict() for name, part in parts.items()},
        }

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A long table, one figure a row: section, set, name, metric, value, low, high, n, n_ood."""
        return long_rows(self)

    def table(self) -> str:
        """The main figures as plain text for a terminal."""
        return text_table(self)

    def save(self, folder: str | Path) -> Path:
        """Write results.json, results.csv, report.html, figures/*.svg and scores.npz, all or nothing.

        Raises:
            EbmhybridError: the folder cannot be written, or holds anything but an earlier evaluation.
        """
        from .files import save

        return save(self, Path(folder))


def evaluate(
    model: Model,
    test_set: ImageSet,
    validation: ImageSet | None = None,
    ood_sets: Mapping[str, ImageSet] | None = None,
    scores: Iterable[str] = ("energy", "msp"),
    calibration: bool = True,
    attacks: Iterable[str] = (),
    norm: str = "linf",
    eps: float = 8 / 255,
    steps: int = 20,
    restarts: int = 1,
    generator: torch.Generator | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
    context: Mapping[str, Any] | None = None,
    device: torch.device | str | None = None,
) -> SuiteResult:
    """Accuracy, calibration, OOD detection and robustness of a model.

    Arguments:
        model: images in [0, 1] -> logits (N, C).
        test_set: labelled test images of the distribution trained on.
        validation: labelled held-out images for the temperature; None leaves temperature scaling out.
        ood_sets: name -> set, for OOD detection.
        scores: OOD scores, names of `scores.SCORES` and `scores.MODEL_SCORES`.
        calibration: whether to measure calibration.
        attacks: names of `attacks.ATTACKS`, each at eps / 4, eps / 2, eps and 2 eps; none by default, they are slow.
        norm, eps, steps, restarts, generator: see :func:`ebmhybrid.evaluate.evaluate_robustness`.
        limit: at most so many images of each set; every n says what was used.
        progress: progress(batches, text) -> batches, to show a bar.
        context: JSON-able facts for the report; `context["config"]` is the recipe, `context["model"]` a title.

    Raises:
        ValueError: what the parts raise; unknown names and radii are refused before any forward pass.

    >>> data = [(torch.rand(30, 1, 1, 3), torch.arange(30) % 3)]
    >>> evaluate(lambda images: images.flatten(1), data).accuracy.rows[0]["n"]
    30
    """
    attacks = names_of(attacks)
    names = check(scores, attacks, norm, eps, steps, restarts)

    def look(data: ImageSet, name: str | None = None, labelled: bool = True) -> Predictions:
        return predict(model, data, device, progress, name=name, limit=limit, labelled=labelled)

    def score(predictions: Predictions, data: ImageSet) -> dict[str, np.ndarray]:
        return scores_of(predictions, names, model, data, device, progress)

    test = look(test_set)
    test_scores = score(test, test_set)
    held_out = look(validation) if calibration and validation is not None else None
    sets, ood_scores = [_described("test", test)], {}
    sets += [_described("validation", held_out)] if held_out else []
    for name, data in (ood_sets or {}).items():
        stranger = look(data, str(name), labelled=False)
        ood_scores[str(name)] = score(stranger, data)
        sets.append(_described("ood", stranger))
    robust = None
    if attacks:
        widest = 1.0 if norm == "linf" else math.sqrt(math.prod(test.image_shape))
        robust = evaluate_robustness(
            model,
            test_set,
            attacks,
            norm,
            _curve(eps, widest),
            steps,
            restarts,
            generator,
            limit=limit,
            device=device,
            progress=progress,
        )
    settings = {"scores": list(names), "calibration": calibration, "attacks": list(attacks), "limit": limit}
    return SuiteResult(
        accuracy=accuracy_of(test),
        calibration=calibration_of(test, held_out) if calibration else None,
        ood=compare(test.name, test_scores, ood_scores) if ood_scores else None,
        robustness=robust,
        sets=tuple(sets),
        settings=settings | {"norm": norm, "eps": eps, "steps": steps, "restarts": restarts},
        context=dict(context or {}),
        versions=package_versions(),
        test_scores=test_scores,
    )


def names_of(names: str | Iterable[str]) -> tuple[str, ...]:
    """One name, or several."""
    return (names,) if isinstance(names, str) else tuple(names)


def check(
    scores: Iterable[str], attacks: Iterable[str], norm: str, eps: float, steps: int = 20, restarts: int = 1
) -> tuple[str, ...]:
    """Refuse unknown names and radii before any work; returns the scores without repetition."""
    if attacks := names_of(attacks):
        check_attacks(attacks, norm, eps, steps, restarts)
    return check_scores(scores)


def _curve(eps: float, widest: float) -> list[float]:
    """eps / 4, eps / 2, eps and 2 eps, the last one left out where the ball would be wider than the box of images."""
    return [eps * factor for factor in CURVE if factor <= 1 or eps * factor <= widest]


def _described(role: str, predictions: Predictions) -> dict[str, Any]:
    """What identifies a set in a report."""
    return {
        "role": role,
        "name": predictions.name,
        "n": len(predictions),
        "notes": list(predictions.notes),
        "digest": predictions.digest,
    }


def package_versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that figures depend on, None for one that is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found
