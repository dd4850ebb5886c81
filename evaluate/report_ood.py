"""The report's section on OOD detection."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from .files import slugs
from .formats import count, interval, number, shortened
from .ood_compare import MACRO_MEAN
from .sections import Card, Column, Drawing, Line, Section, Table, bounded

if TYPE_CHECKING:
    from .results import SuiteResult

Row = Mapping[str, Any]
DRAWN = 5  # scores of which histograms and ROC curves are drawn: more are too many to tell apart
_MOST_BOUNDED = 4  # scores that the terminal shows with intervals
_LEVELS = (*(i / 20 for i in range(1, 20)), 0.99, 1.0)
_TEXT = (
    "Every score is higher for images like the training data. AUPR and FPR95 depend on which side counts as positive, "
    "so both are given. Sets are averaged, never pooled."
)
_COLUMNS = (
    Column("ood_set", "OOD set", "text"),
    Column("group", "group", "text"),
    Column("score", "score", "text"),
    bounded("auroc", "AUROC"),
    Column("aupr_in", "AUPR, ID positive"),
    Column("aupr_out", "AUPR, OOD positive"),
    bounded("fpr95_id_positive", "FPR95, ID positive"),
    bounded("fpr95_ood_positive", "FPR95, OOD positive"),
    Column("n_id", "n ID", "count"),
    Column("n_ood", "n OOD", "count"),
)


def is_mean(row: Row) -> bool:
    """Whether an OOD row is a mean over sets."""
    return "n_sets" in row


def ood_section(ood: Any, result: SuiteResult) -> Section:
    """All metrics a set and score, and figures of each set."""
    drawings: list[Drawing] = []
    for name, part in slugs(list(ood.ood_scores)).items():
        drawings += _drawings(ood, name, part)
    caption = (
        f"Against {ood.id_set} as in-distribution (ID). AUROC and AUPR: higher is better; FPR95: lower is better. In "
        "brackets 95 % bootstrap intervals."
    )
    rows = tuple(row for row in ood.rows if not is_mean(row))
    means = tuple(row for row in ood.rows if is_mean(row))
    drawn = () if len(ood.id_scores) <= DRAWN else (f"Of {len(ood.id_scores)} scores the first {DRAWN} are drawn.",)
    return Section(
        "ood",
        "OOD detection",
        (_TEXT, *drawn),
        tables=(Table("OOD detection", caption, _COLUMNS, rows, means),),
        drawings=tuple(drawings),
        lines=_lines(ood.rows),
        card=_card(ood),
    )


def _card(ood: Any) -> Card:
    """AUROC of the first score, the mean where there are several sets."""
    score, sets = next(iter(ood.id_scores)), list(ood.ood_scores)
    which = MACRO_MEAN if len(sets) > 1 else sets[0]
    row = next(row for row in ood.rows if (row["score"], row["ood_set"]) == (score, which))
    note = f"{score}, " + (f"mean of {len(sets)} sets" if len(sets) > 1 else f"on {sets[0]}")
    if row.get("auroc_low") is not None and row.get("auroc_high") is not None:
        note += f", 95 % interval {number(row['auroc_low'])} to {number(row['auroc_high'])}"
    note += f", n = {count(row['n_id'])} and {count(row['n_ood'])}"
    if len(ood.id_scores) > 1:
        note += f"; first of {len(ood.id_scores)} scores"
    return Card("OOD AUROC", number(row["auroc"]), note)


def _drawings(ood: Any, name: str, part: str) -> list[Drawing]:
    """The figures of one OOD set: a histogram for each of the first scores, their ROC curves, AUROC of all scores."""
    from_scores = list(ood.id_scores)[:DRAWN]
    names = (ood.id_set, name)
    pairs = {score: (ood.id_scores[score], ood.ood_scores[name][score]) for score in from_scores}
    found = [
        Drawing(
            f"scores-{part}-{score}",
            f"{name}: distribution of {score}.",
            partial(_draw_histogram, *pairs[score], score, names),
            partial(_histogram_table, *pairs[score]),
            name,
        )
        for score in from_scores
    ]
    caption = f"{name}: ROC curves, in-distribution as the positive class."
    found.append(Drawing(f"roc-{part}", caption, partial(_draw_roc, pairs, names), partial(_roc_table, pairs), name))
    if len(ood.id_scores) > DRAWN:
        rows = [row for row in ood.rows if row["ood_set"] == name]
        caption = f"{name}: AUROC of every score, with 95 % intervals."
        draw, table = partial(_draw_auroc, rows, names), partial(_auroc_table, rows)
        found.append(Drawing(f"auroc-{part}", caption, draw, table, name))
    return found


def _draw_histogram(inside: np.ndarray, outside: np.ndarray, score: str, names: tuple[str, str]) -> Any:
    from . import plots

    return plots.histogram_figure(inside, outside, score, names)


def _histogram_table(inside: np.ndarray, outside: np.ndarray) -> Table:
    from .plots import histogram_edges

    edges = histogram_edges(inside, outside)
    counts = [np.histogram(values[np.isfinite(values)], edges)[0].tolist() for values in (inside, outside)]
    keys = ("low", "high", "id", "ood")
    rows = tuple(
        dict(zip(keys, row, strict=True)) for row in zip(edges[:-1], edges[1:], *counts, strict=True) if any(row[2:])
    )
    columns = (
        Column("low", "score from"),
        Column("high", "to"),
        Column("id", "ID images", "count"),
        Column("ood", "OOD images", "count"),
    )
    return Table("Numbers of the figure", "Bins without an image are left out.", columns, rows)


def _draw_roc(pairs: Mapping[str, tuple[np.ndarray, np.ndarray]], names: tuple[str, str]) -> Any:
    from . import plots

    return plots.roc_figure(pairs, names)


def _roc_table(pairs: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Table:
    """What a threshold that accepts at least a share of ID accepts of OOD, a column a score."""
    shares = {score: accepted(*pair) for score, pair in pairs.items()}
    rows = tuple(
        {"level": level} | {score: values[i] for score, values in shares.items()} for i, level in enumerate(_LEVELS)
    )
    columns = (Column("level", "ID accepted", digits=2), *(Column(score, score) for score in pairs))
    caption = "Share of OOD images accepted by the highest threshold that accepts at least this share of ID images."
    return Table("Numbers of the figure", caption, columns, rows)


def accepted(inside: np.ndarray, outside: np.ndarray) -> list[float]:
    """The share of OOD at or above the threshold of each level."""
    falling = np.sort(inside)[::-1]
    places = np.ceil(np.array(_LEVELS) * len(falling) - 1e-9).astype(int) - 1  # 0.05 * 20 may exceed 1 by rounding
    thresholds = falling[places]
    return (1 - np.searchsorted(np.sort(outside), thresholds) / len(outside)).tolist()


def _draw_auroc(rows: list[Row], names: tuple[str, str]) -> Any:
    from .plots_points import points_figure

    values = [(row["auroc"], row.get("auroc_low"), row.get("auroc_high")) for row in rows]
    return points_figure([row["score"] for row in rows], {names[1]: values}, "AUROC", f"{names[0]} and {names[1]}")


def _auroc_table(rows: list[Row]) -> Table:
    columns = (Column("score", "score", "text"), bounded("auroc", "AUROC"))
    return Table("Numbers of the figure", "In brackets 95 % intervals.", columns, tuple(rows))


def _lines(rows: tuple[Row, ...]) -> tuple[Line, ...]:
    """AUROC of all scores a set, a few on each line; with intervals where that stays short."""
    of_set: dict[str, list[Row]] = {}
    for row in rows:
        of_set.setdefault(row["ood_set"], []).append(row)
    lines: list[Line] = []
    for name, some in of_set.items():
        few = len(some) <= _MOST_BOUNDED
        shown = [f"{row['score']} {_auroc(row) if few else number(row['auroc'])}" for row in some]
        chunk = 2 if few else DRAWN
        chunks = ["  ".join(shown[i : i + chunk]) for i in range(0, len(shown), chunk)]
        lines.append(Line(f"OOD AUROC {shortened(name)}", chunks[0], f"n={some[0]['n_id']} and {some[0]['n_ood']}"))
        lines += [Line("", more) for more in chunks[1:]]
    return tuple(lines)


def _auroc(row: Row) -> str:
    return interval(row["auroc"], row.get("auroc_low"), row.get("auroc_high"))
