"""Trains randomly chosen runs of the study again and compares their figures with the rows in the repository."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from benchmarks.study.columns import ATTACKS
from benchmarks.study.measure import ATTACKED, CORRUPTED, STRANGERS
from benchmarks.study.rows import Row
from benchmarks.study.summary import Runs, of_figure, runs_of
from benchmarks.study.tables import Table
from ebmhybrid.evaluate.formats import DASH

WITHIN = 3.0  # standard deviations
SHOWN_ONLY = ("step_ms", "seconds", "temperature", "rollbacks", "n_test", "sanity")


class Choice(NamedTuple):
    """A run to be made again."""

    table: str
    label: str
    seed: int


@dataclass(frozen=True)
class Line:
    """A figure of a run beside that of the run made again.

    Attributes:
        spread: the standard deviation that the difference is judged by, NaN where it is not judged.
        of: which one that is.
    """

    figure: str
    committed: float
    fresh: float
    spread: float
    of: str

    @property
    def judged(self) -> bool:
        return not math.isnan(self.spread)

    @property
    def agrees(self) -> bool:
        """Whether the two are at most three standard deviations apart; what is not judged agrees."""
        if not self.judged or self.fresh == self.committed or (math.isnan(self.fresh) and math.isnan(self.committed)):
            return True
        return abs(self.fresh - self.committed) <= WITHIN * self.spread


def choose(tables: Mapping[str, Table], rows: Iterable[Row], seed: int) -> list[Choice]:
    """For each table one of its runs that has a row, at random; tables without rows have none."""
    drawn, rows = random.Random(seed), list(rows)
    able = {
        name: [Choice(name, label, run) for label, by_seed in runs_of(table, rows).items() for run in by_seed]
        for name, table in tables.items()
    }
    return [drawn.choice(choices) for choices in able.values() if choices]


def compare(table: Table, rows: Iterable[Row], label: str, fresh: Row) -> list[Line]:
    """Each figure of the row in the repository beside the fresh one's.

    A figure's spread is the largest of: its standard deviation over the seeds of the label, that of the table's labels
    pooled, and the sampling error of a share of so many images.
    """
    runs = runs_of(table, rows)
    committed = {name: value for name, value in runs[label][fresh.seed].items() if name != "step_ratio"}
    lines = []
    for figure in sorted(committed.keys() | fresh.figures.keys()):
        ours, theirs = committed.get(figure, math.nan), fresh.figures.get(figure, math.nan)
        if figure in SHOWN_ONLY:
            spread, of = math.nan, "not judged"
        elif figure not in committed or figure not in fresh.figures:  # another table measured more of the same run
            spread, of = math.nan, "in one alone"
        else:
            spread, of = _spread(runs, label, figure, ours, committed.get("n_test", math.nan))
        lines.append(Line(figure, ours, theirs, spread, of))
    return lines


def _spread(runs: Runs, label: str, figure: str, value: float, n_test: float) -> tuple[float, str]:
    deviations = {one: _std(list(of_figure(runs, one, figure).values())) for one in runs}
    known = [std for std in deviations.values() if not math.isnan(std)]
    pooled = math.sqrt(statistics.fmean(std**2 for std in known)) if known else math.nan
    found = {
        f"seeds of {label}": deviations[label],
        "seeds of the table": pooled,
        "sampling": sampling_error(figure, value, n_test),
    }
    able = {of: spread for of, spread in found.items() if not math.isnan(spread)}
    of = max(able, key=lambda name: able[name], default="no spread known")
    return able.get(of, 0.0), of


def _std(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else math.nan


def sampling_error(figure: str, value: float, n_test: float) -> float:
    """sqrt(p (1 - p) / n) of a share p of n test images; NaN for other figures and where n is unknown.

    p is taken as (n p + 1) / (n + 2), so that all or none of n images have an error too. An AUROC is no share, but its
    error is of that order. Attacks and corruptions are measured on some of the test images.

    >>> round(sampling_error("accuracy", 0.9, 1000), 4), sampling_error("nll", 0.3, 1000)
    (0.0095, nan)
    """
    kind = figure.removeprefix("val_").partition("/")[0]
    images = {"accuracy": n_test, "corrupted": CORRUPTED, "auroc": STRANGERS, "fpr95": STRANGERS}
    images |= dict.fromkeys(ATTACKS, ATTACKED)
    if kind not in images or math.isnan(n_test):
        return math.nan
    n = min(images[kind], n_test)
    p = (n * value + 1) / (n + 2)
    return math.sqrt(p * (1 - p) / n)


def check(
    tables: Mapping[str, Table], rows: Iterable[Row], rerun: Callable[[Table, str, int], Row], seed: int | None = None
) -> int:
    """Make one run of each table again and print its figures beside the rows'; the exit status, 1 if any disagrees.

    Without a seed the choice is by the clock; the seed is printed.
    """
    rows, failed = list(rows), 0
    seed = random.SystemRandom().randrange(10**6) if seed is None else seed
    print(f"the choice of runs: --seed {seed}", flush=True)
    chosen = choose(tables, rows, seed)
    for choice in chosen:
        print(f"\n{choice.table}: {choice.label}, seed {choice.seed}", flush=True)
        fresh = rerun(tables[choice.table], choice.label, choice.seed)
        lines = compare(tables[choice.table], rows, choice.label, fresh)
        print(written(lines), flush=True)
        failed += not any(line.judged for line in lines) or not all(line.agrees for line in lines)
    skipped = sorted(tables.keys() - {choice.table for choice in chosen})
    if skipped:
        print(f"\nwithout rows: {', '.join(skipped)}")
    print(f"\n{len(chosen) - failed} of {len(chosen)} runs agree within {WITHIN:g} standard deviations")
    return int(failed > 0 or not chosen)


def written(lines: Sequence[Line]) -> str:
    """The lines as a table for a terminal."""
    cells: list[tuple[str, ...]] = [("figure", "row", "again", "apart", "deviations", "of", "")]
    for line in lines:
        apart = line.fresh - line.committed
        ratio = f"{abs(apart) / line.spread:.2f}" if line.judged and line.spread > 0 else DASH
        verdict = ("ok" if line.agrees else "OUTSIDE") if line.judged else ""
        values = (f"{value:.5g}" for value in (line.committed, line.fresh, apart))
        cells.append((line.figure, *values, ratio, line.of, verdict))
    widths = [max(map(len, columns)) for columns in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )
