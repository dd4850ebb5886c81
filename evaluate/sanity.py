"""Signs that an attack failed rather than that a model is robust: a panel to read beside every robust accuracy.

Gradient masking makes gradient attacks fail without making a model robust (Athalye et al. 2018). The checks are those
of Carlini et al. 2019 ("On evaluating adversarial robustness") and of the warnings that AutoAttack prints (Croce & Hein
2020), run on a subset of the images that are right without an attack:

    more steps        PGD of many steps finds far more than PGD of 20
    unbounded eps     images stand although the ball is the whole box
    black box         Square, which uses no gradient, finds what gradient attacks do not
    random noise      noise of size eps finds what gradient attacks do not
    zero gradients    the loss gradient is exactly 0
    saturated logits  the cross-entropy is flat in float32 (gap of the two largest logits above 17)
    eps curve         robust accuracy rises with eps
    stochastic        two forward passes differ
    probabilities     the outputs are a distribution, not logits
    unusually robust  a network trained without regard to attacks is about 0 % at 8/255; information, never a warning

Each gives pass, warn, info or not run. A pass is no proof; a warning is a reason to distrust the figure. Thresholds and
their statistics are in `sanity_verdicts`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ebmhybrid.errors import EbmhybridError

from .attack_guards import drawn_seed
from .attacks import forked_rng, guarded, seed_of
from .predictions import ImageSet, Model, Progress, batches, model_device, recut, set_name
from .robustness import RobustnessResult, check_attacks
from .sanity_evidence import FEW, evidence_of
from .sanity_verdicts import (
    CHECKS,
    INFO,
    NOT_RUN,
    PASS,
    WARN,
    Verdict,
    black_box_survivors,
    falling_survivors,
    unusually_robust,
)

# Checks that a whole robustness result can answer as well, on more images and longer attacks.
_OF_SURVIVORS = {"eps curve": falling_survivors, "black box": black_box_survivors}


@dataclass(frozen=True)
class SanityResult:
    """One row for each check.

    Attributes:
        rows: check, status ("pass", "warn", "info", "not run"), value (a share of n, None where the check was not run),
            n (images right without an attack), measures (what the value is), meaning (what a warning says), detail.
        settings: set, images (n before the wrong ones are left out), norm, eps, steps, queries, eot.
    """

    rows: tuple[dict[str, Any], ...]
    settings: dict[str, Any]

    @property
    def warnings(self) -> tuple[str, ...]:
        """Names of the checks that warn."""
        return tuple(row["check"] for row in self.rows if row["status"] == WARN)

    def as_dict(self) -> dict[str, Any]:
        """The settings and rows, ready for JSON."""
        return {"settings": dict(self.settings), "rows": [dict(row) for row in self.rows]}

    def text(self) -> str:
        """A line for each check, and under a warning what it means, for a terminal."""
        told, tally = self.settings, Counter(row["status"] for row in self.rows)
        counts = ", ".join(f"{tally[status]} {status}" for status in (PASS, WARN, INFO, NOT_RUN) if tally[status])
        lines = [f"Sanity panel: {counts} ({told['set']}, n = {told['images']}, {told['norm']} {told['eps']:.4g})"]
        for row in self.rows:
            value = "      -" if row["value"] is None else f"{row['value']:7.1%}"
            detail = f" ({row['detail']})" if row["detail"] else ""
            lines.append(f"  {row['status']:<8}{row['check']:<18}{value}  {row['measures']}{detail}")
            if row["status"] in (WARN, INFO):
                lines.append(f"{'':37}{row['meaning']}")
        return "\n".join(lines)


def sanity_panel(
    model: Model,
    data: ImageSet,
    norm: str = "linf",
    eps: float = 8 / 255,
    *,
    limit: int | None = 200,
    steps: int = 200,
    queries: int = 1000,
    eot: int = 1,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
    robustness: RobustnessResult | None = None,
    batch_size: int = 100,
) -> SanityResult:
    """Every check of the panel on a few images; a warning is a reason to distrust a robust accuracy.

    Arguments:
        model: images in [0, 1] -> logits, differentiable. Modes, flags, gradients and the global random state stay as
            they are.
        data: labelled images in [0, 1].
        norm, eps: the ball of the robust accuracy that the panel stands beside.
        limit: at most so many images, None for all.
        steps: of the long PGD, 1,000 where time allows.
        queries: of Square, 5,000 in AutoAttack.
        eot: for models that draw at random: attacks and decisions see the mean logits of so many calls.
        generator: where the seed of the random starts comes from; None is a fixed seed.
        robustness: a result of the same model; "eps curve" and "black box" then look at its survivors as well.
        batch_size: images attacked at once.

    Raises:
        ValueError: what :func:`ebmhybrid.evaluate.evaluate_robustness` raises; steps below 20.

    >>> pixels = torch.tensor([[[[0.6, 0.4]]], [[[0.9, 0.1]]]])
    >>> found = sanity_panel(lambda x: 9 * x.flatten(1), [(pixels, torch.tensor([0, 0]))], steps=20, queries=10)
    >>> found.warnings
    ()
    """
    check_attacks(["pgd"], norm, eps, steps, 1)
    if steps < FEW or min(queries, eot, batch_size) < 1:
        given = f"steps={steps}, queries={queries}, eot={eot}, batch_size={batch_size}"
        raise EbmhybridError(f"need steps >= {FEW} and queries, eot and batch_size >= 1, got {given}")
    name, base = set_name(data), drawn_seed(generator)
    device = model_device(model) if device is None else device
    budget = {"norm": norm, "eps": float(eps), "steps": steps, "queries": queries, "eot": eot}
    gathered: dict[str, list[np.ndarray]] = defaultdict(list)
    source: Iterable[Any] = recut(batches(data, name, limit, device), batch_size)
    images_seen = 0
    with guarded(model):
        for number, (images, labels) in enumerate(progress(source, f"{name}: sanity") if progress else source):
            with forked_rng(seed_of(base, number), images.device):
                evidence = evidence_of(model, images.clamp(0, 1), labels, budget, seed_of(base, number), name)
            images_seen += len(images)
            for key, values in evidence.items():
                gathered[key].append(values)
    if not images_seen:
        raise EbmhybridError(f"set {name!r} is empty")
    seen = {key: np.concatenate(parts) for key, parts in gathered.items()}
    rows = _verdicts(seen, budget, robustness)
    return SanityResult(tuple(rows), {"set": name, "images": images_seen} | budget)


def _verdicts(
    seen: Mapping[str, np.ndarray], budget: dict[str, Any], robustness: RobustnessResult | None
) -> Iterable[dict[str, Any]]:
    """The rows of the panel in the order of `CHECKS`, the information last."""
    n = len(seen.get("few", ()))
    for check, told in CHECKS.items():
        if not n:
            verdict = Verdict(NOT_RUN, None, "no image is right without an attack")
        elif check == "black box" and "square" not in seen:
            verdict = Verdict(NOT_RUN, None, "Square in l2 needs square images of at least 5 x 5 pixels")
        else:
            verdict = told.judge(seen)
        if robustness is not None and check in _OF_SURVIVORS:
            given = _OF_SURVIVORS[check](robustness.survivors)
            verdict = given if given.status == WARN else verdict
        yield _row(check, verdict, verdict.n or n, told.measures, told.meaning)
    verdict = unusually_robust(seen, budget["norm"], budget["eps"]) if n else Verdict(NOT_RUN, None)
    yield _row(
        "unusually robust",
        verdict,
        n,
        "images that stand against every attack of the panel",
        "a network trained without regard to attacks is about 0 % here: unless this one was, look for masking",
    )


def _row(check: str, verdict: Verdict, n: int, measures: str, meaning: str) -> dict[str, Any]:
    told = {"check": check, "status": verdict.status, "value": verdict.value, "n": n}
    return told | {"measures": measures, "meaning": meaning, "detail": verdict.detail}
