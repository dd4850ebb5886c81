"""Means, spreads and paired tests over the seeds of a table's runs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.study.columns import ATTACKS, SCORES
from benchmarks.study.rows import Row

if TYPE_CHECKING:
    from benchmarks.study.tables import Table

Runs = dict[str, dict[int, dict[str, float]]]  # label -> seed -> figures
GROUPS = ("near", "far", "all")


@dataclass(frozen=True)
class Summary:
    """A figure over the runs of a label; the standard deviation is with n - 1, NaN for one run."""

    mean: float
    std: float
    n: int


@dataclass(frozen=True)
class Difference:
    """A label less another over their common seeds, with its 95 % interval and the p-value of a paired t-test."""

    mean: float
    low: float
    high: float
    p: float
    n: int


def summarize(values: Sequence[float]) -> Summary | None:
    """Mean, standard deviation and number; None of nothing.

    >>> summarize([0.5, 1.0, 1.5])
    Summary(mean=1.0, std=0.5, n=3)
    >>> summarize([0.5])
    Summary(mean=0.5, std=nan, n=1)
    """
    if not values:
        return None
    if not all(map(math.isfinite, values)):  # a run that diverged is in the mean
        return Summary(math.fsum(values) / len(values), math.nan, len(values))
    return Summary(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan, len(values))


_OF_WHOLE = ("pgd50/", "apgd/", "sanity", "corrupted")


def runs_of(table: Table, rows: Iterable[Row], near: Sequence[str] = (), far: Sequence[str] = ()) -> Runs:
    """The figures of a table's runs by label and seed, the derived ones among them; labels without runs are empty.

    Derived are, for each score, the means over the near, the far and all sets, `auroc/SCORE/near` and the like, where
    each of the sets was measured, and `step_ratio`, the time of a step over that of the control with the same seed.
    Seeds from `table.seeds` on belong to other tables, and so do attacks and corruptions where this one has none.
    """
    by_changes: dict[str, dict[int, dict[str, float]]] = {}
    for row in rows:
        if row.setting == table.setting and row.seed < table.seeds:
            own = {name: value for name, value in row.figures.items() if table.whole or not name.startswith(_OF_WHOLE)}
            figures = own | _group_means(own, {"near": near, "far": far, "all": [*near, *far]})
            by_changes.setdefault(row.changes, {})[row.seed] = figures
    runs = {label: dict(sorted(by_changes.get(changes, {}).items())) for label, changes in table.lines.items()}
    return _with_step_ratio(runs, runs.get(table.control, {}) if table.control is not None else {})


def _group_means(figures: Mapping[str, float], groups: Mapping[str, Sequence[str]]) -> dict[str, float]:
    means = {}
    for metric in ("auroc", "fpr95"):
        for score in SCORES:
            for group, names in groups.items():
                values = [figures.get(f"{metric}/{score}/{name}") for name in names]
                measured = [value for value in values if value is not None]
                if values and len(measured) == len(values):
                    means[f"{metric}/{score}/{group}"] = math.fsum(measured) / len(measured)
    return means


def _with_step_ratio(runs: Runs, control: Mapping[int, Mapping[str, float]]) -> Runs:
    def ratio(seed: int, figures: Mapping[str, float]) -> dict[str, float]:
        base = control.get(seed, {}).get("step_ms")
        return {"step_ratio": figures["step_ms"] / base} if base and "step_ms" in figures else {}

    return {
        label: {seed: figures | ratio(seed, figures) for seed, figures in by_seed.items()}
        for label, by_seed in runs.items()
    }


def of_figure(runs: Runs, label: str, figure: str) -> dict[int, float]:
    """A figure of a label by seed, of the runs that have it."""
    return {seed: figures[figure] for seed, figures in runs.get(label, {}).items() if figure in figures}


def difference(values: Mapping[int, float], control: Mapping[int, float]) -> Difference | None:
    """Values less the control's of the same seeds; None with fewer than two common seeds.

    Without any spread of the differences the test has no statistic: no difference has p = 1, and one the interval
    and p of NaN: an image more in each of three seeds is no evidence.

    >>> found = difference({0: 2.0, 1: 3.0, 2: 5.0}, {0: 1.0, 1: 2.5, 2: 3.5, 7: 9.0})
    >>> found.n, found.mean, round(found.p, 3)
    (3, 1.0, 0.074)
    """
    from scipy.stats import ttest_rel

    seeds = sorted(values.keys() & control.keys())
    pairs = [(values[seed], control[seed]) for seed in seeds]
    if len(pairs) < 2 or not all(math.isfinite(value) for pair in pairs for value in pair):
        return None
    apart = [ours - theirs for ours, theirs in pairs]
    mean = statistics.fmean(apart)
    if statistics.stdev(apart) <= 1e-12 * max(abs(value) for pair in pairs for value in pair):
        return Difference(mean, *((math.nan,) * 3 if mean else (0.0, 0.0, 1.0)), len(pairs))
    tested = ttest_rel(*zip(*pairs, strict=True))
    low, high = tested.confidence_interval(0.95)
    return Difference(mean, float(low), float(high), float(tested.pvalue), len(pairs))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's (1979) step-down adjustment of the p-values of several tests, which bounds the chance of any false one.

    The i-th smallest of m is multiplied by m - i + 1, and is at least what the one before it became, at most 1.

    >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
    {'a': 0.03, 'b': 0.06, 'c': 0.06}
    """
    adjusted, least = {}, 0.0
    for i, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        least = max(least, min(1.0, (len(p_values) - i) * p_values[name]))
        adjusted[name] = least
    return {name: adjusted[name] for name in p_values}


def against_control(runs: Runs, control: str | None, figure: str) -> dict[str, tuple[Difference, float]]:
    """Each label's difference to the control in a figure, and its p-value by Holm over the labels that have one.

    NaN is left out of the adjustment and stays.
    """
    if control is None:
        return {}
    base = of_figure(runs, control, figure)
    found = {label: difference(of_figure(runs, label, figure), base) for label in runs if label != control}
    tested = {label: apart for label, apart in found.items() if apart is not None}
    adjusted = holm({label: apart.p for label, apart in tested.items() if not math.isnan(apart.p)})
    return {label: (apart, adjusted.get(label, math.nan)) for label, apart in tested.items()}


def measured_sets(runs: Runs, metric: str, score: str, order: Sequence[str]) -> list[str]:
    """The OOD sets of which a figure was measured: in the order given, then the others by name."""
    start = f"{metric}/{score}/"
    found = {figure.removeprefix(start) for figure in _figures(runs) if figure.startswith(start)} - set(GROUPS)
    return [name for name in order if name in found] + sorted(found - set(order))


def attacked(runs: Runs) -> list[str]:
    """The figures of robust accuracy that were measured, by attack and then by eps.

    >>> attacked({"CE": {0: {"apgd/8/255": 0.1, "apgd/2/255": 0.5, "pgd50/2/255": 0.6, "nll": 1.0}}})
    ['pgd50/2/255', 'apgd/2/255', 'apgd/8/255']
    """
    found = [figure for figure in _figures(runs) if figure.partition("/")[0] in ATTACKS]
    return sorted(found, key=lambda figure: (list(ATTACKS).index(figure.partition("/")[0]), radius(figure)))


def radius(figure: str) -> float:
    """eps of a figure of robust accuracy.

    >>> radius("pgd50/2/255") == 2 / 255, radius("apgd/0.1")
    (True, 0.1)
    """
    over, _, under = figure.partition("/")[2].partition("/")
    return float(over) / float(under or 1)


def _figures(runs: Runs) -> set[str]:
    return {figure for by_seed in runs.values() for figures in by_seed.values() for figure in figures}
