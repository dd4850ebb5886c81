"""AutoAttack in its official composition, through pyautoattack, the authors' own code as a package.

APGD on the cross-entropy, targeted APGD on the DLR loss, targeted FAB (100 steps each) and Square with 5,000 queries,
one after the other on the images that are still right (Croce and Hein 2020). Only this is called AutoAttack.
torchattacks has a class of that name whose parts run 10 steps.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from ebmhybrid.errors import UsageError

from .attacked_model import AttackedModel

_TARGETS = 9  # classes attacked one by one in the official composition
_LOGGER = "auto-attack"


def require_pyautoattack() -> Any:
    """The module pyautoattack, or a UsageError that says how to install it."""
    try:
        return import_module("pyautoattack")
    except ModuleNotFoundError:
        raise UsageError("attack 'aa' needs pyautoattack: pip install 'ebmhybrid[autoattack]'") from None


class OwnLogits(nn.Module):
    """The model's own logits, unscaled, in the images' dtype: the official figure is that of the model as it is."""

    def __init__(self, target: AttackedModel) -> None:
        super().__init__()
        self.target = target
        self.training = False

    def forward(self, images: Tensor) -> Tensor:
        return self.target.logits(images).to(images.dtype)


def standard(model: nn.Module, classes: int, norm: str, eps: float, seed: int, device: torch.device) -> Any:
    """pyautoattack's AutoAttack, standard version, for a model of so many classes.

    The official nine targets need ten classes; with fewer, every other class is a target. The targeted DLR loss needs
    four: with three classes the untargeted one stands in, with two there is none.
    """
    pyautoattack = require_pyautoattack()
    parts = {2: ["apgd-ce", "fab-t", "square"], 3: ["apgd-ce", "apgd-dlr", "fab-t", "square"]}.get(classes)
    which: dict[str, Any] = {"version": "custom", "attacks": parts} if parts else {"version": "standard"}
    attack = pyautoattack.AutoAttack(
        model, norm={"linf": "Linf", "l2": "L2"}[norm], eps=eps, seed=seed, device=device, **which
    )
    attack.apgd.n_restarts = 1
    attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = min(_TARGETS, classes - 1)
    return attack


def autoattack(
    target: AttackedModel, images: Tensor, labels: Tensor, norm: str, eps: float, seed: int, notes: list[str]
) -> Tensor:
    """Adversarial images of one batch; pyautoattack's own warnings about the model are added to `notes`.

    It reseeds the global random state and stops any trace function: the caller forks the first, this restores the
    second.
    """
    with torch.no_grad():
        classes = target.logits(images[:1]).shape[1]
    attack = standard(OwnLogits(target), classes, norm, eps, seed, images.device)
    if classes < 4:
        notes.append(f"aa: targeted APGD is left out, its loss needs 4 classes and the model has {classes}")
    with _warnings_as_notes(notes):
        adversarial: Tensor = attack.run_standard_evaluation(images.float(), labels, batch_size=len(images))[0]
    return adversarial


@contextmanager
def _warnings_as_notes(notes: list[str]) -> Iterator[None]:
    """What pyautoattack logs as a warning goes into `notes`, once each, and the trace function is put back."""

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = f"aa: {record.getMessage()}"
            if text not in notes:
                notes.append(text)

    logger, keep, trace = logging.getLogger(_LOGGER), Keep(logging.WARNING), sys.gettrace()
    propagate = logger.propagate
    logger.addHandler(keep)
    logger.propagate = False
    try:
        yield
    finally:
        logger.propagate = propagate
        logger.removeHandler(keep)
        sys.settrace(trace)
