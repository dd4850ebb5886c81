"""The pictures of a report on representations, and the numbers behind each."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from .sections import Column, Drawing, Table, bounded

if TYPE_CHECKING:
    from .representation_result import RepresentationResult

_NUMBERS = "Numbers of the figure"
_NAME = Column("representation", "representation", "text")
_N = Column("n", "n", "count")


def drawings_of(result: RepresentationResult) -> Iterable[Drawing]:
    """Probes; and, where there are any, few labels, OOD detection, corruptions, reconstructions, samples."""
    accuracy = bounded("accuracy", "accuracy", "percent")
    if rows := result.of("probe"):
        columns = (_NAME, Column("probe", "probe", "text"), Column("k", "k", "count"), accuracy, _N)
        yield _drawing(
            "probes", "Accuracy of the probes with 95 % intervals.", result, Table(_NUMBERS, "", columns, rows)
        )
    if rows := result.of("few_labels"):
        columns = (
            _NAME,
            Column("labels_per_class", "labels a class", "count"),
            Column("accuracy", "mean accuracy", "percent"),
            Column("accuracy_std", "standard deviation", "percent"),
            _N,
        )
        caption = "The linear probe on few labels: mean accuracy over draws, bars of one standard deviation."
        yield _drawing("few-labels", caption, result, Table(_NUMBERS, "", columns, rows))
    if result.of("ood"):
        from .report_representation import ood_table

        caption = "AUROC of each score on each OOD set with 95 % intervals; 0.5 is chance."
        yield _drawing("ood", caption, result, ood_table(result))
    if rows := result.of("corruptions"):
        columns = (
            _NAME,
            Column("corruption", "corruption", "text"),
            Column("severity", "severity", "count"),
            accuracy,
            _N,
        )
        caption = "Accuracy of the linear probe over the severity of corruptions, the mean over all kinds."
        yield _drawing("corruptions", caption, result, Table(_NUMBERS, "", columns, rows))
    if result.pairs is not None:
        caption = "The first test images, not chosen, each above its reconstruction."
        yield _drawing("reconstructions", caption, result, _counted(result.pairs.shape[1]))
    if result.samples is not None:
        caption = "Samples of the model, the first ones, not chosen."
        yield _drawing("samples", caption, result, _counted(len(result.samples)))


def _counted(n: int) -> Table:
    return Table(_NUMBERS, "", (Column("images", "images", "count"),), ({"images": n},))


def _drawing(name: str, caption: str, result: RepresentationResult, numbers: Table) -> Drawing:
    return Drawing(f"representation-{name}", caption, partial(_drawn, name, result), lambda: numbers)


def _drawn(name: str, result: RepresentationResult) -> Any:
    from . import plots_representation

    return plots_representation.figure(name, result)
