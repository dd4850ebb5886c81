"""Which samples a report shows, and what is known of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .generation_result import Shown
from .generation_rows import SAMPLES
from .generation_sets import Images, named
from .predictions import Predictions

PER_CLASS, MOST_CLASSES, CLOSEST = 10, 20, 16
Found = tuple[np.ndarray, np.ndarray]


def _known(
    drawn: _Images,
    asked: np.ndarray | None,
    judged: Predictions | None,
    found: tuple[np.ndarray, np.ndarray] | None,
    densities: Mapping[str, np.ndarray] | None,
    classes: Sequence[str],
) -> dict[str, Sequence[Any]]:
    """key -> what is known of each sample, for the tables behind the pictures."""
    known: dict[str, Sequence[Any]] = {"sample": range(len(drawn))}
    count = len(classes) if judged is None else judged.logits.shape[1]
    if asked is not None:
        if count:
            check_labels(asked, count, SAMPLES)
        names = _named(classes, max(count, int(asked.max()) + 1))
        known["class"] = [names[label] for label in asked]
    if judged is not None:
        names = _named(classes, count)
        known["judged"] = [names[label] for label in judged.logits.argmax(axis=1)]
    if found is not None:
        known["distance"] = found[0].tolist()
    if densities is not None:
        known["log_density"] = densities[SAMPLES].tolist()
    return known


def _first(asked: np.ndarray | None, count: int) -> np.ndarray:
    """The first samples of each class, in the order of the classes, or simply the first ones."""
    if asked is None:
        return np.arange(min(count, PER_CLASS * 10))
    kept = np.unique(asked)[:MOST_ROWS]
    return np.concatenate([np.flatnonzero(asked == label)[:PER_CLASS] for label in kept])


def _shown(
    places: np.ndarray,
    drawn: _Images,
    pool: _Images | None,
    found: tuple[np.ndarray, np.ndarray] | None,
    known: Mapping[str, Sequence[Any]],
) -> Shown:
    rows = tuple({key: values[i] for key, values in known.items()} for i in places.tolist())
    near = pool.images[found[1][places]].numpy() if pool is not None and found is not None else None
    return Shown(drawn.images[places].numpy(), rows, near)
