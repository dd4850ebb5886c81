"""What a whole evaluation found, and the tables, files and pages that come of it."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .tables import long_rows, text_table

if TYPE_CHECKING:
    from .accuracy import AccuracyResult
    from .calibration import CalibrationResult
    from .corruptions import CorruptionResult
    from .detector_robustness import DetectorRobustnessResult
    from .generation_result import GenerationResult
    from .ood import OODResult
    from .predictions import Predictions
    from .refine_attacks import RefinedResult
    from .representation_result import RepresentationResult
    from .robustness import RobustnessResult
    from .sanity import SanityResult
    from .selective import SelectiveResult

SCHEMA_VERSION = "2"
PARTS = (
    "accuracy",
    "calibration",
    "selective",
    "ood",
    "corruptions",
    "robustness",
    "sanity",
    "detector_robustness",
    "refined",
    "generation",
    "representation",
)
_PACKAGES = ("ebmhybrid", "torch", "numpy", "scipy", "scikit-learn", "torchattacks", "pyautoattack", "netcal")


@dataclass(frozen=True)
class SuiteResult:
    """All results of one model, the parts that were not asked for being None.

    Attributes:
        sets: role ("test", "validation", "train", "ood"), name, n, notes and digest of each set.
        settings: what was asked for: scores, attacks, norm, eps, steps, restarts, limit ...
        context: what the caller knows: the recipe under "config", the model's name, the weights' hash.
        test_scores: score -> float64 (N,) on the test set, also without OOD sets.
    """

    accuracy: AccuracyResult
    calibration: CalibrationResult | None
    selective: SelectiveResult | None
    ood: OODResult | None
    sets: tuple[dict[str, Any], ...]
    settings: Mapping[str, Any]
    context: Mapping[str, Any]
    versions: Mapping[str, str | None]
    test_scores: Mapping[str, np.ndarray] = field(repr=False)
    corruptions: CorruptionResult | None = None
    robustness: RobustnessResult | None = None
    sanity: SanityResult | None = None
    detector_robustness: DetectorRobustnessResult | None = None
    refined: RefinedResult | None = None
    generation: GenerationResult | None = None
    representation: RepresentationResult | None = None

    def as_dict(self) -> dict[str, Any]:
        """Everything but raw scores, as `results.json` holds it."""
        parts = {name: getattr(self, name) for name in PARTS}
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


def described(role: str, predictions: Predictions) -> dict[str, Any]:
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
