"""What an evaluation of samples found: rows of figures, and the pictures that go with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .generation_rows import SAMPLES, Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .sections import Section


@dataclass(frozen=True)
class Shown:
    """Some samples for a picture.

    Attributes:
        images: (K, C, H, W).
        rows: what is known of each: sample (its place), class (asked for), judged (class), distance (to the nearest
            training image), log_density; a key is missing where nothing is known.
        neighbours: (K, C, H, W), the nearest training images, where there are any.
    """

    images: np.ndarray = field(repr=False)
    rows: tuple[Row, ...]
    neighbours: np.ndarray | None = field(default=None, repr=False)


@dataclass(frozen=True)
class GenerationResult:
    """What a set of samples is worth, beside real images.

    Attributes:
        rows: wide rows, each with group, of ("samples", or "test" and "train" for real images) and n. By group:
            labels: class (None for all), label_agreement with its Wilson interval; judged_share for samples without
                labels.
            distances: features (whose), frechet_distance, kernel_distance with interval and _error, label_score, or
                fid, kid and inception_score; n_reference.
            neighbours: nearest_mean, nearest_median, share_nearer with its interval, mark, copies; n_reference.
            diversity: other_mean, near_duplicates with its interval.
            log_density: log_density_mean, _5, _50, _95 (percentiles), auroc with its interval; n_reference.
        about: sets (role, name, n, notes and digest of each), judge (its name), inception (its weight file).
        grid: the first samples of each class.
        closest: the samples that come closest to a training image, None without training images.
        log_densities: role -> float64 (N,).
        chains: steps, and images (T, M, C, H, W) of M chains at these steps.
    """

    rows: tuple[Row, ...]
    about: Mapping[str, Any]
    grid: Shown
    closest: Shown | None = None
    log_densities: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)
    chains: tuple[tuple[int, ...], np.ndarray] | None = field(default=None, repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Rows and what they are about, ready for JSON."""
        return {"about": dict(self.about), "rows": [dict(row) for row in self.rows]}

    def of(self, group: str, of: str = SAMPLES) -> tuple[Row, ...]:
        """The rows of a group that speak of some images."""
        return tuple(row for row in self.rows if (row["group"], row["of"]) == (group, of))

    @property
    def section(self) -> Section:
        """As a part of a report."""
        from .report_generation import generation_section

        return generation_section(self)

    def table(self) -> str:
        """The main figures as plain text for a terminal."""
        from .sections import lines_as_text

        return lines_as_text(self.section.lines)

    def plot(self) -> Figure:
        """Samples; and, where there are any, those closest to training images, log densities, chains."""
        from .plots_generation import generation_overview

        return generation_overview(self)
