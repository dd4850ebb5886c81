"""The objectives that the study compares, as changes of a recipe, and the values that each was tuned over.

Changes are one text without spaces within an override, so that a row names its run: `text.split()` gives the overrides.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

CHOSEN = Path(__file__).with_name("chosen.json")
ELSEWHERE = "elsewhere"  # key of the values for data on which an objective was not tuned
FAMILIES = ("smooth", "patches", "inversions", "collages", "spectral")
FRACTION = 0.5


def changes(objective: dict[str, Any], **more: Any) -> str:
    """The canonical text of a recipe's changes; nothing is left of cross-entropy alone.

    >>> changes({"ce": {"label_smoothing": 0.1}}, seed=1)
    'objective={"ce":{"label_smoothing":0.1}} seed=1'
    """
    parts = {} if objective == {"ce": {}} else {"objective": objective}
    return " ".join(f"{key}={json.dumps(value, separators=(',', ':'))}" for key, value in {**parts, **more}.items())


def with_references(objective: dict[str, Any], families: tuple[str, ...] = FAMILIES, **options: Any) -> str:
    """The same with reference images."""
    return changes(objective, reference={"families": list(families), "fraction": FRACTION} | options)


def hdge(weight: float = 1.0, **options: Any) -> dict[str, Any]:
    """The hybrid objective with a weight of its contrast; further options are HDGELoss's."""
    return {"hdge": {"weight": weight, **options}}


def live(weight: float = 1.0, normalize: str = "none", temperature: float = 1.0, **options: Any) -> dict[str, Any]:
    """The paper's equation with live negatives."""
    kind = {"form": "paper", "negatives": "batch", "normalize": normalize, "temperature": temperature}
    return hdge(weight, **kind, **options)


def nce(weight: float = 1.0, reference_weight: float = 1.0, **options: Any) -> dict[str, Any]:
    """Cross-entropy and logistic noise-contrastive estimation of the marginal."""
    return {"ce": {}, "nce": {"weight": weight, "reference_weight": reference_weight, **options}}


def _sampled(objective: dict[str, Any], **jem: Any) -> str:
    """With a JEM term: without batch statistics, by Adam and with averaged weights, as that needs."""
    chains = {"chains": "class", "steps": 10, "buffer_size": 5000}
    return changes({**objective, "jem": chains | jem}, **WITHOUT_NORM)


WITHOUT_NORM = {
    "model.norm": "none",
    "model.activation": "silu",
    "optimizer": {"name": "adam", "lr": 1e-3, "weight_decay": 0.0},
    "training.ema": 0.99,
}


@dataclass(frozen=True)
class Objective:
    """An objective with the values that were tried for it.

    Arguments:
        label: what tables call it.
        about: what it is, in a line.
        text: changes(**values).
        candidates: the values that were tried on all data; the first are those without tuning.
        references: whether it sees reference images.
        further: data -> values tried there too, beyond the end of the candidates that was chosen on it.
    """

    label: str
    about: str
    text: Callable[..., str]
    candidates: tuple[dict[str, Any], ...] = field(default=({},))
    references: bool = False
    further: dict[str, tuple[dict[str, Any], ...]] = field(default_factory=dict)

    def tried(self, data: str) -> tuple[dict[str, Any], ...]:
        """All values that are tried on that data."""
        return self.candidates + self.further.get(data, ())

    def values(self, setting: str) -> dict[str, Any]:
        """Those chosen by tuning on a setting's data, else among the candidates on Fashion-MNIST, else the first."""
        choices, data = _choices(), setting.partition("_")[0]
        return (choices.get(ELSEWHERE, {}) | choices.get(data, {})).get(self.label, self.candidates[0])

    def tuned(self, data: str) -> bool:
        """Whether its values were chosen on that data."""
        return self.label in _choices().get(data, {})

    def chosen(self, setting: str) -> str:
        """Its changes in a setting."""
        return self.text(**self.values(setting))


@cache
def _choices() -> dict[str, dict[str, dict[str, Any]]]:
    """Data -> objective -> values, as `tune` wrote them; nothing before it has."""
    return json.loads(CHOSEN.read_text(encoding="utf-8")) if CHOSEN.is_file() else {}


def each(**values: list[Any]) -> tuple[dict[str, Any], ...]:
    """One candidate for each value of the one argument.

    >>> each(weight=[1, 2])
    ({'weight': 1}, {'weight': 2})
    """
    ((name, options),) = values.items()
    return tuple({name: value} for value in options)


_MARGINS = tuple(
    {"inside": inside, "outside": outside, "weight": weight}
    for inside, outside, weight in [
        (-23.0, -5.0, 0.1),
        (-23.0, -5.0, 0.01),
        (-10.0, -3.0, 0.1),
        (-10.0, -3.0, 0.01),
        (-6.0, 0.0, 0.1),
    ]
)


def _margin(inside: float, outside: float, weight: float) -> str:
    return with_references({"ce": {}, "energy_margin": {"inside": inside, "outside": outside, "weight": weight}})


def _supcon(temperature: float) -> str:
    return changes({"supcon": {"temperature": temperature, "head_epochs": 2}})


_BOTH = {"form": "paper", "negatives": "bank+batch", "normalize": "none", "temperature": 1.0}


def _nce(weight: float, times: float, families: tuple[str, ...] = FAMILIES, **options: Any) -> str:
    return with_references(nce(weight, times, learn_offset=True), families, **options)


def _uniform(weight: float, times: float, uniform: float) -> str:
    """NCE fixes the logsumexp of references, and the uniform target their differences: neither moves the other's."""
    return with_references(nce(weight, times, learn_offset=True) | {"outlier_exposure": {"weight": uniform}})


_UNIFORM = tuple(
    {"weight": weight, "times": times, "uniform": uniform}
    for weight, times, uniform in [
        (0.5, 1.0, 0.25),
        (0.5, 1.0, 0.5),
        (1.0, 0.5, 0.25),
        (1.0, 0.5, 0.5),
        (0.25, 1.0, 0.25),
    ]
)
WEIGHTS = [1.0, 0.1, 0.3, 3.0]
OBJECTIVES = {
    one.label: one
    for one in (
        Objective("cross-entropy", "-log p(y given x), the control", lambda: ""),
        Objective(
            "label smoothing",
            "cross-entropy to labels mixed with the uniform distribution",
            lambda share: changes({"ce": {"label_smoothing": share}}),
            each(share=[0.1, 0.02, 0.05, 0.2]),
        ),
        Objective(
            "LogitNorm",
            "cross-entropy of unit logits over a temperature (Wei et al. 2022)",
            lambda temperature: changes({"logit_norm": {"temperature": temperature}}),
            each(temperature=[0.04, 0.1, 0.3, 1.0]),
        ),
        Objective(
            "SupCon",
            "contrast of features by class, then a linear head (Khosla et al. 2020)",
            _supcon,
            each(temperature=[0.1, 0.05, 0.2, 0.5]),
        ),
        Objective(
            "HDGE released, bank",
            "cross-entropy and -log q(x given y) as in the authors' code: unit logits, T = 0.1, 65536 banked negatives",
            lambda weight: changes(hdge(weight)),
            each(weight=WEIGHTS),
        ),
        Objective(
            "HDGE released, live",
            "the same score with the batch itself as negatives, with gradient",
            lambda weight: changes(hdge(weight, negatives="batch")),
            each(weight=WEIGHTS),
        ),
        Objective(
            "HDGE paper, bank",
            "the score of the paper's equation in place of the code's, with the bank",
            lambda weight: changes(hdge(weight, form="paper")),
            each(weight=WEIGHTS),
        ),
        Objective(
            "live columns",
            "cross-entropy and the paper's equation: raw logits, the batch itself as negatives, with gradient",
            lambda weight: changes(live(weight)),
            each(weight=WEIGHTS),
        ),
        Objective(
            "live columns, normalised",
            "the same of unit logits over a temperature",
            lambda temperature: changes(live(1.0, "l2", temperature)),
            each(temperature=[0.1, 0.2, 0.5, 1.0]),
        ),
        Objective(
            "bank and live columns",
            "as live columns, but the normaliser from bank and batch, its gradient from the batch",
            lambda weight: changes(hdge(weight, **_BOTH)),
            each(weight=WEIGHTS),
        ),
        Objective("columns alone", "live columns without cross-entropy", lambda: changes(live(1.0, ce_weight=0.0))),
        Objective(
            "cross-entropy, no norm",
            "without norm layers; SiLU, Adam and averaged weights, as JEM's lines",
            lambda: changes({"ce": {}}, **WITHOUT_NORM),
        ),
        Objective(
            "JEM",
            "cross-entropy and log p(x) by Langevin samples of the model (Grathwohl et al. 2020)",
            lambda: _sampled({"ce": {}}),
        ),
        Objective("HDGE + JEM", "live columns and JEM", lambda: _sampled(live())),
        Objective(
            "live columns, references",
            "live columns with references among the negatives, each counted `times` times",
            lambda weight, times: with_references(live(weight, reference_weight=times)),
            tuple(
                {"weight": w, "times": t} for w, t in [(1.0, 1.0), (0.3, 1.0), (1.0, 20.0), (0.3, 20.0), (0.1, 20.0)]
            ),
            references=True,
            further={"fashion": ({"weight": 0.03, "times": 20.0},)},
        ),
        Objective(
            "outlier exposure",
            "cross-entropy, and references towards the uniform distribution (Hendrycks et al. 2019)",
            lambda weight: with_references({"ce": {}, "outlier_exposure": {"weight": weight}}),
            each(weight=[0.5, 0.25, 1.0, 2.0, 4.0]),
            references=True,
            further={"fashion": each(weight=[0.1])},
        ),
        Objective(
            "energy margins",
            "cross-entropy; hinges keep the energy of images below a margin, of references above one (Liu et al. 2020)",
            _margin,
            _MARGINS,
            references=True,
            further={"fashion": ({"inside": -10.0, "outside": -3.0, "weight": 0.003},)},
        ),
        Objective(
            "background class",
            "cross-entropy with a class more, that of the references, of a constant logit",
            lambda times: with_references(nce(1.0, times)),
            each(times=[0.5, 0.1, 0.2, 1.0, 2.0]),
            references=True,
        ),
        Objective(
            "marginal NCE",
            "cross-entropy; logsumexp tells images from references, learned offset (Gutmann & Hyvärinen 2010)",
            _nce,
            tuple({"weight": w, "times": t} for w, t in [(0.5, 1.0), (0.25, 1.0), (1.0, 1.0), (2.0, 1.0), (1.0, 3.0)]),
            references=True,
            further={"fashion": ({"weight": 0.1, "times": 1.0},)},
        ),
        Objective("NCE + uniform", "marginal NCE and outlier exposure", _uniform, _UNIFORM, references=True),
    )
}
