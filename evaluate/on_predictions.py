"""The part of an evaluation that logits and features already at hand suffice for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .accuracy import accuracy_of
from .asked import names_of
from .calibration import calibration_of
from .detectors import check_scores, fit_detectors
from .features import Head
from .ood import compare
from .predictions import Predictions
from .results import SuiteResult, described, package_versions
from .selective import selective_of

Values = Mapping[str, np.ndarray]


def evaluate_predictions(
    test: Predictions,
    *,
    validation: Predictions | None = None,
    train: Predictions | None = None,
    ood: Mapping[str, Predictions] | None = None,
    head: Head | None = None,
    scores: str | Iterable[str] = ("energy", "msp"),
    calibration: bool = True,
    groups: Mapping[str, str] | None = None,
    context: Mapping[str, Any] | None = None,
) -> SuiteResult:
    """:func:`evaluate` of logits, and features, already at hand: all but what needs images.

    Arguments:
        test, validation, train: labelled predictions, see :func:`ebmhybrid.evaluate.from_logits.predictions_of`.
        ood: name -> predictions; their labels are not used.
        head: the last layer's weights, for the detectors that need them.

    >>> logits = np.array([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    >>> evaluate_predictions(Predictions(logits, np.array([0, 1, 1]))).accuracy.rows[0]["accuracy"]
    0.6666666666666666
    """
    asked, ood = names_of(scores), dict(ood or {})
    every = [test, *ood.values()]
    given = {"train": train, "validation": validation, "head": head}
    has = {need for need, value in given.items() if value is not None}
    has |= {"features"} if all(one.features is not None for one in every) else set()
    names = check_scores(asked, has)
    head = head if "features" in has else None
    result = of_predictions(test, validation, train, ood, head, asked, calibration=calibration, groups=groups)
    return SuiteResult(
        settings={"scores": list(result["test_scores"]), "calibration": calibration, "limit": None, "attacks": []},
        context=noted(context, names, result),
        versions=package_versions(),
        **result,
    )


def of_predictions(
    test: Predictions,
    validation: Predictions | None,
    train: Predictions | None,
    strangers: Mapping[str, Predictions],
    head: Head | None,
    scores: Sequence[str],
    *,
    id_side: Predictions | None = None,
    test_images: Values | None = None,
    id_images: Values | None = None,
    ood_images: Mapping[str, Values] | None = None,
    calibration: bool = True,
    groups: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The parts of a `SuiteResult` that predictions suffice for.

    `id_side` stands for the test set in OOD detection alone; `..._images` are the scores that took images.
    """
    fitted = fit_detectors(scores, train=train, validation=validation, head=head)

    def score(predictions: Predictions, more: Values | None) -> dict[str, np.ndarray]:
        return {name: function(predictions) for name, function in fitted.items()} | dict(more or {})

    sets = [described("test", test)]
    sets += [described(role, one) for role, one in (("validation", validation), ("train", train)) if one is not None]
    sets += [described("ood id", id_side)] if id_side is not None else []
    sets += [described("ood", stranger) for stranger in strangers.values()]
    test_scores = score(test, test_images)
    inside = test_scores if id_side is None else score(id_side, id_images)
    outside = {name: score(stranger, (ood_images or {}).get(name)) for name, stranger in strangers.items()}
    return {
        "accuracy": accuracy_of(test),
        "calibration": calibration_of(test, validation) if calibration else None,
        "selective": selective_of(test),
        "ood": compare((test if id_side is None else id_side).name, inside, outside, groups) if outside else None,
        "sets": tuple(sets),
        "test_scores": test_scores,
    }


def noted(context: Mapping[str, Any] | None, names: Sequence[str], result: Mapping[str, Any]) -> dict[str, Any]:
    """The context, with a note on the scores that "all" asked for and that could not be fitted."""
    found = dict(context or {})
    left_out = [name for name in names if name not in result["test_scores"]]
    if left_out:
        note = f"{', '.join(left_out)} left out of all scores: cannot be fitted here: ask for it by name to see why"
        found["notes"] = [*found.get("notes", ()), note]
    return found
