"""The pictures of a report on samples, and the numbers behind each."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from .generation_rows import NAMES
from .sections import Column, Drawing, Table

if TYPE_CHECKING:
    from .generation_result import GenerationResult, Shown

_PICTURED = (
    Column("sample", "sample", "count"),
    Column("class", "class asked for", "text"),
    Column("judged", "judged as", "text"),
    Column("distance", "distance to the nearest training image", digits=3),
    Column("log_density", "log density", digits=3),
)


def drawings_of(generation: GenerationResult) -> Iterable[Drawing]:
    """Samples; and, where there are any, those closest to training images, chains, log densities."""
    asked = "class" in generation.grid.rows[0]
    caption = "The first samples of each class, not chosen." if asked else "The first samples, not chosen."
    yield _pictures("samples", caption, generation.grid, "samples_figure")
    if generation.closest is not None:
        caption = "The samples that come closest to a training image, each above that image: are they copies?"
        yield _pictures("samples-nearest", caption, generation.closest, "closest_figure")
    if generation.chains is not None:
        caption = "Some chains on their way, one a row; above each column the number of steps made."
        draw, numbers = partial(_drawn, "chains_figure", *generation.chains), partial(_chain_table, *generation.chains)
        yield Drawing("samples-chains", caption, draw, numbers)
    if generation.log_densities:
        caption = "The model's log density of samples and of data. Good samples cover the data's densities."
        draw = partial(_drawn, "density_figure", generation.log_densities)
        yield Drawing("samples-density", caption, draw, partial(_density_table, generation))


def _pictures(name: str, caption: str, shown: Shown, figure: str) -> Drawing:
    table = Table("Numbers of the figure", "What is known of each, in the order of the figure.", _PICTURED, shown.rows)
    return Drawing(name, caption, partial(_drawn, figure, shown), lambda: table)


def _drawn(figure: str, *arguments: Any) -> Any:
    from . import plots_generation

    return getattr(plots_generation, figure)(*arguments)


def _chain_table(steps: tuple[int, ...], images: np.ndarray) -> Table:
    """How far the chains move between the steps shown."""
    flat = images.reshape(len(images), images.shape[1], -1)
    moved = [None, *np.linalg.norm(flat[1:] - flat[:-1], axis=2).mean(axis=1).tolist()]
    rows = tuple({"step": step, "moved": far} for step, far in zip(steps, moved, strict=True))
    columns = (Column("step", "step", "count"), Column("moved", "mean distance from the image before", digits=3))
    return Table("Numbers of the figure", f"Over {images.shape[1]} chains.", columns, rows)


def _density_table(generation: GenerationResult) -> Table:
    from .plots_generation import density_edges

    edges = density_edges(generation.log_densities)
    counts = {of: np.histogram(values, edges)[0].tolist() for of, values in generation.log_densities.items()}
    rows = [
        {"low": low, "high": high} | {of: values[i] for of, values in counts.items()}
        for i, (low, high) in enumerate(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))
    ]
    columns = (
        Column("low", "log density from", digits=3),
        Column("high", "to", digits=3),
        *(Column(of, NAMES[of], "count") for of in counts),
    )
    kept = tuple(row for row in rows if any(row[of] for of in counts))
    return Table("Numbers of the figure", "Bins without an image are left out.", columns, kept)
