"""Figures of the results: matplotlib `Figure` objects, without pyplot and its global state.

Colours are Okabe & Ito's (2008), told apart by colour-blind readers; lines differ in dash as well. Panels are white and
text dark, so that a figure reads the same on a light and on a dark page.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from .calibration_metrics import ReliabilityBins
from .formats import attack_name, in_255, shortened

if TYPE_CHECKING:
    from .ood import OODResult

BLUE, ORANGE, GREEN, PURPLE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY)
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
SCORE_LABELS = {
    "energy": "log density, logsumexp of logits",
    "msp": "log-odds of the top class",
    "max_logit": "largest logit",
    "entropy": "negative entropy of p(y|x)",
    "grad_norm": "negative gradient norm of log p(x)",
}
PANEL = (4.4, 3.7)  # inches: about 420 CSS pixels, hardly shrunk on a phone
_MOST_POINTS = 300
_STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "legend.fontsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "legend.frameon": False,
}


def _grid(rows: int, columns: int) -> tuple[Figure, np.ndarray]:
    """A white figure of rows x columns panels and its axes as an array of that shape."""
    figure = Figure(figsize=(PANEL[0] * columns, PANEL[1] * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _legend_below(axes: Axes, columns: int, title: str | None = None) -> None:
    """A legend under the panel, where it hides nothing."""
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=columns, title=title, borderaxespad=0)


def draw_reliability(axes: Axes, table: ReliabilityBins, title: str) -> None:
    """Accuracy against confidence; a dot's area grows with the share of images in its bin."""
    full = table.count > 0
    share = table.count[full] / table.count.sum()
    centres, width = (table.edges[1:] + table.edges[:-1]) / 2, table.edges[1] - table.edges[0]
    axes.bar(centres, table.count / table.count.sum(), width=width * 0.9, color="#cfd8dc", label="share of images")
    axes.plot([0, 1], [0, 1], color="#555555", linestyle="--", linewidth=1, label="perfect")
    axes.plot(table.confidence[full], table.accuracy[full], color=BLUE, linewidth=1.2)
    axes.scatter(
        table.confidence[full],
        table.accuracy[full],
        s=12 + 120 * share,
        color=BLUE,
        zorder=3,
        clip_on=False,
        label="accuracy",
    )
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy; share of images", title=title)
    _legend_below(axes, 3)


def draw_histogram(axes: Axes, inside: np.ndarray, outside: np.ndarray, score: str, names: tuple[str, str]) -> None:
    """Densities of a score on the ID and the OOD set over common bins; +-inf are left out."""
    edges = histogram_edges(inside, outside)
    sides = [values[np.isfinite(values)] for values in (inside, outside)]
    for values, side, name, colour, dash in zip(sides, ("ID", "OOD"), names, (BLUE, ORANGE), ("-", "--"), strict=True):
        axes.hist(values, edges, density=True, histtype="stepfilled", color=colour, alpha=0.3)
        axes.hist(
            values,
            edges,
            density=True,
            histtype="step",
            color=colour,
            linestyle=dash,
            linewidth=1.4,
            label=f"{side}: {_plain(name)}",
        )
    axes.locator_params(axis="y", nbins=5)
    axes.set(
        xlabel=SCORE_LABELS.get(score, score), ylabel="density", title=f"{_plain(names[0])} and {_plain(names[1])}"
    )
    _legend_below(axes, 1)


def histogram_edges(inside: np.ndarray, outside: np.ndarray) -> list[float]:
    """The edges of 40 common bins of equal width over all finite scores."""
    both = np.concatenate([values[np.isfinite(values)] for values in (inside, outside)])
    low, high = (both.min(), both.max()) if len(both) else (0.0, 0.0)
    return np.linspace(low, max(high, low + max(1e-9, 1e-12 * abs(low))), 41).tolist()


def draw_roc(axes: Axes, scores: Mapping[str, tuple[np.ndarray, np.ndarray]], names: tuple[str, str]) -> None:
    """ROC curves with ID as the positive class, one for each score: score -> (id_scores, ood_scores)."""
    from sklearn.metrics import roc_curve

    from .ood import auroc, ranked

    for i, (score, (inside, outside)) in enumerate(scores.items()):
        false_positive, true_positive, _ = roc_curve(*ranked(inside, outside))
        keep = np.unique(np.linspace(0, len(false_positive) - 1, _MOST_POINTS).round().astype(int))
        label = f"{score} ({auroc(inside, outside):.3f})"
        style: Any = {"color": COLOURS[i % 5], "linestyle": DASHES[i % 5], "linewidth": 1.6, "label": label}
        axes.plot(false_positive[keep], true_positive[keep], **style)
    axes.plot([0, 1], [0, 1], color="#999999", linewidth=0.8)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), xlabel="OOD accepted", ylabel="ID accepted")
    axes.set_title(f"{_plain(names[0])} and {_plain(names[1])}")
    _legend_below(axes, 2, "score (AUROC)")


def draw_robustness(axes: Axes, rows: Iterable[Mapping[str, Any]]) -> None:
    """Robust accuracy over eps with Wilson intervals, one line for each attack, all from the clean accuracy."""
    rows = list(rows)
    clean = [row for row in rows if row["attack"] == "none"]
    attacked = [row for row in rows if row["attack"] != "none"]
    for i, attack in enumerate(dict.fromkeys(row["attack"] for row in attacked)):
        line = sorted([*clean, *(row for row in attacked if row["attack"] == attack)], key=lambda row: row["eps"])
        x, y = [row["eps"] for row in line], np.array([row["robust_accuracy"] for row in line])
        low, high = (np.array([row[key] for row in line]) for key in ("robust_low", "robust_high"))
        steps = line[-1].get("steps")
        unit = "queries" if attack == "square" else "step" + "s" * (steps != 1)
        label = f"{attack_name(attack)}, {steps} {unit}" if steps else attack_name(attack)
        style: Any = {"color": COLOURS[i % 5], "linestyle": DASHES[i % 5], "label": label}
        if attack == "worst":
            style |= {"color": "#222222", "linestyle": "-", "label": "worst case"}
        # rounding can put a bound of 0 or 1 a hair inside the estimate
        errors = np.clip([y - low, high - y], 0, None)
        axes.errorbar(x, y, yerr=errors, marker="o", markersize=4, capsize=3, linewidth=1.6, **style)
    norm = rows[0]["norm"]
    axes.set(ylim=(-0.02, 1.02), xlabel=f"eps ({norm})", ylabel="robust accuracy")
    axes.set_title(f"{_plain(rows[0]['set'])}, n = {rows[0]['n']:,}")
    if norm == "linf":
        ticks = _apart(sorted({row["eps"] for row in rows}))
        axes.set_xticks(ticks, [in_255(eps) for eps in ticks])
    _legend_below(axes, 2)


def _apart(values: Sequence[float]) -> list[float]:
    """The ascending values without those whose labels would touch the next one's, the first and last kept."""
    kept = [values[-1]]
    for value in reversed(values[:-1]):
        if kept[-1] - value >= 0.14 * values[-1] and (value == 0 or value >= 0.14 * values[-1]):
            kept.append(value)
    return kept[::-1]


def _plain(name: str) -> str:
    """A name from outside as matplotlib shows it literally: no mathematics between dollar signs, not too long."""
    return shortened(name).replace("$", r"\$")


@mpl.rc_context(_STYLE)
def reliability_figure(table: ReliabilityBins, title: str) -> Figure:
    """One reliability diagram."""
    figure, axes = _grid(1, 1)
    draw_reliability(axes[0, 0], table, title)
    return figure


@mpl.rc_context(_STYLE)
def histogram_figure(inside: np.ndarray, outside: np.ndarray, score: str, names: tuple[str, str]) -> Figure:
    """One histogram of a score on both sides."""
    figure, axes = _grid(1, 1)
    draw_histogram(axes[0, 0], inside, outside, score, names)
    return figure


@mpl.rc_context(_STYLE)
def roc_figure(scores: Mapping[str, tuple[np.ndarray, np.ndarray]], names: tuple[str, str]) -> Figure:
    """ROC curves of all scores on one OOD set."""
    figure, axes = _grid(1, 1)
    draw_roc(axes[0, 0], scores, names)
    return figure


@mpl.rc_context(_STYLE)
def ood_overview(result: OODResult) -> Figure:
    """A line of panels for each OOD set: a histogram of each score, then the ROC curves."""
    figure, axes = _grid(len(result.ood_scores), len(result.id_scores) + 1)
    for line, (name, outside) in zip(axes, result.ood_scores.items(), strict=True):
        for panel, (score, inside) in zip(line, result.id_scores.items(), strict=False):
            draw_histogram(panel, inside, outside[score], score, (result.id_set, name))
        pairs = {score: (inside, outside[score]) for score, inside in result.id_scores.items()}
        draw_roc(line[-1], pairs, (result.id_set, name))
    return figure


@mpl.rc_context(_STYLE)
def robustness_curve(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Robust accuracy over eps."""
    figure, axes = _grid(1, 1)
    draw_robustness(axes[0, 0], rows)
    return figure


def to_svg(figure: Figure, prefix: str) -> str:
    """The figure as SVG with text as text, and ids that start with `prefix` so that several fit in one page."""
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": prefix, "font.family": "sans-serif"}):
        buffer = io.StringIO()
        # not savefig, which draws once more before, for the layout that drawing does by itself
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    svg = re.sub(r'\bid="', f'id="{prefix}-', buffer.getvalue())
    return re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}-", svg)
