"""Which figures of an evaluation are compared with other evaluations', and which direction is better."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .formats import in_255, interval, percent, variant_name
from .tables import representation_name

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Metric:
    """A figure to compare: key in the wide rows, heading, which direction is better, how it is shown.

    Attributes:
        scale, digits: what it is multiplied by, and how many digits it is shown with.
        scaled: it was taken at the temperature, in whichever row it stands.
        kind: key of the figure's kind, where it has one: only figures of equal kinds stand in one row.
    """

    key: str
    heading: str
    higher: bool = False
    percent: bool = False
    bounds: tuple[str, str] | None = None
    scale: float = 1.0
    digits: int = 4
    scaled: bool = False
    kind: str = ""

    @property
    def better(self) -> str:
        """Which direction is better."""
        return f"{'higher' if self.higher else 'lower'} is better"

    def shown(self, value: float, low: float | None = None, high: float | None = None) -> str:
        """As a reader sees it, with its interval."""
        return percent(value, low, high) if self.percent else interval(value, low, high, self.digits)

    def of(self, row: Row) -> tuple[float, float | None, float | None] | None:
        """(value, low, high) of a row, scaled; None where it has no number."""
        low, high = self.bounds or (f"{self.key}_low", f"{self.key}_high")
        values = [row.get(key) for key in (self.key, low, high)]
        value, *ends = (
            self.scale * item if isinstance(item, (int, float)) and not isinstance(item, bool) else None
            for item in values
        )
        return None if value is None else (value, ends[0], ends[1])


@dataclass(frozen=True)
class Part:
    """A section of a comparison: its rows' name and set, and the figures to compare.

    Attributes:
        split: a table for each figure instead of one for all.
        keep: which rows are compared.
    """

    key: str
    title: str
    metrics: tuple[Metric, ...]
    name: Callable[[Row], str]
    heading: str = ""
    set_key: str = "set"
    set_heading: str = "set"
    split: bool = False
    keep: Callable[[Row], bool] = lambda row: True

    @property
    def better(self) -> str:
        """Which direction is better, of all its figures."""
        higher = [metric.heading for metric in self.metrics if metric.higher]
        if len(self.metrics) == 1:
            return f"{self.metrics[0].heading}, {self.metrics[0].better}"
        if not higher:
            return "lower is better"
        return f"{' and '.join(higher)}, higher is better; the others, lower is better"


def _attack(row: Row) -> str:
    own = row["attack"] not in ("none", "worst")  # these have no settings
    given = [f"{row[key]} {key}" for key in ("steps", "restarts") if own and row.get(key) is not None]
    return ", ".join((f"{row['attack']} {row['norm']} {in_255(row['eps'])}", *given))


def _corruption(row: Row) -> str:
    severity = row.get("severity")
    return str(row["corruption"]) + ("" if severity is None else f", severity {severity}")


def _score(row: Row) -> str:
    return str(row["score"])


_ECE = Metric("ece_15", "ECE, 15 bins")
_NLL = Metric("nll", "NLL")
_ACCURACY = Metric("accuracy", "accuracy", higher=True, percent=True)
_RISKS = tuple(Metric(f"risk_at_{share}", f"risk at {share} % coverage", percent=True) for share in (80, 90, 95))
PARTS = (
    Part("accuracy", "Accuracy", (_ACCURACY, _NLL, Metric("brier", "Brier")), lambda row: ""),
    Part(
        "calibration",
        "Calibration",
        (_ECE, Metric("smooth_ece", "smooth ECE"), _NLL),
        lambda row: variant_name(str(row["variant"])),
        "variant",
    ),
    Part(
        "selective",
        "Selective classification",
        (
            Metric("aurc", "AURC x 1000", scale=1000, digits=2),
            Metric("augrc", "AUGRC x 1000", scale=1000, digits=2),
            *_RISKS,
        ),
        _score,
        "confidence",
    ),
    Part(
        "ood",
        "OOD detection",
        (Metric("auroc", "AUROC", higher=True), Metric("fpr95_ood_positive", "FPR95, OOD positive")),
        _score,
        "score",
        "ood_set",
        "OOD set",
        split=True,
    ),
    Part(
        "corruptions",
        "Corruptions, means",
        (_ACCURACY, _NLL, _ECE, Metric("ece_15_scaled", "ECE, temperature-scaled", scaled=True)),
        _corruption,
        "over",
        keep=lambda row: str(row["corruption"]).endswith("mean"),
    ),
    Part(
        "robustness",
        "Robustness",
        (Metric("robust_accuracy", "accuracy", True, True, ("robust_low", "robust_high")),),
        _attack,
        "attack",
    ),
    Part(
        "refined",
        "SGLD-refined inference",
        (Metric("robust_accuracy", "accuracy", True, True, ("robust_low", "robust_high")),),
        lambda row: f"{row['inference']}: {_attack(row)}",
        "attack",
    ),
    Part(
        "detector_robustness",
        "Attacks on the detector",
        (Metric("auroc", "AUROC", higher=True),),
        lambda row: f"{row['score']}, {row['norm']} {in_255(row['eps'])}, attacked: {row['attacked']}",
        "detector, radius and attacked side",
        "ood_set",
        "OOD set",
        split=True,
    ),
    Part(
        "generation",
        "Samples",
        (
            Metric("label_agreement", "labels as asked", higher=True, percent=True),
            Metric("frechet_distance", "Fréchet distance", digits=3),
            Metric("kernel_distance", "kernel distance x 1000", scale=1000, digits=2),
            Metric("fid", "FID", digits=2),
            Metric("kid", "KID x 1000", scale=1000, digits=2),
            Metric("share_nearer", "suspiciously near a training image", percent=True),
        ),
        lambda row: str(row.get("features") or row.get("class") or ""),
        "class or features of",
        "of",
        "images",
        keep=lambda row: row["of"] == "samples",
    ),
    Part(
        "representation",
        "Representations",
        (
            _ACCURACY,
            _NLL,
            _ECE,
            Metric("r2", "R²", higher=True),
            Metric("auroc", "AUROC", higher=True),
            Metric("fpr95_ood_positive", "FPR95, OOD positive"),
            Metric("log_likelihood", "log-likelihood", higher=True, digits=2, kind="likelihood"),
            Metric("bits_per_dimension", "bits per dimension", digits=3, kind="likelihood"),
            Metric("mse", "mean square error of reconstructions", digits=5, kind="reconstruction"),
        ),
        representation_name,
        "probe or score",
        split=True,
        keep=lambda row: row["group"] != "corruptions" or (row["corruption"], row["severity"]) == ("mean", None),
    ),
)
