"""What the report of one evaluation says, as sections: each part of the suite that ran, then data and recipe."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from .files import dumps
from .formats import count, percent
from .reference_rows import ReferenceTable, reference_tables
from .report_attacks import detector_section, refined_section, robustness_section, sanity_section
from .report_confidence import calibration_section, selective_section
from .report_corruptions import corruptions_section
from .report_generation import generation_section
from .report_ood import ood_section
from .report_representation import representation_section
from .sections import Card, Column, Line, Section, Table, bounded

if TYPE_CHECKING:
    from .results import SuiteResult

# A part of the suite and how it is told; a part that did not run is None and has no section.
_BUILDERS: dict[str, Callable[[Any, SuiteResult], Section]] = {
    "calibration": calibration_section,
    "selective": selective_section,
    "ood": ood_section,
    "corruptions": corruptions_section,
    "robustness": robustness_section,
    "sanity": sanity_section,
    "refined": refined_section,
    "detector_robustness": detector_section,
    "generation": generation_section,
    "representation": representation_section,
}
_NO_PUBLISHED = "No published figures are printed here: those at hand are for CIFAR-10 and CIFAR-100, and "


def sections_of(result: SuiteResult) -> tuple[Section, ...]:
    """All sections of an evaluation, in the order of the page."""
    parts = ((build, getattr(result, name, None)) for name, build in _BUILDERS.items())
    classifier = "accuracy" in result.accuracy.rows[0]  # else the row names the test set alone
    return (
        *([accuracy_section(result)] if classifier else []),
        *(build(part, result) for build, part in parts if part is not None),
        *([published_section([trained_on(result)])] if classifier else []),
        data_section(result.sets),
        recipe_section(result),
    )


def trained_on(result: SuiteResult) -> str:
    """The data set trained on, as the recipe says, else the test set's name."""
    return trained_on_data(result.context, result.accuracy.rows[0]["set"])


def trained_on_data(context: Mapping[str, Any], test_set: str) -> str:
    """:func:`trained_on` from the context of an evaluation.

    >>> trained_on_data({"config": {"data": {"train": "cifar10"}}}, "svhn"), trained_on_data({}, "digits/test")
    ('cifar10', 'digits/test')
    """
    config = context.get("config")
    data = config.get("data") if isinstance(config, Mapping) else None
    train = data.get("train") if isinstance(data, Mapping) else data
    return str(train or test_set)


def accuracy_section(result: SuiteResult) -> Section:
    """Accuracy, NLL and Brier score of the test set."""
    row = result.accuracy.rows[0]
    columns = (
        Column("set", "set", "text"),
        Column("n", "n", "count"),
        bounded("accuracy", "accuracy", "percent"),
        Column("nll", "NLL"),
        Column("brier", "Brier"),
    )
    caption = "Interval: Wilson, 95 %. NLL in nats, Brier score from 0 to 2; lower is better."
    spread = f"95 % interval {100 * row['accuracy_low']:.2f} to {100 * row['accuracy_high']:.2f}, n = {count(row['n'])}"
    shown = percent(row["accuracy"], row["accuracy_low"], row["accuracy_high"])
    return Section(
        "accuracy",
        "Accuracy",
        tables=(Table("Accuracy", caption, columns, tuple(result.accuracy.rows)),),
        lines=(Line("accuracy", shown, f"n={row['n']}"),),
        card=Card("Accuracy", percent(row["accuracy"]), spread),
    )


def published_section(trained: list[str]) -> Section:
    """The published figures for models trained on the same data, marked as such."""
    tables = {table: None for data in trained for table in reference_tables(data)}
    if tables:
        text = "Published figures, from other data splits and other training: no figure above is directly comparable."
    else:
        which = (
            f"this model was trained on {trained[0]}." if len(trained) == 1 else "no model here was trained on them."
        )
        text = _NO_PUBLISHED + which
    return Section("published", "Published figures", (text,), tables=tuple(_published(table) for table in tables))


def _published(reference: ReferenceTable) -> Table:
    columns = [Column("model", "model", "text"), *(Column(name, name, "given") for name in reference.columns)]
    rows = tuple(dict(zip(("model", *reference.columns), row, strict=True)) for row in reference.rows)
    caption = f"Published, {reference.section}: {reference.source}; trained on {reference.data}."
    return Table(f"Published figures: {reference.source}", caption, tuple(columns), rows)


def data_section(sets: tuple[Mapping[str, Any], ...]) -> Section:
    """The sets used, and what was done to their images."""
    columns = (
        Column("name", "set", "text"),
        Column("role", "role", "text"),
        Column("n", "n", "count"),
        Column("notes", "notes", "text", wrap=True),
        Column("digest", "digest", "text"),
    )
    rows = tuple(
        dict(row) | {"notes": "; ".join(row["notes"]), "digest": (row["digest"] or "")[:16] or None} for row in sets
    )
    return Section(
        "data",
        "Data",
        tables=(Table("Data sets", "Sets used, and what was done to their images.", columns, rows),),
    )


def recipe_section(result: SuiteResult) -> Section:
    """What the caller told about the model, the settings and the versions."""
    details = [("Recipe and model", dumps(result.context).strip())] if result.context else []
    details.append(("Settings of this evaluation", json.dumps(dict(result.settings), indent=2, default=str)))
    versions = ", ".join(f"{name} {version or 'not installed'}" for name, version in result.versions.items())
    nothing = () if result.context else ("Nothing was told about how the model was trained.",)
    return Section("recipe", "Recipe and versions", (*nothing, f"{versions}."), details=tuple(details))
