"""The whole evaluation in one call: one forward pass over each set serves every figure that logits or features give."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .asked import Attacks, check, detector_to_attack, names_of
from .attacks import QUERIES
from .cache import PredictionCache
from .corruption_kinds import SEVERITIES, check_severities, check_sides
from .corruptions import Sets, evaluate_corruptions
from .detectors import ALL, check_scores
from .features import ends_in_head, given_by
from .on_predictions import evaluate_predictions, noted
from .passes import Passes
from .predictions import (
    ImageSet,
    Model,
    Progress,
    batches,
    check_repeatable,
    evaluating,
    model_device,
)
from .results import SuiteResult, package_versions
from .under_attack import under_attack

__all__ = ["Progress", "SuiteResult", "check", "evaluate", "evaluate_predictions"]


def evaluate(
    model: Model,
    test_set: ImageSet,
    validation: ImageSet | None = None,
    ood_sets: Mapping[str, ImageSet] | None = None,
    scores: str | Iterable[str] = ("energy", "msp"),
    calibration: bool = True,
    attacks: str | Iterable[str] = (),
    norm: str = "linf",
    eps: float | Sequence[float] = 8 / 255,
    steps: int = 20,
    restarts: int = 1,
    generator: torch.Generator | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
    context: Mapping[str, Any] | None = None,
    device: torch.device | str | None = None,
    *,
    train_set: ImageSet | None = None,
    groups: Mapping[str, str] | None = None,
    ood_test: ImageSet | None = None,
    corruptions: bool = False,
    corruption_sets: Sets | None = None,
    severities: Sequence[int] = SEVERITIES,
    sweep: bool = True,
    eot: int = 1,
    queries: int = QUERIES,
    sanity: bool | None = None,
    attack_detector: bool = False,
    refine: bool = False,
    cache: PredictionCache | None = None,
    journal: Path | None = None,
) -> SuiteResult:
    """Accuracy, calibration, selective classification, OOD detection and, where asked for, corruptions and attacks.

    Arguments:
        model: images in [0, 1] -> logits (N, C).
        test_set: labelled test images of the distribution trained on.
        validation: labelled held-out images for temperature, vector scaling and isotonic regression; None leaves
            them out.
        ood_sets: name -> set, for OOD detection.
        scores: OOD scores by name, see `detectors.check_scores`, or "all" that the other arguments suffice for.
        calibration: whether to measure calibration.
        attacks: names of `attacks.ATTACKS`; none by default, they are slow.
        norm, steps, restarts, eot, queries, generator: see :func:`ebmhybrid.evaluate.evaluate_robustness`.
        eps, sweep: one radius, run at a quarter, half, once and twice its value, without `sweep` alone; or several, run
            as they are.
        limit: at most so many images of each set; every n says what was used.
        progress: progress(batches, text) -> batches, to show a bar.
        context: JSON-able facts for the report; `context["config"]` is the recipe, `context["model"]` a title.
        train_set: labelled images trained on, without augmentation, for the detectors that are fitted on them.
        groups: OOD set -> "near" or "far".
        ood_test: the ID side of OOD detection where a protocol has one of its own; None is the test set.
        corruptions, corruption_sets, severities: whether to corrupt the test images, from which files instead, and
            how far; see :func:`ebmhybrid.evaluate.evaluate_corruptions`.
        sanity: signs of masked gradients; None is where an attack runs.
        attack_detector: attack the first of the scores that can be, too.
        refine: attack SGLD-refined inference too, with 20 draws or more, see
            :func:`ebmhybrid.evaluate.evaluate_refined`: very slow.
        cache: keeps predictions for the next evaluation.
        journal: a file from which an interrupted attack goes on.

    Raises:
        ValueError: what the parts raise; unknown names and radii are refused before any forward pass.

    >>> data = [(torch.rand(30, 1, 1, 3), torch.arange(30) % 3)]
    >>> evaluate(lambda images: images.flatten(1), data).accuracy.rows[0]["n"]
    30
    """
    strangers = {str(name): data for name, data in (ood_sets or {}).items()}
    for name, data in {"test": test_set, **strangers}.items():
        check_repeatable(data, name)
    check_severities(severities)
    asked = names_of(scores)
    attack = Attacks(names_of(attacks), norm, eps, steps, restarts, eot, queries, sweep, refine or attack_detector)
    given = {"train": train_set, "validation": validation, "images": True}
    given |= dict.fromkeys(_offered(model, test_set, asked, device), True)
    names = check_scores(asked, [need for need, value in given.items() if value is not None])
    detector = detector_to_attack(names, bool(strangers)) if attack_detector else None
    passes = Passes(model, names, limit, device, progress, cache)
    test = passes.over(test_set)
    if corruptions:  # before the figures that a mistake would lose
        check_sides(test.image_shape)
    inside = ood_test if strangers else None
    result = passes.results(
        asked,
        test_set,
        test,
        validation=validation,
        train_set=train_set,
        ood_sets=strangers,
        id_side=inside,
        calibration=calibration,
        groups=groups,
    )
    common: dict[str, Any] = {"limit": limit, "device": device, "progress": progress}
    if corruptions:
        about: dict[str, Any] = {"temperature": _temperature(result), "sets": corruption_sets, "clean": test}
        result["corruptions"] = evaluate_corruptions(model, test_set, None, severities, **about, **common)
    result |= under_attack(
        model,
        test_set,
        strangers,
        attack,
        test.image_shape,
        id_set=inside,
        sanity=sanity is not False,
        detector=detector,
        refine=refine,
        generator=generator,
        journal=journal,
        weights=None if cache is None else cache.weights,
        **common,
    )
    settings = {"scores": list(result["test_scores"]), "calibration": calibration, "limit": limit}
    settings |= {"corruptions": corruptions, "severities": list(severities) if corruptions else []}
    return SuiteResult(
        settings=settings | attack.settings() | {"attack_detector": detector, "refine": refine},
        context=noted(context, names, result),
        versions=package_versions(),
        **result,
    )


def _offered(model: Model, data: ImageSet, asked: Sequence[str], device: torch.device | str | None) -> tuple[str, ...]:
    """What the model offers beside logits; where all scores are asked for, one image tells whether it really does."""
    offered = given_by(model)
    if offered and ALL in asked:
        with evaluating(model):
            for images, _ in batches(data, "test", 1, device or model_device(model)):
                return offered if ends_in_head(model, images) else ()
    return offered


def _temperature(result: Mapping[str, Any]) -> float | None:
    """The temperature that calibration found, if it looked for one."""
    rows = result["calibration"].rows if result["calibration"] else ()
    return next((row["temperature"] for row in rows if row["variant"] == "temperature"), None)
