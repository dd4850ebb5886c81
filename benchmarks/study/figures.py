"""The document's figures: means over seeds with bars of one standard deviation, an objective always in one style."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.study.columns import column
from benchmarks.study.summary import Runs, Summary, attacked, measured_sets, of_figure, summarize

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from benchmarks.study.tables import Table

Styles = Mapping[str, Mapping[str, Any]]
_NUMBER = re.compile(r"(?<![\w.])-?\d*\.?\d+(?![\w.])")
SWEEP_PANELS = ("accuracy", "ece_after", "auroc/energy/far", "auroc/energy/near")


def styles(tables: Iterable[Table]) -> dict[str, dict[str, Any]]:
    """A colour and a marker for each label, or what a sweep varies, in the order in which the tables first name them.

    The controls are black.
    """
    from ebmhybrid.evaluate.plots import COLOURS
    from ebmhybrid.evaluate.plots_points import MARKERS

    tables = list(tables)
    names = dict.fromkeys(name for table in tables for name in (swept(table.lines) if table.sweep else table.lines))
    controls = {table.control for table in tables}
    turns = {name: i for i, name in enumerate(name for name in names if name not in controls)}
    own = {name: {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]} for name, i in turns.items()}
    return own | {name: {"color": "#222222", "marker": "*"} for name in controls if name is not None}


def swept(labels: Iterable[str]) -> dict[str, list[tuple[float, str]]]:
    """Of labels with a number behind the last comma, the words before it -> ascending (number, label).

    >>> swept(["cross-entropy", "live, T 1", "live, T 0.5", "NCE, 0.25 an image"])
    {'live': [(0.5, 'live, T 0.5'), (1.0, 'live, T 1')], 'NCE': [(0.25, 'NCE, 0.25 an image')]}
    """
    found: dict[str, list[tuple[float, str]]] = {}
    for label in labels:
        name, comma, rest = label.rpartition(", ")
        if comma and (number := _NUMBER.search(rest)):
            found.setdefault(name, []).append((float(number[0]), label))
    return {name: sorted(points) for name, points in found.items()}


def kinds(runs: Runs, sweep: bool = False) -> list[str]:
    """The figures that a table's runs have enough for."""
    run = {label: by_seed for label, by_seed in runs.items() if by_seed}
    if sweep:
        varied = any(len(points) > 1 for points in swept(run).values())
        return ["sweep"] * (varied and bool(_sweep_panels(run)))
    two = len(run) > 1
    return [
        *["far"] * (two and bool(_points(run, "auroc/energy/far")) and bool(_points(run, "accuracy"))),
        *["sets"] * (two and len(measured_sets(run, "auroc", "energy", ())) > 1),
        *["eps"] * (two and len(attacked(run)) > 1),
    ]


def draw(kind: str, runs: Runs, table: Table, styled: Styles) -> Figure:
    """A figure of :func:`kinds`."""
    import matplotlib as mpl

    from ebmhybrid.evaluate.plots import _STYLE

    run = {label: by_seed for label, by_seed in runs.items() if by_seed}
    with mpl.rc_context(_STYLE):
        return _KINDS[kind](run, table, styled)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, without a date or a version."""
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _points(runs: Runs, figure: str) -> dict[str, Summary]:
    """A figure's summary for the labels that have a finite one."""
    found = {label: summarize(list(of_figure(runs, label, figure).values())) for label in runs}
    return {label: one for label, one in found.items() if one is not None and math.isfinite(one.mean)}


def _sweep_panels(runs: Runs) -> list[str]:
    """The figures that some value of a sweep has."""
    varied = {label for places in swept(runs).values() for _, label in places}
    return [name for name in SWEEP_PANELS if varied & _points(runs, name).keys()]


def _bar(summary: Summary, scale: float = 1.0) -> float:
    return 0.0 if math.isnan(summary.std) else scale * summary.std


def _panels(count: int, height: float = 4.2) -> tuple[Figure, Sequence[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, height), layout="constrained")
    return figure, figure.subplots(1, count, squeeze=False)[0]


def _far(runs: Runs, table: Table, styled: Styles) -> Figure:
    """Mean far-OOD energy AUROC against accuracy."""
    far, accuracy = _points(runs, "auroc/energy/far"), _points(runs, "accuracy")
    figure, (axes,) = _panels(1)
    for label in (label for label in far if label in accuracy):
        axes.errorbar(
            100 * accuracy[label].mean,
            far[label].mean,
            xerr=_bar(accuracy[label], 100),
            yerr=_bar(far[label]),
            label=label,
            linestyle="none",
            markersize=7,
            linewidth=1.2,
            **styled[label],
        )
    axes.set(xlabel="accuracy %", ylabel="energy AUROC, mean of the far sets", title=table.title)
    figure.legend(loc="outside right upper")
    return figure


def _sets(runs: Runs, table: Table, styled: Styles) -> Figure:
    """Energy AUROC, a panel for each OOD set."""
    names = [f"auroc/energy/{name}" for name in measured_sets(runs, "auroc", "energy", ())]
    return _dots(runs, f"{table.title}: energy AUROC", names, styled)


def _eps(runs: Runs, table: Table, styled: Styles) -> Figure:
    """Robust accuracy, a panel for each eps, under the last attack measured."""
    names = attacked(runs)
    strongest = names[-1].partition("/")[0]
    names = [name for name in names if name.startswith(f"{strongest}/")]
    return _dots(runs, f"{table.title}: robust accuracy %, linf", names, styled)


def _dots(runs: Runs, title: str, names: Sequence[str], styled: Styles) -> Figure:
    """A panel for each figure of the rows, in it a line for each label."""
    figure, panels = _panels(len(names), 0.9 + 0.2 * len(runs))
    for axes, name in zip(panels, names, strict=True):
        shown, points = column(name), _points(runs, name)
        for line, label in enumerate(runs):
            if label in points:
                mean, bar = shown.scale * points[label].mean, _bar(points[label], shown.scale)
                axes.errorbar(mean, line, xerr=bar, linestyle="none", markersize=6, linewidth=1.4, **styled[label])
        axes.set_yticks(range(len(runs)), list(runs) if axes is panels[0] else [""] * len(runs))
        axes.set(ylim=(len(runs) - 0.5, -0.5), title=shown.title)
        axes.locator_params(axis="x", nbins=3)
    figure.suptitle(title, fontsize=10)
    return figure


def _sweep(runs: Runs, table: Table, styled: Styles) -> Figure:
    """Accuracy, calibration and detection over what the labels vary; the control as a grey band of one deviation."""
    measured = _sweep_panels(runs)
    figure, panels = _panels(len(measured), 3.4)
    for axes, name in zip(panels, measured, strict=True):
        points, scale = _points(runs, name), column(name).scale
        values: set[float] = set()
        for family, places in swept(runs).items():
            line = [(x, points[label]) for x, label in places if label in points]
            values |= {x for x, _ in line}
            axes.errorbar(
                [x for x, _ in line],
                [scale * one.mean for _, one in line],
                yerr=[_bar(one, scale) for _, one in line],
                label=family if axes is panels[0] else None,
                markersize=5,
                linewidth=1.4,
                **styled[family],
            )
        if table.control in points:
            control = points[table.control]
            mean, spread = scale * control.mean, _bar(control, scale)
            axes.axhline(mean, color="#555555", linestyle="--", linewidth=1)
            axes.axhspan(mean - spread, mean + spread, color="#999999", alpha=0.25, linewidth=0)
        if min(values) > 0:
            axes.set_xscale("log")
            axes.set_xticks(sorted(values), [f"{value:g}" for value in sorted(values)])
            axes.minorticks_off()
        title = column(name).title
        axes.set(title=f"energy AUROC, {title}" if "/" in name else title, xlabel=table.sweep)
    figure.suptitle(f"{table.title} (dashed: {table.control})" if table.control else table.title, fontsize=10)
    figure.legend(loc="outside lower center", ncols=4)
    return figure


_KINDS: dict[str, Callable[[Runs, Table, Styles], Figure]] = {
    "far": _far,
    "sets": _sets,
    "eps": _eps,
    "sweep": _sweep,
}
