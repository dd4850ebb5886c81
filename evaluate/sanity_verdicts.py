"""The verdicts of the sanity panel, each from what was seen of every image; :mod:`.sanity` collects that.

An image's evidence is whether it stayed right (True) under each attack, and what its logits and gradient look like. A
share counts as clearly above 1 % when the lower end of its 95 % Wilson interval is; a difference between two attacks on
the same images counts when it exceeds 2 % of them and a one-sided sign test over the images on which they differ gives
p < 0.01.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from .accuracy import wilson_interval

PASS, WARN, INFO, NOT_RUN = "pass", "warn", "info", "not run"
FLOAT32_GAP, FLOAT64_GAP = 17.0, 30.0
# the usual radii, at which networks trained without regard to attacks are known to fall to 0
PLAIN_FALLS = {"linf": 8 / 255, "l2": 0.5}
_NEGLIGIBLE, _NOTABLE, _RARE = 0.01, 0.02, 0.01
_DRIFT = 1e-4
BY_GRADIENT = ("pgd", "apgd-ce", "apgd-dlr", "fab")  # the strong ones among the attacks that look at gradients

Evidence = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Verdict:
    """A status, the value it comes from, and a word on it."""

    status: str
    value: float | None  # None where the check was not run
    detail: str = ""
    n: int | None = None  # images, where not those of the panel


def clearly_above(count: int, n: int, share: float = _NEGLIGIBLE) -> bool:
    """Whether the 95 % Wilson interval of count / n lies above the share.

    >>> clearly_above(1, 200), clearly_above(9, 200)
    (False, True)
    """
    return wilson_interval(count, n)[0] > share


def notable(gained: int, lost: int, n: int) -> bool:
    """Whether (gained - lost) / n is above 2 % and beyond chance, p < 0.01 by the sign test of gained against lost.

    >>> notable(6, 0, 100), notable(7, 0, 100), notable(20, 15, 100)
    (False, True, False)
    """
    from scipy.stats import binomtest

    if gained - lost <= _NOTABLE * n:
        return False
    return bool(binomtest(gained, gained + lost, alternative="greater").pvalue < _RARE)


def _share(mask: np.ndarray) -> Verdict:
    """A share of images that ought to be about 0."""
    return Verdict(WARN if clearly_above(int(mask.sum()), len(mask)) else PASS, float(mask.mean()))


def more_steps(seen: Evidence) -> Verdict:
    gained, lost = (seen["few"] & ~seen["many"]).sum(), (seen["many"] & ~seen["few"]).sum()
    n = len(seen["few"])
    return Verdict(WARN if notable(int(gained), int(lost), n) else PASS, float(gained - lost) / n)


def unbounded(seen: Evidence) -> Verdict:
    return _share(seen["half"] & seen["few"] & seen["many"] & seen["double"] & seen["wide"])


def black_box(seen: Evidence) -> Verdict:
    return _share(seen["few"] & seen["many"] & ~seen["square"])


def random_noise(seen: Evidence) -> Verdict:
    return _share(seen["few"] & seen["many"] & ~seen["noise"])


def zero_gradients(seen: Evidence) -> Verdict:
    share = float(seen["vanished"].mean())
    return Verdict(WARN if share > 0 else PASS, share)


def saturation(seen: Evidence) -> Verdict:
    verdict = _share(seen["gap"] > FLOAT32_GAP)
    return Verdict(verdict.status, verdict.value, f"{np.mean(seen['gap'] > FLOAT64_GAP):.1%} beyond {FLOAT64_GAP:g}")


def rises(standing: Sequence[np.ndarray]) -> Verdict:
    """The largest rise of robust accuracy from one radius to the next, the images that stand at each being given."""
    worst, found = 0.0, False
    for smaller, larger in pairwise(standing):
        risen, fallen, n = int((~smaller & larger).sum()), int((smaller & ~larger).sum()), len(smaller)
        worst, found = max(worst, (risen - fallen) / n), found or notable(risen, fallen, n)
    return Verdict(WARN if found else PASS, worst)


def falling(seen: Evidence) -> Verdict:
    return rises([seen["half"], seen["few"], seen["double"]])


def falling_survivors(survivors: Mapping[tuple[str, float], np.ndarray]) -> Verdict:
    """The worst of :func:`rises` over the attacks of a robustness result, whose survivors are (attack, eps) -> bool."""
    worst = Verdict(PASS, 0.0)
    for attack in dict.fromkeys(attack for attack, _ in survivors):
        radii = sorted(eps for name, eps in survivors if name == attack)
        found = rises([survivors[attack, eps] for eps in radii])
        if (found.status == WARN, found.value) > (worst.status == WARN, worst.value):
            worst = Verdict(found.status, found.value, f"of {attack}", len(survivors[attack, radii[0]]))
    return worst


def black_box_survivors(survivors: Mapping[tuple[str, float], np.ndarray]) -> Verdict:
    """:func:`black_box` over a robustness result: the largest share that Square alone finds at a radius."""
    worst = Verdict(PASS, 0.0)
    for eps in sorted(eps for attack, eps in survivors if attack == "square"):
        others = [stands for (attack, at), stands in survivors.items() if at == eps and attack in BY_GRADIENT]
        if others:
            found = _share(np.logical_and.reduce(others) & ~survivors["square", eps])
            if (found.status == WARN, found.value) > (worst.status == WARN, worst.value):
                worst = Verdict(found.status, found.value, f"at eps = {eps:.4g}", len(others[0]))
    return worst


def stochastic(seen: Evidence) -> Verdict:
    share = float((seen["drift"] > _DRIFT).mean())
    return Verdict(WARN if share > 0 else PASS, share)


def probabilities(seen: Evidence) -> Verdict:
    share = float(seen["sums_to_one"].mean())
    return Verdict(WARN if share == 1 else PASS, share)


def unusually_robust(seen: Evidence, norm: str, eps: float) -> Verdict:
    if eps < PLAIN_FALLS[norm] * (1 - 1e-6):
        return Verdict(NOT_RUN, None, f"says something from eps = {PLAIN_FALLS[norm]:.4g} on")
    standing = seen["few"] & seen["many"] & seen["noise"] & seen.get("square", True)
    return Verdict(INFO if standing.mean() > 0.1 else PASS, float(standing.mean()))


@dataclass(frozen=True)
class Check:
    """How a verdict is reached, what its value is, and what a warning means."""

    judge: Callable[[Evidence], Verdict]
    measures: str
    meaning: str


CHECKS: dict[str, Check] = {
    "more steps": Check(
        more_steps,
        "images that fall to PGD of many steps but not of 20, less the reverse",
        "20 steps have not converged: the figures of short attacks are too high",
    ),
    "unbounded eps": Check(
        unbounded,
        "images that stand although every pixel may take any value",
        "any image can be turned into any other, so the attack, not the model, is what fails",
    ),
    "black box": Check(
        black_box,
        "images that fall to Square but to no gradient attack",
        "an attack without gradients sees what gradients hide: masked or shattered gradients",
    ),
    "random noise": Check(
        random_noise,
        "images that fall to random noise of size eps but to no gradient attack",
        "gradients point the wrong way: masked or shattered gradients",
    ),
    "zero gradients": Check(
        zero_gradients,
        "images whose loss gradient is exactly 0",
        "no gradient attack can move them; they count as robust without being so",
    ),
    "saturated logits": Check(
        saturation,
        f"images whose two largest logits are more than {FLOAT32_GAP:g} apart",
        "their cross-entropy is flat in float32: attacks need scaled logits, as the ones here, or a margin loss",
    ),
    "eps curve": Check(
        falling,
        "largest rise of robust accuracy from one radius to the next larger one",
        "a larger ball contains the smaller, so the attack at the larger one fails to find what is there",
    ),
    "stochastic": Check(
        stochastic,
        "images whose logits differ between two forward passes",
        "the model draws anew at each call: average gradients over draws (EOT) and decide by many draws",
    ),
    "probabilities": Check(
        probabilities,
        "images whose outputs lie in [0, 1] and sum to 1",
        "the model seems to return probabilities instead of logits: losses of the logits saturate",
    ),
}
