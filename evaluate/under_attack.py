"""The parts of an evaluation that attack the model: its accuracy, its OOD score, its refined form, and the checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .asked import Attacks
from .detector_robustness import evaluate_detector_robustness
from .predictions import ImageSet, Model, Progress
from .refine import Refined
from .refine_attacks import evaluate_refined
from .robustness import evaluate_robustness
from .sanity import sanity_panel

PANEL_IMAGES = 200


def under_attack(
    model: Model,
    test_set: ImageSet,
    ood_sets: Mapping[str, ImageSet],
    attacks: Attacks,
    shape: Sequence[int],
    *,
    id_set: ImageSet | None = None,
    sanity: bool,
    detector: str | None,
    refine: bool,
    generator: torch.Generator | None,
    limit: int | None,
    device: torch.device | str | None,
    progress: Progress | None,
    journal: Path | None = None,
    weights: str | None = None,
) -> dict[str, Any]:
    """The parts of a `SuiteResult` that were asked for.

    Arguments:
        shape: (C, H, W) of the images.
        id_set: the ID side of OOD detection where it is not the test set.
        sanity, refine: whether to look for masked gradients, and to evaluate SGLD-refined inference.
        detector: the OOD score to attack, None for none.
        journal, weights: of :func:`ebmhybrid.evaluate.evaluate_robustness`, like the rest.
    """
    common: dict[str, Any] = {"generator": generator, "device": device, "progress": progress}
    ball: dict[str, Any] = {"norm": attacks.norm, "eps": attacks.main}
    effort: dict[str, Any] = {"steps": attacks.steps, "restarts": attacks.restarts}
    found: dict[str, Any] = {}
    if attacks.names:
        found["robustness"] = evaluate_robustness(
            model,
            test_set,
            attacks.names,
            attacks.norm,
            attacks.radii(shape),
            **effort,
            limit=limit,
            eot=attacks.eot,
            queries=attacks.queries,
            journal=journal,
            weights=weights,
            **common,
        )
    if attacks.names and sanity:
        few = min(limit or PANEL_IMAGES, PANEL_IMAGES)
        about: dict[str, Any] = {"limit": few, "eot": attacks.eot, "robustness": found["robustness"]}
        found["sanity"] = sanity_panel(model, test_set, **ball, **about, **common)
    if detector is not None:
        found["detector_robustness"] = evaluate_detector_robustness(
            model, test_set if id_set is None else id_set, ood_sets, detector, limit=limit, **ball, **effort, **common
        )
    if refine:
        found["refined"] = evaluate_refined(
            Refined(model), test_set, eot=attacks.refine_eot, limit=limit, **ball, **effort, **common
        )
    return found
