"""Whether what is asked of the attacks exists, before any work."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

import numpy as np

from ebmhybrid.errors import EbmhybridError, UsageError, nearest

from .attacks import ATTACKS, NORMS, QUERIES
from .autoattack import require_pyautoattack

SMALLEST = 1e-6  # of eps; a float32 of 1 has neighbours 6e-8 below and 1.2e-7 above


def check_attacks(
    attacks: Iterable[str],
    norm: str,
    eps: float | Sequence[float],
    steps: int,
    restarts: int,
    queries: int = QUERIES,
    eot: int = 1,
) -> list[dict[str, Any]]:
    """A row {attack, norm, eps, steps, restarts} for each attack and radius, once all arguments are known to be usable.

    Raises:
        UsageError: an unknown attack or norm, a radius out of range, an attack that does not exist in this norm or for
            random models, or whose package is not installed.
        EbmhybridError: a count below 1.

    >>> check_attacks("fgsm", "linf", 8 / 255, 20, 1)
    [{'attack': 'fgsm', 'norm': 'linf', 'eps': 0.03137254901960784, 'steps': 1, 'restarts': 1}]
    """
    names = (attacks,) if isinstance(attacks, str) else tuple(dict.fromkeys(attacks))
    radii = _radii(eps, norm)
    if not names or not radii:
        raise UsageError(f"need an attack and an eps, got attacks={list(names)}, eps={radii}")
    for name, number in (("steps", steps), ("restarts", restarts), ("queries", queries), ("eot", eot)):
        if not isinstance(number, Integral) or number < 1:
            raise EbmhybridError(f"{name} must be a whole number of at least 1, got {number!r}")
    for name in names:
        _check_name(name, norm, eot)
    return [
        {
            "attack": name,
            "norm": norm,
            "eps": radius,
            "steps": ATTACKS[name].steps(steps, queries),
            "restarts": restarts if ATTACKS[name].restarts else 1,
        }
        for name in names
        for radius in radii
    ]


def _radii(eps: float | Sequence[float], norm: str) -> list[float]:
    """The radii in ascending order, each once."""
    if norm not in NORMS:
        raise UsageError(f"unknown norm {norm!r}: {nearest(norm, NORMS)}")
    try:
        radii = np.atleast_1d(np.asarray(eps, dtype=np.float64)).tolist()
    except (TypeError, ValueError):
        raise UsageError(f"eps must be a number or numbers, got {eps!r}") from None
    for radius in radii:
        if not (radius > 0 and math.isfinite(radius)):
            raise UsageError(f"eps must be positive, got {radius}")
        if radius < SMALLEST:
            raise UsageError(f"eps must be at least {SMALLEST:g}, below which float32 images hardly move, got {radius}")
        if norm == "linf" and radius > 1:
            raise UsageError(f"eps must be at most 1 for linf, got {radius}: pixels lie in [0, 1], as in 8/255")
    return sorted(set(radii))


def _check_name(name: str, norm: str, eot: int) -> None:
    """Raise UsageError where an attack does not exist: at all, in this norm, for random models, installed."""
    if name not in ATTACKS:
        raise UsageError(f"unknown attack {name!r}: {nearest(name, ATTACKS)}")
    attack = ATTACKS[name]
    if norm not in attack.norms:
        raise UsageError(f"attack {name!r} exists for norm {' and '.join(attack.norms)} only, got {norm!r}")
    if attack.official and eot > 1:
        raise UsageError(f"attack {name!r} is for models that do not draw at random: eot must be 1, got {eot}")
    if name == "aa":
        require_pyautoattack()


def check_batch(rows: Iterable[dict[str, Any]], shape: Sequence[int], classes: int) -> None:
    """Raise EbmhybridError where images of this shape (C, H, W) or the number of classes rule an attack out.

    An L2 radius beyond the diagonal of [0, 1]^d is a unit mistaken.
    """
    diagonal = math.sqrt(math.prod(shape))
    for row in rows:
        if row["eps"] > diagonal:
            raise EbmhybridError(f"eps must be at most sqrt(C H W) = {diagonal:.4g} for l2, got {row['eps']}")
        needed = ATTACKS[row["attack"]].classes
        if classes < needed:
            raise EbmhybridError(f"attack {row['attack']!r} needs at least {needed} classes, the model has {classes}")
