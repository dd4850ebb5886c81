"""What an evaluation is asked for, checked before any work: scores, attacks and radii."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ebmhybrid.errors import EbmhybridError, UsageError

from .attack_checks import check_attacks
from .attacks import QUERIES
from .detector_attacks import DIFFERENTIABLE_SCORES
from .detectors import check_scores

CURVE = (0.25, 0.5, 1.0, 2.0)  # of eps


@dataclass(frozen=True)
class Attacks:
    """How to attack: the arguments of :func:`ebmhybrid.evaluate.evaluate_robustness`, checked.

    One eps is run at a quarter, half, once and twice its value, without `sweep` alone; several are run as they are.
    `main` is the first. `others`:
    whether something else is attacked with the same settings, the refined model or the OOD score.
    """

    names: tuple[str, ...]
    norm: str
    eps: float | Sequence[float]
    steps: int
    restarts: int
    eot: int = 1
    queries: int = QUERIES
    sweep: bool = True
    others: bool = False

    def __post_init__(self) -> None:
        if self.names or self.others:
            names, effort = self.names or "pgd", (self.steps, self.restarts, self.queries, self.eot)
            check_attacks(names, self.norm, self.eps, *effort)

    @property
    def main(self) -> float:
        """The radius that the report's cards and the sanity panel are about."""
        return float(np.atleast_1d(np.asarray(self.eps, dtype=np.float64))[0])

    def radii(self, shape: Sequence[int]) -> list[float]:
        """The radii to run on images (C, H, W): none wider than the box of images, unless it was asked for."""
        if np.ndim(self.eps) or not self.sweep:
            return [float(eps) for eps in np.atleast_1d(np.asarray(self.eps))]
        widest = 1.0 if self.norm == "linf" else math.sqrt(math.prod(shape))
        return [self.main * factor for factor in CURVE if factor <= 1 or self.main * factor <= widest]

    @property
    def refine_eot(self) -> int:
        """Draws of a refined model, of which fewer than 20 prove little."""
        return max(20, self.eot)

    def settings(self) -> dict[str, Any]:
        """What was asked for, as results.json has it."""
        return {
            "attacks": list(self.names),
            "norm": self.norm,
            "eps": self.main,
            "steps": self.steps,
            "restarts": self.restarts,
            "queries": self.queries,
            "eot": self.eot,
        }


def names_of(names: str | Iterable[str]) -> tuple[str, ...]:
    """One name, or several."""
    return (names,) if isinstance(names, str) else tuple(names)


def check(
    scores: str | Iterable[str],
    attacks: str | Iterable[str],
    norm: str,
    eps: float | Sequence[float],
    steps: int = 20,
    restarts: int = 1,
    eot: int = 1,
    queries: int = QUERIES,
) -> tuple[str, ...]:
    """Refuse unknown names and radii before any work; returns the scores without repetition."""
    Attacks(names_of(attacks), norm, eps, steps, restarts, eot, queries)
    return check_scores(scores)


def detector_to_attack(names: Sequence[str], strangers: bool) -> str:
    """The score whose detector is attacked, known to be possible before any work."""
    if not strangers:
        raise EbmhybridError("attack_detector needs OOD images, and no OOD set was given")
    found = [name for name in names if name in DIFFERENTIABLE_SCORES]
    if not found:
        raise UsageError(
            f"attack_detector needs one of the scores {', '.join(DIFFERENTIABLE_SCORES)}, got {', '.join(names)}"
        )
    return found[0]
