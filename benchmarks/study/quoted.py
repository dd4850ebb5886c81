"""Figures as the prose of the document quotes them: each number in a sentence is computed from the rows."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from benchmarks.study.columns import column
from benchmarks.study.markdown import LEVEL, NOT_RUN, bounds, p_value
from benchmarks.study.rows import Row
from benchmarks.study.summary import (
    Difference,
    Runs,
    Summary,
    against_control,
    difference,
    of_figure,
    runs_of,
    summarize,
)
from ebmhybrid.errors import UsageError, nearest
from ebmhybrid.evaluate.formats import DASH

if TYPE_CHECKING:
    from benchmarks.study.settings import Setting
    from benchmarks.study.tables import Table


class Quoted:
    """What templates call, as `{{ mean("fashion", "cross-entropy", "auroc/energy/mnist") }}`.

    Each takes a table, a label of it and a figure, and writes with the digits of the tables. What was not run is
    "not run", what cannot be computed of so few runs a dash.

    Raises:
        UsageError: there is no such table, label or figure.
    """

    def __init__(self, rows: Iterable[Row], tables: Mapping[str, Table], settings: Mapping[str, Setting]) -> None:
        self._tables = tables
        rows = list(rows)
        self._runs = {
            name: runs_of(table, rows, settings[table.setting].near, settings[table.setting].far)
            for name, table in tables.items()
        }

    def runs(self, table: str) -> Runs:
        """The runs of a table by label and seed."""
        return self._runs[_known(table, self._runs, "table")]

    def summary(self, table: str, label: str, figure: str) -> Summary | None:
        """Mean, standard deviation and n as numbers; None where nothing was run."""
        column(figure)
        runs = self.runs(table)
        return summarize(list(of_figure(runs, _known(label, runs, "label"), figure).values()))

    def value(self, table: str, label: str, figure: str) -> float:
        """The mean as a number, for conditions; NaN, with which no comparison holds, where nothing was run."""
        found = self.summary(table, label, figure)
        return math.nan if found is None else found.mean

    def mean(self, table: str, label: str, figure: str) -> str:
        """The mean over seeds."""
        found = self.summary(table, label, figure)
        return NOT_RUN if found is None else column(figure).text(found.mean)

    def std(self, table: str, label: str, figure: str) -> str:
        """The standard deviation over seeds."""
        found = self.summary(table, label, figure)
        return NOT_RUN if found is None else DASH if math.isnan(found.std) else column(figure).text(found.std)

    def span(self, table: str, figure: str, *labels: str) -> str:
        """The least and the largest mean of those labels, or of all, and whose they are."""
        found = self._ends(table, labels, lambda label: self.value(table, label, figure))
        return " to ".join(f"{column(figure).text(value)} ({label})" for value, label in found) or NOT_RUN

    def std_span(self, table: str, figure: str, *labels: str) -> str:
        """The least and the largest standard deviation of those labels, or of all."""

        def deviation(label: str) -> float:
            found = self.summary(table, label, figure)
            return found.std if found else math.nan

        return " to ".join(column(figure).text(value) for value, _ in self._ends(table, labels, deviation)) or NOT_RUN

    def seeds(self, table: str) -> str:
        """How many seeds its labels have, as `3` or `3 to 5`; labels without a run are left out."""
        numbers = sorted({len(by_seed) for by_seed in self.runs(table).values() if by_seed})
        return " to ".join(str(number) for number in dict.fromkeys(numbers[:1] + numbers[-1:])) or NOT_RUN

    def _ends(self, table: str, labels: tuple[str, ...], value: Callable[[str], float]) -> list[tuple[float, str]]:
        values = ((value(label), label) for label in labels or self.runs(table))
        known = [pair for pair in values if math.isfinite(pair[0])]
        return [min(known), max(known)] if known else []

    def n(self, table: str, label: str, figure: str = "accuracy") -> int:
        """How many runs have the figure."""
        found = self.summary(table, label, figure)
        return found.n if found else 0

    def near(self, table: str, label: str, score: str = "energy") -> str:
        """The mean AUROC over the near sets."""
        return self.mean(table, label, f"auroc/{score}/near")

    def far(self, table: str, label: str, score: str = "energy") -> str:
        """The mean AUROC over the far sets."""
        return self.mean(table, label, f"auroc/{score}/far")

    def apart(self, table: str, label: str, figure: str, other: str | None = None) -> tuple[Difference, float] | None:
        """Difference and p-value as numbers: Holm's against the control, as it is against another label."""
        self.summary(table, label, figure)
        runs, control = self.runs(table), self._tables[table].control
        if other is None or other == control:
            return against_control(runs, control, figure).get(label)
        found = difference(of_figure(runs, label, figure), of_figure(runs, _known(other, runs, "label"), figure))
        return None if found is None else (found, found.p)

    def diff(self, table: str, label: str, figure: str, other: str | None = None) -> str:
        """The mean difference to the control, or to another label, over common seeds, with its sign."""
        found = self.apart(table, label, figure, other)
        return DASH if found is None else column(figure).signed(found[0].mean)

    def interval(self, table: str, label: str, figure: str, other: str | None = None) -> str:
        """The 95 % interval of that difference."""
        found = self.apart(table, label, figure, other)
        return DASH if found is None else bounds(found[0], column(figure))

    def moved(self, table: str, label: str, figure: str, other: str) -> str:
        """The mean over common seeds of the absolute difference to another label."""
        runs = self.runs(table)
        one, two = (of_figure(runs, _known(name, runs, "label"), figure) for name in (label, other))
        moves = [abs(one[seed] - two[seed]) for seed in one.keys() & two.keys()]
        return column(figure).text(statistics.fmean(moves)) if moves else NOT_RUN

    def p(self, table: str, label: str, figure: str, other: str | None = None) -> str:
        """The p-value of that difference as `= 0.012` or `< 0.001`."""
        found = self.apart(table, label, figure, other)
        return DASH if found is None or math.isnan(found[1]) else p_value(found[1])

    def verdict(self, table: str, label: str, figure: str, other: str | None = None) -> str:
        """'better', 'worse' or 'not distinguishable' at p < .05; 'not run' where there are not two pairs of runs."""
        found = self.apart(table, label, figure, other)
        if found is None:
            return NOT_RUN
        towards = found[0].mean * column(figure).better
        if not found[1] < LEVEL or not towards:
            return "not distinguishable"
        return "better" if towards > 0 else "worse"


def _known(name: str, names: Mapping[str, object], what: str) -> str:
    if name not in names:
        raise UsageError(f"{what} {name!r} is unknown; {nearest(name, names)}")
    return name
