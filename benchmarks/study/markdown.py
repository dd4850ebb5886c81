"""Tables of means over seeds as Markdown, with what is best and what differs from the control marked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from benchmarks.study.columns import Column, column
from benchmarks.study.summary import Difference, Runs, Summary, against_control, of_figure, summarize
from ebmhybrid.evaluate.formats import DASH

BETTER, WORSE, LEVEL = "▲", "▼", 0.05
NOT_RUN = "not run"


def written(summary: Summary | None, shown: Column) -> str:
    """Mean ± standard deviation, the mean alone of one run.

    >>> written(Summary(0.98765, 0.0012, 5), column("accuracy")), written(Summary(0.5, float("nan"), 1), column("nll"))
    ('98.77 ± 0.12', '0.500')
    """
    if summary is None:
        return DASH
    if not math.isfinite(summary.mean):
        return "not finite"
    return shown.text(summary.mean) + ("" if math.isnan(summary.std) else f" ± {shown.text(summary.std)}")


def comparison(runs: Runs, control: str | None, figures: Mapping[str, str]) -> str:
    """A line for each label, a column for each figure -> title: mean ± standard deviation over n seeds.

    The best mean of a column is bold. ▲ and ▼ mark a label better or worse than the control, by a paired t-test over
    common seeds with p < .05 after Holm's adjustment for the labels of the column. A label without runs is "not run",
    a dash is a figure that its runs do not have, and a cell of fewer runs than its line's says how many.
    """
    cells = {figure: _cells(runs, control, figure) for figure in figures}
    lines = [_line(["objective", "n", *figures.values()])]
    lines.append("|---|--:|" + "--:|" * len(figures))
    for label, by_seed in runs.items():
        values = [cells[figure][label] for figure in figures] if by_seed else [NOT_RUN] * len(figures)
        lines.append(_line([label, str(len(by_seed)), *values]))
    return "\n".join(lines)


def _cells(runs: Runs, control: str | None, figure: str) -> dict[str, str]:
    shown = column(figure)
    summaries = {label: summarize(list(of_figure(runs, label, figure).values())) for label in runs}
    tested = against_control(runs, control, figure) if shown.better else {}
    best = _best(summaries.values(), shown)
    cells = {}
    for label, summary in summaries.items():
        text = written(summary, shown)
        if summary is not None and shown.text(summary.mean) == best:
            text = f"**{text}**"
        text += mark(*tested[label], shown.better) if label in tested else ""
        fewer = summary is not None and summary.n < len(runs[label])
        cells[label] = f"{text} ({summary.n})" if fewer and summary else text
    return cells


def _best(summaries: Iterable[Summary | None], shown: Column) -> str | None:
    """The best mean as it is written, so that what reads the same is bold alike; None where there is no choice."""
    means = [summary.mean for summary in summaries if summary is not None and math.isfinite(summary.mean)]
    if not shown.better or len(means) < 2:
        return None
    return shown.text(max(means) if shown.better > 0 else min(means))


def mark(apart: Difference, p: float, better: int) -> str:
    """▲ for significantly better, ▼ for significantly worse, nothing else; with a space before it."""
    if not p < LEVEL or not apart.mean:
        return ""
    return f" {BETTER if apart.mean * better > 0 else WORSE}"


def differences(runs: Runs, control: str, figures: Mapping[str, str]) -> str:
    """A line for each label but the control: its mean difference to the control, 95 % interval and p after Holm."""
    lines = [_line(["objective", "pairs", *figures.values()]), "|---|--:|" + "--:|" * len(figures)]
    tested = {figure: against_control(runs, control, figure) for figure in figures}
    for label in runs:
        found = {figure: tested[figure][label] for figure in figures if label in tested[figure]}
        if found:
            pairs = str(max(apart.n for apart, _ in found.values()))
            cells = [said(*found[figure], column(figure)) if figure in found else DASH for figure in figures]
            lines.append(_line([label, pairs, *cells]))
    return "\n".join(lines)


def said(apart: Difference, p: float, shown: Column) -> str:
    """A difference, its interval and its p-value.

    >>> said(Difference(0.01, -0.002, 0.022, 0.04, 3), 0.08, column("accuracy"))
    '+1.00 [-0.20, +2.20], p = 0.080'
    """
    if math.isnan(p):
        return f"{shown.signed(apart.mean)} in every pair"
    return f"{shown.signed(apart.mean)} {bounds(apart, shown)}, p {p_value(p)}"


def bounds(apart: Difference, shown: Column) -> str:
    """The 95 % interval of a difference, a dash where there is none."""
    return DASH if math.isnan(apart.low) else f"[{shown.signed(apart.low)}, {shown.signed(apart.high)}]"


def p_value(p: float) -> str:
    """A p-value with its sign of relation.

    >>> p_value(0.0123), p_value(0.00004)
    ('= 0.012', '< 0.001')
    """
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def plain(rows: Sequence[Mapping[str, str]], words: int = 1) -> str:
    """A table of texts under the keys of its first row; all columns but the first `words` are of numbers."""
    header = list(rows[0])
    sides = "|" + "---|" * words + "--:|" * (len(header) - words)
    return "\n".join([_line(header), sides, *(_line(row.values()) for row in rows)])


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
