"""Which samples a report shows, and what is known of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .generation_result import Shown
from .generation_rows import SAMPLES
from .generation_sets import Images
from .predictions import Predictions

PER_CLASS, MOST_CLASSES, CLOSEST = 10, 20, 16
Found = tuple[np.ndarray, np.ndarray]  # distance and place of the nearest training image of each sample


def known_of(
    drawn: Images,
    asked: np.ndarray | None,
    names: Sequence[str],
    judged: Predictions | None,
    found: Found | None,
    densities: Mapping[str, np.ndarray],
) -> dict[str, Sequence[Any]]:
    """Key of `Shown.rows` -> what is known of each sample; without names a class is its number."""
    known: dict[str, Sequence[Any]] = {"sample": range(len(drawn))}
    if asked is not None:
        known["class"] = [names[label] if names else str(label) for label in asked]
    if judged is not None:
        known["judged"] = [names[label] for label in judged.logits.argmax(axis=1)]
    if found is not None:
        known["distance"] = found[0].tolist()
    if densities:
        known["log_density"] = densities[SAMPLES].tolist()
    return known


def first(asked: np.ndarray | None, count: int) -> np.ndarray:
    """Places of the first samples of each class, in the order of the classes, or simply of the first samples.

    >>> first(np.array([1, 0, 1]), 3)
    array([1, 0, 2])
    """
    if asked is None:
        return np.arange(min(count, PER_CLASS * 10))
    return np.concatenate([np.flatnonzero(asked == label)[:PER_CLASS] for label in np.unique(asked)[:MOST_CLASSES]])


def shown(
    places: np.ndarray, drawn: Images, pool: Images | None, found: Found | None, known: Mapping[str, Sequence[Any]]
) -> Shown:
    """The samples at these places, with what is known of them."""
    rows = tuple({key: values[place] for key, values in known.items()} for place in places.tolist())
    near = None if pool is None or found is None else pool.images[found[1][places]].numpy()
    return Shown(drawn.images[places].numpy(), rows, near)


def closest(
    drawn: Images, pool: Images | None, found: Found | None, known: Mapping[str, Sequence[Any]]
) -> Shown | None:
    """The samples that come closest to a training image, nearest first."""
    if found is None:
        return None
    return shown(np.argsort(found[0], kind="stable")[:CLOSEST], drawn, pool, found, known)
