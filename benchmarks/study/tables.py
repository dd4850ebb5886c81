"""The tables of the study: which runs each is made of, in how many seeds, and the jobs that this makes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.study.objectives import (
    ELSEWHERE,
    FAMILIES,
    OBJECTIVES,
    WITHOUT_NORM,
    changes,
    hdge,
    live,
    nce,
    with_references,
)
from benchmarks.study.run import Job

TUNING_SEEDS = (100,)  # of no table


@dataclass(frozen=True)
class Table:
    """Runs that are compared: label -> changes, each with the seeds 0 ... seeds - 1.

    Arguments:
        whole: so many of the seeds with attacks and corruptions.
        control: the line that the others are compared with.
        timed: its rows are times of steps, a seed a round of all lines, and no runs.
        sweep: what the labels are values of, for a figure.
    """

    setting: str
    title: str
    lines: dict[str, str]
    seeds: int
    note: str = ""
    control: str | None = "cross-entropy"
    whole: int = 0
    timed: bool = False
    sweep: str = ""

    def jobs(self) -> Iterator[Job]:
        """Seed by seed, so that an unfinished table has few seeds of all lines."""
        for seed in range(0 if self.timed else self.seeds):
            for text in self.lines.values():
                yield Job(self.setting, text, seed, seed < self.whole)


def objectives(setting: str, *labels: str) -> dict[str, str]:
    """The objectives of those labels, all if none is given, with the values chosen for the setting."""
    return {label: OBJECTIVES[label].chosen(setting) for label in labels or OBJECTIVES}


COMPARED = (
    "cross-entropy",
    "HDGE released, bank",
    "live columns",
    "live columns, references",
    "outlier exposure",
    "energy margins",
    "background class",
    "marginal NCE",
    "NCE + uniform",
)
HEADLINES = (*COMPARED, "LogitNorm", "HDGE paper, bank", "live columns, normalised")
_PLAIN = tuple(label for label in OBJECTIVES if "JEM" not in label)  # whose steps draw samples: ten passes more
BUDGET = """The same epochs, batches, augmentation and schedule for all, but for SupCon, of whose epochs the last two
are its linear head's, and for the lines without norm layers, with Adam and averaged weights. Values were chosen on
validation images of this data."""
_HEADLINES = """The same epochs, batches, augmentation and schedule for all. Values were chosen on validation images of
this data for outlier exposure and columns with references, and of Fashion-MNIST for the other objectives."""
_HELD_OUT = """The classes 7 to 9 ({classes}) are the strangers. The values were chosen where these were trained with
the others."""


def _weights() -> dict[str, str]:
    weights = (0.03, 0.1, 0.3, 1.0, 3.0)
    return (
        {"cross-entropy": ""}
        | {f"live columns, weight {weight:g}": changes(live(weight)) for weight in weights}
        | {f"HDGE released, weight {weight:g}": changes(hdge(weight)) for weight in weights}
        | {f"outlier exposure, weight {weight:g}": _exposed(weight) for weight in weights}
        | {f"marginal NCE, weight {weight:g}": with_references(nce(weight, learn_offset=True)) for weight in weights}
    )


def _exposed(weight: float = 0.5, **options: Any) -> str:
    return with_references({"ce": {}, "outlier_exposure": {"weight": weight}}, **options)


def _exposures() -> dict[str, str]:
    """Outlier exposure at the weights that the rule of tuning passed over, beside NCE."""
    return {
        **objectives("cifar10", "cross-entropy", "marginal NCE", "outlier exposure"),
        **{f"outlier exposure, weight {weight:g}": _exposed(weight) for weight in (0.5, 1.0)},
    }


def _smaller() -> dict[str, str]:
    """The least values that were tried at first on Fashion-MNIST, and those beyond them."""
    lines = {"cross-entropy": ""}
    for label, one in OBJECTIVES.items():
        for beyond in one.further.get("fashion", ()):
            for values in (one.values(ELSEWHERE), beyond):
                lines[f"{label}, weight {values['weight']:g}"] = one.text(**values)
    return lines


def _temperatures() -> dict[str, str]:
    temperatures = (0.05, 0.1, 0.2, 0.5, 1.0)
    return {"cross-entropy": ""} | {
        f"live columns, normalised, T {value:g}": changes(live(1.0, "l2", value)) for value in temperatures
    }


def _batches() -> dict[str, str]:
    sizes = (16, 32, 64, 128, 256)
    found: dict[str, str] = {}
    for size in sizes:
        more = {} if size == 64 else {"training.batch_size": size}
        found |= {
            f"cross-entropy, batch {size}": changes({"ce": {}}, **more),
            f"live columns, batch {size}": changes(live(), **more),
        }
    return found


def _seen(setting: str, **options: Any) -> str:
    """NCE with the weights chosen for the setting and other reference images."""
    objective = OBJECTIVES["marginal NCE"]
    return objective.text(**objective.values(setting), **options)


def _families(setting: str) -> dict[str, str]:
    """NCE and outlier exposure by the families they see."""
    sets: dict[str, tuple[str, ...]] = {f"{family} alone": (family,) for family in (*FAMILIES, "warps")}
    sets |= {"smooth, patches, inversions": FAMILIES[:3], "all five": FAMILIES}
    sets |= {"all five and warps": (*FAMILIES, "warps"), "all five and mixtures": (*FAMILIES, "mixtures")}
    weight = OBJECTIVES["outlier exposure"].values(setting)["weight"]
    both = ("smooth, patches, inversions", "all five", "all five and mixtures")
    return (
        {"cross-entropy": ""}
        | {f"NCE, {name}": _seen(setting, families=families) for name, families in sets.items()}
        | {f"outlier exposure, {name}": _exposed(weight, families=sets[name]) for name in both}
    )


def _banks() -> dict[str, str]:
    """Sizes of the bank, with and without batch norm, beside live negatives."""
    bank = {
        "released, K = 64": hdge(bank_size=64),
        "released, K = 65536": hdge(),
        "paper, K = 64": hdge(form="paper", bank_size=64),
        "paper, K = 65536": hdge(form="paper"),
    }
    lines = {**bank, "paper, live": live(1.0, "l2", 0.1)}
    return (
        {"cross-entropy": "", "no norm, cross-entropy": changes({"ce": {}}, **WITHOUT_NORM)}
        | {f"batch norm, {name}": changes(objective) for name, objective in lines.items()}
        | {f"no norm, {name}": changes(objective, **WITHOUT_NORM) for name, objective in lines.items()}
    )


def _fractions(setting: str) -> dict[str, str]:
    fractions, weight = (0.125, 0.25, 0.5, 1.0), OBJECTIVES["outlier exposure"].values(setting)["weight"]
    return (
        {"cross-entropy": ""}
        | {f"NCE, {value:g} references an image": _seen(setting, fraction=value) for value in fractions}
        | {f"outlier exposure, {value:g} references an image": _exposed(weight, fraction=value) for value in fractions}
    )


def _climbs(setting: str) -> dict[str, str]:
    """References that climb the model's own log density first, and the columns beside NCE."""
    values = OBJECTIVES["marginal NCE"].values(setting)
    own = nce(values["weight"], values["times"], learn_offset=True)["nce"]
    columns = live(0.1, reference_weight=20.0)
    once = {"ascent_steps": 1, "ascent_step_size": 0.03}
    light = {"weight": 0.1, "times": 1.0}
    return {
        "cross-entropy": "",
        "NCE": _seen(setting),
        "NCE, references climb once": _seen(setting, **once),
        "NCE, references climb four times": _seen(setting, ascent_steps=4, ascent_step_size=0.01),
        "NCE and columns with references": with_references({"nce": own, **columns}),
        "NCE, weight 0.1": OBJECTIVES["marginal NCE"].text(**light),
        "NCE, weight 0.1, references climb once": OBJECTIVES["marginal NCE"].text(**light, **once),
    }


TABLES = {
    "digits": Table("digits", "Objectives on digits", objectives("digits"), 5, BUDGET, whole=1),
    "fashion": Table(
        "fashion",
        "Objectives on Fashion-MNIST",
        objectives("fashion", *_PLAIN),
        5,
        BUDGET,
        whole=3,
    ),
    "fashion_weight": Table(
        "fashion",
        "Smaller weights on Fashion-MNIST",
        _smaller(),
        5,
        "The ends of the ranges that tuning had at first, and one value beyond each.",
    ),
    "cifar10": Table(
        "cifar10",
        "Objectives on CIFAR-10",
        objectives("cifar10", *HEADLINES),
        3,
        _HEADLINES,
        whole=3,
    ),
    "exposure": Table(
        "cifar10",
        "Stronger outlier exposure on CIFAR-10",
        _exposures(),
        3,
        "The weights that tuning passed over because they cost more than half a point of validation accuracy.",
    ),
    "cost": Table(
        "cost_fashion",
        "Time of a training step",
        objectives("cost_fashion", *_PLAIN),
        3,
        "All objectives in turn in one process, a round a line of the raw rows; augmentation and references count.",
        timed=True,
    ),
    "bank": Table("digits", "Sizes of the bank", _banks(), 5),
    "climbing": Table("digits", "Harder references", _climbs("digits"), 5),
    "families": Table("digits", "Families of references", _families("digits"), 3),
    "fraction": Table("digits", "References an image", _fractions("digits"), 3, sweep="references an image"),
    "weight": Table("digits", "Weights", _weights(), 3, sweep="weight"),
    "temperature": Table("digits", "Temperatures of normalised columns", _temperatures(), 3, sweep="temperature"),
    "batch": Table("digits", "Batch sizes", _batches(), 3, control=None, sweep="batch size"),
    "fashion_held_out": Table(
        "fashion_held_out",
        "Held-out classes of Fashion-MNIST",
        objectives("fashion_held_out", "cross-entropy", "outlier exposure", "marginal NCE"),
        3,
        _HELD_OUT.format(classes="sneaker, bag, boot"),
    ),
    "cifar10_held_out": Table(
        "cifar10_held_out",
        "Held-out classes of CIFAR-10",
        objectives("cifar10_held_out", "cross-entropy", "outlier exposure", "marginal NCE"),
        3,
        _HELD_OUT.format(classes="horse, ship, truck"),
    ),
}


def tuning_jobs(data: str) -> Iterator[Job]:
    """Every candidate of every objective that has more than one; on CIFAR-10 of those that see references alone."""
    for seed in TUNING_SEEDS:
        for objective in OBJECTIVES.values():
            tuned = len(objective.candidates) > 1 and (objective.references or data != "cifar10")
            for values in objective.tried(data):
                if tuned or objective.label == "cross-entropy":
                    yield Job(f"tuning_{data}", objective.text(**values), seed)
