"""The attacks by name, each on one batch, behind the guards of :mod:`.attack_guards`.

`fgsm`, `pgd`, `apgd-ce`, `apgd-dlr`, `fab` and `square` come from torchattacks, `aa` from pyautoattack, `cw` is ours
(see :mod:`.carlini_wagner` for why). All are untargeted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ebmhybrid.errors import EbmhybridError

from .attack_guards import forked_rng, guarded, project, seed_of
from .attacked_model import AttackedModel, Differences, Directions, unsaturated
from .autoattack import autoattack
from .carlini_wagner import carlini_wagner

__all__ = [
    "ATTACKS",
    "NORMS",
    "QUERIES",
    "Attack",
    "AttackedModel",
    "attack_batch",
    "forked_rng",
    "guarded",
    "project",
    "seed_of",
    "step_size",
    "unsaturated",
]

NORMS = ("linf", "l2")
QUERIES = 5000  # of Square, as in AutoAttack

_OFFICIAL = {"linf": "Linf", "l2": "L2"}


@dataclass(frozen=True)
class Spec:
    """What one attack on one batch is told; `queries` are Square's, `notes` takes what an attack has to say."""

    norm: str
    eps: float
    steps: int
    restarts: int
    seed: int
    notes: list[str]


Run = Callable[[AttackedModel, Tensor, Tensor, Spec], Tensor]


@dataclass(frozen=True)
class Attack:
    """One attack: how it runs, and what it is defined for.

    Attributes:
        run: run(target, images, labels, spec) -> adversarial images, which need not be inside the ball yet.
        length: what says how long it runs: "steps", "queries", or a fixed number of steps.
        restarts: whether further random starts make sense.
        restarts_itself: whether `run` makes the restarts, having another rule for the first start.
        norms: where it is defined.
        classes: how many the model needs at least.
        gradients: whether it needs the gradient by the image.
        official: whether it is a composition that must not be changed: no averaging, no second try in float64.
    """

    run: Run
    length: str | int = "steps"
    restarts: bool = True
    restarts_itself: bool = False
    norms: tuple[str, ...] = NORMS
    classes: int = 2
    gradients: bool = True
    official: bool = False

    def steps(self, steps: int, queries: int) -> int:
        """How many steps or queries one start takes."""
        return self.length if isinstance(self.length, int) else {"steps": steps, "queries": queries}[self.length]


def step_size(eps: float, steps: int) -> float:
    """max(eps / 4, 2.5 eps / steps): 2/255 for 20 steps of 8/255, and enough to cross the ball with few steps.

    >>> step_size(8 / 255, 20) == 2 / 255
    True
    """
    return max(eps / 4, 2.5 * eps / steps)


def _call(attack: Any, images: Tensor, labels: Tensor) -> Tensor:
    attack.set_device(images.device)
    adversarial: Tensor = attack(images, labels)
    return adversarial


def _fgsm(target: AttackedModel, images: Tensor, labels: Tensor, spec: Spec) -> Tensor:
    """One step of length eps along the gradient's sign (Goodfellow et al. 2015), in L2 along the gradient itself."""
    import torchattacks

    model = Directions(target)
    if spec.norm == "linf":
        return _call(torchattacks.FGSM(model, eps=spec.eps), images, labels)
    single = torchattacks.PGDL2(model, eps=spec.eps, alpha=spec.eps, steps=1, random_start=False)
    return _call(single, images, labels)


def _pgd(target: AttackedModel, images: Tensor, labels: Tensor, spec: Spec) -> Tensor:
    """Projected gradient ascent on the cross-entropy from a random start in the ball (Madry et al. 2018)."""
    import torchattacks

    make = torchattacks.PGD if spec.norm == "linf" else torchattacks.PGDL2
    alpha = step_size(spec.eps, spec.steps)
    return _call(make(Directions(target), eps=spec.eps, alpha=alpha, steps=spec.steps), images, labels)


def _apgd(loss: str) -> Run:
    """PGD with momentum and a step size that adapts itself, on the cross-entropy or the DLR (Croce and Hein 2020)."""

    def run(target: AttackedModel, images: Tensor, labels: Tensor, spec: Spec) -> Tensor:
        import torchattacks

        norm = _OFFICIAL[spec.norm]
        model = Directions(target)
        attack = torchattacks.APGD(model, norm, spec.eps, steps=spec.steps, seed=spec.seed, loss=loss)
        return _call(attack, images, labels)

    return run


def _fab(target: AttackedModel, images: Tensor, labels: Tensor, spec: Spec) -> Tensor:
    """Steps to the linearised decision boundary, for the smallest perturbation (Croce and Hein 2020, FAB)."""
    import torchattacks

    norm, steps, restarts = _OFFICIAL[spec.norm], spec.steps, spec.restarts
    attack = torchattacks.FAB(Differences(target), norm, spec.eps, steps=steps, n_restarts=restarts, seed=spec.seed)
    return _call(attack, images.float(), labels)


def _square(target: AttackedModel, images: Tensor, labels: Tensor, spec: Spec) -> Tensor:
    """Random squares, kept where the margin falls; no gradients (Andriushchenko et al. 2020)."""
    import torchattacks

    height, width = images.shape[2:]
    if spec.norm == "l2" and (height < 5 or height != width):
        raise EbmhybridError(f"square in l2 needs square images of at least 5 x 5 pixels, got {height} x {width}")
    attack = torchattacks.Square(target, _OFFICIAL[spec.norm], spec.eps, n_queries=spec.steps, seed=spec.seed)
    return _call(attack, images, labels)


def _cw(target: AttackedModel, images: Tensor, labels: Tensor, spec: Spec) -> Tensor:
    return carlini_wagner(target, images, labels, spec.eps, spec.steps)


def _aa(target: AttackedModel, images: Tensor, labels: Tensor, spec: Spec) -> Tensor:
    return autoattack(target, images, labels, spec.norm, spec.eps, spec.seed, spec.notes)


ATTACKS: dict[str, Attack] = {
    "fgsm": Attack(_fgsm, length=1, restarts=False),
    "pgd": Attack(_pgd),
    "apgd-ce": Attack(_apgd("ce")),
    "apgd-dlr": Attack(_apgd("dlr"), classes=3),
    "fab": Attack(_fab, restarts_itself=True),
    "square": Attack(_square, length="queries", gradients=False),
    "cw": Attack(_cw, restarts=False, norms=("l2",)),
    "aa": Attack(_aa, length=100, restarts=False, official=True),
}


def attack_batch(
    target: AttackedModel,
    images: Tensor,
    labels: Tensor,
    spec: Mapping[str, Any],
    seed: int,
    notes: list[str] | None = None,
) -> tuple[Tensor, float]:
    """Adversarial images of one batch, detached, and the largest |delta|_p.

    Arguments:
        images: (N, C, H, W) in [0, 1], which the target is right on.
        spec: attack, norm, eps, steps (queries for Square), and restarts for FAB.
        notes: takes what the attack says about the model.

    Raises:
        RuntimeError: the attack's images are not numbers.
    """
    attack = ATTACKS[spec["attack"]]
    told = Spec(spec["norm"], spec["eps"], spec["steps"], spec.get("restarts", 1), seed, [] if notes is None else notes)
    with forked_rng(seed, images.device):
        adversarial = attack.run(target, images, labels, told)
    return project(adversarial, images, told.norm, told.eps)
