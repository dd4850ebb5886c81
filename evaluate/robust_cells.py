"""One attack on one batch: restarts, who is still right, and a second attack in float64 on those it says little of."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ebmhybrid.errors import EbmhybridError

from .attack_guards import forked_rng, seed_of
from .attacked_model import float_dtype, gaps
from .attacks import ATTACKS, AttackedModel, attack_batch
from .predictions import Model, check_logits
from .robust_journal import Cell

# between the two largest logits; float32 logits of this size are right to 2e-6, their softmax has no slope left
DOUBTFUL_GAP = 30.0


@dataclass(frozen=True)
class Batch:
    """The images of a batch that are right without an attack.

    Attributes:
        images, labels: (N, C, H, W) and (N,) on one device.
        vanished: whose cross-entropy has a gradient of exactly 0, bool (N,).
        doubtful: those, and those whose two largest logits are more than 30 apart: float32 may hide the slope that
            an attack needs.
        seeds: what the random draws of this batch start from.
    """

    images: Tensor
    labels: Tensor
    vanished: Tensor
    doubtful: Tensor
    seeds: tuple[int, ...]


def logits_of(target: AttackedModel, images: Tensor, seed: int, name: str, start: int) -> Tensor:
    """The model's checked logits; one that draws at random draws from the seed and leaves the global state alone."""
    with torch.no_grad(), forked_rng(seed, images.device):
        return check_logits(target.logits(images), images, name, start)


def batch_of(target: AttackedModel, images: Tensor, labels: Tensor, seeds: tuple[int, ...], gradients: bool) -> Batch:
    """What is known of right images before an attack.

    Raises:
        EbmhybridError: gradients are needed and the model has none.
    """
    wide = gaps(logits_of(target, images, seed_of(*seeds), "right images", 0)) > DOUBTFUL_GAP
    try:
        with forked_rng(seed_of(*seeds), images.device):
            vanished = target.vanished(images, labels)
    except EbmhybridError:
        if gradients:
            raise
        vanished = torch.ones_like(wide)
    return Batch(images, labels, vanished, wide | vanished, seeds)


class Float64:
    """The model in float64, made when it is first asked for."""

    def __init__(self, model: Model, device: torch.device | str | None, eot: int) -> None:
        self._model, self._device, self._eot = model, device, eot
        self._made: AttackedModel | None = None
        self._tried = False

    def get(self, images: Tensor) -> AttackedModel | None:
        """The copy, or None for a plain function, a model in float64 already, and one that cannot be copied or cast."""
        if not self._tried:
            self._tried = True
            double = _doubled(self._model, images)
            self._made = None if double is None else AttackedModel(double, self._device, self._eot)
        return self._made


def _doubled(model: Model, images: Tensor) -> Model | None:
    if float_dtype(model) in (None, torch.float64):
        return None
    try:
        double: Any = copy.deepcopy(model)
        double = double.double()
        with torch.no_grad(), forked_rng(0, images.device):
            double(images[:1].double())
    except (RuntimeError, TypeError, NotImplementedError):
        return None
    return double


def attack_cell(target: AttackedModel, double: Float64, batch: Batch, row: Mapping[str, Any]) -> Cell:
    """One attack at one radius on a batch.

    Survivors that are doubtful are attacked once more with the gradients of the model in float64; whether they fall is
    for the model itself to say. Attacks without gradients and official compositions have no second try.
    """
    started, notes = time.perf_counter(), list[str]()
    attack = ATTACKS[row["attack"]]
    alive, delta = _survivors(target, target, batch, torch.ones_like(batch.doubtful), row, notes)
    again = alive & batch.doubtful
    rechecked = fell = 0
    precise = double.get(batch.images) if attack.gradients and not attack.official and bool(again.any()) else None
    if precise is not None:
        still, size = _survivors(precise, target, batch, again, row, notes)
        rechecked, fell, delta = int(again.sum()), int((again & ~still).sum()), max(delta, size)
        alive = alive & (still | ~again)
    signs = "".join("1" if stays else "0" for stays in alive.tolist())
    return Cell(signs, delta, rechecked, fell, time.perf_counter() - started, tuple(notes))


def _survivors(
    attacker: AttackedModel,
    judge: AttackedModel,
    batch: Batch,
    among: Tensor,
    row: Mapping[str, Any],
    notes: list[str],
) -> tuple[Tensor, float]:
    """(those of `among` that the judge keeps right in every restart, bool (N,); largest |delta|_p found)."""
    alive, delta = among.clone(), 0.0
    for restart in range(1 if ATTACKS[row["attack"]].restarts_itself else row["restarts"]):
        left = alive.nonzero()[:, 0]
        if not len(left):
            break
        labels = batch.labels[left]
        adversarial, size = attack_batch(
            attacker, batch.images[left], labels, row, seed_of(*batch.seeds, restart), notes
        )
        logits = logits_of(judge, adversarial, seed_of(*batch.seeds, restart, 1), f"{row['attack']} images", 0)
        alive[left] = logits.argmax(dim=1) == labels
        delta = max(delta, size)
    return alive, delta
