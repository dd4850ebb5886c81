"""Samples on disk: the images as arrays and as pictures, their figures as JSON and as a page, all or nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ebmhybrid.errors import EbmhybridError
from ebmhybrid.evaluate.files import check_folder, check_writable, dumps, replaced
from ebmhybrid.evaluate.results import package_versions
from ebmhybrid.generation.chains import Drawn
from ebmhybrid.generation.settings import Settings

if TYPE_CHECKING:
    from PIL.Image import Image

    from ebmhybrid.evaluate.generation import GenerationResult

SCHEMA_VERSION = "1"
COLUMNS, ROWS = 10, 10  # of the picture: more images than that are in the arrays alone
_GAP, _MARGIN = 2, 6  # pixels between two images, and around all


@dataclass(frozen=True, eq=False)
class SampleResult:
    """Samples of one model with their figures.

    Attributes:
        drawn: images, classes asked for, chains over time.
        labels: int64 (N,), the classes asked for, or where none were the ones that the model itself predicts.
        classes: names.
        settings: how they were drawn.
        figures: their quality.
        context: the model's name, the weights' hash, the recipe, the judge's name.
        notes: what a reader of the figures has to know.
    """

    drawn: Drawn = field(repr=False)
    labels: Tensor = field(repr=False)
    classes: tuple[str, ...]
    settings: Settings
    figures: GenerationResult = field(repr=False)
    context: Mapping[str, Any] = field(repr=False)
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> tuple[dict[str, Any], ...]:
        """The figures, as `evaluate_generation` gives them."""
        return tuple(self.figures.rows)

    def as_dict(self) -> dict[str, Any]:
        """Everything but the images, as `results.json` holds it."""
        return {
            "schema_version": SCHEMA_VERSION,
            "context": dict(self.context),
            "settings": asdict(self.settings) | {"num": len(self.drawn.images)},
            "labels": "predicted" if self.drawn.labels is None else "asked for",
            "class_counts": dict(zip(self.classes, self._counts(), strict=True)),
            "notes": list(self.notes),
            "versions": package_versions(),
            "generation": self.figures.as_dict(),
        }

    def lead(self) -> str:
        """How the samples came about, in sentences."""
        how, n = self.settings, len(self.drawn.images)
        climbed = "log p(x)" if self.drawn.labels is None else "log p(x, y) of a class each"
        begun = {"buffer": "the replay buffer", "uniform": "uniform noise", "gaussian": "a Gaussian a class"}
        drawn = (
            f"{n} samples: {how.steps} Langevin steps on {climbed}, step {how.step_size:g} and noise "
            f"{how.noise_std:g}, from {begun.get(how.start, how.start)}, seed {how.seed}."
        )
        _, real, *_ = self.figures.about["sets"]
        measured = f"Measured against {real['name']}, {real['n']} images."
        return " ".join([drawn, measured, *(f"{note[0].upper()}{note[1:]}." for note in self.notes)])

    def _counts(self) -> list[int]:
        counts: list[int] = torch.bincount(self.labels, minlength=len(self.classes)).tolist()
        return counts

    def save(self, folder: str | Path) -> Path:
        """Write samples.npz, samples.png, chains.png, results.json and report.html into a new or an empty folder.

        Raises:
            EbmhybridError: the folder holds anything or cannot be written.
        """
        from ebmhybrid.evaluate.report_generation import report_of_generation

        folder = Path(folder)
        check_empty(folder)
        with replaced(folder, "samples") as fresh:
            np.savez_compressed(fresh / "samples.npz", x=arrays(self.drawn.images), y=self.labels.numpy())
            grid(self.drawn.images, self.drawn.labels, self.classes).save(fresh / "samples.png")
            film(self.drawn, self.classes).save(fresh / "chains.png")
            (fresh / "results.json").write_text(dumps(self.as_dict()), encoding="utf-8")
            page = report_of_generation(self.figures, str(self.context["model"]), self.lead())
            (fresh / "report.html").write_text(page, encoding="utf-8")
        return folder


def check_empty(folder: Path) -> None:
    """Samples are never written over anything.

    Raises:
        EbmhybridError: a folder that is not empty or cannot be made, or something that is no folder.
    """
    folder = folder.absolute()
    check_folder(folder, "samples")
    check_writable(folder, "samples")
    if folder.exists() and any(folder.iterdir()):
        raise EbmhybridError(f"cannot write samples to {folder}: it is not empty; choose a new or an empty folder")


def arrays(images: Tensor) -> np.ndarray:
    """Images (N, C, H, W) in [0, 1] as uint8 (N, H, W) for C = 1 and (N, H, W, C) else, as npz:PATH reads them."""
    pixels = (255 * images).round().to(torch.uint8).permute(0, 2, 3, 1)
    return np.ascontiguousarray((pixels[..., 0] if pixels.shape[3] == 1 else pixels).numpy())


def grid(images: Tensor, labels: Tensor | None, classes: Sequence[str]) -> Image:
    """A picture of samples: rows of a class with its name where classes were asked for."""
    if labels is None:
        return tiles(images[: COLUMNS * ROWS].split(COLUMNS))
    rows: list[Tensor] = []
    names: list[str] = []
    asked = labels.unique()
    for label in asked.tolist():
        some = images[labels == label][: COLUMNS * max(1, ROWS // len(asked))].split(COLUMNS)
        rows += some
        names += [classes[label], *[""] * (len(some) - 1)]
    return tiles(rows, names)


def film(drawn: Drawn, classes: Sequence[str]) -> Image:
    """A picture of chains over time: a chain a row, the step numbers above."""
    names = None if drawn.labels is None else [classes[int(drawn.labels[i])] for i in drawn.watched]
    moments = ["step 0", *map(str, drawn.moments[1:])]
    return tiles(tuple(drawn.chains.transpose(0, 1)), names, moments)


def tiles(rows: Sequence[Tensor], left: Sequence[str] | None = None, top: Sequence[str] = ()) -> Image:
    """Rows of images (K, C, H, W), small ones enlarged by whole pixels, with words beside rows and above columns."""
    from PIL import Image as pictures
    from PIL import ImageDraw, ImageFont

    from ebmhybrid.evaluate.plots_generation import mosaic

    font = ImageFont.load_default()
    images = mosaic([row.numpy() for row in rows], gap=_GAP, between=(1.0, 1.0, 1.0))
    height, width, _ = images.shape
    step_x, step_y = (width + _GAP) // max(map(len, rows)), (height + _GAP) // len(rows)
    x0 = _MARGIN + (max(int(font.getlength(word)) for word in left) + _MARGIN if left else 0)
    y0 = _MARGIN + (16 if top else 0)
    picture = pictures.new("RGB", (x0 + width + _GAP + _MARGIN, y0 + height + _GAP + _MARGIN), "white")
    picture.paste(pictures.fromarray((255 * images).round().astype(np.uint8)), (x0, y0))
    drawing = ImageDraw.Draw(picture)
    for i, word in enumerate(left or ()):
        drawing.text((_MARGIN, y0 + i * step_y + (step_y - _GAP) // 2), word, "black", font, anchor="lm")
    for j, word in enumerate(top):
        drawing.text((x0 + j * step_x + (step_x - _GAP) // 2, y0 - 3), word, "black", font, anchor="ms")
    return picture
