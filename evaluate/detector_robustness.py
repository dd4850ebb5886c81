"""OOD detection under attack: AUROC and its companions when OOD images, ID images or both may be perturbed."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ebmhybrid.errors import EbmhybridError

from .ascent import Objective, ascend, value_and_gradient
from .attack_guards import drawn_seed
from .attacks import forked_rng, guarded, project, seed_of
from .detector_attacks import DIRECTIONS, Score, check_ball, score_objective, score_of
from .ood import compare
from .predictions import ImageSet, Model, Progress, batches, model_device, recut, set_name
from .robustness import check_attacks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ATTACKED = ("none", "ood", "id", "both")


@dataclass(frozen=True)
class DetectorRobustnessResult:
    """For each OOD set one row without an attack (eps 0), then for each eps one with OOD, ID and both attacked.

    Attributes:
        rows: those of :class:`ebmhybrid.evaluate.OODResult` (ood_set, score, id_set, n_id, n_ood and the five metrics,
            with several sets a macro mean) and attacked ("none", "ood", "id", "both"), norm, eps, steps, restarts,
            max_delta, zero_gradients (attacked images at which the score's gradient is exactly 0: an attack starts
            blind there) and seconds.
    """

    rows: tuple[dict[str, Any], ...]

    def as_dict(self) -> dict[str, Any]:
        """The rows, ready for JSON."""
        return {"rows": [dict(row) for row in self.rows]}

    def plot(self) -> Figure:
        """AUROC over eps, a line for each attacked side, the mean over the sets where there are several."""
        from .plots_checks import detector_curve

        return detector_curve(self.rows)


@dataclass
class _Attacked:
    """What attacking one set gave: the clean scores, and for each eps the scores after the attack."""

    clean: np.ndarray
    scores: dict[float, np.ndarray]
    max_delta: dict[float, float]
    seconds: dict[float, float]
    zero_gradients: int


def evaluate_detector_robustness(
    model: Model,
    id_set: ImageSet,
    ood_sets: Mapping[str, ImageSet],
    score: str | Score = "energy",
    norm: str = "linf",
    eps: float | Sequence[float] = 8 / 255,
    steps: int = 20,
    restarts: int = 1,
    generator: torch.Generator | None = None,
    limit: int | None = None,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
    batch_size: int = 128,
) -> DetectorRobustnessResult:
    """OOD detection when the OOD images, the ID images or both may be perturbed against the detector.

    Arguments:
        model, score, norm, steps, restarts, generator: see :func:`attack_detector`.
        id_set: images of the distribution trained on; its labels are not used.
        ood_sets: name -> set.
        eps: radius or radii in pixel units.
        limit: at most so many images of each set.
        batch_size: images attacked at once, whatever batches the sets have.

    Raises:
        ValueError: what :func:`attack_detector` raises, no OOD set, an empty set, images outside [0, 1].

    >>> bright, dark = [(torch.full((3, 1, 1, 1), value), torch.zeros(3).long()) for value in (0.6, 0.4)]
    >>> found = evaluate_detector_robustness(lambda x: x.flatten(1), [bright], {"dark": [dark]}, eps=[0.15])
    >>> [(row["attacked"], row["auroc"]) for row in found.rows]
    [('none', 1.0), ('ood', 1.0), ('id', 1.0), ('both', 0.0)]
    """
    name, function = score_of(score)
    specs = check_attacks(["pgd"], norm, eps, steps, restarts)
    if not ood_sets:
        raise EbmhybridError("no OOD set was given: ood_sets maps a name to a set of images")
    if batch_size < 1:
        raise EbmhybridError(f"batch_size must be at least 1, got {batch_size}")
    device = model_device(model) if device is None else device
    seed, id_name = drawn_seed(generator), set_name(id_set)
    sides = [(id_name, id_set, "lower"), *((str(key), data, "raise") for key, data in ood_sets.items())]
    found = []
    with guarded(model):
        for number, (title, data, direction) in enumerate(sides):
            source: Iterable[Any] = recut(batches(data, title, limit, device), batch_size)
            source = progress(source, f"{title}: attack on {name}") if progress else source
            sign = DIRECTIONS[direction]
            objective = score_objective(model, function, sign, title)
            found.append(_attack_set(objective, sign, source, specs, (seed, number), title))
    inside, outside = found[0], dict(zip(map(str, ood_sets), found[1:], strict=True))
    return DetectorRobustnessResult(tuple(_rows(name, id_name, inside, outside, specs)))


def _attack_set(
    objective: Objective,
    sign: float,
    source: Iterable[Any],
    specs: list[dict[str, Any]],
    seeds: tuple[int, int],
    name: str,
) -> _Attacked:
    """Scores (sign x objective) of a whole set, clean and after an attack at each eps."""
    radii = [spec["eps"] for spec in specs]
    clean: list[Tensor] = []
    after: dict[float, list[Tensor]] = {eps: [] for eps in radii}
    found = _Attacked(np.empty(0), {}, dict.fromkeys(radii, 0.0), dict.fromkeys(radii, 0.0), 0)
    for number, (images, _) in enumerate(source):
        images = images.clamp(0, 1)
        with forked_rng(seed_of(*seeds, number), images.device):
            values, gradient = value_and_gradient(objective, images)
        clean.append(values.cpu())
        found.zero_gradients += int((gradient.flatten(1) == 0).all(dim=1).sum())
        for spec in specs:
            norm, eps, started = spec["norm"], spec["eps"], time.perf_counter()
            check_ball(norm, eps, images)
            seed = seed_of(*seeds, number)
            with forked_rng(seed, images.device):
                starts = torch.Generator().manual_seed(seed)
                moved = ascend(objective, images, norm, eps, spec["steps"], spec["restarts"], starts)
                moved, size = project(moved, images, norm, eps)
                with torch.no_grad():
                    after[eps].append(objective(moved).cpu())
            found.max_delta[eps] = max(found.max_delta[eps], size)
            found.seconds[eps] += time.perf_counter() - started
    if not clean:
        raise EbmhybridError(f"set {name!r} is empty")
    found.clean = sign * torch.cat(clean).numpy()
    found.scores = {eps: sign * torch.cat(parts).numpy() for eps, parts in after.items()}
    return found


def _rows(
    score: str, id_name: str, inside: _Attacked, outside: Mapping[str, _Attacked], specs: list[dict[str, Any]]
) -> Iterable[dict[str, Any]]:
    """The clean rows, then those of each eps and attacked side."""
    for spec in [None, *specs]:
        eps = spec["eps"] if spec else 0.0
        for attacked in ATTACKED[1:] if spec else ATTACKED[:1]:
            on_id, on_ood = attacked in ("id", "both"), attacked in ("ood", "both")
            id_scores = inside.scores[eps] if on_id else inside.clean
            ood_scores = {key: {score: one.scores[eps] if on_ood else one.clean} for key, one in outside.items()}
            for row in compare(id_name, {score: id_scores}, ood_scores).rows:
                sets = [outside[row["ood_set"]]] if row["ood_set"] in outside else list(outside.values())
                hit = [inside] * on_id + sets * on_ood
                yield row | {
                    "attacked": attacked,
                    "norm": specs[0]["norm"],
                    "eps": eps,
                    "steps": spec["steps"] if spec else 0,
                    "restarts": spec["restarts"] if spec else 0,
                    "max_delta": max((one.max_delta[eps] for one in hit), default=0.0),
                    "zero_gradients": sum(one.zero_gradients for one in hit),
                    "seconds": sum(one.seconds[eps] for one in hit),
                }
