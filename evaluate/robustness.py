"""Accuracy under attack: other people's attacks inside the guards that their results need.

Threat model: a perturbation delta with |delta|_p <= eps (p = inf or 2, in units of [0, 1] pixels) and x + delta in
[0, 1], white-box (but for Square), untargeted. An image counts as robust when it is right without an attack and stays
right in every restart; the others are not attacked. Every figure is an upper bound of the robust accuracy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ebmhybrid.errors import EbmhybridError

from .attack_checks import check_attacks, check_batch
from .attack_guards import drawn_seed
from .attacks import ATTACKS, QUERIES, AttackedModel, guarded, seed_of
from .predictions import ImageSet, Model, Progress, batches, check_labels, model_device, recut, set_name
from .robust_cells import Float64, attack_cell, batch_of, logits_of
from .robust_journal import Journal, digest_of, weights_digest
from .robust_rows import Tally

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["RobustnessResult", "check_attacks", "evaluate_robustness"]


@dataclass(frozen=True)
class RobustnessResult:
    """One row without an attack (`attack` "none", eps 0), one for each attack and eps, and for several attacks "worst".

    Attributes:
        rows: attack, norm, eps, steps (queries for Square), restarts, eot, set, n, clean_accuracy, robust_accuracy with
            its Wilson interval (robust_low, robust_high), max_delta (largest |delta|_p), zero_gradients (images right
            without an attack whose loss gradient is exactly 0: an attack cannot move them, so they count as robust
            without being so), doubtful (survivors that float32 may protect: a gradient of exactly 0, or logits more
            than 30 apart), rechecked (survivors attacked again in float64), recheck_fell (how many of those fell, and
            count as fallen) and seconds. "worst" counts images that stay right under every attack at that eps.
        survivors: (attack, eps) -> bool (n,) in the order of the set; ("none", 0.0) is right without an attack.
        notes: what an attack said about the model, such as AutoAttack's own checks.
    """

    rows: tuple[dict[str, Any], ...]
    survivors: Mapping[tuple[str, float], np.ndarray] = field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The rows and notes, ready for JSON."""
        return {"rows": [dict(row) for row in self.rows], "notes": list(self.notes)}

    def plot(self) -> Figure:
        """Robust accuracy over eps, a line for each attack, with Wilson intervals."""
        from .plots import robustness_curve

        return robustness_curve(self.rows)


def evaluate_robustness(
    model: Model,
    data: ImageSet,
    attacks: Iterable[str] = ("pgd",),
    norm: str = "linf",
    eps: float | Sequence[float] = 8 / 255,
    steps: int = 20,
    restarts: int = 1,
    generator: torch.Generator | None = None,
    limit: int | None = None,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
    batch_size: int = 128,
    *,
    queries: int = QUERIES,
    eot: int = 1,
    journal: str | Path | None = None,
    weights: str | None = None,
) -> RobustnessResult:
    """Accuracy of a model on attacked images.

    Arguments:
        model: images in [0, 1] -> logits, differentiable (but for "square"). Modes, requires_grad flags and gradients
            of its parameters and the global random state stay as they are. A callable that hides a module must be in
            eval mode itself.
        data: labelled images in [0, 1].
        attacks: names of `attacks.ATTACKS`: "fgsm", "pgd", "apgd-ce", "apgd-dlr", "fab", "square", "cw" (L2), "aa".
        norm: "linf" or "l2".
        eps: radius or radii in pixel units: 0 < eps <= 1 for linf, <= sqrt(C H W) for l2.
        steps: of pgd, apgd and fab, and of each of cw's six searches; pgd's step size is max(eps / 4, 2.5 eps / steps).
        restarts: random starts of pgd, apgd, fab and square; the others have one.
        generator: where the seed of the random starts comes from; None is a fixed seed.
        limit: at most so many images, as in :func:`ebmhybrid.evaluate.predict`; the rows' n tells.
        batch_size: images attacked at once. The set is cut into such batches whatever its own batches are, so that
            the random starts, and with them the figures, do not depend on the latter.
        queries: of square.
        eot: for models that draw at random: attacks and predictions see the mean logits of so many calls, the
            predictions with draws of their own (expectation over transformation, Athalye et al. 2018).
        journal: a file that finished attacks are written to. Called again with the same arguments and the same file,
            the evaluation goes on where it was killed, and its figures are those of an unbroken one.
        weights: identifies the model in the journal; None is a hash of a Module's parameters and buffers.

    Raises:
        ValueError: an unknown attack or norm, a radius out of range, an attack that does not exist in the norm or for
            the number of classes, images outside [0, 1], labels outside [0, C), a journal of another evaluation.

    >>> pixels = torch.tensor([[[[0.6, 0.4]]], [[[0.9, 0.1]]]])
    >>> rows = evaluate_robustness(lambda x: x.flatten(1), [(pixels, torch.tensor([0, 0]))], ["fgsm"], eps=0.2).rows
    >>> [(row["attack"], row["robust_accuracy"]) for row in rows]
    [('none', 1.0), ('fgsm', 0.5)]
    """
    rows = check_attacks(attacks, norm, eps, steps, restarts, queries, eot)
    if batch_size < 1:
        raise EbmhybridError(f"batch_size must be at least 1, got {batch_size}")
    name = set_name(data)
    device = model_device(model) if device is None else device
    base_seed = drawn_seed(generator)
    import_module("torchattacks")  # now, so that the first row's seconds do not hold it
    about = {"set": name, "limit": limit, "batch_size": batch_size, "eot": eot, "seed": base_seed, "attacks": rows}
    log = Journal(None, {}) if journal is None else Journal(Path(journal), about | _identity(model, weights))
    source: Iterable[Any] = recut(batches(data, name, limit, device), batch_size)
    tally, double, target = Tally(rows), Float64(model, device, eot), AttackedModel(model, device, eot)
    gradients = any(ATTACKS[row["attack"]].gradients for row in rows)
    with guarded(model):
        for number, (images, labels) in enumerate(progress(source, f"{name}: attack") if progress else source):
            images, seeds = images.clamp(0, 1), (base_seed, number)
            logits = logits_of(target, images, seed_of(*seeds), name, tally.n)
            check_labels(labels.numpy(), logits.shape[1], name)
            labels = labels.to(images.device)
            right = logits.argmax(dim=1) == labels
            tally.see(right)
            if not right.any():
                continue
            check_batch(rows, images.shape[1:], logits.shape[1])
            batch = batch_of(target, images[right], labels[right], seeds, gradients)
            tally.doubt(batch)
            digest = digest_of(images, labels, right) if journal is not None else ""
            for row in rows:
                key = number, row["attack"], row["eps"], digest
                cell = log.get(*key)
                if cell is None:
                    cell = attack_cell(target, double, batch, row)
                    log.add(*key, cell)
                tally.add(row, cell)
    if tally.n == 0:
        raise EbmhybridError(f"set {name!r} is empty")
    return RobustnessResult(tally.finished(name, norm, eot), tally.survivors(), tally.notes())


def _identity(model: Model, weights: str | None) -> dict[str, Any]:
    """What else two runs of one journal must share."""
    from importlib.metadata import version

    packages = {package: version(package) for package in ("torch", "torchattacks")}
    return {"weights": weights or weights_digest(model), "packages": packages}
