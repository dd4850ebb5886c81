"""Accuracy under attack: torchattacks inside the guards that its results need.

Threat model: a perturbation delta with |delta|_p <= eps (p = inf or 2, in units of [0, 1] pixels) and x + delta in
[0, 1], white-box, untargeted, on the cross-entropy of the logits, which are scaled where it would saturate
(`attacks.unsaturated`). An image counts as robust when it is right without an attack and stays right in every restart;
the others are not attacked. The attacks here give an upper bound of the robust accuracy, not the robust accuracy.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ebmhybrid.errors import EbmhybridError, UsageError, nearest

from .accuracy import wilson_interval
from .attacks import ATTACKS, NORMS, AttackedModel, attack_batch, guarded, seed_of
from .predictions import ImageSet, Model, Progress, batches, check_labels, check_logits, model_device, set_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class RobustnessResult:
    """One row without an attack (`attack` "none", eps 0), then one for each attack and eps.

    Attributes:
        rows: attack, norm, eps, steps, restarts, set, n, clean_accuracy, robust_accuracy with its Wilson interval
            (robust_low, robust_high), max_delta (largest |delta|_p), zero_gradients (images right without an attack
            whose loss gradient is exactly 0: an attack cannot move them, so they count as robust without being so)
            and seconds.
    """

    rows: tuple[dict[str, Any], ...]

    def as_dict(self) -> dict[str, Any]:
        """The rows, ready for JSON."""
        return {"rows": [dict(row) for row in self.rows]}

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
) -> RobustnessResult:
    """Accuracy of a model on attacked images.

    Arguments:
        model: images in [0, 1] -> logits, differentiable. Modes, requires_grad flags and gradients of its parameters
            and the global random state stay as they are. A callable that hides a module must be in eval mode itself.
        data: labelled images in [0, 1].
        attacks: "fgsm", "pgd"; the names of `attacks.ATTACKS`.
        norm: "linf" or "l2".
        eps: radius or radii in pixel units: 0 < eps <= 1 for linf, <= sqrt(C H W) for l2.
        steps: of PGD; its step size is max(eps / 4, 2.5 eps / steps).
        restarts: random starts of PGD; FGSM is deterministic and has one.
        generator: where the seed of the random starts comes from; None is a fixed seed.
        limit: at most so many images, as in :func:`ebmhybrid.evaluate.predict`; the rows' n tells.
        batch_size: images attacked at once. The set is cut into such batches whatever its own batches are, so that
            the random starts, and with them the figures, do not depend on the latter.

    Raises:
        ValueError: an unknown attack or norm, a radius out of range, images outside [0, 1], labels outside [0, C).

    >>> pixels = torch.tensor([[[[0.6, 0.4]]], [[[0.9, 0.1]]]])
    >>> rows = evaluate_robustness(lambda x: x.flatten(1), [(pixels, torch.tensor([0, 0]))], ["fgsm"], eps=0.2).rows
    >>> [(row["attack"], row["robust_accuracy"]) for row in rows]
    [('none', 1.0), ('fgsm', 0.5)]
    """
    rows = check_attacks(attacks, norm, eps, steps, restarts)
    if batch_size < 1:
        raise EbmhybridError(f"batch_size must be at least 1, got {batch_size}")
    name = set_name(data)
    device = model_device(model) if device is None else device
    base_seed = _draw_seed(generator)
    import_module("torchattacks")  # now, so that the first row's seconds do not hold it
    n = clean = zero_gradients = 0
    source: Iterable[Any] = _recut(batches(data, name, limit, device), batch_size)
    target = AttackedModel(model, device)
    with guarded(model):
        for number, (images, labels) in enumerate(progress(source, f"{name}: attack") if progress else source):
            images = images.clamp(0, 1)
            right = _right(target, images, labels, name, n)
            n, clean = n + len(images), clean + int(right.sum())
            images, labels = images[right], labels.to(images.device)[right]
            if not len(images):
                continue
            _check_radii(rows, images)
            zero_gradients += target.zero_gradients(images, labels)
            for row in rows:
                started = time.perf_counter()
                survivors, delta = _survivors(target, images, labels, row, [base_seed, number])
                row["robust"] += survivors
                row["max_delta"] = max(row["max_delta"], delta)
                row["seconds"] += time.perf_counter() - started
    if n == 0:
        raise EbmhybridError(f"set {name!r} is empty")
    nothing = {"attack": "none", "norm": norm, "eps": 0.0, "steps": 0, "restarts": 0}
    rows.insert(0, nothing | {"robust": clean, "max_delta": 0.0, "seconds": 0.0})
    return RobustnessResult(tuple(_finished(row, name, n, clean, zero_gradients) for row in rows))


def check_attacks(
    attacks: Iterable[str], norm: str, eps: float | Sequence[float], steps: int, restarts: int
) -> list[dict[str, Any]]:
    """A row to fill for each attack and radius, once all arguments are known to be usable."""
    names = (attacks,) if isinstance(attacks, str) else tuple(dict.fromkeys(attacks))
    try:
        radii = np.atleast_1d(np.asarray(eps, dtype=np.float64)).tolist()
    except (TypeError, ValueError):
        raise UsageError(f"eps must be a number or numbers, got {eps!r}") from None
    if norm not in NORMS:
        raise UsageError(f"unknown norm {norm!r}: {nearest(norm, NORMS)}")
    if not names or not radii:
        raise UsageError(f"need an attack and an eps, got attacks={list(names)}, eps={radii}")
    for attack in names:
        if attack not in ATTACKS:
            raise UsageError(f"unknown attack {attack!r}: {nearest(attack, ATTACKS)}")
    for radius in radii:
        if not (radius > 0 and math.isfinite(radius)):
            raise UsageError(f"eps must be positive, got {radius}")
        if norm == "linf" and radius > 1:
            raise UsageError(f"eps must be at most 1 for linf, got {radius}: pixels lie in [0, 1], as in 8/255")
    if steps < 1 or restarts < 1:
        raise EbmhybridError(f"steps and restarts must be at least 1, got {steps} and {restarts}")
    return [
        {
            "attack": attack,
            "norm": norm,
            "eps": radius,
            "steps": steps if ATTACKS[attack].iterative else 1,
            "restarts": restarts if ATTACKS[attack].iterative else 1,
            "robust": 0,
            "max_delta": 0.0,
            "seconds": 0.0,
        }
        for attack in names
        for radius in sorted(set(radii))
    ]


def _check_radii(rows: list[dict[str, Any]], images: Tensor) -> None:
    """An L2 radius beyond the diagonal of [0, 1]^d is a unit mistaken."""
    diagonal = math.sqrt(images[0].numel())
    for row in rows:
        if row["eps"] > diagonal:
            raise EbmhybridError(f"eps must be at most sqrt(C H W) = {diagonal:.4g} for l2, got {row['eps']}")


def _draw_seed(generator: torch.Generator | None) -> int:
    """A seed from the generator, which moves on; 0 without one."""
    if generator is None:
        return 0
    return int(torch.randint(2**62, (), generator=generator, device=generator.device).item())


def _recut(source: Iterable[tuple[Tensor, Tensor]], size: int) -> Iterable[tuple[Tensor, Tensor]]:
    """The same images and labels in batches of `size`, the last one smaller."""
    images: list[Tensor] = []
    labels: list[Tensor] = []
    waiting = 0
    for some_images, some_labels in source:
        images.append(some_images)
        labels.append(some_labels)
        waiting += len(some_images)
        while waiting >= size:
            all_images, all_labels = torch.cat(images), torch.cat(labels)
            yield all_images[:size], all_labels[:size]
            images, labels, waiting = [all_images[size:]], [all_labels[size:]], waiting - size
    if waiting:
        yield torch.cat(images), torch.cat(labels)


def _right(target: AttackedModel, images: Tensor, labels: Tensor, name: str, start: int) -> Tensor:
    """Which images are right without an attack, bool (N,) on the images' device."""
    with torch.no_grad():
        logits = check_logits(target(images), images, name, start)
    check_labels(labels.numpy(), logits.shape[1], name)
    return logits.argmax(dim=1) == labels.to(images.device)


def _survivors(
    target: AttackedModel, images: Tensor, labels: Tensor, row: dict[str, Any], seeds: list[int]
) -> tuple[int, float]:
    """(how many images stay right in every restart, largest |delta|_p found)."""
    delta = 0.0
    for restart in range(row["restarts"]):
        if not len(images):
            break
        adversarial, size = attack_batch(target, images, labels, row, seed_of(*seeds, restart))
        with torch.no_grad():
            logits = check_logits(target(adversarial), images, f"{row['attack']} images", 0)
        right = logits.argmax(dim=1) == labels
        images, labels, delta = images[right], labels[right], max(delta, size)
    return len(images), delta


def _finished(row: dict[str, Any], name: str, n: int, clean: int, zero_gradients: int) -> dict[str, Any]:
    """The row with counts turned into shares of all n images."""
    robust = row.pop("robust")
    low, high = wilson_interval(robust, n)
    shares = {"clean_accuracy": clean / n, "robust_accuracy": robust / n, "robust_low": low, "robust_high": high}
    seconds = {"max_delta": row.pop("max_delta"), "zero_gradients": zero_gradients, "seconds": row.pop("seconds")}
    return row | {"set": name, "n": n} | shares | seconds
