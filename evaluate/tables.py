"""A suite's results as a long table of rows and as a short text for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from .ood import METRICS

if TYPE_CHECKING:
    from .suite import SuiteResult

COLUMNS = ("section", "set", "name", "metric", "value", "low", "high", "n", "n_ood")
_CALIBRATION = (
    "temperature",
    "nll",
    "brier",
    "ece_15",
    "ece_15_perfect",
    "equal_mass_ece_15",
    "classwise_ece_15",
    "mce_15",
    "ece_20",
    "netcal_ece_15",
)


def _long(section: str, row: Mapping[str, Any], name: str, metrics: Iterable[str]) -> list[dict[str, Any]]:
    """One long row for each metric of a wide row; bounds where the wide row has `<metric>_low` and `_high`."""
    return [
        {
            "section": section,
            "set": row["set"],
            "name": name,
            "metric": metric,
            "value": row[metric],
            "low": row.get(f"{metric}_low"),
            "high": row.get(f"{metric}_high"),
            "n": row["n"],
            "n_ood": row.get("n_ood"),
        }
        for metric in metrics
    ]


def long_rows(result: SuiteResult) -> list[dict[str, Any]]:
    """One figure a row, the same columns for all sections; None where a column says nothing about a figure."""
    rows: list[dict[str, Any]] = []
    for row in result.accuracy.rows:
        rows += _long("accuracy", row, "model", ("accuracy", "nll", "brier"))
    for row in result.calibration.rows if result.calibration else ():
        rows += _long("calibration", row, row["variant"], _CALIBRATION)
    for row in result.ood.rows if result.ood else ():
        rows += _long("ood", row | {"set": row["ood_set"], "n": row["n_id"]}, row["score"], METRICS)
    for row in result.robustness.rows if result.robustness else ():
        bounds = {"robust_accuracy_low": row["robust_low"], "robust_accuracy_high": row["robust_high"]}
        name = f"{row['attack']} {row['norm']} eps={row['eps']:.6g} steps={row['steps']} restarts={row['restarts']}"
        rows += _long("robustness", row | bounds, name, ("robust_accuracy", "max_delta", "zero_gradients", "seconds"))
    return rows


def text_table(result: SuiteResult) -> str:
    """Accuracy, ECE, AUROC a set and score, robust accuracy: a line each, with interval and n."""
    lines: list[tuple[str, str, str]] = []
    row = result.accuracy.rows[0]
    lines.append(("accuracy", percent(row["accuracy"], row["accuracy_low"], row["accuracy_high"]), f"n={row['n']}"))
    for row in result.calibration.rows if result.calibration else ():
        name = "ECE-15" if row["variant"] == "raw" else f"ECE-15 at T={row['temperature']:.3g}"
        value = f"{row['ece_15']:.4f} [{row['ece_15_low']:.4f}, {row['ece_15_high']:.4f}]"
        note = f"perfect model {row['ece_15_perfect']:.4f}, NLL {row['nll']:.4f}, n={row['n']}"
        # Without an error on the validation images any smaller T lowers their NLL: the fit says nothing.
        lines.append((name, value, note + (", T not identified" if row["temperature_unidentified"] else "")))
    of_set: dict[str, list[Mapping[str, Any]]] = {}
    for row in result.ood.rows if result.ood else ():
        of_set.setdefault(row["ood_set"], []).append(row)
    for name, rows in of_set.items():
        value = "  ".join(f"{row['score']} {row['auroc']:.4f}" for row in rows)
        lines.append((f"OOD AUROC {shortened(name)}", value, f"n={rows[0]['n_id']} and {rows[0]['n_ood']}"))
    for row in result.robustness.rows if result.robustness else ():
        if row["attack"] != "none":
            blind = f", no gradient for {row['zero_gradients']}" if row["zero_gradients"] else ""
            value = percent(row["robust_accuracy"], row["robust_low"], row["robust_high"])
            lines.append((f"{row['attack']} {row['norm']} {in_255(row['eps'])}", value, f"n={row['n']}{blind}"))
    widths = [max(len(line[column]) for line in lines) for column in (0, 1)]
    return "\n".join(f"{name:<{widths[0]}}  {value:<{widths[1]}}  {note}" for name, value, note in lines)


def shortened(name: str, width: int = 28) -> str:
    """A long name with its middle left out.

    >>> shortened("npz:/data/sets/a.npz", 12)
    'npz:...a.npz'
    """
    keep = (width - 3) // 2
    return name if len(name) <= width else f"{name[:keep]}...{name[-(width - keep - 3) :]}"


def percent(value: float, low: float, high: float) -> str:
    """A share with its interval in percent.

    >>> percent(0.5, 0.25, 0.75)
    '50.00 % [25.00, 75.00]'
    """
    return f"{100 * value:.2f} % [{100 * low:.2f}, {100 * high:.2f}]"


def in_255(eps: float) -> str:
    """eps in units of 1/255 where that is short, otherwise as a decimal.

    >>> in_255(8 / 255), in_255(0.3)
    ('8/255', '0.3')
    """
    steps = eps * 255
    short = 0 < steps <= 64 and abs(4 * steps - round(4 * steps)) < 1e-6
    return f"{steps:g}/255" if short else f"{eps:.4g}"
