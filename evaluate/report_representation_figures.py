"""The pictures of a report on representations, and the numbers behind each."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from .report_representation_tables import NAME, N, ood_table
from .sections import Column, Drawing, Table, bounded

if TYPE_CHECKING:
    from .representation_result import RepresentationResult

_NUMBERS = "Numbers of the figure"


def drawings_of(result: RepresentationResult) -> Iterable[Drawing]:
    """Probes; and, where there are any, few labels, OOD detection, corruptions, reconstructions, samples."""
    accuracy = bounded("accuracy", "accuracy", "percent")
    if rows := result.of("probe"):
        columns = (NAME, Column("probe", "probe", "text"), Column("k", "k", "count"), accuracy, N)
        caption = "Accuracy of the probes with 95 % Wilson intervals."
        yield _drawing("probes", caption, result, Table(_NUMBERS, "A row a point.", columns, rows))
    if rows := result.of("few_labels"):
        columns = (
            NAME,
            Column("labels_per_class", "labels a class", "count"),
            Column("accuracy", "mean accuracy", "percent"),
            Column("accuracy_std", "standard deviation", "percent"),
            N,
        )
        caption = "The linear probe on few labels: mean accuracy over draws, bars of one standard deviation."
        yield _drawing("few-labels", caption, result, Table(_NUMBERS, "A row a point.", columns, rows))
    if result.of("ood"):
        caption = "AUROC of each score on each OOD set with 95 % intervals; 0.5 is chance."
        yield _drawing("ood", caption, result, ood_table(result))
    if rows := result.of("corruptions"):
        columns = (
            NAME,
            Column("corruption", "corruption", "text"),
            Column("severity", "severity", "count"),
            accuracy,
            N,
        )
        caption = "Accuracy of the linear probe over the severity of corruptions, the mean over all kinds."
        yield _drawing("corruptions", caption, result, Table(_NUMBERS, "A row a point.", columns, rows))
    if result.pairs is not None:
        caption = "The first test images, not chosen, each above its reconstruction."
        errors = np.square(result.pairs[0] - result.pairs[1]).mean(axis=(1, 2, 3))
        yield _drawing("reconstructions", caption, result, _pictured("mean square error", errors))
    if result.samples is not None:
        caption = "Samples of the model, the first ones, not chosen."
        yield _drawing("samples", caption, result, _pictured("mean value", result.samples.mean(axis=(1, 2, 3))))


def _pictured(what: str, values: np.ndarray) -> Table:
    """A row an image, in the order of the figure."""
    columns = (Column("image", "image", "count"), Column("value", what, digits=5))
    rows = tuple({"image": i, "value": value} for i, value in enumerate(values.tolist(), 1))
    return Table(_NUMBERS, "Images in the order of the figure.", columns, rows)


def _drawing(name: str, caption: str, result: RepresentationResult, numbers: Table) -> Drawing:
    return Drawing(f"representation-{name}", caption, partial(_drawn, name, result), lambda: numbers)


def _drawn(name: str, result: RepresentationResult) -> Any:
    from . import plots_representation

    return plots_representation.figure(name, result)
