"""A suite's results as a long table of rows and as a short text for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .ood import METRICS
from .sections import lines_as_text

if TYPE_CHECKING:
    from .results import SuiteResult

Row = Mapping[str, Any]
COLUMNS = ("section", "set", "name", "metric", "value", "low", "high", "n", "n_ood")


@dataclass(frozen=True)
class _Shape:
    """How a section's wide rows become long: the key of the set, what a row is called, its metrics and its bounds."""

    name: Callable[[Row], str]
    metrics: tuple[str, ...]
    set_key: str = "set"
    n_key: str = "n"
    bounds: tuple[str, str] | None = None  # keys of the first metric's interval, where not <metric>_low and _high


def _attack(row: Row) -> str:
    """An attack with its settings; the worst case of several has none of its own."""
    settings = f"{row['attack']} {row['norm']} eps={row['eps']:.6g}"
    parts = (f"{key}={row[key]}" for key in ("steps", "restarts", "eot") if row.get(key) is not None)
    return " ".join((settings, *parts))


def _corruption(row: Row) -> str:
    severity = row.get("severity")
    return str(row.get("corruption")) + ("" if severity is None else f" severity={severity}")


def _generation(row: Row) -> str:
    """What a figure of samples is about: a class, whose features, or its group alone."""
    which = row.get("class") or row.get("features")
    return f"{row['group']} {which}" if which else str(row["group"])


def representation_name(row: Row) -> str:
    """What a figure of a representation is about: the representation, and the probe, the score or the corruption.

    >>> representation_name({"group": "probe", "representation": "mean", "probe": "knn", "k": 5})
    'mean: kNN k=5'
    """
    which = str(row["group"])
    if which == "probe":
        which = "linear probe" if row["probe"] == "linear" else f"kNN k={row['k']}"
    elif which == "few_labels":
        which = f"linear probe, labels a class={row['labels_per_class']}"
    elif which == "ridge":
        which = "ridge probe"
    elif which == "ood":
        which = str(row["score"])
    elif which == "corruptions":
        which = f"linear probe, corruption={_corruption(row)}"
    return f"{row['representation']}: {which}" if row["representation"] else which


SHAPES: dict[str, _Shape] = {
    "accuracy": _Shape(lambda row: "model", ("accuracy", "nll", "brier")),
    "calibration": _Shape(
        lambda row: str(row["variant"]),
        (
            *("temperature", "accuracy", "nll", "brier", "ece_15", "ece_15_perfect", "smooth_ece"),
            *("equal_mass_ece_15", "classwise_ece_15", "mce_15", "ece_20", "netcal_ece_15"),
        ),
    ),
    "selective": _Shape(
        lambda row: str(row["score"]),
        ("aurc", "e_aurc", "augrc", "risk_at_80", "risk_at_90", "risk_at_95", "coverage_at_1"),
    ),
    "ood": _Shape(lambda row: str(row["score"]), tuple(METRICS), "ood_set", "n_id"),
    "corruptions": _Shape(_corruption, ("accuracy", "nll", "ece_15", "ece_15_scaled")),
    "robustness": _Shape(
        _attack,
        ("robust_accuracy", "max_delta", "zero_gradients", "seconds"),
        bounds=("robust_low", "robust_high"),
    ),
    "refined": _Shape(
        lambda row: f"{row['inference']} {_attack(row)}",
        ("robust_accuracy", "max_delta", "seconds"),
        bounds=("robust_low", "robust_high"),
    ),
    "detector_robustness": _Shape(
        lambda row: f"{row['score']} {row['norm']} eps={row['eps']:.6g} attacked={row['attacked']}",
        tuple(METRICS),
        "ood_set",
        "n_id",
    ),
    "sanity": _Shape(lambda row: str(row["check"]), ("passed", "value")),
    "generation": _Shape(
        _generation,
        (
            *("label_agreement", "judged_share", "frechet_distance", "kernel_distance", "label_score"),
            *("fid", "kid", "inception_score", "nearest_mean", "nearest_median", "share_nearer", "copies"),
            *("other_mean", "near_duplicates", "auroc", "log_density_mean"),
            *("log_density_5", "log_density_50", "log_density_95"),
        ),
        "of",
    ),
    "representation": _Shape(
        representation_name,
        (
            *("accuracy", "accuracy_std", "nll", "ece_15", "r2", "mae", "rmse"),
            *METRICS,
            *("log_likelihood", "bits_per_dimension", "mse"),
        ),
    ),
}


def long_rows(result: SuiteResult) -> list[dict[str, Any]]:
    """One figure a row, the same columns for all sections; None where a column says nothing about a figure.

    The sanity panel's verdicts appear as the metric `passed`: 1, 0 for a warning, None for one that is neither.
    """
    parts = {name: part.rows for name in SHAPES if (part := getattr(result, name, None)) is not None}
    return long_of(parts)


def long_of(parts: Mapping[str, Iterable[Row]]) -> list[dict[str, Any]]:
    """:func:`long_rows` of section -> wide rows, as `results.json` holds them."""
    test = next(iter(parts.get("accuracy", ())), {})
    usual = {key: test.get(key) for key in ("set", "n")}  # what rows that name no set are about
    rows: list[dict[str, Any]] = []
    for section, shape in SHAPES.items():
        for row in parts.get(section, ()):
            rows += _long(section, shape, usual | _with_verdict(row))
    return rows


def _with_verdict(row: Row) -> dict[str, Any]:
    """The row, with a check's verdict as a number."""
    passed = {"passed": {"pass": 1, "warn": 0}.get(row["status"])} if "status" in row else {}
    return dict(row) | passed


def _long(section: str, shape: _Shape, row: Row) -> list[dict[str, Any]]:
    """One long row for each metric that a wide row has; bounds where it has `<metric>_low` and `_high`."""
    rows = []
    for metric in shape.metrics:
        if metric in row:
            low, high = f"{metric}_low", f"{metric}_high"
            if shape.bounds and metric == shape.metrics[0]:
                low, high = shape.bounds
            figure = {"metric": metric, "value": row[metric], "low": row.get(low), "high": row.get(high)}
            sizes = {"n": row.get(shape.n_key, row.get("n")), "n_ood": row.get("n_ood")}
            rows.append({"section": section, "set": row.get(shape.set_key), "name": shape.name(row)} | figure | sizes)
    return rows


def text_table(result: SuiteResult) -> str:
    """The main figures, a line each, with interval and n."""
    from .report_sections import sections_of

    return lines_as_text(line for section in sections_of(result) for line in section.lines)
