r"""Every OOD score by name: what it needs, and how it is fitted.

`scores` holds what logits or a model and an image suffice for. The others are fitted on the distribution trained on,
never on OOD images and never on the test set:

    temperature, hdge                               from logits, `logit_detectors`
    mahalanobis, relative_mahalanobis, knn, vim     from features, `feature_detectors`
    react, ash, scale                               from features and the last layer, `shaping`

A new one is a function that fits and returns a function of scores, and a line in `DETECTORS`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from ebmhybrid.errors import EbmhybridError, UsageError, nearest

from .feature_detectors import FeatureScore, knn, mahalanobis, relative_mahalanobis, vim
from .features import Head
from .logit_detectors import hdge, temperature
from .predictions import Predictions
from .scores import MODEL_SCORES, SCORES
from .shaping import ash, react, scale

Score = Callable[[Predictions], np.ndarray]
T = TypeVar("T")

ALL = "all"
# What a score can need besides the logits of the images it judges.
NEEDS = {
    "train": "the training set (train=...)",
    "validation": "validation images (validation=...)",
    "features": "features (predict(..., features=True)) of a model that ends in a linear layer",
    "head": "the weights of the model's last linear layer (head=head_of(model))",
    "images": "the model and the images, not only their logits",
}


@dataclass(frozen=True)
class Given:
    """What detectors are fitted on; None is what a caller does not have."""

    train: Predictions | None = None
    validation: Predictions | None = None
    head: Head | None = None

    def has(self) -> frozenset[str]:
        """The keys of `NEEDS` that are here. Without a training set, features are looked for when a set is scored."""
        found = {name for name in ("train", "validation", "head") if getattr(self, name) is not None}
        return frozenset(found | ({"features"} if self.train is None or self.train.features is not None else set()))


@dataclass(frozen=True)
class Detector:
    """A score that is fitted: which of `NEEDS` it takes, and fit(given) -> (predictions -> (N,))."""

    name: str
    needs: frozenset[str]
    fit: Callable[[Given], Score]


def _there(value: T | None) -> T:
    assert value is not None  # a need that `fit_detectors` has looked for
    return value


def _features(predictions: Predictions | None) -> np.ndarray:
    found = _there(predictions)
    if found.features is None:
        raise UsageError(f"set {found.name!r} has no features: call predict(..., features=True)")
    return found.features


def _of_logits(score: Callable[[np.ndarray], np.ndarray]) -> Score:
    return lambda predictions: score(predictions.logits)


def _of_features(score: FeatureScore) -> Score:
    return lambda predictions: score(_features(predictions))


def _temperature(given: Given) -> Score:
    validation = _there(given.validation)
    return _of_logits(temperature(validation.logits, validation.labels))


def _of_classes(fit: Callable[[np.ndarray, np.ndarray], FeatureScore], given: Given) -> Score:
    return _of_features(fit(_features(given.train), _there(given.train).labels))


def _vim(given: Given) -> Score:
    score = vim(_features(given.train), _there(given.head))
    return lambda predictions: score(_features(predictions), predictions.logits)


def _react(given: Given) -> Score:
    return _of_features(react(_features(given.train), _there(given.head)))


_TRAIN = frozenset({"train", "features"})
_HEAD = frozenset({"features", "head"})

DETECTORS: dict[str, Detector] = {
    detector.name: detector
    for detector in (
        Detector("temperature", frozenset({"validation"}), _temperature),
        Detector("hdge", frozenset({"train"}), lambda g: _of_logits(hdge(_there(g.train).logits))),
        Detector("mahalanobis", _TRAIN, lambda g: _of_classes(mahalanobis, g)),
        Detector("relative_mahalanobis", _TRAIN, lambda g: _of_classes(relative_mahalanobis, g)),
        Detector("knn", _TRAIN, lambda g: _of_features(knn(_features(g.train)))),
        Detector("vim", _TRAIN | _HEAD, _vim),
        Detector("react", _TRAIN | _HEAD, _react),
        Detector("ash", _HEAD, lambda g: _of_features(ash(_there(g.head)))),
        Detector("scale", _HEAD, lambda g: _of_features(scale(_there(g.head)))),
    )
}
_NEEDS_OF: dict[str, frozenset[str]] = {
    **dict.fromkeys(SCORES, frozenset()),
    **{name: detector.needs for name, detector in DETECTORS.items()},
    **dict.fromkeys(MODEL_SCORES, frozenset({"images"})),
}


def check_scores(names: str | Iterable[str], given: Collection[str] = tuple(NEEDS)) -> tuple[str, ...]:
    """The names without repetition, "all" being every score that what is given suffices for.

    "all" leaves out `joint_energy`, which is `max_logit` under another name.

    Arguments:
        names: of `SCORES`, `DETECTORS` and `MODEL_SCORES`.
        given: keys of `NEEDS` that the caller has.

    Raises:
        UsageError: no name, an unknown one with its nearest neighbour, or one that needs what is not given.

    >>> check_scores(["energy", "energy", "knn"])
    ('energy', 'knn')
    >>> check_scores("all", given=["validation"])
    ('energy', 'msp', 'max_logit', 'entropy', 'gen', 'temperature')
    """
    asked = (names,) if isinstance(names, str) else tuple(names)
    valid = {*_NEEDS_OF, ALL}
    if not asked:
        raise UsageError(f"no score was asked for; valid: {', '.join(sorted(valid))}")
    for name in asked:
        if name not in valid:
            raise UsageError(f"unknown score {name!r}: {nearest(name, valid)}")
    found: list[str] = []
    for name in asked:
        if name == ALL:
            found += [each for each, needs in _NEEDS_OF.items() if needs <= set(given) and each != "joint_energy"]
        else:
            _require(name, given)
            found.append(name)
    return tuple(dict.fromkeys(found))


def _require(name: str, given: Collection[str]) -> None:
    """A UsageError that says what else the score needs."""
    missing = [what for need, what in NEEDS.items() if need in _NEEDS_OF[name] and need not in given]
    if missing:
        raise UsageError(f"score {name!r} needs {', and '.join(missing)}")


def needs_of(names: str | Iterable[str]) -> frozenset[str]:
    """Keys of `NEEDS` that at least one of the scores takes.

    >>> sorted(needs_of(["energy", "knn"]))
    ['features', 'train']
    """
    return frozenset().union(*(_NEEDS_OF[name] for name in check_scores(names)))


def fit_detectors(
    names: str | Iterable[str],
    *,
    train: Predictions | None = None,
    validation: Predictions | None = None,
    head: Head | None = None,
) -> dict[str, Score]:
    """score -> (predictions of any set -> float64 (N,)), fitted; those of `MODEL_SCORES` need images and are left out.

    Arguments:
        names: as in :func:`check_scores`; "all" is what the rest suffices for, and leaves out what cannot be fitted.
        train: predictions on the training set, without augmentation, with features where a score needs them.
        validation: predictions on held-out images, for `temperature`.
        head: the model's last layer, :func:`ebmhybrid.evaluate.features.head_of`.

    Raises:
        UsageError: as :func:`check_scores`.
        EbmhybridError: a detector asked for by name that cannot be fitted on what was given.

    >>> test = Predictions(np.array([[2.0, 0.0]]), np.zeros(1, dtype=np.int64))
    >>> {name: score(test) for name, score in fit_detectors(["msp", "hdge"], train=test).items()}
    {'msp': array([2.]), 'hdge': array([0.])}
    """
    asked = (names,) if isinstance(names, str) else tuple(names)
    given = Given(train, validation, head)
    fitted: dict[str, Score] = {}
    for name in check_scores(asked, {*given.has(), "images"}):
        if name in SCORES:
            fitted[name] = _of_logits(SCORES[name])
        elif name in DETECTORS:
            try:
                fitted[name] = DETECTORS[name].fit(given)
            except EbmhybridError:
                if name in asked:
                    raise
    return fitted
