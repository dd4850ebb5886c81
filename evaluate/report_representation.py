"""The report's part on representations: probes, few labels, OOD detection, corruptions, reconstruction."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from .formats import count, number, percent
from .report_representation_figures import drawings_of
from .report_representation_tables import (
    BITS,
    LIKELIHOOD,
    MSE,
    corruption_table,
    few_label_table,
    named,
    ood_table,
    probe_table,
    reconstruction_table,
    ridge_table,
)
from .sections import Card, Line, Section, bounded

if TYPE_CHECKING:
    from .representation_result import RepresentationResult
    from .results import SuiteResult

_TEXT = (
    "Features of a frozen encoder, measured by what simple predictors make of them: nothing of the encoder is trained "
    "here. Probes are fitted on the training set, and every figure is one of the test set."
)


def representation_section(result: RepresentationResult, suite: SuiteResult | None = None) -> Section:
    """Tables and pictures of all that was measured."""
    made = (probe_table, few_label_table, ridge_table, ood_table, corruption_table, reconstruction_table)
    tables = (build(result) for build in made)
    notes = dict.fromkeys([*result.notes, *((suite.context.get("notes") or ()) if suite else ())])
    return Section(
        "representation",
        "Representations",
        (_TEXT,),
        tuple(f"{note[0].upper()}{note[1:]}." for note in notes),
        tuple(table for table in tables if table.rows or table.means),
        tuple(drawings_of(result)),
        tuple(_lines(result)),
        _card(result),
    )


def _lines(result: RepresentationResult) -> Iterable[Line]:
    """The main figures: a line for each question and representation."""
    for name in result.about["representations"]:
        yield from _probe_lines(result, name)
    for row in result.of("ridge"):
        note = f"MAE {number(row['mae'])}, RMSE {number(row['rmse'])}, n={row['n']}"
        yield Line(f"R², {row['representation']}", number(row["r2"]), note)
    rows = named(result.of("ood"))
    for row in [row for row in rows if "n_sets" in row] or rows:  # of several sets the means
        note = f"{row['representation']}, n={row['n_id']} and {row['n_ood']}"
        yield Line(f"AUROC {row['score']}, {row['ood_set']}", bounded("auroc", "").cell(row).text, note)
    for row in result.of("corruptions"):
        if row["corruption"] == "mean" and row["severity"] is None:
            note = f"linear probe, mean of {row['cells']} cells, n={row['n']}"
            yield Line(f"corruptions, {row['representation']}", percent(row["accuracy"]), note)
    for row in result.of("reconstruction"):
        for column in (LIKELIHOOD, BITS, MSE):
            if row.get(column.key) is not None:
                yield Line(column.heading, column.cell(row).text, f"n={row['n']}")


def _probe_lines(result: RepresentationResult, name: str) -> Iterable[Line]:
    """The linear probe, kNN and few labels of one representation."""
    rows = result.of("probe", name)
    for row in rows[:1]:
        note = f"NLL {number(row['nll'])}, ECE {number(row['ece_15'])}, C={row['C']:g}, n={row['n']}"
        yield Line(f"linear probe, {name}", percent(row["accuracy"], row["accuracy_low"], row["accuracy_high"]), note)
        shown = ", ".join(f"{row['k']}: {percent(row['accuracy'])}" for row in rows[1:])
        yield Line(f"kNN by k, {name}", shown, f"cosine, n={row['n']}")
    few = result.of("few_labels", name)
    for row in few[:1]:
        shown = ", ".join(f"{row['labels_per_class']}: {percent(row['accuracy'])}" for row in few)
        yield Line(f"labels a class, {name}", shown, f"linear probe, means of {row['draws']} draws, n={row['n']}")


def _card(result: RepresentationResult) -> Card | None:
    """The best linear probe, named as such."""
    rows = [row for row in result.of("probe") if row["probe"] == "linear"]
    if not rows:
        return None
    row = max(rows, key=lambda row: float(row["accuracy"]))
    which = f"{row['representation']}, the best of {len(rows)}" if len(rows) > 1 else row["representation"]
    shown = f"95 % interval {100 * row['accuracy_low']:.2f} to {100 * row['accuracy_high']:.2f}, n = {count(row['n'])}"
    return Card("Linear probe", percent(row["accuracy"]), f"{which}; {shown}")
