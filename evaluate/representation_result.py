"""What an evaluation of representations found: rows of figures, and the pictures that go with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .ood_compare import OODResult
    from .sections import Section

Row = dict[str, Any]
ONE_CLASS = "the training labels are of one class"
NO_CLASSES = f"no probes of classes: {ONE_CLASS}"


@dataclass(frozen=True)
class RepresentationResult:
    """What representations of the same sets are worth.

    Attributes:
        rows: wide rows, each with group, representation (its name; None for figures of the model itself), set and n.
            By group:
            probe: probe ("linear", "knn"), accuracy with its Wilson interval, n_train; of the linear probe nll,
                ece_15, C and dimension (of the features), of kNN k.
            few_labels: labels_per_class, accuracy (mean over draws), accuracy_std, draws, n_train.
            ridge: r2, mae, rmse, alpha, n_train.
            ood: ood_set, score ("knn", "mahalanobis", or "log_likelihood" of the model itself), and what
                :class:`ebmhybrid.evaluate.ood.OODResult` has.
            corruptions: corruption, severity and what :class:`ebmhybrid.evaluate.corruptions.CorruptionResult` has, of
                the linear probe.
            reconstruction: log_likelihood with its standard error `_error` and 95 % interval, bits_per_dimension, mse;
                likelihood and reconstruction are their kinds.
        about: sets (role, name, n, notes and digest of each), representations (name -> dimension), seed.
        notes: what a reader of the figures has to know.
        scores: scores of OOD detection, "<representation> <score>" on every set; None without OOD sets.
        pairs: (2, K, C, H, W), test images and their reconstructions.
        samples: (M, C, H, W), at most 100.
    """

    rows: tuple[Row, ...]
    about: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    scores: OODResult | None = field(default=None, repr=False)
    pairs: np.ndarray | None = field(default=None, repr=False)
    samples: np.ndarray | None = field(default=None, repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Rows, notes and what they are about, ready for JSON."""
        return {"about": dict(self.about), "notes": list(self.notes), "rows": [dict(row) for row in self.rows]}

    def of(self, group: str, representation: str | None = None) -> tuple[Row, ...]:
        """The rows of a group, or those of it that speak of one representation."""
        rows = (row for row in self.rows if row["group"] == group)
        return tuple(row for row in rows if representation in (None, row["representation"]))

    @property
    def section(self) -> Section:
        """As a part of a report."""
        from .report_representation import representation_section

        return representation_section(self)

    def table(self) -> str:
        """The main figures as plain text for a terminal."""
        from .sections import lines_as_text

        return lines_as_text(self.section.lines)

    def plot(self) -> Figure:
        """Probe accuracies; and, where there are any, few labels, OOD detection, reconstructions, samples."""
        from .plots_representation import representation_overview

        return representation_overview(self)
