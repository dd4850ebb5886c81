r"""Robust accuracy of SGLD-refined inference, under the attacks that such a defence has to face.

Refinement randomises the decision and hides its gradient, two causes of obfuscated gradients (Athalye et al. 2018). So
the plain net comes first, and the refined one is attacked in three ways, of which the worst counts:

    transfer    the adversarial images of the plain net
    eot         through all steps (second derivatives), the gradient averaged over draws of the noise
    bpda        the refinement taken for the identity in the backward pass, averaged over draws likewise

None of them is AutoAttack, and no figure here may be called by that name.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor

from ebmhybrid.errors import EbmhybridError

from .accuracy import wilson_interval
from .ascent import ascend, margin
from .attack_guards import drawn_seed
from .attacks import forked_rng, guarded, project, seed_of
from .predictions import ImageSet, Model, Progress, batches, check_labels, check_logits, model_device, recut, set_name
from .refine import Refined
from .robustness import check_attacks

REFINED_ATTACKS = ("transfer", "eot", "bpda")
Key = tuple[str, str, float]  # inference, attack, eps


@dataclass(frozen=True)
class RefinedResult:
    """Rows of the plain net first, then of the refined one.

    Attributes:
        rows: inference ("plain", "refined"), attack ("none"; "pgd" on the plain net; "transfer", "eot", "bpda" and
            "worst", right under all three, on the refined one), norm, eps, steps, restarts, eot (draws averaged in a
            step), set, n, clean_accuracy of that inference, robust_accuracy with its Wilson interval (robust_low,
            robust_high), max_delta and seconds.
        settings: of the refinement.
    """

    rows: tuple[dict[str, Any], ...]
    settings: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """The settings and rows, ready for JSON."""
        return {"settings": dict(self.settings), "rows": [dict(row) for row in self.rows]}


def evaluate_refined(
    refined: Refined,
    data: ImageSet,
    norm: str = "linf",
    eps: float | Sequence[float] = 8 / 255,
    steps: int = 20,
    restarts: int = 1,
    eot: int = 20,
    generator: torch.Generator | None = None,
    limit: int | None = None,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
    batch_size: int = 32,
) -> RefinedResult:
    """Accuracy of a model with and without SGLD refinement, each under attack.

    All attacks are :func:`.ascent.ascend` on the margin max_{c != y} f_c - f_y. An image counts as robust under an
    attack when it is right without and with it; the refined decision is taken with noise that no attack has seen.

    Arguments:
        refined: the refinement and, as `refined.model`, the plain net. Its own random state is not used.
        data: labelled images in [0, 1].
        norm, eps, steps, restarts: of every attack, as in :func:`ebmhybrid.evaluate.evaluate_robustness`.
        eot: draws whose gradients are averaged in a step through a stochastic refinement; below 20 little is proved.
        generator: where the seed of the noise and of the random starts comes from; None is a fixed seed.
        batch_size: attacked at once. An attack through all steps keeps the graph of batch_size x chains x refinement
            steps forward and backward passes.

    Raises:
        ValueError: what :func:`ebmhybrid.evaluate.evaluate_robustness` raises.

    >>> pixels = torch.tensor([[[[0.6, 0.4]]], [[[0.9, 0.1]]]])
    >>> net = Refined(lambda x: x.flatten(1), steps=1, step_size=0.1, noise_std=0.0, start_noise=0.0, chains=1)
    >>> rows = evaluate_refined(net, [(pixels, torch.tensor([0, 0]))], eps=0.2).rows
    >>> [(row["inference"], row["attack"], row["robust_accuracy"]) for row in rows[:4]]
    [('plain', 'none', 1.0), ('plain', 'pgd', 0.5), ('refined', 'none', 1.0), ('refined', 'transfer', 0.5)]
    """
    if not isinstance(refined, Refined):
        raise EbmhybridError(f"refined must be a Refined(model), got {type(refined).__name__}")
    specs = check_attacks(["pgd"], norm, eps, steps, restarts)
    if batch_size < 1 or eot < 1:
        raise EbmhybridError(f"batch_size and eot must be at least 1, got {batch_size} and {eot}")
    name, base = set_name(data), drawn_seed(generator)
    device = model_device(refined) if device is None else device
    draws = eot if refined.stochastic else 1
    n, cells = 0, defaultdict[Key, _Cell](_Cell)
    source: Iterable[Any] = recut(batches(data, name, limit, device), batch_size)
    with guarded(refined):
        for number, (images, labels) in enumerate(progress(source, f"{name}: refined") if progress else source):
            seed = seed_of(base, number)
            with forked_rng(seed, images.device):
                for key, cell in _batch_cells(refined, images.clamp(0, 1), labels, specs, draws, seed, name):
                    cells[key] = cells[key].plus(cell)
            n += len(images)
    if not n:
        raise EbmhybridError(f"set {name!r} is empty")
    return RefinedResult(tuple(_rows(cells, specs, draws, name, n)), dict(refined.settings))


@dataclass(frozen=True)
class _Cell:
    """How many images stayed right, the largest |delta|_p and the seconds of one attack."""

    robust: int = 0
    max_delta: float = 0.0
    seconds: float = 0.0

    def plus(self, other: _Cell) -> _Cell:
        size = max(self.max_delta, other.max_delta)
        return _Cell(self.robust + other.robust, size, self.seconds + other.seconds)


def _batch_cells(
    refined: Refined, images: Tensor, labels: Tensor, specs: list[dict[str, Any]], draws: int, seed: int, name: str
) -> Iterator[tuple[Key, _Cell]]:
    """Every attack on one batch, one after the other."""
    plain, targets = refined.model, labels.to(images.device)
    fresh = (seed_of(seed, number) for number in count())  # for each decision and attack noise of its own

    def right(model: Model, inputs: Tensor) -> Tensor:
        return _decisions(model, inputs, labels, name) == targets

    plain_right, refined_right = right(plain, images), right(refined.again(next(fresh)), images)
    yield ("plain", "none", 0.0), _Cell(int(plain_right.sum()))
    yield ("refined", "none", 0.0), _Cell(int(refined_right.sum()))
    for spec in specs:
        moved, size, seconds = _attack(plain, images, targets, spec, 1, seed)
        yield ("plain", "pgd", spec["eps"]), _Cell(int((plain_right & right(plain, moved)).sum()), size, seconds)
        worst, largest = refined_right, size
        for attack in REFINED_ATTACKS:
            if attack == "transfer":
                seconds = 0.0  # they are the plain net's
            else:
                target = refined.again(next(fresh), bpda=attack == "bpda")
                moved, size, seconds = _attack(target, images, targets, spec, draws, seed)
            still = refined_right & right(refined.again(next(fresh)), moved)
            worst, largest = worst & still, max(largest, size)
            yield ("refined", attack, spec["eps"]), _Cell(int(still.sum()), size, seconds)
        yield ("refined", "worst", spec["eps"]), _Cell(int(worst.sum()), largest)


def _decisions(model: Model, images: Tensor, labels: Tensor, name: str) -> Tensor:
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        logits = check_logits(model(images), images, name, 0)
    check_labels(labels.numpy(), logits.shape[1], name)
    return logits.argmax(dim=1)


def _attack(
    model: Model, images: Tensor, targets: Tensor, spec: dict[str, Any], draws: int, seed: int
) -> tuple[Tensor, float, float]:
    """(adversarial images, largest |delta|_p, seconds)."""
    started, starts = time.perf_counter(), torch.Generator().manual_seed(seed)
    norm, eps = spec["norm"], spec["eps"]

    def objective(inputs: Tensor) -> Tensor:
        with torch.autocast(inputs.device.type, enabled=False):
            return margin(model(inputs), targets)

    moved = ascend(objective, images, norm, eps, spec["steps"], spec["restarts"], starts, draws)
    return *project(moved, images, norm, eps), time.perf_counter() - started


def _rows(
    cells: dict[Key, _Cell], specs: list[dict[str, Any]], draws: int, name: str, n: int
) -> Iterator[dict[str, Any]]:
    """The plain net's rows, then the refined one's, attack by attack."""
    nothing = {"norm": specs[0]["norm"], "eps": 0.0, "steps": 0, "restarts": 0}
    order = [("plain", "none"), ("plain", "pgd"), ("refined", "none")]
    order += [("refined", attack) for attack in (*REFINED_ATTACKS, "worst")]
    for inference, attack in order:
        for spec in [nothing] if attack == "none" else specs:
            cell = cells[inference, attack, spec["eps"]]
            low, high = wilson_interval(cell.robust, n)
            yield {
                "inference": inference,
                "attack": attack,
                "norm": spec["norm"],
                "eps": spec["eps"],
                "steps": spec["steps"],
                "restarts": spec["restarts"],
                "eot": draws if attack in ("eot", "bpda", "worst") else 1,
                "set": name,
                "n": n,
                "clean_accuracy": cells[inference, "none", 0.0].robust / n,
                "robust_accuracy": cell.robust / n,
                "robust_low": low,
                "robust_high": high,
                "max_delta": cell.max_delta,
                "seconds": cell.seconds,
            }
