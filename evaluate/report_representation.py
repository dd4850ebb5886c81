"""The report's part on representations: probes, few labels, OOD detection, corruptions, reconstruction."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from .formats import count, fixed, number, percent
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
from .representation_result import NO_CLASSES
from .sections import Card, Line, Section, bounded

if TYPE_CHECKING:
    from .representation_result import RepresentationResult
    from .results import SuiteResult

_TEXT = (
    "Features of a frozen encoder, measured by what simple predictors make of them: nothing of the encoder is trained "
    "here. Probes are fitted on the training set, and every figure is one of the test set."
)
_BASELINES = ("pixels", "counts")


def representation_section(result: RepresentationResult, suite: SuiteResult | None = None) -> Section:
    """Tables and pictures of all that was measured."""
    made = (probe_table, few_label_table, ridge_table, ood_table, corruption_table, reconstruction_table)
    tables = (build(result) for build in made)
    notes = dict.fromkeys([*result.notes, *((suite.context.get("notes") or ()) if suite else ())])
    plain = [NO_CLASSES] if NO_CLASSES in notes and result.of("ridge") else []  # as is usual where there are targets
    return Section(
        "representation",
        "Representations",
        (_TEXT, *map(_sentence, plain)),
        tuple(_sentence(note) for note in notes if note not in plain),
        tuple(table for table in tables if table.rows or table.means),
        tuple(drawings_of(result)),
        tuple(_lines(result)),
        _card(result),
    )


def _sentence(note: str) -> str:
    """With a capital where it starts with a plain word, not with the name of a figure."""
    word = note.partition(" ")[0]
    return f"{note[:1].upper() if word.isalpha() else note[:1]}{note[1:]}."


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
                kind = row["reconstruction" if column is MSE else "likelihood"]
                yield Line(column.heading, column.cell(row).text, f"{kind}, n={row['n']}")


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
        shown = ", ".join(fixed(100 * row["accuracy"], 2) for row in few) + " %"
        sizes = ", ".join(str(row["labels_per_class"]) for row in few)
        note = f"with {sizes} a class, linear probe, means of {row['draws']} draws, n={row['n']}"
        yield Line(f"few labels, {name}", shown, note)


def _card(result: RepresentationResult) -> Card | None:
    """The linear probe of the first representation, else its regression, beside that of a baseline."""
    rows = [row for row in result.of("probe") if row["probe"] == "linear"]
    name, key = ("Linear probe", "accuracy") if rows else ("R²", "r2")
    rows = rows or list(result.of("ridge"))
    if not rows:
        return None
    shown = percent if key == "accuracy" else number
    row, *others = rows
    parts = [row["representation"]]
    if key == "accuracy":
        parts.append(f"95 % interval {100 * row['accuracy_low']:.2f} to {100 * row['accuracy_high']:.2f}")
    parts.append(f"n = {count(row['n'])}")
    parts += [f"baseline {r['representation']} {shown(r[key])}" for r in others if r["representation"] in _BASELINES]
    return Card(name, shown(row[key]), "; ".join(parts))
